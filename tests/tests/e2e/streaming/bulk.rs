//! Much through every path, and what it takes of memory.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{Container, ContainerSpec, Daemon, DaemonOptions, PodSpec, until};

use super::{Running, resident_kib};

/// Bytes through each path: several times what may grow, and as many as an emulated node moves in half a minute.
const BYTES: u64 = 32 << 20;

/// What the daemon may take beside what it had, in KiB.
const GROWTH_KIB: i64 = 8 << 10;

/// Runs `work` and gives the most memory of its own that the daemon had meanwhile, in KiB.
fn most_memory_during(daemon: &Daemon, work: impl FnOnce()) -> i64 {
    let (done, most) = (AtomicBool::new(false), AtomicI64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(resident_kib(daemon.pid()), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    most.into_inner()
}

/// Memory of the guest that is free or can be had, in KiB.
fn available_kib(container: &Container<'_>) -> i64 {
    let script = "awk '/MemAvailable/ { print $2 }' /proc/meminfo";
    container.sh(script).parse().unwrap()
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn memory_stays_as_it_is_whatever_goes_through() {
    let daemon = Daemon::private(DaemonOptions::new());
    let pod = daemon.run_pod(PodSpec::new("bulk"));
    let container = pod.run(ContainerSpec::sh(&format!(
        "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\nprintf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\n\"; \
         exec head -c {BYTES} /dev/zero\\n' > /www/cgi-bin/zero; chmod 755 /www/cgi-bin/zero; \
         exec httpd -f -p 127.0.0.1:8000 -h /www"
    )));
    let id = container.id();
    // What a first session of each kind takes for good is not growth.
    daemon.crictl().ok(["exec", id, "true"]);
    let (before, free) = (resident_kib(daemon.pid()), available_kib(&container));
    let told = |what: &str, begun: Instant, most: i64| {
        println!(
            "{what}: {} MiB in {:.1} s; the daemon had at most {most} KiB, before {before} KiB",
            BYTES >> 20,
            begun.elapsed().as_secs_f64()
        );
        assert!(
            most - before < GROWTH_KIB,
            "{what}: the daemon grew from {before} KiB to {most} KiB"
        );
        let left = available_kib(&container);
        assert!(
            free - left < GROWTH_KIB,
            "{what}: the guest had {free} KiB and has {left} KiB"
        );
    };

    let endpoint = daemon.endpoint();
    let shell = |script: &str| {
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let crictl = format!("crictl --runtime-endpoint {endpoint} --timeout 600s");
    let begun = Instant::now();
    let most = most_memory_during(&daemon, || {
        let said = shell(&format!("{crictl} exec {id} head -c {BYTES} /dev/zero | wc -c"));
        assert_eq!(said, BYTES.to_string());
    });
    told("out of exec", begun, most);

    let begun = Instant::now();
    let most = most_memory_during(&daemon, || {
        let said = shell(&format!(
            "head -c {BYTES} /dev/zero | {crictl} exec -i {id} wc -c"
        ));
        assert_eq!(said, BYTES.to_string());
    });
    told("into exec", begun, most);

    let forward = Running::start(&daemon, &["port-forward", pod.id(), "0:8000"], Stdio::null());
    let port = super::ports::local_port(&forward, 8000);
    let begun = Instant::now();
    let most = most_memory_during(&daemon, || {
        let said = shell(&format!("curl -sSf http://127.0.0.1:{port}/cgi-bin/zero | wc -c"));
        assert_eq!(said, BYTES.to_string());
    });
    told("out of a forwarded port", begun, most);

    // A client that reads nothing holds its command up, and nothing grows with it.
    let mut stalled = Running::start(
        &daemon,
        &["exec", id, "sh", "-c", "exec cat /dev/zero"],
        Stdio::null(),
    );
    drop(forward);
    let path = stalled.path("stdout");
    until("the command to write", || {
        let length = std::fs::metadata(&path).unwrap().len();
        if length > 1 << 20 {
            Ok(())
        } else {
            Err(length.to_string())
        }
    });
    let crictl_pid = rustix::process::Pid::from_child(&stalled.child);
    rustix::process::kill_process(crictl_pid, rustix::process::Signal::STOP).unwrap();
    let most = most_memory_during(&daemon, || thread::sleep(Duration::from_secs(10)));
    told("a client that stands still", Instant::now(), most);
    stalled.kill();
}
