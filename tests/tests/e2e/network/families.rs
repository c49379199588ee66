//! Networks of one family: IPv4 alone, IPv6 alone.

use std::{net::IpAddr, thread};

use bulkhead_tests::{ContainerSpec, Daemon, PodSpec};
use serde_json::json;

use super::{all_addresses, curl, host, in_url, private::PrivateNetwork, web_server};

#[test]
#[ignore = "runs in the node: hack/test"]
fn on_a_network_of_one_family_pods_have_that_family_and_reach_each_other() {
    let network = PrivateNetwork::new();
    network.configure(&json!([
        network.bridge(&[PrivateNetwork::range(&network.v4("0/24"))])
    ]));
    let daemon = Daemon::private(network.options());
    a_pair(&daemon, "v4", IpAddr::is_ipv4);

    // The daemon sees it by itself.
    let other = PrivateNetwork::new();
    let ranges = [PrivateNetwork::range(&other.v6("/64"))];
    other.take_the_place_of(&network, &daemon, &json!([other.bridge(&ranges)]));
    a_pair(&daemon, "v6", IpAddr::is_ipv6);
    assert_eq!(network.held(), Vec::<String>::new());
    assert_eq!(other.held(), Vec::<String>::new());
}

/// Two pods, one of which visits the other.
fn a_pair(daemon: &Daemon, name: &str, is_of_the_family: impl Fn(&IpAddr) -> bool) {
    let (server, client) = thread::scope(|scope| {
        let server = scope.spawn(|| daemon.run_pod(PodSpec::new(&format!("{name}-server"))));
        let client = daemon.run_pod(PodSpec::new(&format!("{name}-client")));
        (server.join().expect("a pod"), client)
    });
    for pod in [&server, &client] {
        let all = all_addresses(pod);
        assert!(
            all.len() == 1 && all.iter().all(&is_of_the_family),
            "{name}: {all:?}"
        );
    }
    let address = all_addresses(&server)[0];
    let answering = web_server(&server, name);
    let visitor = client.run(ContainerSpec::idle());
    let url = format!("http://{}/", in_url(address));
    assert_eq!(visitor.sh(&format!("wget -q -O - '{url}'")), name);
    assert_eq!(curl(&[], &url), name);
    host("ping", &["-c", "1", "-W", "60", &address.to_string()]);
    // What the network does not give, the guest does not make up.
    let shown = answering.sh("ip -o address show dev eth0 | grep -v 'scope link' | grep -c inet");
    assert_eq!(shown, "1");
    let routes = answering.sh("ip route; ip -6 route");
    let defaults = routes.lines().filter(|line| line.starts_with("default"));
    assert_eq!(defaults.count(), 1, "{routes}");
}
