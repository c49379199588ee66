//! Who reaches whom: pods, their host, and what is beyond it; by address and by name.

use std::{
    io::Write,
    net::{IpAddr, TcpListener},
    thread,
};

use bulkhead_tests::{Container, ContainerSpec, Daemon, PodSpec};
use serde_json::json;

use super::{addresses, curl, host, in_url, names::NameServer, outside::Outside, web_server};

/// The node's own addresses on the network of its daemon.
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];

#[test]
#[ignore = "runs in the node: hack/test"]
fn pods_their_host_and_the_world_reach_each_other_by_address_and_by_name() {
    let daemon = Daemon::shared();
    let dns = json!({ "servers": GATEWAYS, "searches": ["pods.test"], "options": ["ndots:2"] });
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| daemon.run_pod(PodSpec::new("server")));
        let second = daemon.run_pod(PodSpec::new("client").with("/dns_config", dns));
        (first.join().expect("a pod"), second)
    });
    let _server = web_server(&first, "hello-from-a-pod");
    let client = second.run(ContainerSpec::idle());
    let (server, own) = (addresses(&first), addresses(&second));
    by_address(&client, server, own);
    by_name(&client, server, own);
    out_through_masquerade(&client);
}

fn by_address(client: &Container<'_>, server: [IpAddr; 2], own: [IpAddr; 2]) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (address, gateway) in server.into_iter().zip(GATEWAYS) {
        let url = format!("http://{}/", in_url(address));
        assert_eq!(client.sh(&format!("wget -q -O - '{url}'")), "hello-from-a-pod");
        assert_eq!(curl(&[], &url), "hello-from-a-pod");
        host("ping", &["-c", "1", "-W", "60", &address.to_string()]);
        // And from a pod to its host.
        let answering = listener.try_clone().unwrap();
        let answer = thread::spawn(move || answer(&answering, b"hello from the host"));
        let got = client.sh(&format!("nc -w 60 {gateway} {port} < /dev/null"));
        assert_eq!(got, "hello from the host");
        let seen = answer.join().unwrap();
        assert!(own.contains(&seen), "the host saw {seen}");
    }
}

/// The pod's resolver asks the servers of its DNS configuration, and finds the other pod.
fn by_name(client: &Container<'_>, server: [IpAddr; 2], own: [IpAddr; 2]) {
    let resolv_conf = client.sh("cat /etc/resolv.conf");
    for line in [
        "nameserver 10.88.0.1",
        "nameserver fd88::1",
        "search pods.test",
        "options ndots:2",
    ] {
        assert!(resolv_conf.lines().any(|own| own == line), "{resolv_conf}");
    }
    for (gateway, own) in GATEWAYS.into_iter().zip(own) {
        let names = NameServer::start(
            gateway.parse().unwrap(),
            &[("web4.pods.test", server[0]), ("web6.pods.test", server[1])],
        );
        for name in ["web4", "web6.pods.test"] {
            // The one server that does not run now refuses the question, and the resolver goes on to the other.
            assert_eq!(
                client.sh(&format!("wget -q -O - http://{name}/")),
                "hello-from-a-pod",
                "{name} asked of {gateway}"
            );
        }
        let absent = client.exec(&["wget", "-q", "-O", "-", "http://nobody/"]);
        assert!(
            absent.code != 0 && absent.error_text().contains("bad address"),
            "{absent:?}"
        );
        let asked = names.stop();
        for name in ["web4.pods.test", "web6.pods.test", "nobody.pods.test"] {
            assert!(asked.contains(&(name.to_owned(), own)), "{asked:?}");
        }
    }
}

/// The world beyond the node knows nothing of the pods' addresses, and sees the node's.
fn out_through_masquerade(client: &Container<'_>) {
    let outside = Outside::new();
    for (theirs, nodes) in Outside::ADDRESSES.into_iter().zip(Outside::NODES) {
        let listener = outside.listen(theirs);
        let port = listener.local_addr().unwrap().port();
        let answer = thread::spawn(move || answer(&listener, b"hello from outside"));
        let got = client.sh(&format!("nc -w 60 {theirs} {port} < /dev/null"));
        assert_eq!(got, "hello from outside");
        assert_eq!(answer.join().unwrap().to_string(), nodes);
    }
}

/// Answers one connection; who it came from.
fn answer(listener: &TcpListener, text: &[u8]) -> IpAddr {
    let (mut connection, peer) = listener.accept().unwrap();
    connection.write_all(text).unwrap();
    peer.ip().to_canonical()
}
