//! Disks: what containers write, and what they read again.

use bulkhead_tests::{ContainerSpec, Daemon, PodSpec};

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_is_written_is_read_again_from_the_disk() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("storage").with("/linux/security_context/privileged", true));
    let container = pod.run(ContainerSpec::idle().security("privileged", true));
    // Random data in pieces of odd sizes, through the page cache and past it.
    container.sh(
        "for size in 1 511 4097 65537 1048577; do head -c $size /dev/urandom > /data-$size; done; \
         dd if=/dev/urandom of=/data-direct bs=64k count=64 oflag=direct 2> /dev/null || \
         dd if=/dev/urandom of=/data-direct bs=64k count=64 2> /dev/null; sync",
    );
    let sums = "sha256sum /data-* /bin/busybox /lib/x86_64-linux-gnu/libc.so.6";
    let cached = container.sh(sums);
    assert_eq!(cached.lines().count(), 8, "{cached}");
    container.sh("sync; echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(container.sh(sums), cached, "after the guest has forgotten it all");

    let other = pod.run(ContainerSpec::idle());
    assert_ne!(
        other.exec(&["ls", "/data-1"]).code,
        0,
        "each container has a writable layer of its own"
    );
    other.sh("rm /bin/ls");
    assert_eq!(
        container.exec(&["ls", "/bin/ls"]).code,
        0,
        "and an image is never written"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn many_containers_of_a_pod_come_and_go_at_once() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("crowd"));
    // The image is there before the crowd asks for it.
    pod.run(ContainerSpec::sh("exit 0")).wait_exited();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let pod = &pod;
            scope.spawn(move || {
                let script =
                    format!("echo {number} > /own; echo from {number}; exec top -b -d 3600 > /dev/null");
                let container = pod.run(ContainerSpec::sh(&script));
                container.wait_for_log(&format!("from {number}"));
                assert_eq!(container.sh("cat /own"), number.to_string());
                container.stop(0);
                assert_eq!(container.status().exit_code, 137);
                container.remove();
            });
        }
    });
    let left = daemon.crictl().ok(["ps", "-a", "-q", "--pod", pod.id()]);
    assert_eq!(left.lines().count(), 1, "only the first is left: {left}");
    assert_eq!(pod.run(ContainerSpec::sh("exit 6")).wait_exited().exit_code, 6);
}
