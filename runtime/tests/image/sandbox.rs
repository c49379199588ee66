//! What a converter may do and what not, seen from inside and from outside, and what becomes of one that fails.

#![allow(unsafe_code, reason = "what a hostile process would try has no safe wrappers")]

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_runtime::image::converter::{Confinement, MEMORY_BYTES};
use bulkhead_runtime::image::{ErrorKind, ImageError, ImageId, LayerLimits};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::build::{Archive, BuiltLayer, push};
use crate::host::{Host, pull};
use crate::registry::{Answer, Registry};

/// Names the probe to a process that is to try it.
const PROBE: &str = "BULKHEAD_TEST_PROBE";

/// The exit status of a process that did what it tried.
const SURVIVED: i32 = 42;

/// System calls that a process that converts layers has no business with.
const REFUSED: &[(&str, libc::c_long)] = &[
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("kill", libc::SYS_kill),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("mount", libc::SYS_mount),
    ("chroot", libc::SYS_chroot),
    ("setuid", libc::SYS_setuid),
    ("setresuid", libc::SYS_setresuid),
    ("prctl", libc::SYS_prctl),
    ("seccomp", libc::SYS_seccomp),
    ("setrlimit", libc::SYS_prlimit64),
    ("ioctl", libc::SYS_ioctl),
    ("fcntl", libc::SYS_fcntl),
    ("dup", libc::SYS_dup),
    ("memfd_create", libc::SYS_memfd_create),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("bpf", libc::SYS_bpf),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("unlinkat", libc::SYS_unlinkat),
    ("fchmod", libc::SYS_fchmod),
    ("getdents64", libc::SYS_getdents64),
    ("recvmsg", libc::SYS_recvmsg),
    ("init_module", libc::SYS_init_module),
];

/// Runs this test again in a process of its own, which seals itself and tries `probe`.
fn attempt(probe: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sandbox::a_sealed_converter_can_do_nothing_but_convert",
            "--test-threads=1",
            "--nocapture",
        ])
        .env(PROBE, probe)
        // It would be read from the program's file.
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
        .status
}

/// Only in such a process.
fn probe(name: &str) -> ! {
    let limits = LayerLimits {
        bytes: 1 << 20,
        entries: 16,
    };
    Confinement::enter(limits).unwrap().seal().unwrap();
    let map = |protection| {
        // SAFETY: a new mapping, which nothing else knows.
        unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        }
    };
    match name {
        "nothing" => {}
        "memory" => drop(std::hint::black_box(vec![1_u8; 64 << 20])),
        "too much memory" => {
            let bytes = usize::try_from(MEMORY_BYTES).unwrap();
            drop(std::hint::black_box(vec![1_u8; bytes]));
        }
        "a thread" => drop(std::thread::spawn(|| ()).join()),
        "code in memory" => {
            map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        }
        "memory made code" => {
            let page = map(libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: our own page, in which there is nothing.
            unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) };
        }
        name => {
            let (_, call) = REFUSED.iter().find(|(known, _)| *known == name).unwrap();
            // SAFETY: with no arguments none of these calls touches this process's memory.
            unsafe { libc::syscall(*call, 0, 0, 0, 0, 0, 0) };
        }
    }
    std::process::exit(SURVIVED);
}

#[test]
fn a_sealed_converter_can_do_nothing_but_convert() {
    if let Ok(name) = std::env::var(PROBE) {
        probe(&name);
    }
    for allowed in ["nothing", "memory"] {
        let status = attempt(allowed);
        assert_eq!(status.code(), Some(SURVIVED), "{allowed}: {status}");
    }
    let status = attempt("too much memory");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "too much memory: {status}");
    let calls = REFUSED.iter().map(|(name, _)| *name);
    for refused in calls.chain(["a thread", "code in memory", "memory made code"]) {
        let status = attempt(refused);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{refused}: {status}");
    }
}

/// A pull that waits for the second half of its layer, and the process that converts it.
struct Halfway {
    _registry: Registry,
    host: Host,
    gate: watch::Sender<bool>,
    layer: BuiltLayer,
    pull: JoinHandle<Result<ImageId, ImageError>>,
    converter: PathBuf,
}

impl Halfway {
    /// Content that is different for each test, because its processes are found by it.
    async fn of(content: &str) -> Self {
        let registry = Registry::start().await;
        let layer = BuiltLayer::gzip(Archive::new().file("a", content.repeat(10_000)).finish());
        push(&registry, "app", "v1", &[layer.clone()], json!({}));
        let (gate, opened) = watch::channel(false);
        registry.set(
            &format!("/v2/app/blobs/{}", layer.digest()),
            Answer::Stuck(opened, layer.blob.clone()),
        );
        let host = Host::new();
        let store = host.open();
        let name = format!("{}/app:v1", registry.name());
        let pull = tokio::spawn(async move {
            let store = store;
            pull(&store, &name).await
        });
        let converter = found(&layer).await;
        Self {
            _registry: registry,
            host,
            gate,
            layer,
            pull,
            converter,
        }
    }

