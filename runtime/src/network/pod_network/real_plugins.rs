//! Tests with the plugins that distributions ship, in a network namespace that stands for the host.

use std::{fs::File, io::Read, net::UdpSocket, process::Command, sync::mpsc, thread};

use serde_json::{Value, json};

use super::*;
use crate::network::{Protocol, namespace};

const PLUGINS: &str = "/usr/lib/cni";

/// How a frame goes on, behind its hardware addresses, that asks by ARP who has an address.
const QUESTION: [u8; 10] = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];

/// Does `work` in a namespace of its own, with a runtime whose threads and children are all in it. Nothing happens where the
/// plugins or the rights are missing.
fn on_a_host(work: impl AsyncFnOnce(Host) + Send) {
    if !rustix::process::geteuid().is_root() || !Path::new(PLUGINS).join("bridge").exists() {
        eprintln!("skipped: it takes the rights of root, and CNI's plugins in {PLUGINS}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host");
    namespace::create(&path).unwrap();
    let host = Host {
        directory: directory.path().to_owned(),
    };
    namespace::enter(&path, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work(host));
    })
    .unwrap();
    namespace::remove(&path).unwrap();
}

struct Host {
    directory: PathBuf,
}

impl Host {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn open(&self, version: &str, plugins: &Value) -> Arc<PodNetwork> {
        // CHECK of portmap before 1.3 looks for the pod's rules among those of the other family too, and finds none.
        let spurious = plugins
            .as_array()
            .into_iter()
            .flatten()
            .any(|plugin| plugin["type"] == "portmap");
        let list =
            json!({"name": "net", "cniVersion": version, "disableCheck": spurious, "plugins": plugins});
        fs::create_dir_all(self.path("net.d")).unwrap();
        fs::write(self.path("net.d/10.conflist"), list.to_string()).unwrap();
        let config = NetworkConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![PLUGINS.into()],
            ..NetworkConfig::default()
        };
        PodNetwork::open(&config, &self.path("root")).unwrap()
    }

    fn ipam(&self, ranges: &[&str]) -> Value {
        let routes: Vec<Value> = ranges
            .iter()
            .map(|subnet| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
            .collect();
        let pools: Vec<Value> = ranges.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        json!({"type": "host-local", "dataDir": self.path("ipam"), "ranges": pools, "routes": routes})
    }

    fn pod(&self, id: &str) -> Attachment {
        let path = self.path(id);
        namespace::create(&path).unwrap();
        Attachment {
            pod_id: id.to_owned(),
            namespace_path: path,
            name: id.to_owned(),
            namespace: "default".to_owned(),
            uid: "u1".to_owned(),
            queue_pairs: 1,
            ..Attachment::default()
        }
    }

    /// What the plugins have made on the host: rules, interfaces, queues, addresses given.
    fn traces(&self) -> Vec<String> {
        let mut traces: Vec<String> = Vec::new();
        for (program, arguments) in [
            ("iptables-save", ""),
            ("ip6tables-save", ""),
            ("tc", "qdisc show"),
        ] {
            let output = run(program, arguments).1;
            traces.extend(output.lines().filter(|line| !line.starts_with('#')).map(|line| {
                // Without counters, and the numbers that queues are given.
                let line = line.split(" [").next().unwrap_or_default();
                match line.split_once(": dev ") {
                    Some((queue, rest)) => {
                        format!(
                            "{} dev {rest}",
                            queue.trim_end_matches(|c: char| c.is_ascii_alphanumeric())
                        )
                    }
                    None => line.to_owned(),
                }
            }));
        }
        // Names alone: whether a bridge has a carrier follows its ports some time later, and peers have numbers of their own.
        let links = run("ip", "-o link show").1;
        traces.extend(links.lines().filter_map(|line| {
            let name = line.split(": ").nth(1)?;
            Some(format!("interface {}", name.split('@').next().unwrap_or(name)))
        }));
        for entry in fs::read_dir(self.path("ipam/net")).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("last_reserved_ip") && name != "lock" {
                traces.push(format!("address {name}"));
            }
        }
        traces
    }
}

fn run(program: &str, arguments: &str) -> (bool, String) {
    match Command::new(program).args(arguments.split_whitespace()).output() {
        Ok(output) => (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ),
        Err(_) => (false, String::new()),
    }
}

