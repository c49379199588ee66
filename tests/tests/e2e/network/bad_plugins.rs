//! Plugins that fail, hang and print garbage.

use std::fs;

use bulkhead_proto::cri::PodSandboxState;
use bulkhead_tests::{Daemon, PodSpec, assert_refused};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::private::PrivateNetwork;

/// How long a plugin has. Those that work were seen to take eight seconds on a node that others keep busy.
const PLUGIN_SECONDS: i64 = 20;

/// Does at each command what a file of that name says, and else what it should.
const CHAOS: &str = r#"
case $(cat "$directory/$CNI_COMMAND" 2>/dev/null) in
fail)
    echo '{"cniVersion": "1.0.0", "code": 11, "msg": "the moon is full", "details": "ask again tomorrow"}'
    exit 1 ;;
hang) exec sleep 600 ;;
garbage) echo 'moo, said the cow'; exit 0 ;;
break) echo 'moo, said the cow'; exit 3 ;;
esac"#;

/// What it may do at ADD and at DEL, and what the error says then.
const AT_ADD: [(&str, &[&str]); 4] = [
    ("fail", &["error 11", "the moon is full", "ask again tomorrow"]),
    ("hang", &["killed", "20 s"]),
    ("garbage", &["no valid result", "moo, said the cow"]),
    ("break", &["exit status: 3", "moo, said the cow"]),
];
const AT_DEL: [(&str, &[&str]); 3] = [AT_ADD[0], AT_ADD[1], AT_ADD[3]];

fn network_of_chaos() -> (PrivateNetwork, Daemon) {
    let network = PrivateNetwork::new();
    network.script("chaos", CHAOS);
    network.configure(&json!([network.bridge_with_addresses(1), { "type": "chaos" }]));
    let options = network
        .options()
        .config("network.plugin_timeout_seconds", PLUGIN_SECONDS);
    let daemon = Daemon::private(options);
    (network, daemon)
}

fn assert_nothing_is_left(network: &PrivateNetwork, daemon: &Daemon, after: &str) {
    assert_eq!(daemon.crictl().ok(["pods", "-q"]), "", "after {after}");
    assert_eq!(network.held(), Vec::<String>::new(), "after {after}");
    for directory in [daemon.root(), daemon.state()] {
        let left = fs::read_dir(directory.join("pods")).into_iter().flatten().count();
        assert_eq!(left, 0, "pods in {} after {after}", directory.display());
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_plugin_that_misbehaves_at_add_is_named_and_nothing_is_left() {
    let (network, daemon) = network_of_chaos();
    let run = |cause: &[&str]| {
        let spec = PodSpec::new("unlucky");
        let words = [&[spec.name(), network.name(), "plugin chaos at ADD"], cause].concat();
        assert_refused(daemon.try_run_pod(&spec), Code::Internal, &words)
    };
    for (conduct, cause) in AT_ADD {
        fs::write(network.path("ADD"), conduct).unwrap();
        run(cause);
        assert_nothing_is_left(&network, &daemon, conduct);
    }
    // A plugin that is not there.
    let chaos = network.path("bin/chaos");
    fs::rename(&chaos, network.path("hidden")).unwrap();
    run(&["no such executable", "network.bin_dirs"]);
    fs::rename(network.path("hidden"), &chaos).unwrap();

    // What cannot be undone stays listed, with the reason, until it can.
    fs::write(network.path("ADD"), "fail").unwrap();
    fs::write(network.path("DEL"), "break").unwrap();
    run(&["the moon is full", "could not be undone", "moo, said the cow"]);
    assert_ne!(network.held(), Vec::<String>::new());
    let id = daemon
        .crictl()
        .ok(["pods", "-q", "--no-trunc", "--state", "notready"]);
    assert!(!id.is_empty() && !id.contains('\n'), "{id}");
    let inspected = daemon.crictl().json(["inspectp", &id]);
    let message = inspected["info"]["message"].as_str().unwrap();
    assert!(message.contains("plugin chaos at DEL"), "{inspected:#}");
    fs::remove_file(network.path("DEL")).unwrap();
    daemon.crictl().ok(["rmp", "-f", &id]);
    assert_nothing_is_left(&network, &daemon, "an undoing that failed");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_plugin_that_misbehaves_at_del_is_named_and_its_pod_is_not_lost() {
    let (network, daemon) = network_of_chaos();
    let pod = daemon.run_pod(PodSpec::new("attached"));
    for (conduct, cause) in AT_DEL {
        fs::write(network.path("DEL"), conduct).unwrap();
        let words = [&[pod.id(), network.name(), "plugin chaos at DEL"], cause].concat();
        assert_refused(pod.try_stop(), Code::Internal, &words);
        assert_eq!(pod.state(), PodSandboxState::SandboxNotready);
        assert_ne!(
            network.held(),
            Vec::<String>::new(),
            "the address is the pod's until {conduct} is over"
        );
    }
    // Neither is it for a daemon that comes later.
    daemon.end_with(Signal::KILL);
    daemon.start_again();
    assert_eq!(pod.state(), PodSandboxState::SandboxNotready);
    let said = daemon.crictl().fails(["rmp", pod.id()]);
    assert!(said.contains("plugin chaos at DEL"), "{said}");
    // Garbage is none at DEL, which has no result.
    fs::write(network.path("DEL"), "garbage").unwrap();
    pod.remove();
    assert_nothing_is_left(&network, &daemon, "DEL in the end");
}
