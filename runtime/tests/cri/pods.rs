//! Pods: made, listed, stopped, removed, and undone when they fail.

use bulkhead_proto::cri::*;
use bulkhead_runtime::config::HandlerConfig;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::node::{Node, runs, until};

#[test]
fn a_pod_is_ready_until_it_is_stopped_and_listed_until_it_is_removed() {
    let node = Node::new();
    let mut config = node.pod_config("web");
    config.labels.insert("app".into(), "web".into());
    config.annotations.insert("note".into(), "kept as it is".into());
    let id = node.try_run_pod(config.clone()).unwrap();
    assert_eq!(id.len(), 64);

    let status = node.pod_status(&id).status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(
        (status.metadata, status.labels),
        (config.metadata, config.labels.clone())
    );
    assert_eq!(status.annotations, config.annotations);
    assert!(status.created_at > 1_600_000_000_000_000_000, "in nanoseconds");
    let info = node.pod_info(&id);
    let pid = node.vmm_pid(&id);
    assert!(runs(pid));
    assert_eq!(info["machine"]["kernel"], "6.12-double");
    assert!(info["startup"]["bootMs"].as_f64().unwrap() > 0.0);

    node.stop_pod(&id).unwrap();
    assert!(!runs(pid), "the machine is gone when StopPodSandbox returns");
    assert_eq!(node.pod_state(&id), PodSandboxState::SandboxNotready);
    assert_eq!(node.host.namespaces.lock().unwrap().len(), 0);
    assert_eq!(node.host.cgroups.lock().unwrap().len(), 0);
    node.stop_pod(&id).unwrap();

    node.remove_pod(&id).unwrap();
    assert!(node.pods().is_empty());
    assert_eq!(node.left(), Vec::<String>::new());
    node.remove_pod(&id).unwrap();
    node.stop_pod(&id).unwrap();
}

#[test]
fn pods_are_found_by_filter_and_by_the_beginning_of_their_id() {
    let node = Node::new();
    let mut labelled = node.pod_config("a");
    labelled.labels.insert("app".into(), "a".into());
    let a = node.try_run_pod(labelled).unwrap();
    let b = node.run_pod("b");
    node.stop_pod(&b).unwrap();
    let list = |filter: PodSandboxFilter| -> Vec<String> {
        let filter = Some(filter);
        let request = ListPodSandboxRequest {
            filter: filter.clone(),
        };
        let items = node
            .runtime(async |mut c| c.list_pod_sandbox(request).await)
            .unwrap()
            .items;
        let request = StreamPodSandboxesRequest { filter };
        let streamed: Vec<_> = node
            .streamed(async |mut c| c.stream_pod_sandboxes(request).await)
            .into_iter()
            .flat_map(|message| message.pod_sandboxes)
            .collect();
        assert_eq!(streamed, items);
        items.into_iter().map(|pod| pod.id).collect()
    };
    assert_eq!(list(PodSandboxFilter::default()).len(), 2);
    assert_eq!(
        list(PodSandboxFilter {
            id: a[..20].into(),
            ..Default::default()
        }),
        [a.as_str()]
    );
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let ready = PodSandboxFilter {
        state: state(PodSandboxState::SandboxReady),
        ..Default::default()
    };
    assert_eq!(list(ready), [a.as_str()]);
    let not_ready = PodSandboxFilter {
        state: state(PodSandboxState::SandboxNotready),
        ..Default::default()
    };
    assert_eq!(list(not_ready), [b.as_str()]);
    let labels = PodSandboxFilter {
        label_selector: [("app".into(), "a".into())].into(),
        ..Default::default()
    };
    assert_eq!(list(labels), [a.as_str()]);
    assert_eq!(node.pod_status(&a[..20]).status.unwrap().id, a);
}

#[test]
fn a_name_is_had_by_one_pod_at_a_time() {
    let node = Node::new();
    let id = node.run_pod("web");
    let refused = node.try_run_pod(node.pod_config("web")).unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains(&id), "{refused:?}");
    let mut next = node.pod_config("web");
    next.metadata.as_mut().unwrap().attempt = 1;
    node.try_run_pod(next).unwrap();
    node.remove_pod(&id).unwrap();
    node.run_pod("web");
}

#[test]
fn a_pod_that_does_not_boot_leaves_nothing_and_says_why() {
    for (manners, code, words) in [
        ("panics", Code::Internal, &["panicked", "the double boots"][..]),
        ("stranger", Code::Internal, &["version 99", "vm.initramfs"]),
        ("refuses", Code::InvalidArgument, &["host name"]),
    ] {
        let node = Node::with(manners);
        let refused = node.try_run_pod(node.pod_config("web")).unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        for word in words {
            assert!(refused.message().contains(word), "{manners}: {refused:?}");
        }
        assert!(node.pods().is_empty());
        assert_eq!(node.left(), Vec::<String>::new(), "{manners}");
        assert_eq!(
            node.try_run_pod(node.pod_config("web")).unwrap_err().code(),
            code,
            "the name is free again"
        );
    }
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let node = Node::changed(|config| {
        config.vm.cmdline = "silent".into();
        config.timeouts.boot_seconds = 1;
    });
    let refused = node.try_run_pod(node.pod_config("web")).unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert!(refused.message().contains("timeouts.boot_seconds"), "{refused:?}");
    assert!(refused.message().contains("the double boots"), "{refused:?}");
    assert_eq!(node.left(), Vec::<String>::new());
}

