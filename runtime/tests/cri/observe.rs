//! Figures over HTTP.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use bulkhead_proto::cri::*;

use crate::node::Node;

/// The answer of the node's endpoint to a request's first line.
pub fn ask(node: &Node, line: &str) -> String {
    let mut connection = TcpStream::connect(node.metrics_address()).unwrap();
    write!(
        connection,
        "{line} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of the sample that begins so.
pub fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
}

#[test]
fn figures_tell_of_calls_pods_and_machines() {
    let node = Node::new();
    let before = ask(&node, "GET /metrics");
    assert!(before.starts_with("HTTP/1.1 200 OK"), "{before}");
    assert_eq!(value(&before, "bulkhead_pods{state=\"ready\"}"), Some(0.0));
    assert_eq!(value(&before, "bulkhead_images"), Some(1.0));

    let pod = node.run_pod("a");
    node.run(&pod, "c", &["sleep"]);
    node.try_status("nobody").unwrap_err();
    let client = node.runtime(async |mut c| c.checkpoint_pod(CheckpointPodRequest::default()).await);
    client.unwrap_err();
    let text = ask(&node, "GET /metrics");
    assert_eq!(
        value(&text, "bulkhead_pods{state=\"ready\"}"),
        Some(1.0),
        "{text}"
    );
    assert_eq!(value(&text, "bulkhead_containers{state=\"running\"}"), Some(1.0));
    let count = "bulkhead_cri_call_duration_seconds_count";
    for (call, code) in [
        ("RunPodSandbox", "Ok"),
        ("StartContainer", "Ok"),
        ("ContainerStatus", "NotFound"),
        ("unimplemented", "Unimplemented"),
    ] {
        let sample = format!("{count}{{call=\"{call}\",code=\"{code}\"}}");
        assert_eq!(value(&text, &sample), Some(1.0), "{sample} in {text}");
    }
    for phase in ["boot", "configure", "total"] {
        let sample = format!("bulkhead_pod_start_duration_seconds_count{{phase=\"{phase}\"}}");
        assert_eq!(value(&text, &sample), Some(1.0), "{sample} in {text}");
    }
    let machine = format!("bulkhead_vmm_resident_bytes{{namespace=\"test\",pod=\"a\",id=\"{pod}\"}}");
    assert!(
        value(&text, &machine).is_some_and(|bytes| bytes > 4096.0),
        "no {machine} in {text}"
    );
    assert!(
        value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6),
        "{text}"
    );
    assert!(value(&text, "process_cpu_seconds_total").unwrap() >= 0.0);
    assert!(text.trim_end().ends_with("# EOF"), "{text}");

    node.stop_pod(&pod).unwrap();
    let after = ask(&node, "GET /metrics");
    assert_eq!(value(&after, &machine), None);
    assert_eq!(value(&after, "bulkhead_pods{state=\"not_ready\"}"), Some(1.0));
}

#[test]
fn the_endpoint_has_nothing_but_figures() {
    let node = Node::new();
    assert!(ask(&node, "GET /").starts_with("HTTP/1.1 404 "));
    assert!(ask(&node, "POST /metrics").starts_with("HTTP/1.1 405 "));
    // Clients that ask for nothing do not keep others out.
    let silent: Vec<_> = (0..10)
        .map(|_| TcpStream::connect(node.metrics_address()).unwrap())
        .collect();
    assert!(ask(&node, "GET /metrics").starts_with("HTTP/1.1 200 OK"));
    drop(silent);
}
