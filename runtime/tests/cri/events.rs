//! GetContainerEvents: in order, whole, to several clients, and what a slow one is told.

use bulkhead_proto::cri::*;
use rustix::process::{Pid, kill_process};
use tonic::{Code, Streaming};

use crate::node::Node;

use ContainerEventType::{
    ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};

fn listen(node: &Node) -> Streaming<ContainerEventResponse> {
    node.runtime(async |mut c| c.get_container_events(GetEventsRequest {}).await)
        .unwrap()
}

fn next(node: &Node, events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    node.next(events).unwrap().expect("an event")
}

/// What an event is about, by the names of the pod and container.
fn short(event: &ContainerEventResponse) -> (String, ContainerEventType) {
    let pod = event.pod_sandbox_status.as_ref().unwrap();
    let id = if event.container_id == pod.id {
        "pod".to_owned()
    } else {
        event.container_id.clone()
    };
    (id, event.container_event_type())
}

#[test]
fn a_pods_life_is_told_in_order_and_whole() {
    let node = Node::new();
    let (mut one, mut two) = (listen(&node), listen(&node));
    let pod = node.run_pod("p");
    let a = node.run(&pod, "a", &["run"]);
    let b = node.run(&pod, "b", &["exit", "3"]);
    node.wait_exited(&b);
    node.stop_container(&a, 10).unwrap();
    node.remove_container(&a).unwrap();
    node.remove_pod(&pod).unwrap();

    let is_pod = || "pod".to_owned();
    let expected = [
        (is_pod(), ContainerCreatedEvent),
        (is_pod(), ContainerStartedEvent),
        (a.clone(), ContainerCreatedEvent),
        (a.clone(), ContainerStartedEvent),
        (b.clone(), ContainerCreatedEvent),
        (b.clone(), ContainerStartedEvent),
        (b.clone(), ContainerStoppedEvent),
        (a.clone(), ContainerStoppedEvent),
        (a.clone(), ContainerDeletedEvent),
        (is_pod(), ContainerStoppedEvent),
        (b.clone(), ContainerDeletedEvent),
        (is_pod(), ContainerDeletedEvent),
    ];
    let told: Vec<_> = expected.iter().map(|_| next(&node, &mut one)).collect();
    assert_eq!(told.iter().map(short).collect::<Vec<_>>(), expected);
    let times: Vec<_> = told.iter().map(|event| event.created_at).collect();
    assert!(times.is_sorted_by(|a, b| a < b) && times[0] > 0, "{times:?}");

    // Each has the pod as it was then.
    let states: Vec<_> = told
        .iter()
        .map(|event| event.pod_sandbox_status.as_ref().unwrap().state())
        .collect();
    let ready = states
        .iter()
        .take_while(|state| **state == PodSandboxState::SandboxReady)
        .count();
    assert_eq!(ready, 9, "{states:?}");
    let metadata = told[0].pod_sandbox_status.clone().unwrap().metadata.unwrap();
    assert_eq!(
        (metadata.name.as_str(), metadata.namespace.as_str()),
        ("p", "test")
    );
    let status_of = |event: &ContainerEventResponse, id: &str| {
        let statuses = event.containers_statuses.iter();
        statuses.clone().find(|status| status.id == id).cloned()
    };
    assert!(told[1].containers_statuses.is_empty());
    assert_eq!(
        status_of(&told[2], &a).unwrap().state(),
        ContainerState::ContainerCreated
    );
    assert_eq!(
        status_of(&told[4], &a).unwrap().state(),
        ContainerState::ContainerRunning
    );
    let stopped = status_of(&told[6], &b).unwrap();
    assert_eq!(
        (stopped.state(), stopped.exit_code),
        (ContainerState::ContainerExited, 3)
    );
    assert_eq!(status_of(&told[7], &a).unwrap().exit_code, 143);
    assert_eq!(
        status_of(&told[8], &a),
        None,
        "a container that is deleted is not listed"
    );
    assert!(told[11].containers_statuses.is_empty());

    let to_the_other: Vec<_> = expected.iter().map(|_| next(&node, &mut two)).collect();
    assert_eq!(to_the_other, told);
}

