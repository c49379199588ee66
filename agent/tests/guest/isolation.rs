//! What a container sees, and what it cannot.

use bulkhead_proto::agent;
use tonic::Code;

use crate::{
    guest::SharedGuest,
    host::{Host, all_capabilities, assert_refused, bind, container, shell},
};

pub async fn a_container_sees_only_itself(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container(
        "other",
        shell("echo secret >/secret; while :; do sleep 1; done"),
    ))
    .await;
    let seen = host
        .sh(
            "echo $$; ls /proc >/list; grep -c '^[0-9]' /list; ls /secret /run/scratch /run/containers 2>/dev/null; \
             grep ^0: /proc/self/cgroup; ls -A /proc/self/fd; wc -l </proc/self/mountinfo; \
             grep -c scratch /proc/self/mountinfo",
        )
        .await;
    let lines: Vec<&str> = seen.stdout.lines().collect();
    // The shell and ls.
    assert_eq!(lines[..2], ["1", "2"], "{seen:?}");
    assert_eq!(lines[2], "0::/", "{seen:?}");
    // 0 to 2, and the directory that ls reads.
    assert_eq!(lines[3..7], ["0", "1", "2", "3"], "{seen:?}");
    assert!(lines[7].parse::<u32>().unwrap() < 20, "{seen:?}");
    // The overlay's own options name its upper directory.
    assert_eq!(lines[8], "1", "{seen:?}");
}

pub async fn standard_mounts_are_as_oci_has_them(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let seen = host
        .sh("while read -r source path kind options rest; do echo \"$path $kind $options\"; done </proc/mounts; \
             echo; cd /dev; for name in null zero full random urandom tty; do stat -c '%n %a %t:%T' $name; done; \
             for name in fd stdin stdout stderr ptmx; do echo \"$name $(readlink $name)\"; done; \
             stat -c '%a' pts/ptmx shm; cat /etc/resolv.conf /etc/hosts /etc/hostname; hostname")
        .await
        .ok();
    let (mounts, rest) = seen.split_once("\n\n").unwrap();
    let mount = |path: &str| {
        mounts
            .lines()
            .find(|line| line.starts_with(&format!("{path} ")))
            .unwrap_or_else(|| panic!("{path} is not mounted:\n{mounts}"))
    };
    for (path, kind, options) in [
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/sys/fs/cgroup", "cgroup2", "ro,nosuid,nodev,noexec"),
        ("/etc/hosts", "tmpfs", "rw"),
    ] {
        let line = mount(path);
        assert!(line.starts_with(&format!("{path} {kind} {options}")), "{line}");
    }
    assert_eq!(
        rest,
        "null 666 1:3\nzero 666 1:5\nfull 666 1:7\nrandom 666 1:8\nurandom 666 1:9\ntty 666 5:0\n\
         fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\nptmx pts/ptmx\n\
         666\n1777\nnameserver 10.0.0.10\n127.0.0.1 localhost\npod\npod\n"
    );
}

pub async fn hostile_images_place_no_mount_outside(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let with_tmpfs = |destination: &str, script: &str| {
        let mut request = container("c1", shell(script));
        request.mounts = vec![agent::MountSpec {
            r#type: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            destination: destination.to_owned(),
            options: vec!["size=1m".to_owned()],
            ..agent::MountSpec::default()
        }];
        request
    };
    for (destination, inside) in [
        ("/escape/x", "/run/containers/x"),
        ("/climb/y", "/etc/y"),
        ("/../../z", "/z"),
        ("/dangling/w", "/var/made/w"),
    ] {
        let script = format!("grep -c ' {inside} tmpfs' /proc/mounts");
        assert_eq!(
            host.run(with_tmpfs(destination, &script)).await.ok(),
            "1\n",
            "{destination}"
        );
    }
    let circle = host.create(with_tmpfs("/loop/x", "true")).await;
    assert_refused(circle, Code::InvalidArgument, "cannot mount /loop/x");
    let file = host.create(with_tmpfs("/lower/x", "true")).await;
    assert_refused(file, Code::InvalidArgument, "cannot mount /lower/x");
    let seen = host.sh("ls /run /etc").await.stdout;
    assert!(!seen.contains('x') && !seen.contains('y'), "{seen}");
}

pub async fn mounts_are_made_as_asked(guest: SharedGuest) {
    let host = Host::new(guest).await;
    host.start_idle(container(
        "source",
        shell("mkdir /data; echo hello >/data/file; sleep 1000"),
    ))
    .await;
    while host.exec_sh("source", "cat /data/file").await.stdout != "hello\n" {}
    let source = "/run/scratch/source/upper/data";
    let mut request = container(
        "c1",
        shell(
            "cat /ro/file /file; echo x 2>/dev/null >/ro/x; echo $?; echo x >/rw/x; echo $?; \
             grep -E ' /(ro|rw|t) ' /proc/mounts | cut -d ' ' -f 2,4 | cut -d , -f 1-4; \
             df -k /t | tail -n 1 | awk '{print $2}'; cat /etc/hosts",
        ),
    );
    request.mounts = vec![
        bind(source, "/ro", &["rbind", "ro", "nodev"]),
        bind(source, "/rw", &["bind", "noexec"]),
        bind(&format!("{source}/file"), "/file", &["ro"]),
        bind(&format!("{source}/file"), "/etc/hosts", &[]),
        agent::MountSpec {
            r#type: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            destination: "/t".to_owned(),
            options: vec!["nosuid".to_owned(), "size=512k".to_owned()],
            ..agent::MountSpec::default()
        },
    ];
    let seen = host.run(request).await.ok();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..4], ["hello", "hello", "1", "0"], "{seen}");
    // The scratch disk is nosuid and nodev already.
    assert!(lines[4].starts_with("/ro ro,nosuid,nodev"), "{seen}");
    assert!(lines[5].starts_with("/rw rw,nosuid,nodev,noexec"), "{seen}");
    assert!(lines[6].starts_with("/t rw,nosuid"), "{seen}");
    assert_eq!(lines[7..], ["512", "hello"], "{seen}");
}

