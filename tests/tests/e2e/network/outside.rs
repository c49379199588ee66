//! The world beyond the node: a network namespace that is reached by a wire and knows no route to pods.

use std::{fs::File, net::TcpListener, os::fd::AsFd, path::PathBuf, process::Command, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{curl, host};

/// There is one at a time on a node; gone when it is dropped.
#[derive(Debug)]
pub(super) struct Outside {
    namespace: PathBuf,
    _alone: std::sync::MutexGuard<'static, ()>,
}

const NAME: &str = "outside";
/// The node's end of the wire.
const WIRE: &str = "wire-out";

static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Outside {
    /// Its own addresses, IPv4 and IPv6 (RFC 5737 and 3849).
    pub(super) const ADDRESSES: [&'static str; 2] = ["192.0.2.2", "2001:db8::2"];
    /// The node's addresses on the wire.
    pub(super) const NODES: [&'static str; 2] = ["192.0.2.1", "2001:db8::1"];

    pub(super) fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        remove();
        let outside = Self {
            namespace: format!("/run/netns/{NAME}").into(),
            _alone: alone,
        };
        let ip = |arguments: &str| host("ip", &arguments.split(' ').collect::<Vec<_>>());
        ip(&format!("netns add {NAME}"));
        ip(&format!("link add {WIRE} type veth peer name eth0 netns {NAME}"));
        for ([node, theirs], length) in [
            [Self::NODES[0], Self::ADDRESSES[0]],
            [Self::NODES[1], Self::ADDRESSES[1]],
        ]
        .into_iter()
        .zip(["24", "64 nodad"])
        {
            ip(&format!("address add {node}/{length} dev {WIRE}"));
            ip(&format!("-n {NAME} address add {theirs}/{length} dev eth0"));
        }
        ip(&format!("link set {WIRE} up"));
        ip(&format!("-n {NAME} link set eth0 up"));
        outside
    }

    /// What `curl` gets there for `url`.
    #[track_caller]
    pub(super) fn curl(&self, url: &str) -> String {
        let namespace = self.namespace.to_str().expect("a path in UTF-8");
        curl(&["nsenter", &format!("--net={namespace}")], url)
    }

    /// A listener there, on any port of one of its addresses.
    pub(super) fn listen(&self, address: &str) -> TcpListener {
        let namespace = File::open(&self.namespace).expect("the namespace is there");
        let address = (address.parse::<std::net::IpAddr>().expect("an address"), 0);
        // A namespace is a thread's, and a socket's for good.
        let listening = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace can be entered");
            TcpListener::bind(address).expect("an address of the namespace")
        });
        listening.join().expect("a listener")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    for arguments in [["link", "delete", WIRE], ["netns", "delete", NAME]] {
        let _ = Command::new("ip").args(arguments).output();
    }
}
