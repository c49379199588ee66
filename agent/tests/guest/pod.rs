//! The pod as a whole: hello, configuration, shutdown.

use bulkhead_proto::agent::{self, PROTOCOL_VERSION};
use tonic::Code;

use crate::{
    guest::{SharedGuest, client},
    host::{Host, assert_refused, container, pod, shell},
};

pub async fn the_agent_says_who_it_is(guest: SharedGuest) {
    let rung = guest.hello();
    assert_eq!(rung.protocol_version, PROTOCOL_VERSION);
    assert_eq!(rung.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(rung.kernel_release.contains('.'), "{rung:?}");
    assert!(
        rung.ready_ns >= rung.agent_started_ns && rung.agent_started_ns > 0,
        "{rung:?}"
    );
    println!(
        "the agent's main function began at {} µs and the message was made {} µs later",
        rung.agent_started_ns / 1000,
        (rung.ready_ns - rung.agent_started_ns) / 1000
    );
    let request = agent::HelloRequest { protocol_version: 1 };
    let asked = client(&guest).await.hello(request).await.unwrap().into_inner();
    assert_eq!(asked.agent_started_ns, rung.agent_started_ns);
    assert!(asked.ready_ns > rung.ready_ns);
}

pub async fn the_pod_is_configured_once(guest: SharedGuest) {
    let mut early = client(&guest).await;
    let created = early.create_container(container("c1", shell("true"))).await;
    assert_refused(created, Code::FailedPrecondition, "not configured");
    let host = Host::new(guest).await;
    let again = host.client.clone().configure_sandbox(pod()).await;
    assert_refused(again, Code::FailedPrecondition, "configured already");
}

pub async fn what_cannot_be_configured_is_told_and_undone(guest: SharedGuest) {
    let mut client = client(&guest).await;
    let mut configure = async |change: &dyn Fn(&mut agent::ConfigureSandboxRequest)| {
        let mut request = pod();
        change(&mut request);
        client.configure_sandbox(request).await
    };
    let long = configure(&|pod| pod.hostname = "x".repeat(65)).await;
    assert_refused(long, Code::InvalidArgument, "longer than 64 bytes");
    let sysctl = configure(&|pod| {
        pod.sysctls.insert("../../etc/passwd".to_owned(), "1".to_owned());
    });
    assert_refused(
        sysctl.await,
        Code::InvalidArgument,
        "not the name of a kernel setting",
    );
    let unknown = configure(&|pod| {
        pod.sysctls
            .insert("kernel.no_such_setting".to_owned(), "1".to_owned());
    });
    assert_refused(
        unknown.await,
        Code::InvalidArgument,
        "has no setting kernel.no_such_setting",
    );
    let not_ext4 = configure(&|pod| pod.scratch_disk = "image".to_owned()).await;
    assert_refused(not_ext4, Code::Internal, "the scratch disk image is not usable");
    let missing = configure(&|pod| pod.scratch_disk = "nowhere".to_owned()).await;
    assert_refused(missing, Code::NotFound, "no disk with serial nowhere");
    // Everything was undone, or this would not succeed.
    configure(&|_| {}).await.unwrap();
}

pub async fn shutdown_answers_and_ends_the_guest(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container("c1", shell("trap '' TERM; while :; do sleep 1; done")))
        .await;
    let waiting = tokio::spawn({
        let mut client = host.client.clone();
        async move {
            let request = agent::WaitProcessRequest {
                container_id: "c1".to_owned(),
                exec_id: String::new(),
            };
            client.wait_process(request).await
        }
    });
    // The wait is known to be there once a later call was answered.
    host.state("c1").await.unwrap();
    host.client
        .clone()
        .shutdown(agent::ShutdownRequest {})
        .await
        .unwrap();
    let status = waiting.await.unwrap().unwrap().into_inner().status.unwrap();
    assert_eq!(status.how, Some(agent::exit_status::How::Signaled(9)));
    assert!(host.guest.ended().await, "{}", host.guest.log());
}

pub async fn reseeding_takes_entropy_in_bounds(guest: SharedGuest) {
    let mut client = client(&guest).await;
    let mut reseed = async |length: usize| {
        client
            .reseed(agent::ReseedRequest {
                entropy: vec![7; length],
                realtime_ns: 0,
            })
            .await
    };
    reseed(32).await.unwrap();
    reseed(512).await.unwrap();
    assert_refused(reseed(31).await, Code::InvalidArgument, "31 bytes");
    assert_refused(reseed(513).await, Code::InvalidArgument, "513 bytes");
}

pub async fn kernel_settings_are_made_in_the_pods_namespaces(guest: SharedGuest) {
    let mut request = pod();
    request.sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "12345"),
        ("fs.mqueue.msg_max", "17"),
        ("net.ipv4.ip_unprivileged_port_start", "81"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let host = Host::with(guest, request).await;
    let seen = host
        .sh(
            "cd /proc/sys && cat kernel/shm_rmid_forced kernel/msgmax fs/mqueue/msg_max \
             net/ipv4/ip_unprivileged_port_start",
        )
        .await;
    assert_eq!(seen.ok(), "1\n12345\n17\n81\n");
}
