//! Containers: their states, ends and commands.

use std::time::Instant;

use bulkhead_proto::cri::*;
use rustix::process::{Pid, kill_process};
use tonic::Code;

use crate::node::{Node, until};

#[test]
fn a_container_goes_from_created_to_running_to_exited() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", &["run"]);
    config
        .labels
        .insert("io.kubernetes.pod.name".into(), "another".into());
    let id = node.try_create(&pod, config.clone()).unwrap();
    let status = node.status(&id);
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    assert!(status.created_at > 0);
    assert_eq!((status.metadata, status.labels), (config.metadata, config.labels));
    assert_eq!(status.log_path, node.log_path("c").to_str().unwrap());
    assert!(!node.log_path("c").exists(), "the log is made at the start");
    let image = node.pull();
    assert_eq!(status.image_id, image);
    assert!(status.image_ref.contains("@sha256:"), "{}", status.image_ref);
    assert_eq!(status.image.unwrap().image, node.image);
    assert_eq!(status.stop_signal, i32::from(Signal::Sigterm));

    node.start_container(&id).unwrap();
    assert!(node.log_path("c").exists());
    let status = node.status(&id);
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at);
    assert_eq!(
        node.start_container(&id).unwrap_err().code(),
        Code::FailedPrecondition
    );

    node.stop_container(&id, 30).unwrap();
    let status = node.status(&id);
    assert_eq!(
        status.state(),
        ContainerState::ContainerExited,
        "exited when StopContainer returns"
    );
    assert_eq!((status.exit_code, status.reason.as_str()), (143, "Error"));
    assert!(status.finished_at >= status.started_at);
    node.stop_container(&id, 30).unwrap();
    assert_eq!(
        node.start_container(&id).unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(node.containers().len(), 1);
    let streamed: Vec<_> = node
        .streamed(async |mut c| c.stream_containers(StreamContainersRequest::default()).await)
        .into_iter()
        .flat_map(|message| message.containers)
        .collect();
    assert_eq!(streamed, node.containers());
    node.remove_container(&id).unwrap();
    node.remove_container(&id).unwrap();
    node.stop_container(&id, 30).unwrap();
    assert!(node.containers().is_empty());
    assert_eq!(node.try_status(&id).unwrap_err().code(), Code::NotFound);
    assert!(node.log_path("c").exists(), "the log is the kubelet's");
}

#[test]
fn limits_are_changed_all_or_none_and_remembered() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let mut config = node.container_config("c", &["sleep"]);
    let before = LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    };
    config.linux = Some(LinuxContainerConfig {
        resources: Some(before.clone()),
        ..Default::default()
    });
    let id = node.try_create(&pod, config).unwrap();
    let update = |node: &Node, linux: LinuxContainerResources| {
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        node.runtime(async |mut c| c.update_container_resources(request).await)
    };
    let limits = |node: &Node| node.status(&id).resources.unwrap().linux.unwrap();
    assert_eq!(limits(&node), before);
    let memory = |bytes| LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..Default::default()
    };
    update(&node, memory(64 << 20)).unwrap();
    node.start_container(&id).unwrap();
    let shares = LinuxContainerResources {
        cpu_shares: 1024,
        ..Default::default()
    };
    update(&node, shares).unwrap();
    let after = LinuxContainerResources {
        cpu_shares: 1024,
        ..memory(64 << 20)
    };
    let after = LinuxContainerResources {
        memory_swap_limit_in_bytes: 64 << 20,
        ..after
    };
    assert_eq!(limits(&node), after);

    for (limits, code, words) in [
        (
            memory(1000),
            Code::FailedPrecondition,
            "more than 1000 bytes are in use",
        ),
        (
            memory(1 << 40),
            Code::Unimplemented,
            "linux.memory_limit_in_bytes",
        ),
        (memory(-2), Code::InvalidArgument, "linux.memory_limit_in_bytes"),
    ] {
        let refused = update(&node, limits).unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(words), "{refused:?}");
    }
    assert_eq!(limits(&node), after);

    node.kill();
    node.start();
    assert_eq!(limits(&node), after);
    node.stop_container(&id, 0).unwrap();
    let refused = update(&node, memory(64 << 20)).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
}

#[test]
fn ends_are_told_apart() {
    let node = Node::new();
    let pod = node.run_pod("p");
    for (name, command, code, reason) in [
        ("zero", &["exit", "0"][..], 0, "Completed"),
        ("seven", &["exit", "7"], 7, "Error"),
        ("oom", &["oom"], 137, "OOMKilled"),
    ] {
        let id = node.run(&pod, name, command);
        let status = node.wait_exited(&id);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "{name}"
        );
    }
}

