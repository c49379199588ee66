//! Exec.

use bulkhead_proto::cri::{ExecSyncRequest, runtime_service_client::RuntimeServiceClient};
use futures_util::future::join_all;
use tonic::Code;

use super::client::{ALL, OUT, Remote, TTY, over_web_socket};
use crate::node::{Node, until};

fn node_with_container() -> (Node, String) {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    (node, id)
}

/// How many commands the guest still has.
fn execs(node: &Node, id: &str) -> String {
    String::from_utf8(node.exec(id, &["execs"], 0).unwrap().stdout).unwrap()
}

#[test]
fn a_command_has_its_output_and_its_exit_code() {
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["both", "to out", "to err"], &OUT).unwrap();
    let ran = node.wait(async { Remote::open(&url, &OUT).await.finish().await });
    assert_eq!(ran.stdout, b"to out");
    assert_eq!(ran.stderr, b"to err");
    assert_eq!(ran.code(), 3);
    let url = node.exec_url(&id, &["say", "hello"], &["stdout"]).unwrap();
    let ran = node.wait(async { Remote::open(&url, &["stdout"]).await.finish().await });
    assert_eq!((ran.stdout.as_slice(), ran.code()), (&b"hello\n"[..], 0));
    assert_eq!(execs(&node, &id), "0");
}

#[test]
fn older_clients_are_told_in_words() {
    let (node, id) = node_with_container();
    for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let run = |command: &[&str]| {
            let url = node.exec_url(&id, command, &OUT).unwrap();
            node.wait(async { Remote::speaking(&url, protocol, &OUT).await.finish().await })
        };
        assert_eq!(run(&["say", "x"]).error, "");
        assert!(run(&["exit", "9"]).error.ends_with("exit code 9"));
    }
}

#[test]
fn input_reaches_the_command_and_its_end_as_well() {
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["cat"], &ALL).unwrap();
    let input: Vec<u8> = (0..=255u8).cycle().take(3_000_000).collect();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &ALL).await;
        remote.type_in(b"first ").await;
        remote.hear("first ").await;
        remote.to.ping(1).await;
        remote.type_in(&input).await;
        remote.end_input().await;
        remote.finish().await
    });
    assert_eq!(&ran.stdout[..6], b"first ");
    assert!(ran.stdout[6..] == input, "{} bytes came back", ran.stdout.len());
    assert_eq!(ran.code(), 0);
}

#[test]
fn a_command_ends_although_its_client_goes_on_typing() {
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["after", "300", "4"], &ALL).unwrap();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &ALL).await;
        // More than a stream takes, and nobody reads it.
        let typing = vec![b'x'; 200 << 10];
        remote.type_in(&typing).await;
        remote.finish().await
    });
    assert_eq!(ran.stdout, b"late\n");
    assert_eq!(ran.code(), 4);
}

#[test]
fn a_terminal_gets_the_size_of_the_clients_window() {
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["size"], &TTY).unwrap();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &TTY).await;
        for size in [(80, 24), (0, 0), (100, 50)] {
            remote.resize(size.0, size.1).await;
        }
        remote.finish().await
    });
    assert_eq!(ran.stdout, b"100x50\r\n");
    assert_eq!(ran.code(), 5);
}

#[test]
fn a_client_that_vanishes_takes_its_command_with_it() {
    let (node, id) = node_with_container();
    for command in [&["run"][..], &["cat"], &["count"]] {
        let url = node.exec_url(&id, command, &ALL).unwrap();
        node.wait(async {
            let mut remote = Remote::open(&url, &ALL).await;
            while !matches!(remote.from.next().await, Some(crate::spdy::Event::Opened(7))) {}
        });
        until("the command to be killed", || {
            (execs(&node, &id) == "0").then_some(())
        });
    }
    // One whose unread input hides that the client is gone.
    let url = node.exec_url(&id, &["run"], &ALL).unwrap();
    node.wait(async {
        let mut remote = Remote::open(&url, &ALL).await;
        let typing = vec![b'x'; 1 << 20];
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), remote.type_in(&typing)).await;
    });
    until("the command to be killed", || {
        (execs(&node, &id) == "0").then_some(())
    });
}

#[test]
fn what_runs_for_a_client_ends_with_the_daemon() {
    let (mut node, id) = node_with_container();
    let url = node.exec_url(&id, &["run"], &ALL).unwrap();
    let session = node.wait(async { Remote::open(&url, &ALL).await });
    let mut client = RuntimeServiceClient::new(node.channel.clone());
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["run".to_owned()],
        timeout: 0,
    };
    let call = node.spawn(async move { client.exec_sync(request).await });
    until("both to run", || (execs(&node, &id) == "2").then_some(()));

    node.stop();
    let status = node.wait(call).unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("the daemon ends"), "{status:?}");
    drop(session);
    node.start();
    assert_eq!(execs(&node, &id), "0");
}

