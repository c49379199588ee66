//! Bounds of the protocol, and limits of containers.

use bulkhead_proto::agent::{self, exit_status::How, limits};
use tonic::Code;

use crate::{
    guest::SharedGuest,
    host::{Host, assert_refused, container, shell},
};

pub async fn requests_beyond_a_bound_are_refused_by_name(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut request = container("c1", shell("true"));
    request.layers = vec![request.layers[0].clone(); limits::LAYERS + 1];
    assert_refused(
        host.create(request).await,
        Code::ResourceExhausted,
        "layers has 501 entries",
    );
    let mut request = container("c1", shell("true"));
    request.process.as_mut().unwrap().env = vec![vec![b'x'; limits::ARGUMENT_BYTES + 1]];
    assert_refused(
        host.create(request).await,
        Code::ResourceExhausted,
        "process.env has 131073 bytes",
    );
    let request = container("a/b", shell("true"));
    assert_refused(
        host.create(request).await,
        Code::InvalidArgument,
        "container_id \"a/b\" is no id",
    );
    // More than a message may have, in entries that each are allowed.
    let mut request = container("c1", shell("true"));
    request.process.as_mut().unwrap().env = vec![vec![b'x'; limits::ARGUMENT_BYTES]; 33];
    let code = host.create(request).await.unwrap_err().code();
    assert_eq!(code, Code::OutOfRange);
    // As many arguments as Linux takes reach the program.
    let mut request = container("c1", shell("echo $#"));
    let args = &mut request.process.as_mut().unwrap().args;
    args.extend(vec!["x".repeat(100); 10_000]);
    assert_eq!(host.run(request).await.ok(), "9999\n");
}

pub async fn used_and_unknown_names_are_told(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.create(container("c1", shell("true"))).await.unwrap();
    assert_refused(
        host.create(container("c1", shell("true"))).await,
        Code::AlreadyExists,
        "container c1 exists already",
    );
    assert_refused(host.start("c2").await, Code::NotFound, "there is no container c2");
    assert_refused(
        host.wait("c2", "").await,
        Code::NotFound,
        "there is no container c2",
    );
    assert_refused(host.wait("c1", "e").await, Code::NotFound, "c1 has no process e");
    assert_refused(
        host.signal("c1", "e", 9, false).await,
        Code::NotFound,
        "c1 has no process e",
    );
    let mut client = host.client.clone();
    let resize = client.resize_terminal(agent::ResizeTerminalRequest {
        container_id: "c1".to_owned(),
        ..agent::ResizeTerminalRequest::default()
    });
    assert_refused(resize.await, Code::FailedPrecondition, "has no terminal");
    host.remove("c2").await.unwrap();
    host.remove("c1").await.unwrap();
}

pub async fn memory_limits_kill_and_are_told(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut request = container(
        "c1",
        shell(
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; \
               exec tail /dev/zero",
        ),
    );
    request.resources = Some(agent::Resources {
        memory_limit_bytes: Some(16 << 20),
        memory_swap_bytes: Some(0),
        cpu_weight: Some(50),
        cpu_quota_us: Some(90_000),
        cpu_period_us: Some(100_000),
        pids_limit: Some(100),
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
    });
    let ended = host.run(request).await;
    assert_eq!(ended.stdout, "16777216\n50\n90000 100000\n100\n");
    assert_eq!(ended.status.how, Some(How::Signaled(9)));
    assert!(ended.status.oom_killed);

    // In an exec, while the container goes on.
    let mut request = container("c2", shell("while :; do sleep 1; done"));
    request.resources = Some(agent::Resources {
        memory_limit_bytes: Some(16 << 20),
        ..agent::Resources::default()
    });
    host.start_idle(request).await;
    let ended = host.run_exec("c2", "e1", shell("exec tail /dev/zero"), 0).await;
    assert_eq!(ended.status.how, Some(How::Signaled(9)));
    assert!(ended.status.oom_killed);
    let ended = host.run_exec("c2", "e2", shell("true"), 0).await;
    assert!(!ended.status.oom_killed);
    let stats = host.stats("c2").await;
    assert!(stats.oom_kills >= 1, "{stats:?}");
    host.remove("c2").await.unwrap();
}
