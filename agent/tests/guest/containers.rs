//! The life of containers.

use bulkhead_proto::agent::{self, Phase, exit_status::How};
use tonic::Code;

use crate::{
    disk,
    guest::SharedGuest,
    host::{Host, assert_refused, bind, container, program, shell},
};

pub async fn a_container_runs_and_its_output_and_exit_code_arrive(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let ended = host
        .run(container(
            "c1",
            shell("echo out; echo err >&2; printf end; exit 7"),
        ))
        .await;
    assert_eq!(ended.stdout, "out\nend");
    assert_eq!(ended.stderr, "err\n");
    assert_eq!(ended.status.how, Some(How::Exited(7)));
    assert!(!ended.status.oom_killed && !ended.status.timed_out);
    assert!(
        ended.status.exited_at_ns > 1_500_000_000_000_000_000,
        "{:?}",
        ended.status
    );
}

pub async fn signals_and_exit_codes_are_told_apart(guest: SharedGuest) {
    let host = Host::new(guest).await;
    // Process 1 takes only signals that it handles.
    host.start_idle(container(
        "c1",
        shell("trap 'exit 9' TERM; while :; do sleep 0.05; done"),
    ))
    .await;
    // Until the trap is set the signal is lost, as everywhere.
    let status = loop {
        host.signal("c1", "", 15, false).await.unwrap();
        let state = host.state("c1").await.unwrap();
        if let Some(status) = state.status {
            break status;
        }
    };
    assert_eq!(status.how, Some(How::Exited(9)));
    host.start_idle(container("c2", shell("while :; do sleep 1; done")))
        .await;
    host.signal("c2", "", 9, false).await.unwrap();
    assert_eq!(host.wait("c2", "").await.unwrap().how, Some(How::Signaled(9)));
    // Signalling what has ended is no error; nonsense is.
    host.signal("c2", "", 15, false).await.unwrap();
    assert_refused(
        host.signal("c2", "", 0, false).await,
        Code::InvalidArgument,
        "0 is no signal",
    );
    assert_refused(
        host.signal("c2", "", 65, false).await,
        Code::InvalidArgument,
        "65 is no signal",
    );
    assert_refused(
        host.signal("c2", "", 15, true).await,
        Code::InvalidArgument,
        "only SIGKILL",
    );
}

pub async fn layers_lie_upon_each_other_and_upon_all_the_writable_one(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let script = "cat /lower /changed; ls /opaque; ls /removed 2>&1 | head -c 40; \
        echo mine >/lower; mkdir /new; rm /text; cat /lower; ls -ld / | cut -c1-10";
    let expected = "lower\nafter\nshown\nls: /removed: No such file or directory\nmine\ndrwxr-xr-x\n";
    assert_eq!(host.sh(script).await.ok(), expected);
    assert_eq!(
        host.sh(script).await.ok(),
        expected,
        "another container writes elsewhere"
    );
}

pub async fn a_removed_container_leaves_nothing(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let look = async |host: &Host| {
        let mut request = container("look", shell(""));
        request.mounts = vec![bind("/run", "/run", &["rbind", "ro"])];
        request.process = Some(shell(
            "cd /run; ls -d scratch/* containers/* layers/*; ls /cg | grep -v '\\.'; true",
        ));
        request.mounts.push(bind("/sys/fs/cgroup/pod", "/cg", &[]));
        host.run(request).await.ok()
    };
    let before = look(&host).await;
    host.start_idle(container(
        "c1",
        shell("mkdir -p /a/b/c; echo x >/a/b/c/d; sleep 1000 & while :; do sleep 1; done"),
    ))
    .await;
    let during = look(&host).await;
    assert!(
        during.contains("scratch/c1") && during.contains("containers/c1"),
        "{during}"
    );
    host.exec_sh("c1", "mkdir /e; sleep 1000 >/dev/null 2>&1 &")
        .await
        .ok();
    host.remove("c1").await.unwrap();
    assert_eq!(look(&host).await, before);
    host.remove("c1").await.unwrap();
    assert!(host.state("c1").await.is_none());
    let log = host.guest.log();
    assert!(
        !log.contains("cannot remove") && !log.contains("cannot unmount"),
        "{log}"
    );
    // Its name is free again.
    host.run(container("c1", shell("true"))).await.ok();
}