    fn pid(&self) -> Pid {
        let name = self.converter.file_name().unwrap().to_str().unwrap();
        Pid::from_raw(name.parse().unwrap()).unwrap()
    }

    async fn failure(self) -> (Host, BuiltLayer, ImageError) {
        let failure = self.pull.await.unwrap().unwrap_err();
        (self.host, self.layer, failure)
    }
}

/// Waits for the sealed process that converts `layer`.
async fn found(layer: &BuiltLayer) -> PathBuf {
    let digest = layer.digest().to_string();
    let is_it = |process: &Path| {
        let text = |name| fs::read_to_string(process.join(name)).unwrap_or_default();
        text("cmdline").contains(&digest) && text("status").contains("Seccomp:\t2\n")
    };
    until("the converter's process", || {
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        processes.into_iter().find(|process| is_it(process))
    })
    .await
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what} is not to be seen"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converter_has_no_rights_no_network_and_nothing_open() {
    let halfway = Halfway::of("rights").await;
    let process = &halfway.converter;
    let mut threads = 0;
    for thread in fs::read_dir(process.join("task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let nobody = "65534\t65534\t65534\t65534";
        let none = "0000000000000000";
        for (key, value) in [
            ("Uid", nobody),
            ("Gid", nobody),
            ("Groups", ""),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
        ] {
            let prefix = format!("{key}:");
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(&prefix))
                .unwrap();
            assert_eq!(line.trim(), value, "{key}");
        }
        threads += 1;
    }
    assert_eq!(threads, 2);

    for namespace in ["net", "ipc", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(process), of(Path::new("/proc/self")), "{namespace}");
    }
    let interfaces = fs::read_to_string(process.join("net/dev")).unwrap();
    let names: Vec<_> = interfaces
        .lines()
        .skip(2)
        .map(|line| line.split(':').next().unwrap().trim())
        .collect();
    assert_eq!(names, ["lo"]);
    let root = fs::read_link(process.join("root")).unwrap();
    assert!(root.ends_with("fdinfo"), "{}", root.display());
    assert_eq!(fs::read(process.join("environ")).unwrap(), b"");
    let open: HashSet<_> = fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    let blobs = open
        .iter()
        .filter(|path| path.to_str().unwrap().contains("/incoming/layer-"))
        .count();
    let pipes = open
        .iter()
        .filter(|path| path.to_str().unwrap().starts_with("pipe:"))
        .count();
    assert_eq!((open.len(), blobs, pipes), (3, 1, 2), "{open:?}");

    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut words = line.split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    let both = |value: u64| (value.to_string(), value.to_string());
    for name in [
        "Max core file size",
        "Max processes",
        "Max open files",
        "Max locked memory",
    ] {
        assert_eq!(limit(name), both(0), "{name}");
    }
    assert_eq!(limit("Max data size"), both(MEMORY_BYTES));
    let config = &halfway.host.config;
    assert_eq!(
        limit("Max file size"),
        both(config.max_layer_bytes + 4096 * config.max_layer_entries)
    );

    halfway.gate.send(true).unwrap();
    halfway.pull.await.unwrap().unwrap();
    until("the converter's end", || {
        (!halfway.converter.exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converter_that_is_killed_or_crashes_fails_its_layer_by_name() {
    for (signal, words) in [
        (Signal::KILL, "its converter was killed"),
        (Signal::TERM, "its converter ended early"),
        (Signal::SYS, "what no conversion does"),
    ] {
        let halfway = Halfway::of(words).await;
        kill_process(halfway.pid(), signal).unwrap();
        until("its end", || (!halfway.converter.exists()).then_some(())).await;
        halfway.gate.send(true).unwrap();
        let (host, layer, failure) = halfway.failure().await;
        let message = failure.to_string();
        assert!(
            message.contains(words) && message.contains(&layer.digest().to_string()),
            "{message}"
        );
        assert_eq!(failure.kind(), ErrorKind::Internal);
        host.settled(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converter_that_hangs_ends_with_its_pull() {
    let halfway = Halfway::of("hangs").await;
    kill_process(halfway.pid(), Signal::STOP).unwrap();
    halfway.gate.send(true).unwrap();
    halfway.pull.abort();
    assert!(halfway.pull.await.unwrap_err().is_cancelled());
    until("its end", || (!halfway.converter.exists()).then_some(())).await;
    halfway.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_converter_is_told_so() {
    let registry = Registry::start().await;
    let layer = BuiltLayer::gzip(Archive::new().file("a", "a").finish());
    push(&registry, "app", "v1", &[layer], json!({}));
    for (program, words) in [
        ("/no/such/program", "cannot be started"),
        ("/bin/true", "makes no sense"),
        ("/bin/false", "ended early"),
    ] {
        let host = Host::converting_with(program);
        let store = host.open();
        let failure = pull(&store, &format!("{}/app:v1", registry.name()))
            .await
            .unwrap_err();
        assert!(failure.to_string().contains(words), "{program}: {failure}");
        host.settled(0).await;
        drop(Arc::clone(&store));
    }
}