#[test]
fn a_client_that_goes_away_takes_its_pod_with_it() {
    let node = Node::with("silent");
    let request = RunPodSandboxRequest {
        config: Some(node.pod_config("web")),
        runtime_handler: String::new(),
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(std::time::Duration::from_millis(500));
    node.runtime(async |mut c| c.run_pod_sandbox(request).await)
        .unwrap_err();
    until("the pod to be undone", || node.left().is_empty().then_some(()));
    assert!(node.pods().is_empty());
    let refused = until("the name to be free", || {
        let request = RunPodSandboxRequest {
            config: Some(PodSandboxConfig {
                hostname: "x".repeat(100),
                ..node.pod_config("web")
            }),
            runtime_handler: String::new(),
        };
        let refused = node
            .runtime(async |mut c| c.run_pod_sandbox(request).await)
            .unwrap_err();
        (refused.code() == Code::InvalidArgument).then_some(refused)
    });
    assert!(refused.message().contains("hostname"), "{refused:?}");
}

#[test]
fn files_that_are_missing_are_named_with_their_key() {
    for (file, key) in [
        ("vmlinux", "vm.kernel"),
        ("initramfs", "vm.initramfs"),
        ("vmm", "vm.vmm"),
    ] {
        let node = Node::new();
        std::fs::remove_file(node.directory.path().join(file)).unwrap();
        let refused = node.try_run_pod(node.pod_config("web")).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(
            refused.message().contains(file) && refused.message().contains(key),
            "{refused:?}"
        );
        assert_eq!(node.left(), Vec::<String>::new());
    }
}

#[test]
fn a_machine_that_is_killed_is_seen_at_once() {
    let node = Node::new();
    let pod = node.run_pod("web");
    let running = node.run(&pod, "c", &["run"]);
    let created = node.create(&pod, "d", &["run"]);
    let pid = node.vmm_pid(&pod);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    node.wait_not_ready(&pod);
    let status = node.wait_exited(&running);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "MachineKilled"));
    assert!(status.message.contains("OOM killer"), "{}", status.message);
    assert_eq!(node.wait_exited(&created).started_at, 0);
    assert!(
        node.pod_info(&pod)["message"]
            .as_str()
            .unwrap()
            .contains("killed")
    );
    assert_eq!(node.pod_info(&pod)["pid"], 0);
    let refused = node
        .try_create(&pod, node.container_config("e", &["run"]))
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    until("the control group to be gone", || {
        node.host.cgroups.lock().unwrap().is_empty().then_some(())
    });
    assert_eq!(
        node.host.namespaces.lock().unwrap().len(),
        1,
        "the network is taken down by StopPodSandbox"
    );
    node.stop_pod(&pod).unwrap();
    assert!(node.host.namespaces.lock().unwrap().is_empty());
}

#[test]
fn a_guest_that_panics_is_told_apart() {
    let node = Node::new();
    let pod = node.run_pod("web");
    let id = node.create(&pod, "c", &["panic"]);
    let _ = node.start_container(&id);
    node.wait_not_ready(&pod);
    assert!(
        node.pod_info(&pod)["message"]
            .as_str()
            .unwrap()
            .contains("panicked")
    );
    node.wait_exited(&id);
}

#[test]
fn what_could_not_be_undone_stays_listed_until_it_can() {
    let node = Node::with("panics");
    *node.host.stuck.lock().unwrap() = Some("namespace");
    node.try_run_pod(node.pod_config("web")).unwrap_err();
    let pods = node.pods();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].state(), PodSandboxState::SandboxNotready);
    let refused = node.stop_pod(&pods[0].id).unwrap_err();
    assert!(refused.message().contains("stuck"), "{refused:?}");
    *node.host.stuck.lock().unwrap() = None;
    node.remove_pod(&pods[0].id).unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[test]
fn handlers_have_sizes_and_unknown_ones_are_refused() {
    let node = Node::changed(|config| {
        let large = HandlerConfig {
            memory_mib: Some(512),
            scratch_mib: Some(64),
            ..HandlerConfig::default()
        };
        config.handlers.insert("large".into(), large);
        let other = HandlerConfig {
            kernel: Some("/nonexistent/vmlinux".into()),
            ..HandlerConfig::default()
        };
        config.handlers.insert("other".into(), other);
    });
    let run = |handler: &str, name: &str| {
        let request = RunPodSandboxRequest {
            config: Some(node.pod_config(name)),
            runtime_handler: handler.into(),
        };
        node.runtime(async |mut c| c.run_pod_sandbox(request).await)
            .map(|answer| answer.pod_sandbox_id)
    };
    let pod = run("large", "a").unwrap();
    assert_eq!(node.pod_info(&pod)["machine"]["memoryMiB"], 512);
    assert_eq!(node.pod_status(&pod).status.unwrap().runtime_handler, "large");
    assert_eq!(run("huge", "b").unwrap_err().code(), Code::InvalidArgument);
    let refused = run("other", "c").unwrap_err();
    assert!(refused.message().contains("/nonexistent/vmlinux"), "{refused:?}");
    let status = node
        .runtime(async |mut c| c.status(StatusRequest::default()).await)
        .unwrap();
    let names: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert_eq!(names, ["", "large", "other"]);
}

