//! `crictl exec`.

use std::{
    fs::File,
    process::{Command, Stdio},
};

use bulkhead_tests::{ContainerSpec, Daemon, PodSpec, until};

use super::{Running, TRANSPORTS};

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_command_has_its_streams_its_exit_code_and_its_terminal() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-stream"));
    let container = pod.run(ContainerSpec::idle());
    let id = container.id();
    let files = tempfile::tempdir().unwrap();
    let input = files.path().join("input");
    let numbers: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    std::fs::write(&input, &numbers).unwrap();
    for transport in TRANSPORTS {
        let exec = ["exec", "-r", transport];
        let said = daemon
            .crictl()
            .run([&exec[..], &[id, "sh", "-c", "printf out; printf err >&2"]].concat());
        assert_eq!(
            (said.code, said.stdout.as_str(), said.stderr.as_str()),
            (Some(0), "out", "err"),
            "{said}"
        );
        let said = daemon
            .crictl()
            .fails([&exec[..], &[id, "sh", "-c", "exit 42"]].concat());
        assert!(said.contains("exit code 42"), "{transport}: {said}");
        let said = daemon
            .crictl()
            .fails([&exec[..], &[id, "no-such-program"]].concat());
        assert!(said.contains("no-such-program"), "{transport}: {said}");

        // Input to its end, and the output that comes after it.
        let arguments = [
            &exec[..],
            &["-i", id, "sh", "-c", "sort -n -r | head -n 3; echo done"],
        ]
        .concat();
        let mut sorted = Running::start(&daemon, &arguments, File::open(&input).unwrap().into());
        assert!(sorted.end().success(), "{}", sorted.stderr());
        assert_eq!(sorted.stdout(), "199999\n199998\n199997\ndone\n", "{transport}");

        // A command ends although its client's input goes on.
        let arguments = [&exec[..], &["-i", id, "echo", "ended"]].concat();
        let mut ended = Running::start(&daemon, &arguments, Stdio::piped());
        assert!(ended.end().success(), "{}", ended.stderr());
        assert_eq!(ended.stdout(), "ended\n");

        // A terminal of the client's size, which is seen to change.
        let wait = "until [ \"$(stty size)\" = \"33 77\" ]; do :; done; tty; echo $TERM; exit 7";
        let inner = format!(
            "stty rows 33 cols 77; exec crictl --runtime-endpoint {} exec -r {transport} -i -t {id} sh -c '{wait}'",
            daemon.endpoint()
        );
        let script = Command::new("script")
            .args(["--quiet", "--return", "--command", &inner, "/dev/null"])
            .stdin(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&script.stdout);
        assert!(said.contains("/dev/pts/0") && said.contains("xterm"), "{said}");
        assert!(said.contains("exit code 7"), "{said}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_client_that_vanishes_takes_its_command_with_it() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-vanished"));
    let container = pod.run(ContainerSpec::idle());
    for transport in TRANSPORTS {
        let script = "setsid sleep 4326 & exec sleep 4327";
        let arguments = ["exec", "-r", transport, "-i", container.id(), "sh", "-c", script];
        let mut client = Running::start(&daemon, &arguments, Stdio::piped());
        // Whoever is orphaned and ended is the container's first process's to reap, which does not.
        let sleepers = || {
            container
                .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 432[67]' || true")
        };
        until("both processes to run", || {
            let running = sleepers();
            if running.lines().count() == 2 {
                Ok(())
            } else {
                Err(running)
            }
        });
        client.kill();
        until("both processes to be gone", || {
            let running = sleepers();
            if running.is_empty() { Ok(()) } else { Err(running) }
        });
    }
}