/// Whether a frame with these bytes in it comes out of the tap.
fn arrives(attached: &Attached, wanted: Vec<u8>) -> mpsc::Receiver<()> {
    let mut queue = File::from(attached.interfaces[0].taps[0].try_clone().unwrap());
    let (report, arrived) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(count) = queue.read(&mut buffer) {
            if buffer[..count]
                .windows(wanted.len())
                .any(|window| window == wanted)
            {
                let _ = report.send(());
                return;
            }
        }
    });
    arrived
}

/// Attaches, checks, sends something to the pod, and detaches. Gives what was there meanwhile; nothing of it is left.
async fn trial(host: &Host, network: &PodNetwork, pod: &Attachment) -> Vec<String> {
    let before = host.traces();
    let attached = network.attach(pod).await.unwrap();
    network.check(&pod.pod_id).await.unwrap();
    let meanwhile = host.traces();
    if let IpAddr::V4(address) = attached.ips[0] {
        // The host asks who has the address, and the question comes out of the tap.
        let arrived = arrives(&attached, QUESTION.to_vec());
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.send_to(b"hello", (address, 9)).is_ok() {
            let heard = arrived.recv_timeout(Duration::from_secs(10));
            assert!(heard.is_ok(), "nothing comes out of the tap");
        }
    }
    drop(attached);
    network.detach(&pod.pod_id).await.unwrap();
    network.detach(&pod.pod_id).await.unwrap();
    namespace::remove(&pod.namespace_path).unwrap();
    let own = |trace: &&String| {
        let trace = trace.as_str();
        !before.iter().any(|known| known == trace) && (trace.contains(&pod.pod_id) || trace.contains("veth"))
    };
    let after = host.traces();
    println!(
        "left on the host: {:#?}",
        after
            .iter()
            .filter(|trace| !before.contains(trace))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        after.iter().filter(own).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert!(
        !after.iter().any(|trace| trace.starts_with("address ")),
        "{after:?}"
    );
    meanwhile
}

/// Whether the host's kernel has what the plugins use for host ports.
fn has_port_rules() -> bool {
    run("iptables", "-t nat -N TRIAL").0
        && run(
            "iptables",
            "-t nat -A TRIAL -p tcp -m multiport --dports 80,81 -m comment --comment x -j MARK --set-mark 1",
        )
        .0
        && run(
            "iptables",
            "-t nat -A TRIAL -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80",
        )
        .0
        && run("iptables", "-t nat -F TRIAL").0
        && run("iptables", "-t nat -X TRIAL").0
}

#[test]
fn bridge_with_bandwidth_firewall_and_tuning() {
    on_a_host(async |host| {
        let mut plugins = vec![
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": host.ipam(&["10.88.0.0/24"])}),
        ];
        if run(
            "iptables",
            "-A FORWARD -m comment --comment x -m conntrack --ctstate RELATED -j ACCEPT",
        )
        .0
        {
            run("iptables", "-F FORWARD");
            plugins.push(json!({"type": "firewall", "backend": "iptables"}));
        }
        let firewall = plugins.len() > 1;
        let bandwidth = run("ip", "link add probe type ifb").0
            && run(
                "tc",
                "qdisc add dev probe root tbf rate 1mbit burst 10k latency 10ms",
            )
            .0;
        run("ip", "link del probe");
        if bandwidth {
            plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
        }
        plugins.push(json!({"type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:07"}));
        let network = host.open("1.0.0", &plugins.clone().into());
        let mut pod = host.pod("pod1");
        pod.annotations = ["ingress", "egress"]
            .map(|direction| (format!("kubernetes.io/{direction}-bandwidth"), "10M".to_owned()))
            .into();
        let meanwhile = trial(&host, &network, &pod).await.join("\n");
        assert!(meanwhile.contains("address 10.88.0."), "{meanwhile}");
        if bandwidth {
            assert!(meanwhile.contains("tbf"), "{meanwhile}");
        }
        if firewall {
            assert!(meanwhile.contains("-A CNI-FORWARD -s 10.88.0."), "{meanwhile}");
        }
    });
}

#[test]
fn bridge_and_ptp_with_host_ports() {
    on_a_host(async |host| {
        if !has_port_rules() {
            eprintln!("skipped: this kernel has not the rules that host ports take");
            return;
        }
        let portmap = json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}});
        for main in [
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": host.ipam(&["10.88.0.0/24"])}),
            json!({"type": "ptp", "ipMasq": true, "ipam": host.ipam(&["10.88.0.0/24"])}),
        ] {
            let network = host.open("1.0.0", &json!([main, portmap]));
            let mut pod = host.pod("pod1");
            pod.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp,
                host_port: 12000,
                container_port: 80,
                host_ip: None,
            }];
            let meanwhile = trial(&host, &network, &pod).await.join("\n");
            assert!(meanwhile.contains("--to-destination 10.88.0."), "{meanwhile}");
        }
    });
}