pub async fn failed_creations_leave_nothing(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let refused = async |code, part: &str, change: &dyn Fn(&mut agent::CreateContainerRequest)| {
        let mut request = container("c1", shell("true"));
        change(&mut request);
        assert_refused(host.create(request).await, code, part);
        assert!(host.state("c1").await.is_none());
    };
    refused(Code::NotFound, "no disk with serial other", &|request| {
        request.layers[0].disk = "other".to_owned();
    })
    .await;
    refused(
        Code::InvalidArgument,
        "mount /x: source /no/such cannot be bound",
        &|request| {
            request.mounts = vec![bind("/no/such", "/x", &[])];
        },
    )
    .await;
    refused(
        Code::InvalidArgument,
        "the kernel has no file system nonsense",
        &|request| {
            request.mounts = vec![agent::MountSpec {
                r#type: "nonsense".to_owned(),
                source: "x".to_owned(),
                destination: "/x".to_owned(),
                options: Vec::new(),
                ..agent::MountSpec::default()
            }];
        },
    )
    .await;
    refused(Code::InvalidArgument, "no_such_option", &|request| {
        request.mounts = vec![agent::MountSpec {
            r#type: "tmpfs".to_owned(),
            source: "x".to_owned(),
            destination: "/x".to_owned(),
            options: vec!["no_such_option=1".to_owned()],
            ..agent::MountSpec::default()
        }];
    })
    .await;
    refused(Code::InvalidArgument, "no.such.file", &|request| {
        request.resources = Some(agent::Resources {
            unified: [("no.such.file".to_owned(), "1".to_owned())].into(),
            ..agent::Resources::default()
        });
    })
    .await;
    refused(
        Code::InvalidArgument,
        "user \"nobody\" is not in the image",
        &|request| {
            request.process.as_mut().unwrap().user = Some(agent::User {
                username: "nobody".to_owned(),
                ..agent::User::default()
            });
        },
    )
    .await;
    // Nothing of those is in the way.
    host.run(container("c1", shell("true"))).await.ok();
    let log = host.guest.log();
    assert!(
        !log.contains("cannot remove") && !log.contains("cannot unmount"),
        "{log}"
    );
}

pub async fn states_are_kept(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.create(container("c1", shell("read x"))).await.unwrap();
    let state = host.state("c1").await.unwrap();
    assert_eq!(
        (state.phase(), state.pid, state.started_at_ns),
        (Phase::Created, 0, 0)
    );
    assert_refused(
        host.exec("c1", "e", shell("true"), 0).await,
        Code::FailedPrecondition,
        "c1 is not started",
    );
    assert_refused(
        host.signal("c1", "", 15, false).await,
        Code::FailedPrecondition,
        "not started",
    );
    assert_refused(
        host.acknowledge("c1", "").await,
        Code::FailedPrecondition,
        "not started",
    );
    let started = host.start("c1").await.unwrap();
    assert!(started.pid > 1 && started.started_at_ns > 0);
    assert_refused(
        host.start("c1").await,
        Code::FailedPrecondition,
        "cannot be started",
    );
    host.wait("c1", "").await.unwrap();
    let state = host.state("c1").await.unwrap();
    assert_eq!((state.phase(), state.pid), (Phase::Stopped, 0));
    assert_eq!(state.started_at_ns, started.started_at_ns);
    assert!(state.status.is_some());
    assert_refused(host.start("c1").await, Code::FailedPrecondition, "c1 is stopped");
    host.acknowledge("c1", "").await.unwrap();
    // A container that was never started can be killed and removed.
    host.create(container("c2", shell("true"))).await.unwrap();
    host.signal("c2", "", 9, false).await.unwrap();
    host.wait("c2", "").await.unwrap();
    assert_eq!(host.state("c2").await.unwrap().phase(), Phase::Stopped);
    host.create(container("c3", shell("true"))).await.unwrap();
    for id in ["c1", "c2", "c3"] {
        host.remove(id).await.unwrap();
    }
}

pub async fn a_program_that_cannot_be_executed_fails_the_start(guest: SharedGuest) {
    let host = Host::new(guest).await;
    for (args, message, code) in [
        (
            &["nosuch"][..],
            "exec: \"nosuch\": executable file not found in $PATH",
            127,
        ),
        (
            &["/no/such"],
            "exec: \"/no/such\": No such file or directory",
            127,
        ),
        (&["/text"], "exec: \"/text\": Permission denied", 126),
        (&["/script"], "its interpreter or loader is not", 126),
        (&["/etc"], "exec: \"/etc\": Permission denied", 126),
    ] {
        host.create(container("c1", program(args))).await.unwrap();
        assert_refused(host.start("c1").await, Code::InvalidArgument, message);
        let status = host.wait("c1", "").await.unwrap();
        assert_eq!(status.how, Some(How::Exited(code)), "{args:?}");
        host.remove("c1").await.unwrap();
    }
    let mut request = container("c1", shell("true"));
    request.process.as_mut().unwrap().cwd = "/lower/x".to_owned();
    assert_refused(
        host.create(request).await,
        Code::InvalidArgument,
        "working directory /lower/x",
    );
}

