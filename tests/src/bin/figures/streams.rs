//! `streams`: a command in a container from its asking to its end, and 64 MB of output through `crictl exec` and into a
//! container's log, against Debian's containerd and runc.
//!
//! The command is asked for by gRPC (ExecSync). `crictl exec` is the same program for both, over SPDY, and its own start counts
//! for both. The time of the log is from telling a running container to print until it is seen to have ended, when its log
//! is whole: lines of 100 bytes, for a byte a line would measure the shell. Samples alternate.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri::{ContainerState, ContainerStatusRequest, ExecSyncRequest};
use bulkhead_tests::{Cri, Daemon, Environment};

use crate::{
    containerd::{Containerd, PEER},
    figure::{Figure, in_seconds},
    life::{LOG, Running, Wanted, begin},
};

const EXECS: usize = 30;

const TRANSFERS: usize = 2;

/// What goes through, in bytes.
const BYTES: u64 = 64_000_000;

/// A line of the log, without its end.
const LINE: &str =
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of fo";

/// How often a container's state is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// One of the two that are compared.
#[derive(Debug)]
struct Runtime<'r> {
    cri: &'r Cri,
    endpoint: &'r str,
    image: &'r str,
}

pub fn measure() -> Result<()> {
    let daemon = Daemon::alone();
    let containerd = Containerd::start()?;
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    containerd.cri().try_pull(&image)?;
    let (ours, theirs) = (
        Runtime {
            cri: daemon.cri(),
            endpoint: daemon.endpoint(),
            image: &image,
        },
        Runtime {
            cri: containerd.cri(),
            endpoint: containerd.endpoint(),
            image: &image,
        },
    );
    measure_both(&ours, &theirs).with_context(|| format!("containerd says: {}", containerd.log()))
}

fn measure_both(ours: &Runtime<'_>, theirs: &Runtime<'_>) -> Result<()> {
    let (our_pod, their_pod) = (ours.idle()?, theirs.idle()?);
    let figure = |name: &str, samples: usize, of: fn(&Runtime<'_>, &Running) -> Result<Duration>| {
        // The first of each reads programs from the disk that later ones find in memory.
        of(ours, &our_pod)?;
        of(theirs, &their_pod)?;
        let (mut times, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            times.push(of(ours, &our_pod)?);
            peers.push(of(theirs, &their_pod)?);
        }
        Figure::seconds(name, &times)
            .beside(PEER, &in_seconds(&peers))
            .print();
        Ok::<_, anyhow::Error>(())
    };
    figure("streams: ExecSync of true", EXECS, |runtime, pod| {
        runtime.exec(pod)
    })?;
    figure("streams: crictl exec, nothing printed", EXECS, |runtime, pod| {
        runtime.stream(pod, 0)
    })?;
    figure("streams: 64 MB through crictl exec", TRANSFERS, |runtime, pod| {
        runtime.stream(pod, BYTES)
    })?;
    figure("streams: 64 MB into the log", TRANSFERS, |runtime, _| {
        runtime.log()
    })?;
    our_pod.end(ours.cri)?;
    their_pod.end(theirs.cri)?;
    Ok(())
}

impl Runtime<'_> {
    fn idle(&self) -> Result<Running> {
        begin(self.cri, &Wanted::idle(self.image)).map(|(pod, _)| pod)
    }

    /// ExecSync of a command that does nothing.
    fn exec(&self, pod: &Running) -> Result<Duration> {
        let request = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: vec!["true".to_owned()],
            timeout: 0,
        };
        let started = Instant::now();
        let answer = self.cri.runtime(async |c| c.exec_sync(request).await)?;
        let elapsed = started.elapsed();
        ensure!(answer.exit_code == 0, "true ended with {}", answer.exit_code);
        Ok(elapsed)
    }

    /// `crictl exec` of a command that prints so many zeros.
    fn stream(&self, pod: &Running, bytes: u64) -> Result<Duration> {
        let started = Instant::now();
        let mut child = Command::new("crictl")
            .args(["--runtime-endpoint", self.endpoint, "--timeout", "600s"])
            .args([
                "exec",
                &pod.container,
                "head",
                "-c",
                &bytes.to_string(),
                "/dev/zero",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("crictl does not start")?;
        let mut output = child.stdout.take().context("a pipe was asked for")?;
        let received = std::io::copy(&mut output, &mut std::io::sink())?;
        let status = child.wait()?;
        let elapsed = started.elapsed();
        ensure!(status.success(), "crictl exec ended with {status}");
        ensure!(received == bytes, "of {bytes} bytes {received} came");
        Ok(elapsed)
    }

    /// A container that prints lines: from its start to its end.
    fn log(&self) -> Result<Duration> {
        let directory = tempfile::tempdir_in("/var/tmp").context("a directory for a log")?;
        let logs = directory.path().to_str().context("a path in UTF-8")?;
        // It waits to be told, so that the start of a machine or a process is not measured.
        let script = format!("until [ -e /go ]; do sleep 0.02; done; yes '{LINE}' | head -c {BYTES}");
        let wanted = Wanted {
            image: self.image,
            command: &["sh", "-c", &script],
            logs,
        };
        let (pod, _) = begin(self.cri, &wanted)?;
        let request = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: vec!["touch".to_owned(), "/go".to_owned()],
            timeout: 0,
        };
        let started = Instant::now();
        self.cri.runtime(async |c| c.exec_sync(request).await)?;
        self.wait_for_end(&pod)?;
        let elapsed = started.elapsed();
        let printed = printed_bytes(&directory.path().join(LOG))?;
        ensure!(printed == BYTES, "of {BYTES} bytes {printed} are in the log");
        pod.end(self.cri)?;
        Ok(elapsed)
    }

    fn wait_for_end(&self, pod: &Running) -> Result<()> {
        loop {
            let request = ContainerStatusRequest {
                container_id: pod.container.clone(),
                verbose: false,
            };
            let answer = self.cri.runtime(async |c| c.container_status(request).await)?;
            let status = answer.status.context("a status was asked for")?;
            if status.state() == ContainerState::ContainerExited {
                ensure!(status.exit_code == 0, "it ended with {}", status.exit_code);
                return Ok(());
            }
            thread::sleep(GLANCE);
        }
    }
}

/// Bytes that a container printed, as its log tells: what stands behind time, stream and tag, and the ends of full lines.
fn printed_bytes(log: &Path) -> Result<u64> {
    let text = fs::read(log).with_context(|| format!("{} cannot be read", log.display()))?;
    let mut printed = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let mut parts = line.splitn(4, |byte| *byte == b' ').skip(2);
        let is_full = parts.next() == Some(b"F");
        let content = parts.next().context("a line of the log has four parts")?;
        printed += content.len() as u64 - u64::from(!is_full);
    }
    Ok(printed)
}
