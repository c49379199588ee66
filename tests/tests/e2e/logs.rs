//! Container logs on the host, in CRI's format.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use bulkhead_proto::cri::ReopenContainerLogRequest;
use bulkhead_tests::{ContainerSpec, Daemon, PodSpec, assert_refused, log};
use tonic::{Code, Status};

/// Longest content of one log line, in bytes.
const LINE_BYTES: usize = 16 * 1024;

#[test]
#[ignore = "runs in the node: hack/test"]
fn lines_over_16_kib_are_split_and_no_byte_is_lost() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("long-lines"));
    let lengths = [
        0,
        1,
        LINE_BYTES - 1,
        LINE_BYTES,
        LINE_BYTES + 1,
        3 * LINE_BYTES,
        100_000,
    ];
    let script: String = lengths
        .iter()
        .map(|length| format!("head -c {length} /dev/zero | tr '\\0' x; echo; "))
        .collect();
    let container = pod.run(ContainerSpec::sh(&script));
    assert_eq!(container.wait_exited().exit_code, 0);
    let lines = container.log();
    let expected: String = lengths.iter().map(|length| "x".repeat(*length) + "\n").collect();
    assert!(
        log::bytes_of(&lines, "stdout") == expected.as_bytes(),
        "what was put together again differs"
    );
    for line in &lines {
        assert!(
            line.content.len() <= LINE_BYTES,
            "a line of {} bytes",
            line.content.len()
        );
    }
    assert_eq!(
        lines.iter().filter(|line| !line.partial).count(),
        lengths.len(),
        "one full line for each"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_last_line_without_newline_is_logged_as_partial() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("no-newline"));
    let container = pod.run(ContainerSpec::sh("printf 'one\\ntwo'; printf 'err' >&2"));
    container.wait_exited();
    let lines = container.log();
    assert_eq!(log::bytes_of(&lines, "stdout"), b"one\ntwo");
    assert_eq!(log::bytes_of(&lines, "stderr"), b"err");
    let partial: Vec<_> = lines
        .iter()
        .filter(|line| line.partial)
        .map(|line| line.content.as_slice())
        .collect();
    assert_eq!(partial.len(), 2, "{lines:?}");
    assert!(
        partial.contains(&b"two".as_slice()) && partial.contains(&b"err".as_slice()),
        "{lines:?}"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn lines_of_both_streams_are_in_the_order_in_which_they_were_written() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("order"));
    // Two pipes have no order but that of time, so there is some between the lines.
    let container = pod.run(ContainerSpec::sh(
        "i=0; while [ $i -lt 20 ]; do echo $i; sleep 0.1; echo $i >&2; sleep 0.1; i=$((i+1)); done",
    ));
    assert_eq!(container.wait_exited().exit_code, 0);
    let lines = container.log();
    let written: Vec<(String, String)> = lines
        .iter()
        .map(|line| {
            (
                line.stream.clone(),
                String::from_utf8_lossy(&line.content).into_owned(),
            )
        })
        .collect();
    let expected: Vec<(String, String)> = (0..20)
        .flat_map(|number| ["stdout", "stderr"].map(|stream| (stream.to_owned(), number.to_string())))
        .collect();
    assert_eq!(written, expected);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn both_streams_are_tagged_and_each_keeps_its_order() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("streams"));
    let container = pod.run(ContainerSpec::sh(
        "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done",
    ));
    assert_eq!(container.wait_exited().exit_code, 0);
    // Everything is in the file when the container reads as exited: no waiting here.
    let lines = container.log();
    for (stream, word) in [("stdout", "out"), ("stderr", "err")] {
        let expected: String = (0..500).map(|i| format!("{word} {i}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&log::bytes_of(&lines, stream)), expected);
        let times: Vec<&str> = lines
            .iter()
            .filter(|line| line.stream == stream)
            .map(|line| line.time.as_str())
            .collect();
        assert!(times.is_sorted(), "times of one stream go forwards");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn every_byte_but_the_newline_goes_through_as_it_is() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("bytes"));
    let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    let octal: String = bytes.iter().map(|byte| format!("\\{byte:04o}")).collect();
    let container = pod.run(ContainerSpec::of("busybox:latest").command(&["printf", "%b\\n", &octal]));
    assert_eq!(container.wait_exited().exit_code, 0);
    let mut expected = bytes;
    expected.push(b'\n');
    assert_eq!(log::bytes_of(&container.log(), "stdout"), expected);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_log_file_is_there_when_start_returns_and_is_not_for_everyone() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("log-file"));
    let container = pod.create(ContainerSpec::idle().with("/log_path", "below/0.log"));
    fs::create_dir(pod.log_directory().join("below")).expect("a directory as the kubelet makes it");
    container.start();
    let path = container.status().log_path;
    assert_eq!(Path::new(&path), pod.log_directory().join("below/0.log"));
    let metadata = fs::metadata(&path).expect("the log file");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_container_without_log_path_writes_into_the_void() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("no-log"));
    let script = "head -c 3000000 /dev/zero; echo done >&2";
    let container = pod.run(ContainerSpec::sh(script).with("/log_path", ""));
    assert_eq!(container.wait_exited().exit_code, 0);
    assert_eq!(container.status().log_path, "");
    assert_eq!(
        fs::read_dir(pod.log_directory())
            .expect("the log directory")
            .count(),
        0
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_terminals_output_is_one_stream() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("terminal"));
    let script = "test -t 0 && test -t 1 && test -t 2 && echo all terminals; echo to stderr >&2; tty";
    let container = pod.run(ContainerSpec::sh(script).with("/tty", true).with("/stdin", true));
    assert_eq!(container.wait_exited().exit_code, 0);
    let lines = container.log();
    assert!(lines.iter().all(|line| line.stream == "stdout"), "{lines:?}");
    let text = String::from_utf8_lossy(&log::bytes_of(&lines, "stdout")).replace('\r', "");
    assert!(text.starts_with("all terminals\nto stderr\n/dev/"), "{text}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_log_reopened_after_rotation_loses_no_line() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("rotation"));
    let script = "i=0; while [ ! -e /stop ]; do echo line $i; i=$((i+1)); done; echo last $i";
    let container = pod.run(ContainerSpec::sh(script));
    container.wait_for_log("line 100");
    let path = container.status().log_path;
    let rotated = format!("{path}.rotated");
    let mut whole = Vec::new();
    for _ in 0..3 {
        fs::rename(&path, &rotated).expect("the log is rotated as the kubelet does");
        // Not by crictl, which goes on to print the log to its end: with this container it may never come there.
        reopen_log(&daemon, container.id()).expect("a running container's log is reopened");
        assert!(
            fs::exists(&path).expect("a path"),
            "the new file is there when the call returns"
        );
        // Nothing is written to the old file any more.
        whole.extend(fs::read(&rotated).expect("the rotated log"));
        container.wait_for_log("line ");
    }
    // The container's end may be quicker than that of what brings it about.
    let _ = container.try_exec(&["touch", "/stop"], 0);
    container.wait_exited();
    whole.extend(container.raw_log());

    let lines = log::parse(&whole);
    let text = String::from_utf8_lossy(&log::bytes_of(&lines, "stdout")).into_owned();
    let count = text.lines().count() - 1;
    let expected: String =
        (0..count).map(|i| format!("line {i}\n")).collect::<String>() + &format!("last {count}\n");
    assert!(
        text == expected,
        "{count} lines are not all there, once and in order"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn crictl_reopens_a_log() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("reopen"));
    let container = pod.run(ContainerSpec::sh(
        "echo before; while [ ! -e /go ]; do sleep 0.1; done; echo after; exec sleep 1000",
    ));
    container.wait_for_log("before");
    let path = container.status().log_path;
    fs::rename(&path, format!("{path}.rotated")).expect("the log is rotated");
    daemon.crictl().ok(["logs", "--reopen", container.id()]);
    assert_eq!(fs::read(&path).expect("the new log"), b"");
    container.exec(&["touch", "/go"]);
    container.wait_for_log("after");
    assert_eq!(container.log().len(), 1, "the old line is in the old log only");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn only_a_running_containers_log_is_reopened() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("no-reopen"));
    let container = pod.run(ContainerSpec::sh("echo x"));
    container.wait_exited();
    let path = container.status().log_path;
    fs::remove_file(&path).expect("the log");
    assert_refused(
        reopen_log(&daemon, container.id()),
        Code::FailedPrecondition,
        &[&container.id()[..13], "exited"],
    );
    assert!(
        !fs::exists(&path).expect("a path"),
        "a refused call makes no file"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_log_that_cannot_be_made_fails_the_start() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("bad-log"));
    let container = pod.create(ContainerSpec::idle().with("/log_path", "file/below.log"));
    fs::write(pod.log_directory().join("file"), "in the way").expect("a file can be written");
    let said = daemon.crictl().fails(["start", container.id()]);
    assert!(said.contains("file/below.log"), "{said}");
    let good = pod.run(ContainerSpec::sh("exit 0"));
    assert_eq!(good.wait_exited().exit_code, 0, "the pod goes on");
}

fn reopen_log(daemon: &Daemon, container: &str) -> Result<(), Status> {
    let request = ReopenContainerLogRequest {
        container_id: container.into(),
    };
    daemon
        .cri()
        .runtime(async |c| c.reopen_container_log(request).await)
        .map(drop)
}
