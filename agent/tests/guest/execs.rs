//! Further processes in a running container.

use std::time::Duration;

use bulkhead_proto::agent::{self, StreamKind, exit_status::How};
use tonic::Code;

use crate::{
    guest::SharedGuest,
    host::{Host, assert_refused, container, program, read_all, shell, variables},
};

const IDLE: &str = "while :; do sleep 1; done";

pub async fn an_exec_runs_in_the_container(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container("c1", shell(IDLE))).await;
    let ended = host
        .run_exec(
            "c1",
            "e1",
            shell("echo out; echo err >&2; hostname; cat /proc/1/comm; grep ^0: /proc/self/cgroup; echo x >/made; exit 3"),
            0,
        )
        .await;
    assert_eq!(ended.status.how, Some(How::Exited(3)));
    assert_eq!(ended.stdout, "out\npod\nsh\n0::/exec-e1\n");
    assert_eq!(ended.stderr, "err\n");
    assert_eq!(host.exec_sh("c1", "cat /made").await.ok(), "x\n");
    let same = "for kind in mnt pid ipc uts cgroup net; do \
        for of in self 1; do readlink /proc/$of/ns/$kind; done | uniq | wc -l; done | uniq";
    assert_eq!(host.exec_sh("c1", same).await.ok(), "1\n");
    let missing = host.exec("c1", "e2", program(&["nosuch"]), 0).await;
    assert_refused(
        missing,
        Code::InvalidArgument,
        "exec: \"nosuch\": executable file not found in $PATH",
    );
    assert_refused(host.wait("c1", "e2").await, Code::NotFound, "no process e2");
    host.signal("c1", "", 9, false).await.unwrap();
    host.wait("c1", "").await.unwrap();
    assert_refused(
        host.exec("c1", "e3", shell("true"), 0).await,
        Code::FailedPrecondition,
        "c1 is stopped",
    );
    host.remove("c1").await.unwrap();
}

pub async fn an_exec_inherits_from_the_first_process(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut request = container("c1", shell(IDLE));
    let process = request.process.as_mut().unwrap();
    process.env.push(b"KEPT=1".to_vec());
    process.env.push(b"CHANGED=1".to_vec());
    process.cwd = "/tmp".to_owned();
    process.no_new_privileges = true;
    process.user = Some(agent::User {
        username: "app".to_owned(),
        ..agent::User::default()
    });
    host.start_idle(request).await;
    let look = "sed -n 's/:\\t/=/p' /proc/self/status; echo uid=$(id -u); echo cwd=$(pwd); \
        echo env=$KEPT$CHANGED$NEW; echo home=$HOME; echo oom=$(cat /proc/self/oom_score_adj)";
    let mut process = shell(look);
    process.capabilities = None;
    process.env = vec![b"CHANGED=2".to_vec(), b"NEW=3".to_vec()];
    let seen = variables(&host.run_exec("c1", "e1", process.clone(), 0).await.ok());
    assert_eq!(seen["uid"], "1000");
    assert_eq!(seen["cwd"], "/tmp");
    assert_eq!(seen["env"], "123");
    assert_eq!(seen["home"], "/home/app");
    assert_eq!(seen["NoNewPrivs"], "1");
    assert_eq!(seen["oom"], "0");
    process.user = Some(agent::User::default());
    process.cwd = "/".to_owned();
    let seen = variables(&host.run_exec("c1", "e2", process, 0).await.ok());
    assert_eq!((seen["uid"].as_str(), seen["cwd"].as_str()), ("0", "/"));
    host.remove("c1").await.unwrap();
}

pub async fn a_timeout_kills_everything_the_exec_started(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container("c1", shell(IDLE))).await;
    let script = "(setsid sleep 1001 &) ; (trap '' TERM; sleep 1002) & echo started; sleep 1003";
    let ended = host.run_exec("c1", "e1", shell(script), 1_000_000_000).await;
    assert!(ended.status.timed_out);
    assert_eq!(ended.status.how, Some(How::Signaled(9)));
    assert_eq!(ended.stdout, "started\n");
    assert_eq!(
        host.exec_sh("c1", "ps -o args | grep -c '[s]leep 100'; true")
            .await
            .ok(),
        "0\n"
    );
    let ended = host.run_exec("c1", "e2", shell("exit 4"), 100_000_000_000).await;
    assert!(!ended.status.timed_out);
    assert_eq!(ended.status.how, Some(How::Exited(4)));
    host.remove("c1").await.unwrap();
}

pub async fn background_processes_do_not_hold_an_exec(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container("c1", shell(IDLE))).await;
    // It keeps the pipe open and writes again, long after the exec has ended.
    let script = "(sleep 3; echo late; sleep 1; echo later; echo alive >/alive; sleep 1004) & echo early";
    let begun = std::time::Instant::now();
    let ended = host.run_exec("c1", "e1", shell(script), 0).await;
    assert_eq!(ended.stdout, "early\n");
    assert_eq!(ended.status.how, Some(How::Exited(0)));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    host.acknowledge("c1", "e1").await.unwrap();
    // It is not killed, not even by writing where nobody reads.
    while host.exec_sh("c1", "cat /alive 2>/dev/null; true").await.ok() != "alive\n" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        host.exec_sh("c1", "ps -o args | grep -c '[s]leep 1004'")
            .await
            .ok(),
        "1\n"
    );
    // Its name is free, its group in use.
    host.run_exec("c1", "e1", shell("true"), 0).await.ok();
    host.remove("c1").await.unwrap();
}

pub async fn exits_are_kept_until_acknowledged(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container("c1", shell(IDLE))).await;
    let stdout = host.stream("c1", "e1", StreamKind::Stdout, 0).await.unwrap();
    let mut process = shell("echo x; exit 5");
    process.stderr = false;
    host.exec("c1", "e1", process.clone(), 0).await.unwrap();
    assert_refused(
        host.exec("c1", "e1", process.clone(), 0).await,
        Code::AlreadyExists,
        "c1 has a process e1 already",
    );
    let (first, second, text) =
        tokio::join!(host.wait("c1", "e1"), host.wait("c1", "e1"), read_all(stdout, 0));
    assert_eq!(text.unwrap(), b"x\n");
    let status = first.unwrap();
    assert_eq!(status, second.unwrap());
    assert_eq!(status, host.wait("c1", "e1").await.unwrap());
    host.acknowledge("c1", "e1").await.unwrap();
    assert_refused(host.wait("c1", "e1").await, Code::NotFound, "no process e1");
    assert_refused(
        host.acknowledge("c1", "e1").await,
        Code::NotFound,
        "no process e1",
    );
    process.stdout = false;
    process.args[2] = "sleep 1000".to_owned();
    host.exec("c1", "e1", process, 0).await.unwrap();
    assert_refused(
        host.acknowledge("c1", "e1").await,
        Code::FailedPrecondition,
        "still runs",
    );
    host.signal("c1", "e1", 15, false).await.unwrap();
    assert_eq!(host.wait("c1", "e1").await.unwrap().how, Some(How::Signaled(15)));
    host.remove("c1").await.unwrap();
}
