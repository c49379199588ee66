//! Connections from the host to ports of the pod: the host's bytes to a TCP connection on loopback, and back.
//!
//! Each direction has one part of [`PART_BYTES`](super::connection::PART_BYTES) on its way and reads no further until that is sent, so a side that takes
//! nothing holds up the other and nobody else.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, SocketFlags, SocketType,
        connect, ipproto, socket_with, sockopt,
    },
};
use tokio::{
    io::Interest,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use super::connection::Connection;
use crate::sys::reactor;

/// Most connections to ports at once.
pub const CONNECTIONS: usize = 512;

/// How long a port may take to accept. On loopback that is at once, unless packets to it are dropped.
const CONNECTING: Duration = Duration::from_secs(10);

/// Between two looks at a host that has nothing more to send.
const LOOK: Duration = Duration::from_secs(1);

/// The ports of the pod.
#[derive(Clone, Debug)]
pub struct Ports {
    free: std::sync::Arc<Semaphore>,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            free: std::sync::Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

/// A connection to a port, and its place among all of them.
#[derive(Debug)]
pub struct PortConnection {
    connection: Connection,
    _place: OwnedSemaphorePermit,
}

impl Ports {
    /// Connects to `port` on the pod's loopback, by IPv4 or else by IPv6. Says in words why that cannot be.
    pub async fn connect(&self, port: u32) -> Result<PortConnection, String> {
        let Some(number) = u16::try_from(port).ok().filter(|port| *port != 0) else {
            return Err(format!("{port} is no port; those go from 1 to 65535"));
        };
        let Ok(place) = self.free.clone().try_acquire_owned() else {
            return Err(format!(
                "{CONNECTIONS} connections to ports of the pod are open already"
            ));
        };
        let mut refusals = Vec::new();
        for address in [
            SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, number)),
            SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, number, 0, 0)),
        ] {
            match timeout(CONNECTING, dial(&address)).await {
                Ok(Ok(connection)) => {
                    return Ok(PortConnection {
                        connection,
                        _place: place,
                    });
                }
                Ok(Err(error)) => refusals.push(format!("{address}: {error}")),
                Err(_) => refusals.push(format!("{address}: no answer within {} s", CONNECTING.as_secs())),
            }
        }
        Err(format!("cannot connect to {}", refusals.join(" or ")))
    }
}

async fn dial(address: &SocketAddr) -> io::Result<Connection> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => return Connection::new(connected(socket).await?),
        Err(error) => return Err(error.into()),
    }
    Connection::new(socket)
}

/// Waits until a connection stands or is refused.
async fn connected(socket: OwnedFd) -> io::Result<OwnedFd> {
    let socket = reactor::register(socket)?;
    let _ready = socket.ready(Interest::WRITABLE).await?;
    match sockopt::socket_error(&socket)? {
        Ok(()) => Ok(socket.into_inner()),
        Err(error) => Err(error.into()),
    }
}

/// Moves bytes between the host and a port until both have ended, or one of them is broken or gone. `early` came from the
/// host already.
pub async fn join(host: Connection, port: PortConnection, early: Vec<u8>) {
    let port = &port.connection;
    let inward = async {
        port.send_all(&early).await?;
        flow(&host, port).await?;
        port.shut_down_sending();
        io::Result::Ok(())
    };
    let outward = async {
        flow(port, &host).await?;
        host.shut_down_sending();
        io::Result::Ok(())
    };
    tokio::pin!(inward, outward);
    let (mut inward_ended, mut outward_ended) = (false, false);
    while !(inward_ended && outward_ended) {
        let broken = tokio::select! {
            flowed = &mut inward, if !inward_ended => {
                inward_ended = true;
                flowed.is_err()
            }
            flowed = &mut outward, if !outward_ended => {
                outward_ended = true;
                flowed.is_err()
            }
            // A host that has ended its sending may have left altogether.
            () = gone(&host), if inward_ended => true,
        };
        if broken {
            return;
        }
    }
}

/// Waits until the host has left. Its connection is looked at now and then: the event loop tells nothing new of one whose
/// receiving side has ended.
async fn gone(host: &Connection) {
    while !host.is_gone() {
        sleep(LOOK).await;
    }
}