#[test]
fn a_container_that_does_not_act_on_its_signal_is_killed() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["stubborn"]);
    let begun = Instant::now();
    node.stop_container(&id, 1).unwrap();
    assert!(begun.elapsed().as_millis() >= 1000, "it was not given its time");
    assert_eq!(node.status(&id).exit_code, 137);
}

#[test]
fn a_second_stop_with_less_time_shortens_the_first() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["stubborn"]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| node.stop_container(&id, 100_000));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(node.status(&id).state(), ContainerState::ContainerRunning);
        node.stop_container(&id, 0).unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(node.status(&id).exit_code, 137);
}

#[test]
fn a_running_container_is_killed_to_be_removed_also_by_many_at_once() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["stubborn"]);
    std::thread::scope(|scope| {
        let removals: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| node.remove_container(&id)))
            .collect();
        for removal in removals {
            removal.join().unwrap().unwrap();
        }
    });
    assert!(node.containers().is_empty());
}

#[test]
fn a_container_that_cannot_start_is_exited_and_says_why() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.create(&pod, "c", &["cannot"]);
    let refused = node.start_container(&id).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let status = node.status(&id);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(
        (status.exit_code, status.reason.as_str(), status.started_at),
        (128, "ContainerCannotRun", 0)
    );
    assert!(status.message.contains("no program"), "{}", status.message);
}

#[test]
fn a_guest_that_does_not_answer_a_start_is_not_waited_for() {
    let node = Node::changed(|config| {
        config.vm.cmdline = "slow_start".into();
        config.timeouts.agent_seconds = 1;
    });
    let pod = node.run_pod("p");
    let id = node.create(&pod, "c", &["run"]);
    let refused = node.start_container(&id).unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert_eq!(node.status(&id).reason, "ContainerCannotRun");
}

#[test]
fn a_command_whose_client_leaves_while_it_is_started_is_killed() {
    let node = Node::with("slow_exec");
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let request = ExecSyncRequest {
        container_id: id,
        cmd: vec!["mourned".to_owned()],
        timeout: 0,
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(std::time::Duration::from_millis(100));
    node.runtime(async |mut c| c.exec_sync(request).await)
        .unwrap_err();
    until("the command to be killed", || {
        let log = node.log("c");
        log.iter()
            .any(|line| line.ends_with("an exec was killed"))
            .then_some(())
    });
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let refused = node
        .try_create(&pod, node.container_config("c", &["impossible"]))
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("nobody-knows"), "{refused:?}");
    assert!(node.containers().is_empty());
    let mut missing = node.container_config("c", &["run"]);
    missing.image.as_mut().unwrap().image = "none/such:1".into();
    let refused = node.try_create(&pod, missing).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().contains("none/such:1") && refused.message().contains("pull"),
        "{refused:?}"
    );
    let refused = node
        .try_create("feed", node.container_config("c", &["run"]))
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    node.create(&pod, "c", &["run"]);
    let refused = node
        .try_create(&pod, node.container_config("c", &["run"]))
        .unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[test]
fn an_image_is_attached_once_for_all_its_containers() {
    let node = Node::new();
    let pod = node.run_pod("p");
    // The double refuses a second disk with the same serial.
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (node, pod) = (&node, &pod);
            scope.spawn(move || node.run(pod, name, &["run"]));
        }
    });
    assert_eq!(node.containers().len(), 4);
    // An image that is removed while it is used keeps its containers.
    let image = Some(ImageSpec {
        image: node.image.clone(),
        ..Default::default()
    });
    node.images(async |mut c| c.remove_image(RemoveImageRequest { image }).await)
        .unwrap();
    assert_eq!(
        node.status(&node.containers()[0].id).image.unwrap().image,
        node.image
    );
}

#[test]
fn containers_are_found_by_filter() {
    let node = Node::new();
    let (p, q) = (node.run_pod("p"), node.run_pod("q"));
    let a = node.run(&p, "a", &["run"]);
    let b = node.create(&p, "b", &["run"]);
    let c = node.create(&q, "c", &["run"]);
    let list = |filter: ContainerFilter| -> Vec<String> {
        let request = ListContainersRequest { filter: Some(filter) };
        let containers = node
            .runtime(async |mut c| c.list_containers(request).await)
            .unwrap()
            .containers;
        let mut ids: Vec<_> = containers.into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    };
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let of = |pod: &str| ContainerFilter {
        pod_sandbox_id: pod.into(),
        ..Default::default()
    };
    assert_eq!(list(of(&p)), sorted(vec![a.clone(), b.clone()]));
    assert_eq!(list(of(&q)), [c.clone()]);
    let state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(list(state(ContainerState::ContainerRunning)), [a.clone()]);
    assert_eq!(list(state(ContainerState::ContainerCreated)), sorted(vec![b, c]));
    assert_eq!(
        list(ContainerFilter {
            id: a[..13].into(),
            ..Default::default()
        }),
        [a]
    );
}

