//! Requests that make no sense: unknown ids, taken names, wrong states, calls of later versions.

use std::thread;

use bulkhead_proto::cri::{
    ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxConfig, PodSandboxFilter, PodSandboxState, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, ReopenContainerLogRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use bulkhead_tests::{ContainerSpec, Daemon, Environment, PodSpec, assert_refused};
use tonic::{Code, Status};

/// An id that nothing has.
pub(super) const UNKNOWN: &str = "feedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedface";

fn run_pod(daemon: &Daemon, config: Option<PodSandboxConfig>) -> Result<String, Status> {
    let request = RunPodSandboxRequest {
        config,
        runtime_handler: String::new(),
    };
    daemon
        .cri()
        .runtime(async |c| c.run_pod_sandbox(request).await)
        .map(|answer| answer.pod_sandbox_id)
}

fn remove_pod(daemon: &Daemon, id: &str) -> Result<(), Status> {
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: id.into(),
    };
    daemon
        .cri()
        .runtime(async |c| c.remove_pod_sandbox(request).await)
        .map(drop)
}

fn create(
    daemon: &Daemon,
    pod: &str,
    config: Option<ContainerConfig>,
    sandbox: Option<PodSandboxConfig>,
) -> Result<String, Status> {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.into(),
        config,
        sandbox_config: sandbox,
    };
    daemon
        .cri()
        .runtime(async |c| c.create_container(request).await)
        .map(|answer| answer.container_id)
}

fn container_config(name: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: Environment::get().image("busybox:latest"),
            ..ImageSpec::default()
        }),
        command: vec!["true".into()],
        ..ContainerConfig::default()
    }
}

