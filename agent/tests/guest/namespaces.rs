//! A guest made of namespaces of this machine.

use std::{
    fs,
    future::Future,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bulkhead_proto::agent::{DOORBELL_PORT, HelloResponse, wire};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    sync::Mutex,
};

use crate::{
    disk::{self, path_str, run},
    guest::{Guest, SharedGuest},
};

/// The agent's surroundings, made inside the new namespaces: its own /proc, /run and cgroup2, a list of disks as sysfs
/// has it for virtio (each partition a loop device of its own, since not every kernel reads partition tables), and a
/// file for its log. Then the shell becomes the agent, and so process 1.
const SURROUNDINGS: &str = r#"
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p "$DIR/cgroup2"
mount -t cgroup2 cgroup2 "$DIR/cgroup2"
mkdir "$DIR/cgroup2/$CGROUP"
mount --bind "$DIR/cgroup2/$CGROUP" /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/block
disk() {
    mkdir "/sys/block/$2"
    echo "$1" >"/sys/block/$2/serial"
}
disk image image-disk
number=0
for partition in $LAYER_LOOPS; do
    number=$((number + 1))
    mkdir "/sys/block/image-disk/$partition"
    echo "$number" >"/sys/block/image-disk/$partition/partition"
done
disk scratch "$SCRATCH_LOOP"
mount --bind "$DIR/log" /dev/kmsg
eval "$MORE"
exec "$AGENT" --listen-dir "$DIR"
"#;

#[derive(Debug)]
pub struct Namespaces {
    hello: HelloResponse,
    configured: AtomicBool,
    process: Mutex<Child>,
    surroundings: Surroundings,
}

/// What is to be cleared away behind the guest.
#[derive(Debug)]
struct Surroundings {
    directory: TempDir,
    loops: Vec<String>,
    cgroup: String,
}

/// Starts one.
pub async fn start() -> SharedGuest {
    start_with("").await
}

/// Starts one after `more`, shell commands in its namespaces.
pub async fn start_with(more: &str) -> SharedGuest {
    let image = disk::image();
    let directory = tempfile::tempdir().unwrap();
    let scratch = directory.path().join("scratch.disk");
    disk::scratch(&scratch);
    fs::write(directory.path().join("log"), "").unwrap();
    let mut surroundings = Surroundings {
        loops: Vec::new(),
        cgroup: format!("bulkhead-test-{}", unique(directory.path())),
        directory,
    };
    for (offset, size) in &image.partitions {
        let range = [format!("--offset={offset}"), format!("--sizelimit={size}")];
        let arguments = ["--read-only", &range[0], &range[1], path_str(&image.path)];
        surroundings.loops.push(attach(&arguments));
    }
    surroundings.loops.push(attach(&[path_str(&scratch)]));
    let names: Vec<&str> = surroundings
        .loops
        .iter()
        .map(|device| device.strip_prefix("/dev/").unwrap())
        .collect();
    let (scratch, layers) = names.split_last().unwrap();

    let directory = surroundings.directory.path();
    let doorbell = UnixListener::bind(directory.join(DOORBELL_PORT.to_string())).unwrap();
    let process = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
        ])
        .args(["sh", "-c", SURROUNDINGS])
        .env("DIR", directory)
        .env("CGROUP", &surroundings.cgroup)
        .env("LAYER_LOOPS", layers.join(" "))
        .env("SCRATCH_LOOP", scratch)
        .env("MORE", more)
        .env("AGENT", env!("CARGO_BIN_EXE_bulkhead-agent"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let hello = async {
        let (mut ring, _) = doorbell.accept().await.unwrap();
        let mut bytes = Vec::new();
        ring.read_to_end(&mut bytes).await.unwrap();
        let (hello, length) = wire::decode(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len(), "nothing follows the doorbell's message");
        hello
    };
    let hello = tokio::time::timeout(std::time::Duration::from_secs(20), hello)
        .await
        .expect("the agent rings the doorbell");
    Arc::new(Namespaces {
        hello,
        configured: AtomicBool::new(false),
        process: Mutex::new(process),
        surroundings,
    })
}

impl Guest for Namespaces {
    fn connect(&self, port: u32) -> Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send>> {
        Box::pin(UnixStream::connect(self.path(&port.to_string())))
    }

    fn hello(&self) -> HelloResponse {
        self.hello.clone()
    }

    fn ended(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        // A reboot(RB_POWER_OFF) in a process namespace ends its process 1 as by SIGINT (pid_namespaces(7)).
        Box::pin(async {
            let status = self.process.lock().await.wait().await.unwrap();
            status.signal() == Some(2) || status.code() == Some(128 + 2)
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn is_machine(&self) -> bool {
        false
    }

    fn is_to_be_configured(&self) -> bool {
        !self.configured.swap(true, Ordering::Relaxed)
    }
}

impl Namespaces {
    fn path(&self, name: &str) -> PathBuf {
        self.surroundings.directory.path().join(name)
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        // The namespaces end with their process 1, which may take a moment to be gone; the devices and the group are
        // let go of by then.
        for device in &self.loops {
            let _gone = std::process::Command::new("losetup")
                .args(["--detach", device])
                .output();
        }
        let mount = self.directory.path().join("cgroup2");
        let remove = format!(
            "mount -t cgroup2 cgroup2 {mount} && echo 1 >{mount}/{group}/cgroup.kill; \
             for try in 1 2 3 4 5 6 7 8 9; do \
               find {mount}/{group} -depth -type d -exec rmdir {{}} + 2>/dev/null && break; sleep 0.2; done",
            mount = mount.display(),
            group = self.cgroup
        );
        let _gone = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", &remove])
            .output();
    }
}

fn attach(arguments: &[&str]) -> String {
    run("losetup", &[&["--find", "--show"], arguments].concat())
        .trim()
        .to_owned()
}

fn unique(directory: &Path) -> String {
    let name = directory.file_name().unwrap().to_str().unwrap();
    format!("{}-{}", std::process::id(), name.trim_start_matches('.'))
}