pub async fn many_containers_share_layers(guest: SharedGuest) {
    let host = Host::new(guest).await;
    for number in 0..5 {
        host.start_idle(container(
            &format!("c{number}"),
            shell("while :; do sleep 1; done"),
        ))
        .await;
    }
    let mut request = container("look", shell("ls /run/layers | wc -l"));
    request.mounts = vec![bind("/run", "/run", &["rbind"])];
    let seen = host.run(request).await.ok();
    assert_eq!(seen.trim(), disk::LAYERS.to_string());
    for number in 0..5 {
        host.remove(&format!("c{number}")).await.unwrap();
    }
}

pub async fn orphans_leave_no_zombies(guest: SharedGuest) {
    let many = if guest.is_machine() { 200 } else { 1000 };
    let host = Host::new(guest).await;
    // The shell is process 1 of its namespace and inherits them; with the pod's namespace it is the pod's init.
    let orphans = format!("i=0; while [ $i -lt {many} ]; do (true &) ; i=$((i+1)); done");
    host.sh(&orphans).await.ok();
    let mut request = container(
        "c1",
        shell(&format!(
            "{orphans}; while ps -o stat,pid | grep -q '^Z'; do sleep 0.1; done; ps -o pid,comm | grep pod-init"
        )),
    );
    request.pid_namespace = agent::PidNamespace::Pod.into();
    let seen = host.run(request).await.ok();
    assert!(seen.trim().starts_with("1 "), "{seen}");
    // What the agent itself is parent of shows where its processes are seen.
    let mut request = container(
        "c2",
        shell("grep -l '^State:.Z' /agent/[0-9]*/status 2>/dev/null | wc -l"),
    );
    request.mounts = vec![bind("/proc", "/agent", &[])];
    assert_eq!(host.run(request).await.ok(), "0\n");
}

pub async fn containers_are_listed_and_measured(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container(
        "c1",
        shell("head -c 3000000 /dev/zero >/big; ln -s /big /link; while [ -e /big ]; do sleep 0.1; done"),
    ))
    .await;
    while !host
        .exec_sh("c1", "ls /link 2>/dev/null; true")
        .await
        .ok()
        .contains("link")
    {}
    let stats = host.stats("c1").await;
    assert_eq!(stats.container_id, "c1");
    let bytes = stats.writable_layer_bytes.unwrap_or_default();
    assert!((2_900_000..6_000_000).contains(&bytes), "{stats:?}");
    assert!(stats.writable_layer_inodes >= Some(2), "{stats:?}");
    assert!(stats.cpu_usage_us > 0, "{stats:?}");
    assert!((1..10).contains(&stats.processes), "{stats:?}");
    let open = stats.open_files.unwrap_or_default();
    assert!(
        open.descriptors >= 3 && open.sockets < open.descriptors,
        "{stats:?}"
    );
    let files = stats
        .soft_limits
        .iter()
        .find(|limit| limit.name == "Max open files");
    assert!(files.is_some_and(|limit| limit.value > 0), "{stats:?}");
    if host.guest.is_machine() {
        assert!(stats.memory_usage_bytes > 100_000, "{stats:?}");
        assert!(
            stats.memory_working_set_bytes <= stats.memory_usage_bytes,
            "{stats:?}"
        );
        assert!((1..10).contains(&stats.pids), "{stats:?}");
        assert_eq!(stats.memory_limit_bytes, None, "{stats:?}");
        assert!(
            stats.memory_peak_bytes >= Some(stats.memory_usage_bytes),
            "{stats:?}"
        );
        assert!(
            stats.cpu_pressure.is_some() && stats.io_pressure.is_some(),
            "{stats:?}"
        );
        assert!(stats.memory_page_faults > 0, "{stats:?}");
    }
    let mut client = host.client.clone();
    let unknown = client.stats(agent::StatsRequest {
        container_ids: vec!["c9".to_owned()],
        ..agent::StatsRequest::default()
    });
    assert_refused(unknown.await, Code::NotFound, "there is no container c9");
    host.remove("c1").await.unwrap();
}
