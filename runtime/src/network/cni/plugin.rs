//! Runs one plugin once (CNI specification 1.1, section 2).
//!
//! A plugin is trusted to change the host's network and not trusted to behave: what it prints is bounded, how long it may take
//! too, and all that it started in its process group goes with it when it is killed. It gets nothing of the daemon's but
//! `PATH`, with which plugins find iptables and the like.
#![allow(
    unsafe_code,
    reason = "CommandExt::pre_exec is unsafe: what runs there must be async-signal-safe"
)]

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command as Process},
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::error::{PluginFault, PluginMessage};
use crate::network::locked;

/// Most bytes that a plugin may print as its result.
const MOST_OUTPUT: usize = 1 << 20;

/// Bytes kept of what a plugin prints to its standard error: the last ones.
const KEPT_LOG: usize = 4096;

/// Most characters of a plugin's output in a message.
const EXCERPT: usize = 400;

/// How long is waited for output that a plugin's children still hold open after it has ended.
const LEFT_OPEN: Duration = Duration::from_secs(1);

/// How long a plugin may be open for writing.
const INSTALLING: Duration = Duration::from_secs(2);

/// Where programs are found when the daemon itself was not told.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a pod to the network.
    Add,
    /// Detach it.
    Del,
    /// See whether it is attached as it was.
    Check,
    /// Forget what belongs to no pod.
    Gc,
    /// Say whether pods can be attached.
    Status,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        })
    }
}

/// Finds and runs plugins.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    /// Directories with the executables; the first that has one wins.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// How long each run may take.
    pub(crate) timeout: Duration,
}

impl Runner {
    /// Where the executable is.
    ///
    /// # Errors
    ///
    /// That it is nowhere.
    pub(crate) fn find(&self, plugin: &str) -> Result<PathBuf, PluginFault> {
        self.bin_dirs
            .iter()
            .map(|directory| directory.join(plugin))
            .find(|path| is_executable(path))
            .ok_or_else(|| {
                let directories: Vec<_> = self
                    .bin_dirs
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                PluginFault::Missing(directories.join(", "))
            })
    }

