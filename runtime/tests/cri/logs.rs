//! Logs on the host.

use std::fs;

use bulkhead_proto::cri::{ContainerState, ReopenContainerLogRequest};
use tonic::Code;

use crate::node::{Node, until};

#[test]
fn everything_is_in_the_log_before_exited_is_shown() {
    let node = Node::new();
    let pod = node.run_pod("p");
    for round in 0..20 {
        let name = format!("c{round}");
        let id = node.run(&pod, &name, &["both", "one\ntwo", "three\n"]);
        node.wait_exited(&id);
        let mut log = node.log(&name);
        log.sort();
        assert_eq!(log, ["stderr F three", "stdout F one", "stdout P two"]);
    }
}

#[test]
fn a_flood_is_written_whole() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["flood", "10485760"]);
    node.wait_exited(&id);
    let log = node.log("c");
    assert_eq!(log.len(), 10240);
    let line = format!("stdout F {}", "x".repeat(1023));
    assert!(log.iter().all(|found| *found == line));
}

#[test]
fn a_reopened_log_loses_and_doubles_nothing() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["count"]);
    let reopen = || {
        let request = ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        node.runtime(async |mut c| c.reopen_container_log(request).await)
    };
    let path = node.log_path("c");
    for rotation in 0..5 {
        until("some lines", || {
            (fs::metadata(&path).unwrap().len() > 2000).then_some(())
        });
        fs::rename(&path, path.with_extension(format!("log.{rotation}"))).unwrap();
        reopen().unwrap();
        assert!(path.exists(), "the new file is there on return");
    }
    node.stop_container(&id, 10).unwrap();
    let mut log = Vec::new();
    for rotation in 0..5 {
        log.push(fs::read_to_string(path.with_extension(format!("log.{rotation}"))).unwrap());
    }
    log.push(fs::read_to_string(&path).unwrap());
    assert_counted(&log.concat());
    let refused = reopen().unwrap_err();
    assert_eq!(
        refused.code(),
        Code::FailedPrecondition,
        "only a running container has a log to open"
    );
}

#[test]
fn a_log_that_cannot_be_opened_fails_the_start() {
    let node = Node::new();
    let pod = node.run_pod("p");
    fs::create_dir_all(node.log_path("c")).unwrap();
    let id = node.create(&pod, "c", &["run"]);
    let refused = node.start_container(&id).unwrap_err();
    assert!(refused.message().contains("c.log"), "{refused:?}");
    assert_eq!(node.status(&id).state(), ContainerState::ContainerExited);
}

#[test]
fn a_full_log_disk_holds_the_container_up_and_stopping_it_does_not_hang() {
    let node = Node::new();
    let pod = node.run_pod("p");
    fs::create_dir_all(node.log_path("c").parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", node.log_path("c")).unwrap();
    let id = node.run(&pod, "c", &["say", "lost"]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(
        node.status(&id).state(),
        ContainerState::ContainerRunning,
        "its output is not in the log yet"
    );
    node.stop_container(&id, 0).unwrap();
    assert_eq!(node.status(&id).state(), ContainerState::ContainerExited);
}

#[test]
fn a_container_without_a_log_runs() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", &["flood", "1048576"]);
    config.log_path.clear();
    let id = node.try_create(&pod, config).unwrap();
    node.start_container(&id).unwrap();
    assert_eq!(node.wait_exited(&id).log_path, "");
}

/// Checks that a log of the double's `count` has every number once and in order, on both streams.
pub fn assert_counted(log: &str) {
    let (mut out, mut err) = (0u64, 0u64);
    for line in log.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        match (fields[1], fields[2], fields[3].strip_prefix("err ")) {
            ("stdout", "F", None) => {
                assert_eq!(fields[3], out.to_string(), "a line is lost or doubled");
                out += 1;
            }
            ("stderr", "F", Some(number)) => {
                assert_eq!(number, err.to_string(), "a line is lost or doubled");
                err += 7;
            }
            _ => panic!("unexpected: {line}"),
        }
    }
    assert!(out > 0);
}
