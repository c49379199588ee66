//! Tests in namespaces: what is joined carries frames, and what is read is what is there.

use std::{
    fs::File,
    io::{Read, Write},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::*;

/// A namespace for one test.
struct Namespace {
    directory: tempfile::TempDir,
}

impl Namespace {
    /// Makes one and sets it up, one ip(8) command a line. Nothing: it may not.
    fn new(setup: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a network namespace takes the rights of root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let namespace = Self { directory };
        namespace::create(&namespace.path()).unwrap();
        for line in setup.lines().map(str::trim).filter(|line| !line.is_empty()) {
            assert!(namespace.ip(line), "ip {line}");
        }
        Some(namespace)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ns")
    }

    fn ip(&self, arguments: &str) -> bool {
        self.run("ip", arguments).0
    }

    fn run(&self, program: &str, arguments: &str) -> (bool, String) {
        let output = namespace::enter(&self.path(), || {
            Command::new(program)
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        })
        .unwrap();
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    fn join(&self, names: &[&str]) -> Result<GuestNetwork, NetworkError> {
        join(&self.path(), names, 1)
    }

    fn packets(&self, interface: &str) -> (u64, u64) {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let devices = namespace::enter(&self.path(), read).unwrap();
        let line = devices
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")))
            .unwrap();
        let fields: Vec<u64> = line
            .split_whitespace()
            .map(|field| field.parse().unwrap())
            .collect();
        (fields[1], fields[9])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        namespace::remove(&self.path()).unwrap();
    }
}

const VETH: &str = "
    link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name far mtu 1400
    link set far up
    link set eth0 up
";

/// A frame of a protocol of its own, so that nobody else has one like it, behind a virtio header that asks for nothing.
fn frame(tag: u8) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 7]);
    frame.extend([0x88, 0xb5]);
    frame.extend([tag; 100]);
    frame
}

fn send(queue: &OwnedFd, frame: &[u8]) {
    let count = File::from(queue.try_clone().unwrap()).write(frame).unwrap();
    assert_eq!(count, frame.len());
}

/// Waits until exactly that frame comes.
fn expect(queue: &OwnedFd, wanted: &[u8]) {
    let flags = fcntl_getfl(queue).unwrap();
    fcntl_setfl(queue, flags - OFlags::NONBLOCK).unwrap();
    let mut queue = File::from(queue.try_clone().unwrap());
    let wanted = wanted[10..].to_vec();
    let (report, arrived) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(count) = queue.read(&mut buffer) {
            if buffer.get(10..count) == Some(&wanted[..]) {
                let _ = report.send(());
                return;
            }
        }
    });
    arrived
        .recv_timeout(Duration::from_secs(10))
        .expect("the frame arrives");
}