#[test]
fn fifty_pods_fit_a_network_of_thirty_addresses_one_after_the_other() {
    on_a_host(async |host| {
        let mut plugins = vec![
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": host.ipam(&["10.88.0.0/27"])}),
        ];
        if has_port_rules() {
            plugins.push(json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}));
        }
        let network = host.open("1.0.0", &plugins.into());
        let one_pod = async |number: u16| {
            let mut pod = host.pod(&format!("pod{number}"));
            pod.port_mappings = vec![PortMapping {
                protocol: Protocol::Tcp,
                host_port: 12000 + number,
                container_port: 80,
                host_ip: None,
            }];
            drop(network.attach(&pod).await.unwrap());
            network.detach(&pod.pod_id).await.unwrap();
            namespace::remove(&pod.namespace_path).unwrap();
        };
        // What the plugins make for good is there from here on.
        one_pod(0).await;
        let before = host.traces();
        for number in (1..50).step_by(2) {
            tokio::join!(one_pod(number), one_pod(number + 1));
        }
        let mut left = host.traces();
        left.retain(|trace| !before.contains(trace));
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(network.inner.entries(None).await.unwrap(), []);
    });
}

#[test]
fn bridge_and_ptp_with_both_families() {
    on_a_host(async |host| {
        for main in ["bridge", "ptp"] {
            let ipam = host.ipam(&["10.88.0.0/24", "fd88::/64"]);
            let network = host.open("1.0.0", &json!([{"type": main, "isGateway": true, "ipam": ipam}]));
            let pod = host.pod("pod1");
            let attached = network.attach(&pod).await.unwrap();
            assert_eq!(attached.ips.len(), 2);
            let defaults: Vec<_> = attached
                .routes
                .iter()
                .filter(|route| route.destination.length == 0)
                .collect();
            assert_eq!(defaults.len(), 2);
            drop(attached);
            network.detach("pod1").await.unwrap();
            trial(&host, &network, &pod).await;
        }
    });
}

#[test]
fn macvlan_and_ipvlan() {
    on_a_host(async |host| {
        assert!(run("ip", "link add up0 type veth peer name up1").0);
        assert!(run("ip", "link set up0 up").0 && run("ip", "link set up1 up").0);
        let list = |kind: &str, mode: &str| json!([{"type": kind, "master": "up0", "mode": mode, "ipam": host.ipam(&["10.88.0.0/24"])}]);
        for (kind, mode) in [("macvlan", "bridge"), ("ipvlan", "l2"), ("ipvlan", "l3")] {
            if !run("ip", &format!("link add link up0 name probe type {kind}")).0 {
                eprintln!("skipped: this kernel has no {kind}");
                continue;
            }
            run("ip", "link del probe");
            let network = host.open("1.0.0", &list(kind, mode));
            let pod = host.pod("pod1");
            if mode == "l3" {
                let error = network.attach(&pod).await.unwrap_err().to_string();
                assert!(
                    error.contains("interface eth0 (ipvlan)") && error.contains("mode l3"),
                    "{error}"
                );
                assert!(!host.traces().iter().any(|trace| trace.starts_with("address ")));
                namespace::remove(&pod.namespace_path).unwrap();
                continue;
            }
            let attached = network.attach(&pod).await.unwrap();
            network.check("pod1").await.unwrap();
            // From the other end of the wire, as the network.
            let IpAddr::V4(address) = attached.ips[0] else {
                panic!("{:?}", attached.ips);
            };
            assert!(run("ip", "addr replace 10.88.0.254/24 dev up1").0);
            let arrived = arrives(&attached, QUESTION.to_vec());
            let socket = UdpSocket::bind("10.88.0.254:0").unwrap();
            socket.send_to(b"hello", (address, 9)).unwrap();
            arrived
                .recv_timeout(Duration::from_secs(10))
                .expect("what the network asks comes out of the tap");
            drop(attached);
            network.detach("pod1").await.unwrap();
            let after = host.traces();
            assert!(
                !after.iter().any(|trace| trace.starts_with("address ")),
                "{after:?}"
            );
            namespace::remove(&pod.namespace_path).unwrap();
        }
    });
}