#[test]
fn a_machine_that_dies_ends_its_containers_before_its_pod() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let (a, b) = (node.run(&pod, "a", &["run"]), node.create(&pod, "b", &["run"]));
    let mut events = listen(&node);
    kill_process(
        Pid::from_raw(node.vmm_pid(&pod)).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let told: Vec<_> = (0..3).map(|_| next(&node, &mut events)).collect();
    let mut containers: Vec<_> = told[..2].iter().map(|event| event.container_id.clone()).collect();
    containers.sort();
    let mut both = [a, b];
    both.sort();
    assert_eq!(containers, both);
    assert_eq!(told[2].container_id, pod);
    for event in &told {
        assert_eq!(event.container_event_type(), ContainerStoppedEvent);
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    }
    for status in &told[2].containers_statuses {
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerState::ContainerExited, 137)
        );
    }
    // Its end is told once.
    node.stop_pod(&pod).unwrap();
    let next_pod = node.run_pod("q");
    assert_eq!(next(&node, &mut events).container_id, next_pod);
}

#[test]
fn what_does_not_come_to_be_or_starts_in_vain_is_told_as_that() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let mut events = listen(&node);
    let refused = node.container_config("a", &["impossible"]);
    node.try_create(&pod, refused).unwrap_err();
    let id = node.create(&pod, "b", &["cannot"]);
    node.start_container(&id).unwrap_err();
    let told: Vec<_> = (0..2).map(|_| next(&node, &mut events)).collect();
    let expected = [(id.clone(), ContainerCreatedEvent), (id, ContainerStoppedEvent)];
    assert_eq!(told.iter().map(short).collect::<Vec<_>>(), expected);
    assert_eq!(told[1].containers_statuses[0].reason, "ContainerCannotRun");
}

#[test]
fn a_client_that_does_not_read_is_told_how_much_it_missed() {
    let node = Node::new();
    let mut slow = listen(&node);
    let mut quick = listen(&node);
    let pod = node.run_pod("p");
    // Large ones, so that what the connection itself holds comes to few.
    let mut config = node.container_config("c", &["exit", "0"]);
    config.annotations.insert("large".into(), "x".repeat(50_000));
    let mut sent: Vec<_> = (0..2).map(|_| next(&node, &mut quick)).collect();
    for attempt in 0..300 {
        config.metadata.as_mut().unwrap().attempt = attempt;
        let id = node.try_create(&pod, config.clone()).unwrap();
        node.start_container(&id).unwrap();
        node.wait_exited(&id);
        node.remove_container(&id).unwrap();
        sent.extend((0..4).map(|_| next(&node, &mut quick)));
    }
    let mut told = Vec::new();
    let error = loop {
        match node.next(&mut slow) {
            Ok(Some(event)) => told.push(event),
            Ok(None) => panic!("the stream ended after {} events without a word", told.len()),
            Err(status) => break status,
        }
    };
    assert_eq!(error.code(), Code::DataLoss, "{error:?}");
    let lost = sent.len() - told.len();
    assert!(
        error.message().starts_with(&format!("{lost} events")),
        "{error:?} after {} of {}",
        told.len(),
        sent.len()
    );
    assert!(told.len() >= 1000, "only {} were kept", told.len());
    // None but the last are missing, and nobody else misses any.
    assert!(told == sent[..told.len()], "what was told differs");
}

#[test]
fn a_pods_status_has_its_containers_and_the_time_that_events_are_ordered_by() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let mut events = listen(&node);
    let status = node.pod_status(&pod);
    assert_eq!(status.containers_statuses, [node.status(&id)]);
    node.stop_container(&id, 0).unwrap();
    assert!(next(&node, &mut events).created_at > status.timestamp && status.timestamp > 0);
}