#[test]
fn stopping_a_pod_ends_every_container_of_it() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let running = node.run(&pod, "a", &["stubborn"]);
    let created = node.create(&pod, "b", &["run"]);
    let done = node.run(&pod, "c", &["exit", "5"]);
    node.wait_exited(&done);
    node.stop_pod(&pod).unwrap();
    assert_eq!(node.status(&running).exit_code, 137);
    for id in [&running, &created, &done] {
        assert_eq!(node.status(id).state(), ContainerState::ContainerExited);
    }
    assert_eq!(node.status(&done).exit_code, 5);
    assert_eq!(
        node.start_container(&created).unwrap_err().code(),
        Code::FailedPrecondition
    );
    node.remove_pod(&pod).unwrap();
    assert!(node.containers().is_empty());
}

#[test]
fn a_command_gives_its_output_and_its_code() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let answer = node.exec(&id, &["say", "hello"], 10).unwrap();
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.len(), answer.exit_code),
        (&b"hello\n"[..], 0, 0)
    );
    let answer = node.exec(&id, &["both", "out", "err"], 0).unwrap();
    assert_eq!(
        (
            answer.stdout.as_slice(),
            answer.stderr.as_slice(),
            answer.exit_code
        ),
        (&b"out"[..], &b"err"[..], 3)
    );
}

#[test]
fn a_command_that_takes_too_long_is_killed() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let refused = node.exec(&id, &["run"], 1).unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(refused.message().contains("1 s"), "{refused:?}");
    assert_eq!(node.exec(&id, &["exit", "0"], 1).unwrap().exit_code, 0);
}

#[test]
fn more_output_than_is_kept_does_not_hold_a_command_up() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let answer = node.exec(&id, &["flood", "20000000"], 0).unwrap();
    assert_eq!(answer.stdout.len(), 16 << 20);
}

#[test]
fn commands_are_refused_where_nothing_runs() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.create(&pod, "c", &["exit", "0"]);
    assert_eq!(
        node.exec(&id, &["true"], 0).unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(node.exec(&id, &[], 0).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(
        node.exec("", &["true"], 0).unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        node.exec("feed", &["true"], 0).unwrap_err().code(),
        Code::NotFound
    );
    node.start_container(&id).unwrap();
    node.wait_exited(&id);
    assert_eq!(
        node.exec(&id, &["true"], 0).unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[test]
fn what_was_to_be_ended_has_ended_with_its_machine() {
    let node = Node::new();
    // The signal may meet a machine that is just dying, in every moment of that.
    for round in 0..10u32 {
        let pod = node.run_pod(&format!("p{round}"));
        let (a, b) = (node.run(&pod, "a", &["stubborn"]), node.run(&pod, "b", &["run"]));
        let pid = Pid::from_raw(node.vmm_pid(&pod)).unwrap();
        std::thread::scope(|scope| {
            let exec = scope.spawn(|| node.exec(&a, &["run"], 0));
            let stop = scope.spawn(|| node.stop_container(&a, 100_000));
            let remove = scope.spawn(|| node.remove_container(&b));
            std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 500));
            kill_process(pid, rustix::process::Signal::KILL).unwrap();
            assert!(exec.join().unwrap().is_err());
            stop.join().unwrap().unwrap();
            remove.join().unwrap().unwrap();
        });
        assert_eq!(node.status(&a).state(), ContainerState::ContainerExited);
    }
}

#[test]
fn a_call_into_a_machine_that_ends_returns() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| node.exec(&id, &["run"], 0));
        let stop = scope.spawn(|| node.stop_container(&node.run(&pod, "d", &["stubborn"]), 100_000));
        until("the second container to run", || {
            let containers = node.containers();
            let running = containers
                .iter()
                .filter(|c| c.state() == ContainerState::ContainerRunning)
                .count();
            (running == 2).then_some(())
        });
        node.stop_pod(&pod).unwrap();
        assert!(exec.join().unwrap().is_err());
        stop.join().unwrap().unwrap();
    });
}
