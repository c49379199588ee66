//! `crictl attach`.

use std::{io::Write, process::Stdio};

use bulkhead_tests::{Container, ContainerSpec, Daemon, DaemonOptions, PodSpec};
use rustix::process::Signal;

use super::{Running, TRANSPORTS};

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_one_client_types_sees_and_ends_the_container() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("attach-once"));
    for transport in TRANSPORTS {
        let spec = ContainerSpec::sh("echo before; cat; echo after >&2; exit 3")
            .with("/stdin", true)
            .with("/stdin_once", true);
        let container = pod.run(spec);
        container.wait_for_log("before");
        let arguments = ["attach", "-r", transport, "-i", container.id()];
        let mut client = Running::start(&daemon, &arguments, Stdio::piped());
        let mut typing = client.child.stdin.take().unwrap();
        typing.write_all(b"hello\n").unwrap();
        client.hear("hello");
        drop(typing);
        assert!(client.end().success(), "{}", client.stderr());
        assert_eq!(
            (client.stdout(), client.stderr()),
            ("hello\n".into(), "after\n".into())
        );
        assert_eq!(container.wait_exited().exit_code, 3);
        let log: Vec<String> = container
            .log()
            .iter()
            .map(|line| String::from_utf8_lossy(&line.content).into_owned())
            .collect();
        assert_eq!(log, ["before", "hello", "after"]);
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn input_and_output_go_on_with_the_next_client_and_the_next_daemon() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("attach-again"));
    let spec = ContainerSpec::sh("while read line; do echo got $line; done").with("/stdin", true);
    let container: Container<'_> = pod.run(spec);
    let typed = |text: &str| {
        let mut client = Running::start(&daemon, &["attach", "-i", container.id()], Stdio::piped());
        let mut watching = Running::start(&daemon, &["attach", container.id()], Stdio::null());
        let mut typing = client.child.stdin.take().unwrap();
        // Until the second client is there: what came before it, it does not see.
        while !watching.stdout().contains("got ") {
            typing.write_all(format!("{text}\n").as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        client.hear(&format!("got {text}"));
        assert!(!client.stdout().contains("got other"), "{}", client.stdout());
        client.kill();
        watching.kill();
    };
    typed("one");
    typed("two");
    assert!(daemon.end_with(Signal::KILL).code().is_none());
    daemon.start_again();
    typed("three");
}
