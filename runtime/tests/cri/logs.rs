//! Logs on the host.

use std::{fs, time::SystemTime};

use bulkhead_proto::cri::{ContainerState, ReopenContainerLogRequest};
use bulkhead_runtime::logs::format::rfc3339;
use serde_json::Value;
use tonic::Code;

use crate::{
    node::{Node, until},
    observe::{ask, value},
};

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
    wait_held_up(&node, &id);
    assert_eq!(
        node.status(&id).state(),
        ContainerState::ContainerRunning,
        "its output is not in the log yet"
    );
    node.stop_container(&id, 0).unwrap();
    assert_eq!(node.status(&id).state(), ContainerState::ContainerExited);
    assert_eq!(node.container_info(&id)["logFault"], Value::Null);
}

#[test]
fn a_log_that_cannot_be_written_is_told_until_it_can_and_nothing_is_lost() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let well = node.run(&pod, "well", &["run"]);
    std::os::unix::fs::symlink("/dev/full", node.log_path("c")).unwrap();
    let faults = || value(&ask(&node, "GET /metrics"), "bulkhead_log_faults").unwrap();
    assert!(faults() < 1.0);
    let begun = rfc3339(SystemTime::now());
    let id = node.run(&pod, "c", &["say", "kept"]);
    let fault = wait_held_up(&node, &id);
    assert!(
        fault["reason"].as_str().unwrap().contains("No space left"),
        "{fault}"
    );
    let since = fault["since"].as_str().unwrap();
    assert!(
        (begun.as_str()..=&rfc3339(SystemTime::now())).contains(&since),
        "{since}"
    );
    assert!((faults() - 1.0).abs() < 0.1, "{}", faults());
    assert_eq!(node.container_info(&well)["logFault"], Value::Null);

    fs::remove_file(node.log_path("c")).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    node.runtime(async |mut c| c.reopen_container_log(request).await)
        .unwrap();
    node.wait_exited(&id);
    assert_eq!(node.log("c"), ["stdout F kept"]);
    assert_eq!(node.container_info(&id)["logFault"], Value::Null);
    assert!(faults() < 1.0);
}

/// Waits until a container is told to have a log that cannot be written, and gives what is told.
fn wait_held_up(node: &Node, id: &str) -> Value {
    until("a fault of the log", || {
        let fault = node.container_info(id)["logFault"].take();
        (!fault.is_null()).then_some(fault)
    })
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