pub async fn masked_and_read_only_paths(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let mut request = container(
        "c1",
        shell(
            "wc -c </proc/cmdline; ls -A /proc/irq; ls -A /proc/fs; cat /lower; \
             echo 1 2>/dev/null >/proc/sys/kernel/panic; echo $?; \
             touch /new 2>/dev/null; echo $?; touch /tmp/x && echo tmp; echo x 2>/dev/null >>/etc/hosts; echo $?",
        ),
    );
    request.masked_paths = ["/proc/cmdline", "/proc/irq", "/proc/fs", "/lower", "/no/such"]
        .map(str::to_owned)
        .into();
    request.readonly_paths = ["/proc/sys", "/no/such"].map(str::to_owned).into();
    request.readonly_rootfs = true;
    request.mounts = vec![agent::MountSpec {
        r#type: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        destination: "/tmp".to_owned(),
        options: Vec::new(),
        ..agent::MountSpec::default()
    }];
    assert_eq!(host.run(request).await.ok(), "0\n1\n1\ntmp\n1\n");
}

pub async fn devices_outside_the_list_cannot_be_opened(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let script = "mknod /mem c 1 1; head -c 1 /mem >/dev/null 2>&1; echo $?; \
        mknod /null c 1 3; head -c 1 /null; echo $?; echo x >/dev/full; \
        mknod /kmsg c 1 11; head -c 1 /kmsg >/dev/null 2>&1; echo $?; \
        head -c 3 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c";
    let ended = host.sh(script).await;
    assert_eq!(ended.stdout, "1\n0\n1\n3\n4\n", "{ended:?}");
    assert!(ended.stderr.contains("No space left"), "{ended:?}");
}

pub async fn a_privileged_container_may_do_what_others_may_not(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let script = "mkdir /sys/fs/cgroup/mine && echo group; mount -t tmpfs tmpfs /tmp && echo mount; \
        ls /dev/loop-control; echo /proc/sys/kernel/panic >/dev/null && echo end";
    let refused = host.sh(script).await;
    assert_eq!(refused.stdout, "end\n", "{refused:?}");
    let mut request = container("c1", shell(script));
    request.privileged = true;
    request.process.as_mut().unwrap().capabilities = Some(all_capabilities());
    let allowed = host.run(request).await;
    assert_eq!(
        allowed.stdout, "group\nmount\n/dev/loop-control\nend\n",
        "{allowed:?}"
    );
}

pub async fn containers_share_the_pods_names_and_memory(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let look = "hostname; for kind in ipc uts net; do readlink /proc/self/ns/$kind; done; \
        cat /dev/shm/shared 2>/dev/null; echo here >/dev/shm/shared";
    let first = host.sh(look).await.ok();
    let second = host.sh(look).await.ok();
    assert_eq!(format!("{first}here\n"), second);
    let namespaces =
        |text: &str| -> Vec<String> { text.lines().skip(1).take(2).map(str::to_owned).collect() };
    let mut request = container(
        "c1",
        shell("for kind in net ipc uts; do readlink /agent/1/ns/$kind; done; readlink /proc/self/ns/net"),
    );
    request.mounts = vec![bind("/proc", "/agent", &[])];
    request.process.as_mut().unwrap().capabilities = Some(all_capabilities());
    let agents = host.run(request).await.ok();
    assert!(
        namespaces(&first).iter().all(|own| !agents.contains(own)),
        "{first}\n{agents}"
    );
    let lines: Vec<&str> = agents.lines().collect();
    assert_eq!(lines[0], lines[3], "the network is the guest's own");
}

pub async fn process_namespaces_of_pod_and_target(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let idle = "while :; do sleep 1; done";
    for id in ["p1", "p2"] {
        let mut request = container(id, shell(&format!(": {id}; {idle}")));
        request.pid_namespace = agent::PidNamespace::Pod.into();
        host.start_idle(request).await;
    }
    let seen = host.exec_sh("p1", "ps -o pid,comm,args").await.ok();
    assert!(seen.contains(": p2;") && seen.contains("1 pod-init"), "{seen}");
    assert_eq!(host.exec_sh("p1", "kill -9 1; echo $?").await.ok(), "0\n");
    host.exec_sh("p2", "true").await.ok();
    host.remove("p1").await.unwrap();
    let seen = host.exec_sh("p2", "ps -o args").await.ok();
    assert!(!seen.contains(": p1;"), "{seen}");

    host.start_idle(container("own", shell(&format!(": own; {idle}"))))
        .await;
    let mut request = container("debug", shell("ps -o args; kill -9 1; kill -9 $(pidof sleep)"));
    request.pid_namespace = agent::PidNamespace::Target.into();
    request.pid_target = "own".to_owned();
    let seen = host.run(request.clone()).await.stdout;
    assert!(seen.contains(": own;") && !seen.contains(": p2;"), "{seen}");
    request.pid_target = "nobody".to_owned();
    assert_refused(
        host.create(request.clone()).await,
        Code::NotFound,
        "no container nobody",
    );
    host.signal("own", "", 9, false).await.unwrap();
    host.wait("own", "").await.unwrap();
    request.pid_target = "own".to_owned();
    assert_refused(
        host.create(request).await,
        Code::FailedPrecondition,
        "own is stopped",
    );
}
