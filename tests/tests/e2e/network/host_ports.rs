//! Ports of the host that lead to pods, by CNI's portmap.

use std::{
    io::ErrorKind,
    net::{IpAddr, TcpStream, UdpSocket},
};

use bulkhead_tests::{Container, ContainerSpec, DEADLINE, Daemon, Pod, PodSpec, Probe, registry, until};
use serde_json::{Value, json};

use super::{curl, host, in_url, outside::Outside, wait_for_listener, web_server};

/// CRI's numbers of protocols.
const TCP: u8 = 0;
const UDP: u8 = 1;
const SCTP: u8 = 2;

const BY_SCTP: &str = "said-by-stream-control";

fn mapping(protocol: u8, container_port: u16, host_port: u16, host_ip: &str) -> Value {
    json!({ "protocol": protocol, "container_port": container_port, "host_port": host_port, "host_ip": host_ip })
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn ports_of_the_host_lead_to_their_pod_and_belong_to_it() {
    let daemon = Daemon::shared();
    let outside = Outside::new();
    let [v4, v6] = Outside::NODES;
    let mappings = json!([
        mapping(TCP, 80, 18_180, ""),
        mapping(TCP, 80, 18_181, v4),
        mapping(TCP, 80, 18_182, v6),
        mapping(UDP, 7, 18_183, ""),
        mapping(SCTP, 7, 18_184, ""),
    ]);
    let pod = daemon.run_pod(PodSpec::new("ports").with("/port_mappings", mappings));
    let _web = web_server(&pod, "found");
    let _echo = echo_server(&pod);
    by_tcp(&outside, [v4, v6]);
    by_udp();
    by_sctp();
    is_the_pods_alone(&daemon, &pod);
}

/// From the world beyond the node and from the node itself.
fn by_tcp(outside: &Outside, [v4, v6]: [&str; 2]) {
    let url = |address: &str, port: u16| format!("http://{}:{port}/", in_url(address.parse().unwrap()));
    for (address, port) in [(v4, 18_180), (v6, 18_180), (v4, 18_181), (v6, 18_182)] {
        assert_eq!(outside.curl(&url(address, port)), "found", "{address} {port}");
    }
    for address in ["127.0.0.1", "10.88.0.1", "fd88::1"] {
        assert_eq!(curl(&[], &url(address, 18_180)), "found", "{address}");
    }
    // Of one address of the host, and of that alone.
    for (address, port) in [
        (v6, 18_181),
        ("10.88.0.1", 18_181),
        (v4, 18_182),
        ("fd88::1", 18_182),
    ] {
        let address: IpAddr = address.parse().unwrap();
        let refused = TcpStream::connect_timeout(&(address, port).into(), DEADLINE);
        assert_eq!(
            refused.unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{address} {port}"
        );
    }
}

fn by_udp() {
    for (address, here) in [("10.88.0.1", "0.0.0.0:0"), ("fd88::1", "[::]:0")] {
        let socket = UdpSocket::bind(here).unwrap();
        socket.connect((address, 18_183)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(b"by datagram").unwrap();
        let mut got = [0; 64];
        let length = socket.recv(&mut got).unwrap();
        assert_eq!(&got[..length], b"by datagram", "{address}");
    }
}

fn by_sctp() {
    host("modprobe", &["sctp"]);
    for address in ["10.88.0.1", "[fd88::1]"] {
        let said = host("socat", &["-u", &format!("SCTP:{address}:18184"), "-"]);
        assert_eq!(said.trim(), BY_SCTP, "{address}");
    }
}

/// No other pod gets them while it has them, and then nothing of them is left.
fn is_the_pods_alone(daemon: &Daemon, pod: &Pod<'_>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("second.json");
    let second = PodSpec::new("second").with("/port_mappings", json!([mapping(TCP, 80, 18_180, "")]));
    std::fs::write(&file, second.json()).unwrap();
    let file = file.to_str().unwrap();
    let said = daemon.crictl().fails(["runp", file]);
    for word in ["FailedPrecondition", "18180/tcp", pod.id()] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    pod.remove();
    let rules = host("iptables-save", &[]) + &host("ip6tables-save", &[]);
    assert!(!rules.contains(pod.id()) && !rules.contains("18180"), "{rules}");
    let second = daemon.run_pod(second);
    let _server = web_server(&second, "another-behind-it");
    assert_eq!(curl(&[], "http://127.0.0.1:18180/"), "another-behind-it");
}

/// A container that sends back what comes to its port 7 by UDP, and has something to say to whoever comes by SCTP.
pub(super) fn echo_server<'p>(pod: &'p Pod<'_>) -> Container<'p> {
    let registry = registry::Registry::start();
    let mut image = registry::Image::of_the_node("busybox:latest");
    let (tools, probe) = Probe::layer_with(&["socat"]);
    image.layers.push(registry::Layer::plain(&tools.finish()));
    let reference = registry.push("echo:latest", &image);
    let socat = probe.tool("socat").join(" ");
    // The largest datagram of all as one; a pipe holds 64 KiB.
    let script = format!(
        "{socat} -b 65536 UDP6-RECVFROM:7,fork,ipv6only=0 PIPE & \
         {socat} -U SCTP6-LISTEN:7,fork,ipv6only=0 'EXEC:echo {BY_SCTP}' & wait"
    );
    let container = pod.run(ContainerSpec::of(&reference).command(&["sh", "-c", &script]));
    wait_for_listener(&container, "udp", 7);
    until("SCTP port 7 to be listened on", || {
        let endpoints = container.sh("cat /proc/net/sctp/eps");
        if endpoints.lines().count() > 1 {
            Ok(())
        } else {
            Err(endpoints)
        }
    });
    container
}
