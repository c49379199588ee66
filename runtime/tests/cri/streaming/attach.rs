//! Attach.

use bulkhead_proto::cri::ContainerConfig;
use tonic::Code;

use super::client::{ALL, OUT, Remote, TTY};
use crate::node::{Node, until};

fn started(node: &Node, change: impl FnOnce(&mut ContainerConfig), command: &[&str]) -> String {
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", command);
    change(&mut config);
    let id = node.try_create(&pod, config).unwrap();
    node.start_container(&id).unwrap();
    id
}

#[test]
fn the_one_client_of_a_container_types_sees_and_ends_it() {
    let node = Node::new();
    let once = |config: &mut ContainerConfig| (config.stdin, config.stdin_once) = (true, true);
    let id = started(&node, once, &["cat"]);
    let url = node.attach_url(&id, &ALL).unwrap();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &ALL).await;
        remote.type_in(b"hello\n").await;
        remote.hear("hello\n").await;
        remote.end_input().await;
        remote.finish().await
    });
    assert_eq!(ran.stdout, b"hello\n");
    assert_eq!(ran.code(), 0, "the end of the container is a success");
    assert_eq!(node.wait_exited(&id).exit_code, 0);
    assert_eq!(node.log("c"), ["stdout F hello"]);
}

#[test]
fn input_that_is_for_once_ends_with_a_client_that_vanishes() {
    let node = Node::new();
    let once = |config: &mut ContainerConfig| (config.stdin, config.stdin_once) = (true, true);
    let id = started(&node, once, &["cat"]);
    let url = node.attach_url(&id, &ALL).unwrap();
    node.wait(async {
        let mut remote = Remote::open(&url, &ALL).await;
        remote.type_in(b"hello\n").await;
        remote.hear("hello\n").await;
    });
    assert_eq!(node.wait_exited(&id).exit_code, 0);
}

#[test]
fn input_stays_open_for_the_next_client_and_for_the_next_daemon() {
    let mut node = Node::new();
    let id = started(&node, |config| config.stdin = true, &["cat"]);
    let typed = |node: &Node, text: &str| {
        let url = node.attach_url(&id, &ALL).unwrap();
        node.wait(async {
            let mut remote = Remote::open(&url, &ALL).await;
            remote.type_in(text.as_bytes()).await;
            remote.hear(text).await;
            remote.end_input().await;
            assert_eq!(remote.ran.stdout, text.as_bytes(), "nothing of what was before");
        });
    };
    typed(&node, "one\n");
    typed(&node, "two\n");
    node.kill();
    node.start();
    typed(&node, "three\n");
    until("the log", || {
        (node.log("c") == ["stdout F one", "stdout F two", "stdout F three"]).then_some(())
    });
    node.stop_container(&id, 0).unwrap();
}

#[test]
fn all_clients_see_the_same_from_when_they_come_until_the_end() {
    let node = Node::new();
    let id = started(&node, |_| {}, &["count"]);
    let urls: Vec<String> = (0..8).map(|_| node.attach_url(&id, &OUT).unwrap()).collect();
    let ran = node.wait(async {
        let mut all = Vec::new();
        for url in &urls {
            let mut remote = Remote::open(url, &OUT).await;
            while String::from_utf8_lossy(&remote.ran.stdout).lines().count() < 4 {
                assert!(remote.listen().await);
            }
            all.push(remote);
        }
        node.stop_container_now(&id).await;
        let mut ran = Vec::new();
        for remote in all {
            ran.push(remote.finish().await);
        }
        ran
    });
    let last = |ran: &super::client::Ran| -> Vec<u64> {
        let text = String::from_utf8(ran.stdout.clone()).unwrap();
        // The first line may be a part of one.
        text.lines().skip(1).map(|line| line.parse().unwrap()).collect()
    };
    let end = *last(&ran[0]).last().unwrap_or_else(|| panic!("{:?}", ran[0]));
    for ran in &ran {
        let numbers = last(ran);
        assert_eq!(*numbers.last().unwrap(), end, "all see the end");
        assert!(
            numbers.is_sorted_by(|a, b| a + 1 == *b),
            "none is lost or doubled"
        );
        assert_eq!(ran.code(), 0);
    }
    assert!(node.log("c").contains(&format!("stdout F {end}")));
}

#[test]
fn a_client_that_stalls_is_cut_off_and_the_container_goes_on() {
    let node = Node::new();
    let id = started(&node, |config| config.stdin = true, &["cat"]);
    let stalled = node.attach_url(&id, &OUT).unwrap();
    let typing = node.attach_url(&id, &["stdin"]).unwrap();
    node.wait(async {
        let mut stalled = Remote::open(&stalled, &OUT).await;
        while !matches!(stalled.from.next().await, Some(crate::spdy::Event::Opened(5))) {}
        let mut remote = Remote::open(&typing, &["stdin"]).await;
        // More than the sockets between them hold.
        let much = vec![b'x'; 1 << 20];
        for _ in 0..32 {
            remote.type_in(&much).await;
        }
        remote.type_in(b"\nthe end\n").await;
        let lines = || async { std::fs::read(node.log_path("c")).unwrap() };
        while !lines().await.ends_with(b"the end\n") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let ran = stalled.finish().await;
        assert!(ran.error.contains("cut off"), "{}", ran.error);
    });
    node.stop_container(&id, 0).unwrap();
}

#[test]
fn what_does_not_fit_the_container_is_refused() {
    let node = Node::new();
    let id = started(&node, |config| config.tty = true, &["run"]);
    let code = |streams: &[&str]| node.attach_url(&id, streams).unwrap_err().code();
    assert_eq!(code(&OUT), Code::InvalidArgument, "it has a terminal");
    assert_eq!(code(&TTY), Code::InvalidArgument, "it has no stdin");
    assert_eq!(code(&["resize"]), Code::InvalidArgument);
    assert_eq!(
        node.attach_url("", &OUT).unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        node.attach_url("unknown", &OUT).unwrap_err().code(),
        Code::NotFound
    );
    node.attach_url(&id, &["stdout", "resize"]).unwrap();
    node.stop_container(&id, 0).unwrap();
    assert_eq!(code(&["stdout", "resize"]), Code::FailedPrecondition);
}
