//! A guest in a virtual machine of bulkhead-vmm.

use std::{
    env, fs,
    future::Future,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bulkhead_proto::agent::{DOORBELL_PORT, HelloResponse, wire};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    process::{Child, Command},
    sync::Mutex,
};

use crate::{
    disk,
    guest::{Guest, SharedGuest},
};

/// How long a machine may take to boot or to end.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Debug)]
pub struct Machine {
    hello: HelloResponse,
    configured: AtomicBool,
    process: Mutex<Child>,
    directory: TempDir,
}

/// Boots one and waits until the agent is there.
pub async fn start() -> SharedGuest {
    start_with("console=hvc0", json!([])).await
}

/// Boots one with a network interface of hardware address `mac` on `tap`.
pub async fn start_on_tap(tap: OwnedFd, mac: &str) -> SharedGuest {
    // Inherited by the VMM under the same number.
    fcntl_setfd(&tap, FdFlags::empty()).unwrap();
    let nets = json!([{"taps": [tap.as_raw_fd()], "mac": mac, "mtu": 1500}]);
    start_with("console=hvc0", nets).await
}

/// Boots one whose kernel has no console, so that the agent is started without descriptors 0 to 2.
pub async fn start_without_console() -> SharedGuest {
    start_with("quiet", json!([])).await
}

async fn start_with(cmdline: &str, nets: Value) -> SharedGuest {
    let (mut process, directory) = boot(cmdline, nets).await;
    let doorbell = listen(&directory.path().join("vsock"), &mut process).await;
    let rung = tokio::time::timeout(PATIENCE, receive_hello(&doorbell)).await;
    let Ok(hello) = rung else {
        panic!(
            "the agent does not ring the doorbell; the guest's console:\n{}",
            console(&directory)
        );
    };
    Arc::new(Machine {
        hello,
        configured: AtomicBool::new(false),
        process: Mutex::new(process),
        directory,
    })
}

/// Boots one whose agent does not get as far as to serve. Gives how the machine ended, and its console.
pub async fn boot_to_its_end(cmdline: &str) -> (std::process::ExitStatus, String) {
    let (mut process, directory) = boot(cmdline, json!([])).await;
    let ended = tokio::time::timeout(PATIENCE, process.wait()).await;
    let console = console(&directory);
    let Ok(status) = ended else {
        panic!("the machine does not end:\n{console}");
    };
    (status.unwrap(), console)
}

async fn boot(cmdline: &str, nets: Value) -> (Child, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    disk::scratch(&path("scratch.disk"));
    let guest = required("BULKHEAD_GUEST_DIR");
    let disk = |serial: &str, access: &str, file: &Path| {
        let segments = [json!({"file": {"path": file}})];
        json!({"serial": serial, "access": access, "segments": segments})
    };
    let config = json!({
        "name": "agent-test",
        "vcpus": 1,
        "memory_mib": 256,
        "kernel": {"path": guest.join("vmlinux")},
        "initramfs": {"path": guest.join("initramfs")},
        "cmdline": cmdline,
        "disks": [
            disk("scratch", "read_write", &path("scratch.disk")),
            disk("image", "read_only", &disk::image().path),
        ],
        "nets": nets,
        "vsock": {"cid": 3, "socket": {"path": path("vsock")}},
        "console": {"file": {"path": path("console")}, "max_bytes": 1 << 20},
        "exit_report": {"path": path("exit")},
    });
    let mut process = Command::new(required("BULKHEAD_BIN_DIR").join("bulkhead-vmm"))
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("bulkhead-vmm in BULKHEAD_BIN_DIR");
    let mut input = process.stdin.take().unwrap();
    input.write_all(config.to_string().as_bytes()).await.unwrap();
    drop(input);
    (process, directory)
}

fn console(directory: &TempDir) -> String {
    let bytes = fs::read(directory.path().join("console")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn required(variable: &str) -> PathBuf {
    env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set; these tests run in the node with KVM"))
        .into()
}

/// Asks the VMM for the guest's connections to the doorbell, as soon as its socket is there.
async fn listen(socket: &Path, process: &mut Child) -> UnixStream {
    let mut client = loop {
        if let Ok(client) = UnixStream::connect(socket).await {
            break client;
        }
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "bulkhead-vmm ended: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    ask(&mut client, &format!("LISTEN {DOORBELL_PORT}"))
        .await
        .unwrap();
    client
}

async fn ask(client: &mut UnixStream, line: &str) -> io::Result<()> {
    client.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        answer.push(client.read_u8().await?);
    }
    if answer.starts_with(b"OK ") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
}

async fn receive_hello(doorbell: &UnixStream) -> HelloResponse {
    let ring = doorbell
        .async_io(Interest::READABLE, || Ok(receive_descriptor(doorbell)?))
        .await
        .unwrap();
    let ring = std::os::unix::net::UnixStream::from(ring);
    ring.set_nonblocking(true).unwrap();
    let mut ring = UnixStream::from_std(ring).unwrap();
    let mut bytes = Vec::new();
    ring.read_to_end(&mut bytes).await.unwrap();
    wire::decode(&bytes).unwrap().unwrap().0
}

fn receive_descriptor(socket: &UnixStream) -> Result<OwnedFd, rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next().unwrap());
        }
    }
    panic!("the VMM closed its side");
}

impl Guest for Machine {
    fn connect(&self, port: u32) -> Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send>> {
        let socket = self.directory.path().join("vsock");
        Box::pin(async move {
            let mut client = UnixStream::connect(socket).await?;
            ask(&mut client, &format!("CONNECT {port}")).await?;
            Ok(client)
        })
    }

    fn hello(&self) -> HelloResponse {
        self.hello.clone()
    }

    fn ended(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async { self.process.lock().await.wait().await.unwrap().success() })
    }

    fn log(&self) -> String {
        console(&self.directory)
    }

    fn is_machine(&self) -> bool {
        true
    }

    fn is_to_be_configured(&self) -> bool {
        !self.configured.swap(true, Ordering::Relaxed)
    }
}