/// The pods that a list shows under a name.
pub(super) fn listed(daemon: &Daemon, name: &str) -> usize {
    let answer = daemon
        .cri()
        .runtime(async |c| c.list_pod_sandbox(ListPodSandboxRequest::default()).await);
    let pods = answer.expect("ListPodSandbox is answered").items;
    pods.iter()
        .filter(|pod| {
            pod.metadata
                .as_ref()
                .is_some_and(|metadata| metadata.name == name)
        })
        .count()
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_unknown_id_is_not_found_where_something_is_asked_of_it() {
    let daemon = Daemon::shared();
    let cri = daemon.cri();
    let (pod_sandbox_id, container_id) = (UNKNOWN.to_owned(), UNKNOWN.to_owned());
    let words = [UNKNOWN];

    let request = PodSandboxStatusRequest {
        pod_sandbox_id,
        verbose: true,
    };
    assert_refused(
        cri.runtime(async |c| c.pod_sandbox_status(request).await),
        Code::NotFound,
        &words,
    );
    let request = ContainerStatusRequest {
        container_id: container_id.clone(),
        verbose: true,
    };
    assert_refused(
        cri.runtime(async |c| c.container_status(request).await),
        Code::NotFound,
        &words,
    );
    let request = StartContainerRequest {
        container_id: container_id.clone(),
    };
    assert_refused(
        cri.runtime(async |c| c.start_container(request).await),
        Code::NotFound,
        &words,
    );
    let request = ReopenContainerLogRequest {
        container_id: container_id.clone(),
    };
    assert_refused(
        cri.runtime(async |c| c.reopen_container_log(request).await),
        Code::NotFound,
        &words,
    );
    let request = ExecSyncRequest {
        container_id,
        cmd: vec!["true".into()],
        timeout: 0,
    };
    assert_refused(
        cri.runtime(async |c| c.exec_sync(request).await),
        Code::NotFound,
        &words,
    );
    let created = create(
        &daemon,
        UNKNOWN,
        Some(container_config("c")),
        Some(PodSpec::new("unknown").config()),
    );
    assert_refused(created, Code::NotFound, &words);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_unknown_id_is_fine_where_it_is_to_be_gone() {
    let daemon = Daemon::shared();
    let cri = daemon.cri();
    for id in [UNKNOWN, "no-id-at-all", "../../etc"] {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        cri.runtime(async |c| c.stop_pod_sandbox(request).await)
            .expect("StopPodSandbox");
        remove_pod(&daemon, id).expect("RemovePodSandbox");
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout: 10,
        };
        cri.runtime(async |c| c.stop_container(request).await)
            .expect("StopContainer");
        let request = RemoveContainerRequest {
            container_id: id.into(),
        };
        cri.runtime(async |c| c.remove_container(request).await)
            .expect("RemoveContainer");
    }
    let zeros = format!("sha256:{}", "0".repeat(64));
    for image in [zeros.as_str(), "localhost:5000/no/such/image:latest"] {
        daemon.try_remove_image(image).expect("RemoveImage");
        assert_eq!(
            daemon.image(image),
            None,
            "ImageStatus of a missing image is empty and no error"
        );
    }

    let filter = ContainerFilter {
        id: UNKNOWN.into(),
        ..ContainerFilter::default()
    };
    let request = ListContainersRequest { filter: Some(filter) };
    let answer = cri
        .runtime(async |c| c.list_containers(request).await)
        .expect("ListContainers");
    assert!(answer.containers.is_empty(), "{answer:?}");
    let filter = PodSandboxFilter {
        id: UNKNOWN.into(),
        ..PodSandboxFilter::default()
    };
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let answer = cri
        .runtime(async |c| c.list_pod_sandbox(request).await)
        .expect("ListPodSandbox");
    assert!(answer.items.is_empty(), "{answer:?}");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_empty_request_is_told_what_it_lacks() {
    let daemon = Daemon::shared();
    let cri = daemon.cri();
    assert_refused(run_pod(&daemon, None), Code::InvalidArgument, &["config"]);
    assert_refused(
        run_pod(&daemon, Some(PodSandboxConfig::default())),
        Code::InvalidArgument,
        &["metadata"],
    );
    for (field, change) in [
        (
            "name",
            (|metadata| metadata.name = String::new()) as fn(&mut bulkhead_proto::cri::PodSandboxMetadata),
        ),
        ("namespace", |metadata| metadata.namespace = String::new()),
        ("uid", |metadata| metadata.uid = String::new()),
    ] {
        let mut config = PodSpec::new("lacking").config();
        change(config.metadata.as_mut().expect("metadata"));
        assert_refused(
            run_pod(&daemon, Some(config)),
            Code::InvalidArgument,
            &["metadata", field],
        );
    }
    let request = ExecSyncRequest::default();
    assert_refused(
        cri.runtime(async |c| c.exec_sync(request).await),
        Code::InvalidArgument,
        &["container_id"],
    );
    let request = ContainerStatusRequest::default();
    assert_refused(
        cri.runtime(async |c| c.container_status(request).await),
        Code::InvalidArgument,
        &["container_id"],
    );
    let request = PodSandboxStatusRequest::default();
    assert_refused(
        cri.runtime(async |c| c.pod_sandbox_status(request).await),
        Code::InvalidArgument,
        &["pod_sandbox_id"],
    );
    assert_refused(daemon.try_pull(""), Code::InvalidArgument, &["image"]);

    let pod = daemon.run_pod(PodSpec::new("lacking"));
    let sandbox = || Some(pod.spec().config());
    assert_refused(
        create(&daemon, pod.id(), None, sandbox()),
        Code::InvalidArgument,
        &["config"],
    );
    for (word, change) in [
        (
            "metadata",
            (|config| config.metadata = None) as fn(&mut ContainerConfig),
        ),
        ("name", |config| {
            config.metadata = Some(ContainerMetadata::default());
        }),
        ("image", |config| config.image = None),
    ] {
        let mut config = container_config("lacking");
        change(&mut config);
        assert_refused(
            create(&daemon, pod.id(), Some(config), sandbox()),
            Code::InvalidArgument,
            &[word],
        );
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_name_belongs_to_one_pod_until_that_is_removed() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("taken"));
    let config = pod.spec().config();
    assert_refused(
        run_pod(&daemon, Some(config.clone())),
        Code::AlreadyExists,
        &[pod.spec().name(), &pod.id()[..13]],
    );
    assert_eq!(
        pod.state(),
        PodSandboxState::SandboxReady,
        "the first one is as it was"
    );
    assert_eq!(listed(&daemon, pod.spec().name()), 1);

    let mut next = config.clone();
    next.metadata.as_mut().expect("metadata").attempt = 1;
    let second = run_pod(&daemon, Some(next)).expect("another attempt is another name");
    remove_pod(&daemon, &second).expect("it is removed");

    pod.stop();
    assert_refused(
        run_pod(&daemon, Some(config.clone())),
        Code::AlreadyExists,
        &[pod.spec().name()],
    );
    pod.remove();
    let again = run_pod(&daemon, Some(config)).expect("the name is free again");
    remove_pod(&daemon, &again).expect("it is removed");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn of_two_pods_at_once_with_one_name_one_comes_to_be() {
    let daemon = Daemon::shared();
    let config = PodSpec::new("twins").config();
    let results: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| run_pod(&daemon, Some(config.clone()))))
            .collect();
        calls
            .into_iter()
            .map(|call| call.join().expect("no panic"))
            .collect()
    });
    let name = &config.metadata.as_ref().expect("metadata").name;
    assert_eq!(listed(&daemon, name), 1);
    let mut made = 0;
    for result in results {
        match result {
            Ok(id) => {
                made += 1;
                remove_pod(&daemon, &id).expect("it is removed");
            }
            Err(status) => drop(assert_refused(Err::<(), _>(status), Code::AlreadyExists, &[name])),
        }
    }
    assert_eq!(made, 1);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_containers_name_is_unique_in_its_pod() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("container-names"));
    let first = pod.create(ContainerSpec::idle().with("/metadata/name", "same"));
    let sandbox = || Some(pod.spec().config());
    let second = create(&daemon, pod.id(), Some(container_config("same")), sandbox());
    assert_refused(second, Code::AlreadyExists, &["same", &first.id()[..13]]);
    let mut next = container_config("same");
    next.metadata = Some(ContainerMetadata {
        name: "same".into(),
        attempt: 1,
    });
    create(&daemon, pod.id(), Some(next), sandbox()).expect("another attempt is another name");
    first.remove();
    create(&daemon, pod.id(), Some(container_config("same")), sandbox()).expect("the name is free again");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_the_state_forbids_is_refused_and_changes_nothing() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("states"));
    let sandbox = || Some(pod.spec().config());
    let start = |id: &str| {
        let request = StartContainerRequest {
            container_id: id.into(),
        };
        daemon.cri().runtime(async |c| c.start_container(request).await)
    };
    let container = pod.run(ContainerSpec::idle());
    let waiting = pod.create(ContainerSpec::idle());
    assert_refused(
        start(container.id()),
        Code::FailedPrecondition,
        &[&container.id()[..13], "running"],
    );
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);

    let mut config = container_config("missing-image");
    let missing = format!("{}/no/such:image", Environment::get().registry);
    config.image = Some(ImageSpec {
        image: missing.clone(),
        ..ImageSpec::default()
    });
    assert_refused(
        create(&daemon, pod.id(), Some(config), sandbox()),
        Code::NotFound,
        &[&missing, "pull"],
    );

    pod.stop();
    assert_eq!(container.status().state(), ContainerState::ContainerExited);
    let short = &pod.id()[..13];
    let late = create(&daemon, pod.id(), Some(container_config("late")), sandbox());
    assert_refused(late, Code::FailedPrecondition, &[short, "ready"]);
    let started = start(waiting.id()).expect_err("its machine is gone");
    assert_eq!(started.code(), Code::FailedPrecondition, "{started:?}");
    pod.stop();
    assert_eq!(
        daemon
            .crictl()
            .ok(["ps", "-a", "-q", "--pod", pod.id()])
            .lines()
            .count(),
        2
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_running_container_is_killed_to_be_removed() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("removals"));
    let container = pod.run(ContainerSpec::idle());
    let id = container.id().to_owned();
    // At the same time, as the kubelet and its garbage collector may.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = RemoveContainerRequest {
                    container_id: id.clone(),
                };
                daemon
                    .cri()
                    .runtime(async |c| c.remove_container(request).await)
                    .expect("RemoveContainer");
            });
        }
    });
    assert_eq!(
        container.try_status().expect_err("it is gone").code(),
        Code::NotFound
    );
    assert_eq!(pod.state(), PodSandboxState::SandboxReady);
}

/// Calls that are refused by their names.
macro_rules! unimplemented_calls {
    ($daemon:ident, $($method:ident $request:ident $name:literal),+ $(,)?) => {
        $(
            let request = bulkhead_proto::cri::$request::default();
            let status = $daemon
                .cri()
                .runtime(async |c| c.$method(request).await.map(|answer| tonic::Response::new(drop(answer))))
                .expect_err($name);
            assert_eq!(status.code(), Code::Unimplemented, "{}: {status:?}", $name);
            assert!(status.message().contains($name), "{}: {status:?}", $name);
        )+
    };
}

/// Runs a pod that must be refused, and sees that nothing of it is left.
#[track_caller]
#[test]
#[ignore = "runs in the node: hack/test"]
fn calls_of_later_versions_are_refused_by_name() {
    let daemon = Daemon::shared();
    unimplemented_calls!(
        daemon,
        update_pod_sandbox_resources UpdatePodSandboxResourcesRequest "UpdatePodSandboxResources",
        checkpoint_container CheckpointContainerRequest "CheckpointContainer",
        checkpoint_pod CheckpointPodRequest "CheckpointPod",
        restore_pod RestorePodRequest "RestorePod",
    );
}