    /// Runs `plugin` with `variables` beside `CNI_COMMAND` and `CNI_PATH`, and `config` on its standard input. Gives what it
    /// printed.
    ///
    /// # Errors
    ///
    /// [`PluginFault`], when it did not end well.
    pub(crate) async fn run(
        &self,
        plugin: &str,
        command: Command,
        variables: &[(&'static str, OsString)],
        config: &Value,
    ) -> Result<Vec<u8>, PluginFault> {
        let program = self.find(plugin)?;
        let mut process = Process::new(program);
        process
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
            )
            .env("CNI_COMMAND", command.to_string())
            .env("CNI_PATH", self.path())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let daemon = getpid();
        // SAFETY: between fork and exec the closure makes system calls only.
        unsafe {
            process.pre_exec(move || {
                close_descriptors_on_exec();
                end_with(daemon)
            })
        };
        let child = spawn(&mut process).await.map_err(PluginFault::Start)?;
        Running::new(child, config.to_string().into_bytes())
            .finish(self.timeout)
            .await
    }

    fn path(&self) -> OsString {
        let mut path = OsString::new();
        for (index, directory) in self.bin_dirs.iter().enumerate() {
            if index > 0 {
                path.push(":");
            }
            path.push(directory);
        }
        path
    }
}

/// Starts a plugin, when need be as soon as whoever is just installing it has closed it.
async fn spawn(process: &mut Process) -> io::Result<Child> {
    let deadline = Instant::now() + INSTALLING;
    loop {
        match process.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                sleep(INSTALLING / 50).await;
            }
            other => return other,
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whatever the daemon itself was started with must not get to a plugin.
fn close_descriptors_on_exec() {
    // SAFETY: close_range(2) with this flag closes nothing now, and takes numbers only. Where the kernel does not know it
    // (before 5.11), every descriptor that this program opened is closed all the same.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// A plugin does not outlive the daemon that started it: the next one runs DEL, and an ADD that went on meanwhile would have its
/// effect after that. The kernel means the thread that started it, which is one of the runtime's and lasts as long.
fn end_with(daemon: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(daemon) {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// A plugin's process. When it is dropped before its end, it and its group are killed.
struct Running {
    child: Child,
    output: Arc<Capture>,
    log: Arc<Capture>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn new(mut child: Child, config: Vec<u8>) -> Self {
        let output = Arc::new(Capture::new(MOST_OUTPUT, Excess::Refused));
        let log = Arc::new(Capture::new(KEPT_LOG, Excess::OldestDropped));
        let mut tasks = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            tasks.push(tokio::spawn(Arc::clone(&output).read(stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            tasks.push(tokio::spawn(Arc::clone(&log).read(stderr)));
        }
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its configuration has its reasons, and says them itself.
            let feed = tokio::spawn(async move {
                let _ = stdin.write_all(&config).await;
            });
            tasks.push(feed);
        }
        Self {
            child,
            output,
            log,
            tasks,
        }
    }

    async fn finish(mut self, limit: Duration) -> Result<Vec<u8>, PluginFault> {
        let ended = timeout(limit, async {
            tokio::select! {
                status = self.child.wait() => status.map(Some),
                () = self.output.overflow.notified() => Ok(None),
            }
        })
        .await;
        let status = match ended {
            Ok(Ok(Some(status))) => status,
            Ok(Ok(None)) => {
                self.kill().await;
                return Err(PluginFault::TooMuch(MOST_OUTPUT));
            }
            Ok(Err(error)) => return Err(PluginFault::Io(error)),
            Err(_) => {
                self.kill().await;
                return Err(PluginFault::TimedOut {
                    seconds: limit.as_secs(),
                    output: excerpt(&self.log.bytes()),
                });
            }
        };
        let _ = timeout(LEFT_OPEN, async {
            for task in &mut self.tasks {
                let _ = task.await;
            }
        })
        .await;
        if self.output.is_full() {
            return Err(PluginFault::TooMuch(MOST_OUTPUT));
        }
        let output = self.output.bytes();
        if status.success() {
            return Ok(output);
        }
        Err(fault(status, &output, &self.log.bytes()))
    }

    async fn kill(&mut self) {
        self.kill_group();
        let _ = self.child.wait().await;
    }

    fn kill_group(&self) {
        // The process has a number only until it has been waited for, so it is no one else's.
        let number = self.child.id().and_then(|number| i32::try_from(number).ok());
        if let Some(group) = number.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What becomes of output beyond the limit.
enum Excess {
    Refused,
    OldestDropped,
}

/// Collects output up to a limit.
struct Capture {
    bytes: std::sync::Mutex<Vec<u8>>,
    limit: usize,
    excess: Excess,
    overflow: Notify,
}

impl Capture {
    fn new(limit: usize, excess: Excess) -> Self {
        Self {
            bytes: std::sync::Mutex::default(),
            limit,
            excess,
            overflow: Notify::new(),
        }
    }

    async fn read(self: Arc<Self>, mut from: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            let mut bytes = locked(&self.bytes);
            bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
            let over = bytes.len().saturating_sub(self.limit);
            if over == 0 {
                continue;
            }
            match self.excess {
                Excess::OldestDropped => drop(bytes.drain(..over)),
                Excess::Refused => {
                    self.overflow.notify_one();
                    return;
                }
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        locked(&self.bytes).clone()
    }

    fn is_full(&self) -> bool {
        locked(&self.bytes).len() > self.limit
    }
}

/// What a plugin that ended with an error says of it.
fn fault(status: ExitStatus, output: &[u8], log: &[u8]) -> PluginFault {
    if let Some(message) = message(output) {
        return PluginFault::Refused(message);
    }
    let printed = if output.trim_ascii().is_empty() {
        log
    } else {
        output
    };
    PluginFault::Failed {
        status: status.to_string(),
        output: excerpt(printed),
    }
}

/// A plugin's own error, if that is what it printed.
pub(crate) fn message(output: &[u8]) -> Option<PluginMessage> {
    let value: Value = serde_json::from_slice(output).ok()?;
    let text = |key: &str| {
        let text = value.get(key).and_then(Value::as_str).unwrap_or_default();
        excerpt(text.as_bytes())
    };
    let code = value.get("code")?.as_u64()?;
    Some(PluginMessage {
        code,
        message: text("msg"),
        details: text("details"),
    })
}

/// Enough of an output to go into a message, on one line.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|letter| !letter.is_control())
        .collect();
    match line.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests;