#[test]
fn much_output_comes_whole_to_a_client_that_takes_its_time() {
    const TOTAL: usize = 64 << 20;
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["flood", &TOTAL.to_string()], &OUT).unwrap();
    let ran = node.wait(async {
        let remote = Remote::open(&url, &OUT).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        remote.finish().await
    });
    assert_eq!(ran.stdout.len(), TOTAL);
    assert_eq!(ran.code(), 0);
}

#[test]
fn a_hundred_sessions_run_at_once() {
    let (node, id) = node_with_container();
    let urls: Vec<String> = (0..100)
        .map(|_| node.exec_url(&id, &["cat"], &ALL).unwrap())
        .collect();
    node.wait(async {
        let sessions = urls.iter().enumerate().map(|(number, url)| async move {
            let mut remote = Remote::open(url, &ALL).await;
            let text = format!("session {number}");
            remote.type_in(text.as_bytes()).await;
            remote.hear(&text).await;
            remote
        });
        // All of them are open before the first one ends.
        for mut remote in join_all(sessions).await {
            remote.end_input().await;
            assert_eq!(remote.finish().await.code(), 0);
        }
    });
    assert_eq!(execs(&node, &id), "0");
}

#[test]
fn web_sockets_of_all_versions_work() {
    let (node, id) = node_with_container();
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
    ] {
        let url = node.exec_url(&id, &["both", "to out", "to err"], &OUT).unwrap();
        let ran = node.wait(over_web_socket(&url, protocol, None));
        assert_eq!(
            (&ran.stdout[..], &ran.stderr[..]),
            (&b"to out"[..], &b"to err"[..]),
            "{protocol}"
        );
        assert_eq!(ran.code(), 3);
    }
    for protocol in ["channel.k8s.io", "base64.channel.k8s.io", ""] {
        let url = node.exec_url(&id, &["both", "to out", "to err"], &OUT).unwrap();
        let ran = node.wait(over_web_socket(&url, protocol, None));
        assert_eq!(ran.stdout, b"to out", "{protocol}");
        assert!(ran.error.ends_with("exit code 3"), "{protocol}: {}", ran.error);
    }
    let input: Vec<u8> = (0..=255u8).cycle().take(2_000_000).collect();
    let url = node.exec_url(&id, &["cat"], &ALL).unwrap();
    let ran = node.wait(over_web_socket(&url, "v5.channel.k8s.io", Some(&input)));
    assert!(ran.stdout == input, "{} bytes came back", ran.stdout.len());
    assert_eq!(ran.code(), 0);
}

#[test]
fn what_cannot_be_executed_is_refused_or_told_at_the_end() {
    let (node, id) = node_with_container();
    let code = |result: Result<String, tonic::Status>| result.unwrap_err().code();
    assert_eq!(code(node.exec_url("", &["say"], &OUT)), Code::InvalidArgument);
    assert_eq!(code(node.exec_url("unknown", &["say"], &OUT)), Code::NotFound);
    assert_eq!(code(node.exec_url(&id, &[], &OUT)), Code::InvalidArgument);
    assert_eq!(code(node.exec_url(&id, &["say"], &[])), Code::InvalidArgument);
    let both = ["stdout", "stderr", "resize"];
    assert_eq!(code(node.exec_url(&id, &["say"], &both)), Code::InvalidArgument);

    let url = node.exec_url(&id, &["cannot"], &OUT).unwrap();
    let ran = node.wait(async { Remote::open(&url, &OUT).await.finish().await });
    assert!(ran.error.contains("no program"), "{}", ran.error);
    assert!(ran.error.contains("InternalError"), "{}", ran.error);

    // It is looked at again when the client comes.
    let late = node.exec_url(&id, &["say", "late"], &OUT).unwrap();
    node.stop_container(&id, 0).unwrap();
    assert_eq!(code(node.exec_url(&id, &["say"], &OUT)), Code::FailedPrecondition);
    let ran = node.wait(async { Remote::open(&late, &OUT).await.finish().await });
    assert!(ran.error.contains("exited"), "{}", ran.error);
}

#[test]
fn a_machine_that_ends_is_told_to_who_waits_for_a_command() {
    let (node, id) = node_with_container();
    let url = node.exec_url(&id, &["run"], &OUT).unwrap();
    let ran = node.wait(async {
        let mut remote = Remote::open(&url, &OUT).await;
        while !matches!(remote.from.next().await, Some(crate::spdy::Event::Opened(5))) {}
        let panic = node.exec_url_now(&id, &["panic"]).await;
        let _ = Remote::open(&panic, &OUT).await.finish().await;
        remote.finish().await
    });
    assert!(ran.error.contains("virtual machine ended"), "{}", ran.error);
}
