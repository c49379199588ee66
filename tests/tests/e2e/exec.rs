//! ExecSync: what it inherits, what it returns, and what its timeout ends.

use std::thread;

use bulkhead_proto::cri::ExecSyncRequest;
use bulkhead_tests::{ContainerSpec, Daemon, PodSpec, assert_refused, until};
use serde_json::json;
use tonic::Code;

/// What ExecSync returns of each stream at most, in bytes.
const CAP: usize = 16 * 1024 * 1024;

#[test]
#[ignore = "runs in the node: hack/test"]
fn exec_returns_both_streams_and_the_exit_code() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec"));
    let container = pod.run(ContainerSpec::idle());
    let output = container.exec(&["sh", "-c", "printf out; printf err >&2; exit 42"]);
    assert_eq!(
        (output.code, output.stdout.as_slice(), output.stderr.as_slice()),
        (42, &b"out"[..], &b"err"[..])
    );
    let output = container.exec(&["sh", "-c", "kill -9 $$"]);
    assert_eq!(output.code, 137, "{output:?}");
    assert_eq!(
        container.exec(&["printf", "a b", "c"]).stdout,
        b"a b",
        "arguments are no shell's words"
    );
    assert_eq!(container.exec(&["cat"]).code, 0, "standard input is empty");
    assert_eq!(
        container.status().state(),
        bulkhead_proto::cri::ContainerState::ContainerRunning
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn exec_runs_as_its_container_does() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-inherits"));
    let container = pod.run(
        ContainerSpec::idle()
            .with("/envs", json!([{ "key": "FLAVOUR", "value": "of two words" }]))
            .with("/working_dir", "/var/made/for/it")
            .security("run_as_user", json!({ "value": 1000 }))
            .security("run_as_group", json!({ "value": 1001 }))
            .security("supplemental_groups", json!([2000, 3000]))
            .security("no_new_privs", true)
            .security(
                "capabilities",
                json!({ "drop_capabilities": ["ALL"], "add_capabilities": ["NET_RAW"] }),
            ),
    );
    assert_eq!(container.sh("echo $FLAVOUR"), "of two words");
    assert_eq!(container.sh("pwd"), "/var/made/for/it");
    assert_eq!(container.sh("id -u; id -g; id -G"), "1000\n1001\n1001 2000 3000");
    let compared = "grep -E '^(Cap...|NoNewPrivs|Seccomp|Uid|Gid|Groups):' /proc/PID/status; cat /proc/PID/oom_score_adj; \
                    cut -d / -f 1 /proc/PID/cgroup; readlink /proc/PID/root";
    let own = container.sh(&compared.replace("PID", "self"));
    let first = container.sh(&compared.replace("PID", "1"));
    assert_eq!(own, first);
    assert!(own.contains("NoNewPrivs:\t1"), "{own}");
    for namespace in ["pid", "mnt", "ipc", "uts", "net", "cgroup", "user"] {
        let read = |pid: &str| container.sh(&format!("readlink /proc/{pid}/ns/{namespace}"));
        assert_eq!(read("self"), read("1"), "{namespace}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exec_timeout_kills_all_that_it_started() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-timeout"));
    let container = pod.run(ContainerSpec::idle());
    let alone = container.try_exec(&["sleep", "4320"], 2);
    assert_refused(alone, Code::DeadlineExceeded, &["2 s"]);
    // As critest looks for it: a zombie would be found as well.
    assert_eq!(container.exec(&["pgrep", "sleep"]).code, 1);

    // A child, a grandchild in a session of its own, one that ignores signals, and an orphan.
    let script = "sleep 4321 & setsid sleep 4322 & (trap '' TERM HUP INT; sleep 4323; sleep 4323) & (setsid sleep 4324 &); \
                  echo started > /started; sleep 4325";
    let result = container.try_exec(&["sh", "-c", script], 15);
    assert_refused(result, Code::DeadlineExceeded, &["15 s"]);
    assert_eq!(container.sh("cat /started"), "started", "it had begun");
    // Zombies whose parent is the container's own process 1 are that one's to reap.
    let left = container.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep sleep | grep -v ') Z 1 ' || true");
    assert_eq!(left, "", "processes of the exec when the call has returned");
    assert_eq!(
        container.sh("tr '\\0' ' ' < /proc/1/cmdline"),
        "top -b -d 3600",
        "the container goes on"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exec_that_ends_in_time_is_not_cut_off() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-in-time"));
    let container = pod.run(ContainerSpec::idle());
    let output = container
        .try_exec(&["echo", "in time"], 250)
        .expect("it ends in time");
    assert_eq!((output.code, output.text().as_str()), (0, "in time"));
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exec_ends_with_its_container() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-ends"));
    let container = pod.run(ContainerSpec::idle());
    thread::scope(|scope| {
        let exec = scope.spawn(|| container.try_exec(&["sh", "-c", "touch /running; sleep 100000"], 0));
        until("the exec to run", || {
            if container.exec(&["test", "-e", "/running"]).code == 0 {
                Ok(())
            } else {
                Err("no mark".into())
            }
        });
        container.stop(0);
        match exec.join().expect("no panic") {
            Ok(output) => assert_eq!(output.code, 137, "{output:?}"),
            Err(status) => assert!(!status.message().is_empty(), "{status:?}"),
        }
    });
    assert_eq!(container.status().exit_code, 137);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn execs_at_the_same_time_do_not_mix() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-parallel"));
    let container = pod.run(ContainerSpec::idle());
    thread::scope(|scope| {
        let execs: Vec<_> = (0..12)
            .map(|number| {
                let container = &container;
                scope.spawn(move || {
                    let script = format!("seq {number}000 {number}999; echo err {number} >&2; exit {number}");
                    (number, container.exec(&["sh", "-c", &script]))
                })
            })
            .collect();
        for exec in execs {
            let (number, output) = exec.join().expect("no panic");
            let expected: String = (0..1000).map(|i| format!("{}\n", number * 1000 + i)).collect();
            assert!(
                String::from_utf8_lossy(&output.stdout) == expected,
                "stdout of exec {number}"
            );
            assert_eq!(output.error_text(), format!("err {number}"));
            assert_eq!(output.code, number);
        }
    });
    let processes =
        container.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep -c -v -e '(sh)' -e '(cat)' -e '(grep)'");
    assert_eq!(processes, "1", "only the container's first process is left");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_hundred_megabytes_from_an_exec_are_cut_at_16_mib_and_weigh_nothing_in_the_guest() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-flood"));
    let container = pod.run(ContainerSpec::idle());
    container.sh("seq 1000000 1130000 | head -c 1000000 > /block");
    let block = container.exec(&["cat", "/block"]).stdout;
    assert_eq!(block.len(), 1_000_000);
    let before = available_kib(&container);
    let output = container.exec(&[
        "sh",
        "-c",
        "i=0; while [ $i -lt 100 ]; do cat /block; i=$((i+1)); done; echo end >&2",
    ]);
    assert_eq!(
        (output.code, output.error_text().as_str()),
        (0, "end"),
        "it was read to its end"
    );
    assert_eq!(output.stdout.len(), CAP);
    for (number, chunk) in output.stdout.chunks(block.len()).enumerate() {
        assert!(chunk == &block[..chunk.len()], "megabyte {number} differs");
    }
    let after = available_kib(&container);
    assert!(
        before - after < 8 * 1024,
        "the guest has {} KiB less than before",
        before - after
    );
}

fn available_kib(container: &bulkhead_tests::Container<'_>) -> i64 {
    let text = container.sh("sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    text.parse().expect("a number of KiB")
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_exec_that_cannot_start_is_an_error_that_names_the_program() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-missing"));
    let container = pod.run(ContainerSpec::idle());
    for program in ["no-such-program", "/no/such/program", "/etc/passwd"] {
        let status = container.try_exec(&[program], 0).expect_err("it cannot start");
        assert!(status.message().contains(program), "{status:?}");
        assert!(
            !matches!(status.code(), Code::Ok | Code::DeadlineExceeded),
            "{status:?}"
        );
    }
    let request = ExecSyncRequest {
        container_id: container.id().into(),
        cmd: Vec::new(),
        timeout: 0,
    };
    let result = daemon.cri().runtime(async |c| c.exec_sync(request).await);
    assert_refused(result, Code::InvalidArgument, &["cmd"]);
    assert_refused(
        container.try_exec(&["true"], -1),
        Code::InvalidArgument,
        &["timeout"],
    );
    assert_eq!(container.sh("echo still here"), "still here");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn only_a_running_container_can_be_entered() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("exec-created"));
    let container = pod.create(ContainerSpec::idle());
    let short = &container.id()[..13];
    assert_refused(
        container.try_exec(&["true"], 0),
        Code::FailedPrecondition,
        &[short, "created"],
    );
    container.start();
    container.sh("true");
    pod.stop();
    assert_refused(
        container.try_exec(&["true"], 0),
        Code::FailedPrecondition,
        &[short, "exited"],
    );
}
