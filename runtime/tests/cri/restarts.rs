//! A daemon that was killed finds again what lives, and knows what does not.

use std::{fs, time::Duration};

use bulkhead_proto::cri::{ContainerState, PodSandboxState};
use bulkhead_runtime::daemon::StartError;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    logs::assert_counted,
    node::{Node, runs, until},
};

#[test]
fn a_killed_daemon_finds_its_pods_again() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let stopped = node.run_pod("stopped");
    node.stop_pod(&stopped).unwrap();
    let running = node.run(&pod, "running", &["run"]);
    let created = node.create(&pod, "created", &["run"]);
    let exited = node.run(&pod, "exited", &["exit", "3"]);
    node.wait_exited(&exited);
    let (before, pid) = (node.status(&running), node.vmm_pid(&pod));
    let pods = node.pods();

    node.kill();
    assert!(runs(pid), "machines outlive the daemon");
    node.start();

    assert_eq!(node.pods(), pods);
    assert_eq!(node.vmm_pid(&pod), pid);
    assert_eq!(node.status(&running), before);
    assert_eq!(node.status(&created).state(), ContainerState::ContainerCreated);
    assert_eq!(node.status(&exited).exit_code, 3);
    assert_eq!(
        node.exec(&running, &["say", "again"], 10).unwrap().stdout,
        b"again\n"
    );
    node.start_container(&created).unwrap();
    node.create(&pod, "another", &["run"]);
    assert_eq!(
        node.try_run_pod(node.pod_config("p")).unwrap_err().code(),
        tonic::Code::AlreadyExists
    );
    node.stop_container(&running, 10).unwrap();
    assert_eq!(node.status(&running).exit_code, 143);
}

#[test]
fn no_line_is_lost_or_doubled_while_the_daemon_is_away() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["count"]);
    for _ in 0..6 {
        let length = fs::metadata(node.log_path("c")).unwrap().len();
        until("more lines", || {
            (fs::metadata(node.log_path("c")).unwrap().len() > length + 1000).then_some(())
        });
        node.kill();
        std::thread::sleep(Duration::from_millis(30));
        node.start();
    }
    node.stop_container(&id, 10).unwrap();
    assert_counted(&fs::read_to_string(node.log_path("c")).unwrap());
}

#[test]
fn an_exit_while_the_daemon_was_away_is_known() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["after", "300", "9"]);
    node.kill();
    std::thread::sleep(Duration::from_millis(600));
    node.start();
    let status = node.wait_exited(&id);
    assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
    assert_eq!(node.log("c"), ["stdout F late"]);
}

#[test]
fn a_machine_that_ended_while_the_daemon_was_away_is_known() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    let pid = node.vmm_pid(&pod);
    node.kill();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    node.start();
    assert_eq!(node.pod_state(&pod), PodSandboxState::SandboxNotready);
    let status = node.status(&id);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert!(matches!(status.exit_code, 137 | 255), "{status:?}");
    assert!(!node.pod_info(&pod)["message"].as_str().unwrap().is_empty());
    assert!(
        node.host.cgroups.lock().unwrap().is_empty(),
        "what it held is freed"
    );
}

#[test]
fn layers_outlive_their_image_and_the_daemon_while_a_container_uses_them() {
    let mut node = Node::new();
    let pod = node.run_pod("p");
    let id = node.run(&pod, "c", &["run"]);
    // Removed before the daemon ends, and after.
    for removed_first in [true, false] {
        if removed_first {
            node.remove_image();
        }
        node.kill();
        let stray = node
            .config
            .root
            .join("images/layers")
            .join("ab".repeat(32) + ".erofs");
        fs::write(&stray, "no image's").unwrap();
        node.start();
        assert!(!stray.exists(), "what belongs to no image goes");
        assert_eq!(node.listed_images().len(), usize::from(!removed_first));
        node.remove_image();
        assert_eq!((node.layers(), node.listed_images().len()), (1, 0));
        assert_eq!(node.exec(&id, &["say", "on"], 10).unwrap().stdout, b"on\n");
        node.pull();
    }

    // The pod's machine keeps the disk when the container is gone, and a new container finds it there.
    node.remove_container(&id).unwrap();
    node.remove_image();
    node.kill();
    node.start();
    assert_eq!((node.layers(), node.listed_images().len()), (1, 0));
    node.pull();
    node.run(&pod, "another", &["run"]);
    node.remove_image();
    assert_eq!(node.layers(), 1);
    node.remove_pod(&pod).unwrap();
    until("the layer to go with its last user", || {
        (node.layers() == 0).then_some(())
    });
}

#[test]
fn a_pod_that_was_being_made_is_undone() {
    let mut node = Node::with("silent");
    let channel = node.channel.clone();
    let config = node.pod_config("p");
    let request = bulkhead_proto::cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    };
    let client = tokio::runtime::Runtime::new().unwrap();
    client.spawn(async move {
        let mut client = bulkhead_proto::cri::runtime_service_client::RuntimeServiceClient::new(channel);
        client.run_pod_sandbox(request).await
    });
    until("the pod to be half made", || {
        (!node.host.cgroups.lock().unwrap().is_empty()).then_some(())
    });
    node.kill();
    node.config.vm.cmdline.clear();
    node.start();
    assert!(node.pods().is_empty());
    assert_eq!(node.left(), Vec::<String>::new());
    node.run_pod("p");
}

#[test]
fn what_belongs_to_no_known_pod_is_removed() {
    let mut node = Node::new();
    node.kill();
    let id = "ab".repeat(32);
    let state = node.config.state.join("pods").join(&id);
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("cgroup"), format!("/bulkhead/bulkhead-{id}")).unwrap();
    fs::create_dir_all(node.config.root.join("pods").join(&id)).unwrap();
    node.host
        .cgroups
        .lock()
        .unwrap()
        .insert(format!("/bulkhead/bulkhead-{id}"));
    fs::write(node.config.root.join("pods/not-an-id"), "somebody else's").unwrap();
    node.start();
    assert_eq!(
        node.left(),
        [node.config.root.join("pods/not-an-id").display().to_string()]
    );
    fs::remove_file(node.config.root.join("pods/not-an-id")).unwrap();
}

#[test]
fn a_second_daemon_on_the_same_directories_is_refused() {
    let node = Node::new();
    let pod = node.run_pod("p");
    let error = node.second().unwrap_err();
    assert!(matches!(error, StartError::Lock(_)), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("another bulkheadd") && message.contains("root"),
        "{message}"
    );
    assert_eq!(
        node.pod_state(&pod),
        PodSandboxState::SandboxReady,
        "the first one is as it was"
    );
}