#[test]
fn frames_pass_between_the_tap_and_the_other_end_of_the_veth() {
    let Some(namespace) = Namespace::new(VETH) else {
        return;
    };
    namespace.ip("addr add 10.1.0.7/24 dev eth0");
    // Else the kernel says something of its own accord now and then.
    let quiet = || std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    namespace::enter(&namespace.path(), quiet).unwrap().unwrap();
    let joined = namespace.join(&["eth0"]).unwrap();
    let interface = &joined.interfaces[0];
    assert_eq!(interface.name, "eth0");
    assert_eq!(interface.mac.to_string(), "02:00:00:00:00:07");
    assert_eq!(interface.mtu, 1400);
    assert_eq!(interface.taps.len(), 1);
    // Another tap, joined to the far end, stands for the network.
    let far = namespace::enter(&namespace.path(), || {
        let far = tap::create("fartap", 1).unwrap();
        let mut joiner = Joiner::open(Path::new("test")).unwrap();
        let links = survey::links(&mut joiner.netlink).unwrap();
        let end = links.iter().find(|link| link.name == "far").unwrap();
        joiner.attach(end, "fartap").unwrap();
        far
    })
    .unwrap();
    let before = namespace.packets("eth0");
    for tag in 0..20 {
        send(&interface.taps[0], &frame(tag));
        expect(&far[0], &frame(tag));
        send(&far[0], &frame(100 + tag));
        expect(&interface.taps[0], &frame(100 + tag));
    }
    let after = namespace.packets("eth0");
    assert!(
        after.0 >= before.0 + 20 && after.1 >= before.1 + 20,
        "{before:?} {after:?}"
    );
    let (_, links) = namespace.run("ip", "-o link show bulktap0");
    assert!(
        links.contains("mtu 1400") && links.contains("LOWER_UP"),
        "{links}"
    );
    // The addresses stay, where plugins look for them, and the host's kernel does not answer for them all the same.
    assert!(namespace.run("ip", "-o addr show eth0").1.contains("10.1.0.7/24"));
    let mut asking = vec![0; 10];
    asking.extend([0xff; 6]);
    asking.extend([2, 0, 0, 0, 0, 9]);
    asking.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    asking.extend([2, 0, 0, 0, 0, 9, 10, 1, 0, 9]);
    asking.extend([0, 0, 0, 0, 0, 0, 10, 1, 0, 7]);
    asking.resize(10 + 60, 0);
    let sent = namespace.packets("eth0").1;
    send(&far[0], &asking);
    expect(&interface.taps[0], &asking);
    send(&far[0], &frame(77));
    expect(&interface.taps[0], &frame(77));
    assert_eq!(namespace.packets("eth0").1, sent, "nothing was answered");
    drop(joined);
    // A process that another test is just starting has it until it has become another program.
    let start = Instant::now();
    while namespace.run("ip", "-o link").1.contains("bulktap0") {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn there_may_be_several_queues_and_interfaces() {
    let Some(namespace) = Namespace::new(VETH) else {
        return;
    };
    for line in [
        "link add net1 type veth peer name far1",
        "link set net1 up",
        "addr add 10.2.0.7/24 dev net1",
    ] {
        assert!(namespace.ip(line));
    }
    let joined = join(&namespace.path(), &["eth0", "lo", "eth0"], 2).unwrap();
    let found: Vec<_> = joined
        .interfaces
        .iter()
        .map(|interface| (interface.name.as_str(), interface.taps.len()))
        .collect();
    assert_eq!(found, [("eth0", 2), ("net1", 2)]);
    let (_, filters) = namespace.run("tc", "filter show dev net1 ingress");
    assert!(
        filters.contains("Egress Redirect to device bulktap1"),
        "{filters}"
    );
    let (_, filters) = namespace.run("tc", "filter show dev bulktap0 ingress");
    assert!(filters.contains("Egress Redirect to device eth0"), "{filters}");
}

#[test]
fn addresses_routes_and_neighbours_are_read_as_they_are() {
    let Some(namespace) = Namespace::new(VETH) else {
        return;
    };
    for line in [
        "addr add 10.1.0.7/24 dev eth0",
        "addr add 10.9.0.7/24 dev eth0 noprefixroute",
        "addr add fd00::7/64 dev eth0 nodad",
        "addr add fe80::7/64 dev eth0 nodad",
        "route add default via 10.1.0.1 dev eth0 src 10.1.0.7 mtu 1300 metric 5",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add 10.8.0.0/16 via 169.254.9.9 dev eth0 onlink",
        "route add 10.7.0.0/16 via inet6 fe80::1 dev eth0",
        "-6 route add default via fe80::1 dev eth0",
        "-6 route add fd01::/64 dev eth0 metric 7",
        "route add 10.6.0.0/16 dev eth0 table 100",
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "neigh add fe80::1 lladdr ee:ee:ee:ee:ee:e1 dev eth0 nud permanent",
        "neigh add 10.1.0.99 lladdr ee:ee:ee:ee:ee:e2 dev eth0 nud stale",
    ] {
        assert!(namespace.ip(line), "ip {line}");
    }
    let joined = namespace.join(&["eth0"]).unwrap();
    let addresses: Vec<String> = joined.interfaces[0]
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    for wanted in ["10.1.0.7/24", "10.9.0.7/32", "fd00::7/64", "fe80::7/64"] {
        assert!(
            addresses.iter().any(|address| address == wanted),
            "{wanted}: {addresses:?}"
        );
    }
    let route = |destination: &str, gateway: Option<&str>, change: &dyn Fn(&mut GuestRoute)| {
        let destination: IpPrefix = destination.parse().unwrap();
        let mut route = GuestRoute {
            destination,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            interface: "eth0".to_owned(),
            source: None,
            scope: 0,
            onlink: false,
            // The kernel's for IPv6 that says nothing else.
            metric: if destination.address.is_ipv6() { 1024 } else { 0 },
            mtu: 0,
        };
        change(&mut route);
        route
    };
    let mut wanted = vec![
        route("169.254.1.1/32", None, &|route| route.scope = 253),
        route("fd01::/64", None, &|route| route.metric = 7),
        route("0.0.0.0/0", Some("10.1.0.1"), &|route| {
            route.source = Some("10.1.0.7".parse().unwrap());
            (route.mtu, route.metric) = (1300, 5);
        }),
        route("10.8.0.0/16", Some("169.254.9.9"), &|route| route.onlink = true),
        route("10.7.0.0/16", Some("fe80::1"), &|_| {}),
        route("::/0", Some("fe80::1"), &|_| {}),
    ];
    let first_through_gateway = joined.routes.iter().position(|route| route.gateway.is_some());
    assert_eq!(first_through_gateway, Some(2), "{:?}", joined.routes);
    let mut found = joined.routes.clone();
    let key = |route: &GuestRoute| route.destination.to_string();
    found.sort_by_key(key);
    wanted.sort_by_key(key);
    assert_eq!(found, wanted);
    let mut neighbors: Vec<String> = joined
        .neighbors
        .iter()
        .map(|neighbor| format!("{} {} {}", neighbor.address, neighbor.mac, neighbor.interface))
        .collect();
    neighbors.sort();
    assert_eq!(
        neighbors,
        [
            "169.254.1.1 ee:ee:ee:ee:ee:ee eth0",
            "fe80::1 ee:ee:ee:ee:ee:e1 eth0"
        ]
    );
}

#[test]
fn the_route_that_a_plugin_took_from_an_address_does_not_come_back_in_the_guest() {
    let Some(namespace) = Namespace::new(VETH) else {
        return;
    };
    // As ptp leaves it.
    for line in [
        "addr add 10.1.0.7/24 dev eth0",
        "route del 10.1.0.0/24 dev eth0",
        "route add 10.1.0.1 dev eth0 scope link src 10.1.0.7",
        "route add 10.1.0.0/24 via 10.1.0.1 src 10.1.0.7",
    ] {
        assert!(namespace.ip(line), "ip {line}");
    }
    let joined = namespace.join(&["eth0"]).unwrap();
    assert_eq!(joined.interfaces[0].addresses[0].to_string(), "10.1.0.7/32");
    let routes: Vec<_> = joined
        .routes
        .iter()
        .map(|route| (route.destination.to_string(), route.gateway.is_some()))
        .collect();
    assert_eq!(
        routes,
        [
            ("10.1.0.1/32".to_owned(), false),
            ("10.1.0.0/24".to_owned(), true)
        ]
    );
}

#[test]
fn what_cannot_be_joined_or_carried_over_is_refused_by_name() {
    let refusal = |setup: &str, names: &[&str]| {
        let namespace = Namespace::new(&format!("{VETH}{setup}"))?;
        Some(namespace.join(names).unwrap_err().to_string())
    };
    for (setup, name, part) in [
        ("", "eth7", "interface eth7 (of no kind)"),
        (
            "link add br0 type bridge\nlink set eth0 master br0",
            "eth0",
            "belongs to interface",
        ),
        (
            "link set eth0 arp off",
            "eth0",
            "interface eth0 (veth) cannot be handed to a virtual machine: it does without ARP",
        ),
        ("tuntap add t0 mode tap", "t0", "tap of another program"),
        ("tuntap add t0 mode tun", "t0", "tap of another program"),
        (
            "rule add from 10.1.0.7 table 100 priority 99",
            "eth0",
            "the routing rule of priority 99",
        ),
        (
            "route add blackhole 10.3.0.0/16",
            "eth0",
            "the route to 10.3.0.0/16",
        ),
        (
            "addr add 10.1.0.7/24 dev eth0\nroute add 10.3.0.0/16 nexthop via 10.1.0.1 nexthop via 10.1.0.2",
            "eth0",
            "several next hops",
        ),
        (
            "addr add 10.4.0.7/24 dev lo\nroute add 10.3.0.0/16 dev lo",
            "eth0",
            "its interface is none",
        ),
    ] {
        let Some(message) = refusal(setup, &[name]) else {
            return;
        };
        assert!(message.contains(part), "{setup}: {message}");
    }
    let error = join(Path::new("/nonexistent/ns"), &[], 1)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot enter in the network namespace /nonexistent/ns"),
        "{error}"
    );
}

#[test]
fn a_filter_that_a_plugin_has_put_on_the_interface_comes_first() {
    let Some(namespace) = Namespace::new(VETH) else {
        return;
    };
    for line in [
        "qdisc add dev eth0 clsact",
        "filter add dev eth0 ingress protocol all prio 10 u32 match u32 0 0 at 0 action mirred egress redirect dev far",
    ] {
        if !namespace.run("tc", line).0 {
            eprintln!("skipped: this kernel has no such traffic control");
            return;
        }
    }
    namespace.join(&["eth0"]).unwrap();
    let (_, filters) = namespace.run("tc", "filter show dev eth0 ingress");
    let place = |text: &str| filters.find(text).unwrap_or_else(|| panic!("{text}: {filters}"));
    assert!(place("Redirect to device far") < place("pref 65535"), "{filters}");
}

#[test]
fn hardware_addresses_are_six_pairs() {
    let mac: MacAddress = "02:00:5E:10:00:ff".parse().unwrap();
    assert_eq!(mac.0, [2, 0, 0x5e, 0x10, 0, 0xff]);
    assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
    for bad in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "2:0:0:0:0:0",
        "+2:00:00:00:00:00",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad:?}");
    }
}
