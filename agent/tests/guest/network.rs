//! The guest's network, with a pair of devices.

use bulkhead_proto::agent;
use tonic::Code;

use crate::{
    guest::{SharedGuest, client},
    host::{Host, all_capabilities, assert_refused, container, shell},
    namespaces,
};

const FIRST: &str = "02:00:00:00:00:01";
const SECOND: &str = "02:00:00:00:00:02";

/// A guest with two devices.
pub async fn start() -> SharedGuest {
    namespaces::start_with(&format!(
        "ip link add x0 address {FIRST} type veth peer name eth0 address {SECOND}; ip link set eth0 up"
    ))
    .await
}

pub async fn interfaces_routes_and_neighbours_are_set(guest: SharedGuest) {
    let mut control = client(&guest).await;
    let mut request = agent::ConfigureNetworkRequest {
        interfaces: vec![
            // Its name is another device's, which gets a new one.
            agent::Interface {
                device_mac: FIRST.to_owned(),
                name: "eth0".to_owned(),
                mac: "02:00:00:00:00:aa".to_owned(),
                mtu: 1400,
                addresses: vec!["10.1.0.7/24".to_owned(), "fd00::7/64".to_owned()],
            },
            agent::Interface {
                device_mac: SECOND.to_owned(),
                name: "eth1".to_owned(),
                mac: String::new(),
                mtu: 0,
                addresses: vec!["10.2.0.7/32".to_owned()],
            },
        ],
        routes: vec![
            route("0.0.0.0/0", "10.1.0.1", "eth0"),
            agent::Route {
                scope: 253,
                source: "10.2.0.7".to_owned(),
                ..route("10.9.0.0/16", "", "eth1")
            },
            agent::Route {
                onlink: true,
                metric: 77,
                mtu: 1300,
                ..route("10.8.0.5/16", "169.254.1.1", "eth1")
            },
            route("::/0", "fd00::1", "eth0"),
        ],
        neighbors: vec![agent::Neighbor {
            address: "10.1.0.1".to_owned(),
            mac: "02:00:00:00:00:99".to_owned(),
            interface: "eth0".to_owned(),
        }],
    };
    control.configure_network(request.clone()).await.unwrap();
    let host = Host::new(guest).await;
    let look = async |host: &Host| {
        host.sh("ip -o link show; ip -o addr show; ip route; ip -6 route; ip neigh")
            .await
            .ok()
    };
    let seen = look(&host).await;
    for part in [
        "lo: <LOOPBACK,UP,LOWER_UP>",
        "eth0@eth1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1400",
        "link/ether 02:00:00:00:00:aa",
        "eth1@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500",
        "inet 10.1.0.7/24 brd 10.1.0.255",
        "inet6 fd00::7/64 scope global",
        "inet 10.2.0.7/32",
        "default via 10.1.0.1 dev eth0",
        "10.9.0.0/16 dev eth1 scope link  src 10.2.0.7",
        "10.8.0.0/16 via 169.254.1.1 dev eth1 metric 77 onlink",
        "default via fd00::1 dev eth0",
        "10.1.0.1 dev eth0 lladdr 02:00:00:00:00:99",
    ] {
        assert!(
            squeezed(&seen).contains(&squeezed(part)),
            "{part:?} is not in\n{seen}"
        );
    }
    let global = seen.lines().find(|line| line.contains("fd00::7")).unwrap();
    assert!(!global.contains("tentative"), "{global}");

    // Again with less: what is not there any more goes, and the device is found by its old address.
    request.interfaces[0].addresses = vec!["10.1.0.8/24".to_owned()];
    request.routes.truncate(1);
    request.neighbors.clear();
    control.configure_network(request.clone()).await.unwrap();
    let seen = squeezed(&look(&host).await);
    assert!(seen.contains("inet 10.1.0.8/24"), "{seen}");
    for gone in ["10.1.0.7", "fd00::", "10.9.0.0", "10.8.0.0", "02:00:00:00:00:99"] {
        assert!(!seen.contains(gone), "{gone} is still there:\n{seen}");
    }
    let mut pinger = container("c1", shell("ping -c1 -W5 127.0.0.1 >/dev/null; echo $?"));
    pinger.process.as_mut().unwrap().capabilities = Some(all_capabilities());
    assert_eq!(host.run(pinger).await.stdout, "0\n");

    let mut refused = async |code, part: &str, change: &dyn Fn(&mut agent::ConfigureNetworkRequest)| {
        let mut request = request.clone();
        change(&mut request);
        assert_refused(control.configure_network(request).await, code, part);
    };
    refused(
        Code::InvalidArgument,
        "\"10.1.0.8\" is not an address with a prefix length",
        &|request| {
            request.interfaces[0].addresses[0] = "10.1.0.8".to_owned();
        },
    )
    .await;
    refused(
        Code::NotFound,
        "no network device with address 02:00:00:00:00:77",
        &|request| {
            request.interfaces[0].device_mac = "02:00:00:00:00:77".to_owned();
            request.interfaces[0].mac = String::new();
        },
    )
    .await;
    refused(
        Code::NotFound,
        "route to 0.0.0.0/0 names interface \"eth9\"",
        &|request| {
            request.routes[0].interface = "eth9".to_owned();
        },
    )
    .await;
    refused(
        Code::Internal,
        "cannot set the route to 0.0.0.0/0: Network is unreachable",
        &|request| {
            request.routes[0].gateway = "192.168.77.1".to_owned();
        },
    )
    .await;
}

/// A route without more than it needs.
pub fn route(destination: &str, gateway: &str, interface: &str) -> agent::Route {
    agent::Route {
        destination: destination.to_owned(),
        gateway: gateway.to_owned(),
        interface: interface.to_owned(),
        ..agent::Route::default()
    }
}

fn squeezed(text: &str) -> String {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}
