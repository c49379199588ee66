//! How containers end: exit codes, signals, grace, want of memory, and those that never start.

use std::thread;

use bulkhead_proto::cri::{ContainerState, Signal, StartContainerRequest};
use bulkhead_tests::{ContainerSpec, Daemon, PodSpec, assert_refused};
use tonic::Code;

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exit_code_is_that_of_the_first_process() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("codes"));
    let endings = [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        ("exit 255", 255, "Error"),
    ];
    let containers = endings.map(|(script, code, reason)| (pod.run(ContainerSpec::sh(script)), code, reason));
    for (container, code, reason) in &containers {
        let status = container.wait_exited();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (*code, *reason),
            "{status:?}"
        );
        assert!(status.created_at > 0, "{status:?}");
        assert!(status.started_at >= status.created_at, "{status:?}");
        assert!(status.finished_at >= status.started_at, "{status:?}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_container_killed_inside_its_pod_ends_with_the_signals_code() {
    let daemon = Daemon::shared();
    // In the pod's shared process namespace the first process is no process 1, and any signal ends it.
    let pid = serde_json::json!({ "pid": 0 });
    let pod = daemon
        .run_pod(PodSpec::new("signals").with("/linux/security_context/namespace_options", pid.clone()));
    let kill = |signal: &str| {
        ContainerSpec::sh(&format!("kill -{signal} $$; sleep 1000"))
            .with("/linux/security_context/namespace_options", pid.clone())
    };
    let killed: Vec<_> = [("KILL", 137), ("TERM", 143), ("SEGV", 139)]
        .map(|(signal, code)| (pod.run(kill(signal)), code))
        .into();
    for (container, code) in &killed {
        let status = container.wait_exited();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (*code, "Error"),
            "{status:?}"
        );
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn stop_sends_the_stop_signal_and_waits() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("grace"));
    let trap = |signal: &str, code: u32| {
        ContainerSpec::sh(&format!(
            "trap 'echo caught; exit {code}' {signal}; echo ready; while :; do sleep 1; done"
        ))
    };
    let term = pod.run(trap("TERM", 5));
    // SIGUSR1 as CRI numbers it, which is not as Linux does.
    let usr1 = pod.run(trap("USR1", 6).with("/stop_signal", i32::from(Signal::Sigusr1)));
    for (container, code) in [(&term, 5), (&usr1, 6)] {
        container.wait_for_log("ready");
        container.stop(120);
        let status = container.status();
        assert_eq!(
            status.state(),
            ContainerState::ContainerExited,
            "stop returns when it has ended"
        );
        assert_eq!(status.exit_code, code, "{status:?}");
        assert!(String::from_utf8_lossy(&container.raw_log()).contains("caught"));
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn stop_kills_what_does_not_heed_its_signal() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("deaf"));
    let deaf = || ContainerSpec::sh("trap '' TERM INT HUP; echo ready; while :; do sleep 1; done");
    let at_once = pod.run(deaf());
    let after_grace = pod.run(deaf());
    for (container, grace) in [(&at_once, 0), (&after_grace, 2)] {
        container.wait_for_log("ready");
        container.stop(grace);
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "Error"),
            "{status:?}"
        );
        container.stop(0);
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_second_stop_with_less_grace_shortens_the_first() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("impatient"));
    let container = pod.run(ContainerSpec::sh(
        "trap 'echo asked' TERM; echo ready; while :; do sleep 1; done",
    ));
    container.wait_for_log("ready");
    thread::scope(|scope| {
        // Far longer than a call may take in these tests.
        let patient = scope.spawn(|| container.try_stop(100_000));
        container.wait_for_log("asked");
        container.try_stop(0).expect("the second stop is carried out");
        patient
            .join()
            .expect("no panic")
            .expect("the first stop returns as well");
    });
    assert_eq!(container.status().exit_code, 137);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_container_over_its_memory_limit_is_oom_killed() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("oom"));
    let limit = 15 * 1024 * 1024;
    let limited = |script: &str| {
        ContainerSpec::sh(script)
            .with("/linux/resources/memory_limit_in_bytes", limit)
            .with("/linux/resources/memory_swap_limit_in_bytes", limit)
    };
    let greedy = pod.run(limited("exec dd if=/dev/zero of=/dev/null bs=40M count=1"));
    let modest = pod.run(limited("exec dd if=/dev/zero of=/dev/null bs=1M count=40"));
    let status = greedy.wait_exited();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    let status = modest.wait_exited();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (0, "Completed"),
        "{status:?}"
    );
    // A process beside the first one is killed, which goes on and then ends as if nothing had been.
    let parents: Vec<_> = [0, 7]
        .map(|code| {
            let script = format!("dd if=/dev/zero of=/dev/null bs=40M count=1; echo lost $?; exit {code}");
            (pod.run(limited(&script)), code)
        })
        .into();
    let group = limited("dd if=/dev/zero of=/dev/null bs=40M count=1; echo never; sleep 1000").with(
        "/linux/resources/unified",
        serde_json::json!({ "memory.oom.group": "1" }),
    );
    let group = pod.run(group);
    for (parent, code) in &parents {
        let status = parent.wait_exited();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled"),
            "{status:?}"
        );
        assert!(
            status.message.ends_with(&format!("ended with {code}")),
            "{status:?}"
        );
        let log = String::from_utf8_lossy(&parent.raw_log()).into_owned();
        assert!(log.contains("lost 137"), "{log}");
    }
    let status = group.wait_exited();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    assert!(!String::from_utf8_lossy(&group.raw_log()).contains("never"));
    let next = pod.run(ContainerSpec::sh("exit 0"));
    assert_eq!(
        next.wait_exited().exit_code,
        0,
        "the pod goes on after one container ran out of memory"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_program_that_is_not_there_fails_the_start_and_says_so() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("no-program"));
    for command in ["no-such-program", "/no/such/program", "/etc/passwd"] {
        let container = pod.create(ContainerSpec::of("busybox:latest").command(&[command]));
        let request = StartContainerRequest {
            container_id: container.id().into(),
        };
        let result = daemon.cri().runtime(async |c| c.start_container(request).await);
        let status = result.expect_err("a program that cannot be started");
        assert!(status.message().contains(command), "{status}");
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{status:?}");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "ContainerCannotRun"),
            "{status:?}"
        );
        assert!(status.message.contains(command), "{status:?}");
    }
    let good = pod.run(ContainerSpec::sh("exit 0"));
    assert_eq!(good.wait_exited().exit_code, 0, "the pod goes on");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exited_container_can_be_neither_started_nor_entered() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exited"));
    let container = pod.run(ContainerSpec::sh("exit 0"));
    container.wait_exited();
    let id = container.id().to_owned();
    let request = StartContainerRequest {
        container_id: id.clone(),
    };
    let started = daemon.cri().runtime(async |c| c.start_container(request).await);
    assert_refused(started, Code::FailedPrecondition, &[&id[..13], "exited"]);
    let entered = container.try_exec(&["true"], 0);
    let said = assert_refused(entered, Code::FailedPrecondition, &[&id[..13], "exited"]);
    assert!(!said.contains("start it"), "it cannot be started either: {said}");
    container
        .try_stop(10)
        .expect("stop of a stopped container is no error");
}