#[test]
fn the_runtime_says_what_it_is() {
    let node = Node::new();
    let version = node
        .runtime(async |mut c| c.version(VersionRequest::default()).await)
        .unwrap();
    assert_eq!(
        (version.version.as_str(), version.runtime_name.as_str()),
        ("0.1.0", "bulkhead")
    );
    assert_eq!(
        (
            version.runtime_api_version.as_str(),
            version.runtime_version.is_empty()
        ),
        ("v1", false)
    );
    let status = node
        .runtime(async |mut c| c.status(StatusRequest { verbose: true }).await)
        .unwrap();
    let conditions = status.status.unwrap().conditions;
    let ready = conditions
        .iter()
        .find(|condition| condition.r#type == "RuntimeReady")
        .unwrap();
    // The files of this node are no kernel, and there may be no KVM: it must say so.
    assert!(
        !ready.status && !ready.message.is_empty() && !ready.reason.is_empty(),
        "{ready:?}"
    );
    let network = conditions
        .iter()
        .find(|condition| condition.r#type == "NetworkReady")
        .unwrap();
    // There is none to wait for.
    assert!(network.status && network.message.is_empty(), "{network:?}");
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(
        config["stateDir"].as_str().unwrap(),
        node.config.state.to_str().unwrap()
    );
    let linux = node
        .runtime(async |mut c| c.runtime_config(RuntimeConfigRequest {}).await)
        .unwrap()
        .linux;
    assert_eq!(linux.unwrap().cgroup_driver(), CgroupDriver::Cgroupfs);
}

#[test]
fn calls_of_later_versions_are_refused_by_name() {
    let node = Node::new();
    macro_rules! absent {
        ($($method:ident($request:expr) = $name:literal;)*) => {
            $(
                let status = node.runtime(async |mut c| c.$method($request).await).map(drop).unwrap_err();
                assert_eq!(status.code(), Code::Unimplemented, "{}", $name);
                assert!(status.message().starts_with(concat!($name, " ")), "{status:?}");
            )*
        };
    }
    absent! {
        checkpoint_pod(CheckpointPodRequest::default()) = "CheckpointPod";
    }
}

#[test]
fn images_are_listed_shown_and_removed() {
    let node = Node::new();
    let id = node.pull();
    let images = node
        .images(async |mut c| c.list_images(ListImagesRequest::default()).await)
        .unwrap()
        .images;
    assert_eq!(images.len(), 1);
    assert_eq!(
        (images[0].id.as_str(), &images[0].repo_tags),
        (id.as_str(), &vec![node.image.clone()])
    );
    assert!(images[0].size > 0);
    let streamed = node.images(async |mut c| {
        let mut parts = c
            .stream_images(StreamImagesRequest::default())
            .await?
            .into_inner();
        let mut streamed = Vec::new();
        while let Some(part) = parts.message().await? {
            streamed.extend(part.images);
        }
        Ok(tonic::Response::new(streamed))
    });
    assert_eq!(streamed.unwrap(), images);
    let show = |name: &str| {
        let image = Some(ImageSpec {
            image: name.into(),
            ..Default::default()
        });
        node.images(async |mut c| c.image_status(ImageStatusRequest { image, verbose: true }).await)
            .unwrap()
    };
    assert_eq!(show(&id).image, show(&node.image).image);
    let info: serde_json::Value = serde_json::from_str(&show(&id).info["info"]).unwrap();
    assert!(info["imageSpec"].is_object(), "{info}");
    assert_eq!(show("nowhere/none:1").image, None);
    let usage = node
        .images(async |mut c| c.image_fs_info(ImageFsInfoRequest {}).await)
        .unwrap();
    assert!(usage.image_filesystems[0].used_bytes.as_ref().unwrap().value > 0);
    for _ in 0..2 {
        let image = Some(ImageSpec {
            image: node.image.clone(),
            ..Default::default()
        });
        node.images(async |mut c| c.remove_image(RemoveImageRequest { image }).await)
            .unwrap();
        assert_eq!(show(&id).image, None);
    }
}

#[test]
fn a_registry_that_is_away_is_told_as_the_kubelet_reads_it() {
    let node = Node::new();
    let image = Some(ImageSpec {
        image: "127.0.0.1:1/none:1".into(),
        ..Default::default()
    });
    let request = PullImageRequest {
        image,
        ..Default::default()
    };
    let refused = node
        .images(async |mut c| c.pull_image(request).await)
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unknown);
    assert!(
        refused.message().starts_with("RegistryUnavailable: "),
        "{refused:?}"
    );
}