/// Moves bytes until the sender's end.
async fn flow(from: &Connection, to: &Connection) -> io::Result<()> {
    loop {
        let part = from.receive_part().await?;
        if part.is_empty() {
            return Ok(());
        }
        to.send_all(&part).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        os::unix::net::UnixStream,
        thread,
    };

    use super::*;

    /// A host that is connected to `port` by the agent.
    async fn host_at(ports: &Ports, port: u16) -> UnixStream {
        let (host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let connection = ports.connect(port.into()).await.unwrap();
        let host_side = Connection::new(ours.into()).unwrap();
        tokio::spawn(join(host_side, connection, b"early ".to_vec()));
        host
    }

    fn listen(address: &str, serve: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || serve(listener.accept().unwrap().0));
        port
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn each_side_ends_its_own_sending_by_either_family() {
        for address in ["127.0.0.1", "::1"] {
            let port = listen(address, |mut stream| {
                let mut asked = String::new();
                stream.read_to_string(&mut asked).unwrap();
                stream.write_all(format!("heard {asked}").as_bytes()).unwrap();
            });
            let mut host = host_at(&Ports::default(), port).await;
            let answer = blocking(move || {
                host.write_all(b"question").unwrap();
                host.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                host.read_to_string(&mut answer).unwrap();
                answer
            });
            assert_eq!(answer.await, "heard early question", "{address}");
        }
    }

    #[tokio::test]
    async fn a_pod_that_speaks_first_and_stops_can_still_be_spoken_to() {
        let (told, heard) = std::sync::mpsc::channel();
        let port = listen("127.0.0.1", move |mut stream| {
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            told.send(rest).unwrap();
        });
        let mut host = host_at(&Ports::default(), port).await;
        let rest = blocking(move || {
            let mut greeting = String::new();
            host.read_to_string(&mut greeting).unwrap();
            assert_eq!(greeting, "hello");
            host.write_all(b"goodbye").unwrap();
            drop(host);
            heard.recv().unwrap()
        });
        assert_eq!(rest.await, "early goodbye");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_here_is_closed_there() {
        let port = listen("127.0.0.1", |mut stream| {
            let mut one = [0];
            stream.read_exact(&mut one).unwrap();
            // Closed with something unread: reset.
        });
        let mut host = host_at(&Ports::default(), port).await;
        blocking(move || {
            let mut rest = Vec::new();
            let _end_or_reset = host.read_to_end(&mut rest);
            assert!(rest.is_empty());
        })
        .await;

        let (told, heard) = std::sync::mpsc::channel();
        let port = listen("127.0.0.1", move |mut stream| {
            let mut rest = Vec::new();
            let _end_or_reset = stream.read_to_end(&mut rest);
            // Nobody listens any more: sooner or later the connection is known to be broken.
            while stream.write_all(b"anybody?").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
            told.send(()).unwrap();
        });
        drop(host_at(&Ports::default(), port).await);
        blocking(move || heard.recv_timeout(Duration::from_secs(20)).unwrap()).await;
    }

    #[tokio::test]
    async fn what_cannot_be_connected_is_told_in_words() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listener.local_addr().unwrap().port();
        drop(listener);
        let ports = Ports::default();
        let refusal = ports.connect(closed.into()).await.unwrap_err();
        assert!(refusal.contains(&format!("127.0.0.1:{closed}")), "{refusal}");
        assert!(refusal.contains(&format!("[::1]:{closed}")), "{refusal}");
        assert!(refusal.contains("refused"), "{refusal}");
        for port in [0, 65536] {
            assert!(ports.connect(port).await.unwrap_err().contains("no port"));
        }
        let all = ports
            .free
            .clone()
            .try_acquire_many_owned(u32::try_from(CONNECTIONS).unwrap());
        assert!(ports.connect(80).await.unwrap_err().contains("open already"));
        drop(all);
        assert!(
            ports
                .connect(closed.into())
                .await
                .unwrap_err()
                .contains("refused")
        );
    }
}
