//! Exec, attach and port-forward with the real `crictl`, over both of its transports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what tests share ends the test at the first thing that is not as it should be, as tests themselves do"
)]

mod attach;
mod bulk;
mod commands;
mod ports;

use std::{
    fs::File,
    io::Read,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use bulkhead_tests::{Daemon, until};
use tempfile::TempDir;

/// What `crictl -r` takes.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// A `crictl` that runs beside the test, its output in files. It is killed when it is dropped.
struct Running {
    child: Child,
    files: TempDir,
    shown: String,
}

impl Running {
    /// Starts it. What it is to read comes from `stdin`.
    #[track_caller]
    fn start(daemon: &Daemon, arguments: &[&str], stdin: Stdio) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str| Stdio::from(File::create(files.path().join(name)).unwrap());
        let mut command = Command::new("crictl");
        command
            .args(["--runtime-endpoint", daemon.endpoint(), "--timeout", "600s"])
            .args(arguments)
            .stdin(stdin)
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        let shown = format!("{command:?}");
        let child = command.spawn().unwrap();
        Self { child, files, shown }
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path(name)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn stdout(&self) -> String {
        self.text("stdout")
    }

    fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Waits until its standard output contains `text`.
    #[track_caller]
    fn hear(&self, text: &str) {
        until(&format!("{text:?} from {}", self.shown), || {
            let said = self.stdout();
            if said.contains(text) {
                Ok(())
            } else {
                Err(format!("{said} {}", self.stderr()))
            }
        });
    }

    /// Waits for its end.
    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        until(&format!("the end of {}", self.shown), || {
            self.child
                .try_wait()
                .unwrap()
                .ok_or_else(|| format!("{} {}", self.stdout(), self.stderr()))
        })
    }

    fn kill(&mut self) {
        let _has_ended = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Anonymous memory of a process, in KiB.
fn resident_kib(pid: i32) -> i64 {
    let mut status = String::new();
    File::open(format!("/proc/{pid}/status"))
        .unwrap()
        .read_to_string(&mut status)
        .unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}
