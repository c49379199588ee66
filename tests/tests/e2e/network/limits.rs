//! What plugins limit and forbid holds for machines: their packets pass the host's end of the pod's interface like all others.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
    time::{Duration, Instant},
};

use bulkhead_tests::{Container, ContainerSpec, DEADLINE, Daemon, PodSpec};
use serde_json::{Value, json};

use super::{all_addresses, curl, host, private::PrivateNetwork, wait_for_listener, web_server};

/// Bytes that are sent under a limit of 1 Mbit/s, a second's worth of which may pass at once. A busy emulated node is faster still.
const BYTES: usize = 500_000;
const LIMIT: &str = "1M";
/// Less than that takes: 4 Mbit, less 1 at once.
const LEAST: Duration = Duration::from_millis(2500);

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pod_with_a_bandwidth_is_slow_and_one_behind_a_firewall_is_cut_off() {
    let _clean = CleanFirewall;
    let [limited, other] = [PrivateNetwork::new(), PrivateNetwork::new()];
    limited.configure(&plugins(&limited));
    let daemon = Daemon::private(limited.options());
    let annotations =
        json!({ "kubernetes.io/ingress-bandwidth": LIMIT, "kubernetes.io/egress-bandwidth": LIMIT });
    let slow = daemon.run_pod(PodSpec::new("slow").with("/annotations", annotations));
    let container = slow.run(ContainerSpec::sh(&format!(
        "nc -ll -p 7 -e wc -c & exec nc -ll -p 8 -e head -c {BYTES} /dev/zero"
    )));
    wait_for_listener(&container, "tcp", 7);
    wait_for_listener(&container, "tcp", 8);
    is_slow(all_addresses(&slow)[0]);

    other.take_the_place_of(&limited, &daemon, &plugins(&other));
    let server = daemon.run_pod(PodSpec::new("server"));
    let _web = web_server(&server, "reached");
    is_cut_off(&container, all_addresses(&slow)[0], all_addresses(&server)[0]);
}

fn plugins(network: &PrivateNetwork) -> Value {
    json!([
        network.bridge(&[PrivateNetwork::range(&network.v4("0/24"))]),
        { "type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge" },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ])
}

/// Both ways, by the clock and by what the host's queues have counted.
fn is_slow(pod: IpAddr) {
    let connect = |port: u16| {
        let stream = TcpStream::connect((pod, port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let started = Instant::now();
    let mut stream = connect(7);
    stream.write_all(&vec![0; BYTES]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut counted = String::new();
    stream.read_to_string(&mut counted).unwrap();
    assert_eq!(counted.trim(), BYTES.to_string());
    assert!(
        started.elapsed() >= LEAST,
        "into the pod: {:?}",
        started.elapsed()
    );

    let started = Instant::now();
    let mut got = Vec::new();
    connect(8).read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), BYTES);
    assert!(
        started.elapsed() >= LEAST,
        "out of the pod: {:?}",
        started.elapsed()
    );

    let queues: Value = serde_json::from_str(&host("tc", &["-s", "-j", "qdisc", "show"])).unwrap();
    let limiting: Vec<&Value> = queues
        .as_array()
        .unwrap()
        .iter()
        .filter(|queue| queue["kind"] == "tbf" && queue["overlimits"].as_u64() > Some(0))
        .collect();
    assert_eq!(
        limiting.len(),
        2,
        "one each way has held packets back: {queues:#}"
    );
}

/// The policy keeps pods of other bridges from the server, and a rule of the operator's the one pod that it names.
fn is_cut_off(client: &Container<'_>, address: IpAddr, server: IpAddr) {
    let url = format!("http://{server}/");
    let visit = || client.exec(&["timeout", "8", "wget", "-q", "-O", "-", &url]);
    assert_eq!(curl(&[], &url), "reached");
    let unanswered = visit();
    assert_eq!(
        unanswered.code,
        128 + 15,
        "{unanswered:?}, {}",
        unanswered.error_text()
    );
    // It was the policy that did it.
    host("iptables", &["-F", "CNI-ISOLATION-STAGE-2"]);
    let allowed = visit();
    assert_eq!(allowed.text(), "reached", "{}", allowed.error_text());
    let rule = format!("-I CNI-ADMIN -s {address} -d {server} -p tcp --dport 80 -j REJECT");
    host("iptables", &rule.split(' ').collect::<Vec<_>>());
    let refused = visit();
    assert!(refused.error_text().contains("refused"), "{refused:?}");
    assert_eq!(curl(&[], &url), "reached");
}

/// Takes away what the plugin leaves for good, once no pod has it.
struct CleanFirewall;

impl Drop for CleanFirewall {
    fn drop(&mut self) {
        for arguments in [
            "-D FORWARD -j CNI-ISOLATION-STAGE-1",
            "-F CNI-ISOLATION-STAGE-1",
            "-F CNI-ISOLATION-STAGE-2",
            "-F CNI-ADMIN",
        ] {
            let words = arguments.split(' ');
            let _ = std::process::Command::new("iptables").args(words).output();
        }
    }
}
