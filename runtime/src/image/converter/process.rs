//! The daemon's side: a process is started, waited for, and killed when nobody wants its outcome any more.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::layer::{LayerError, LayerLimits};
use super::descriptors;
use super::wire::{MAX_OUTCOME_BYTES, Outcome, Request, printable};

/// How long a converter may take nothing in and bring nothing out. Whatever it has been given at once is converted in
/// seconds by an idle host; the rest is for a busy one.
pub(super) const PATIENCE: Duration = Duration::from_mins(5);

/// What a converter that crashed has to say is cut to so many characters.
const LAST_WORDS: usize = 500;

/// Starts converters.
#[derive(Debug, Clone)]
pub struct Converter {
    program: PathBuf,
}

impl Default for Converter {
    /// Starts this very program again, also where its file has been replaced meanwhile.
    fn default() -> Self {
        Self::at("/proc/self/exe")
    }
}

impl Converter {
    /// The first argument of a process that is to call [`main`](super::main) with the second.
    pub const COMMAND: &'static str = "convert-layer";

    /// Starts `program`, which must be a `bulkheadd`.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// Starts a process. `working` is given back when it has ended.
    pub(super) async fn start(
        &self,
        request: &Request,
        input: OwnedFd,
        blob: File,
        working: TaskTrackerToken,
    ) -> Result<Process, LayerError> {
        let fail = |error: io::Error| LayerError::converter(format!("cannot be started: {error}"));
        let request = serde_json::to_string(request).map_err(|error| fail(error.into()))?;
        let (outcome, writer) = io::pipe().map_err(fail)?;
        let mut command = Command::new(&self.program);
        command
            .arg0("bulkheadd")
            .args([OsStr::new(Self::COMMAND), request.as_ref()])
            .env_clear()
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::from(blob))
            .stderr(writer);
        let (started, starting) = oneshot::channel();
        let (ended, ending) = oneshot::channel();
        // A thread that does nothing else: the kernel ends the process with the thread that started it.
        thread::Builder::new()
            .name("layer-convert".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let spawned = command.spawn().and_then(Killed::new);
                // With the pipe's other ends, so that those that are left tell when the process has ended.
                drop(command);
                match spawned {
                    Ok((child, killer)) => {
                        let _ = started.send(Ok(killer));
                        let _ = ended.send(await_outcome(child, outcome));
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
                drop(working);
            })
            .map_err(fail)?;
        let gone = || fail(io::Error::other("its thread has ended"));
        let killer = starting.await.map_err(|_| gone())?.map_err(fail)?;
        Ok(Process { ending, killer })
    }
}

/// A running process; dropped, it is killed.
#[derive(Debug)]
pub(super) struct Process {
    ending: oneshot::Receiver<Result<Outcome, LayerError>>,
    killer: Killed,
}

impl Process {
    /// Waits for its end, for as long as there is patience.
    pub(super) async fn outcome(self) -> Result<Outcome, LayerError> {
        let Self { ending, killer } = self;
        let ended = tokio::time::timeout(PATIENCE, ending).await;
        drop(killer);
        match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(LayerError::Cancelled),
            Err(_) => Err(LayerError::stuck(PATIENCE)),
        }
    }
}

/// Kills a process when dropped. Does nothing to one that has ended, whoever has its number then.
#[derive(Debug)]
struct Killed(OwnedFd);

impl Killed {
    fn new(mut child: Child) -> io::Result<(Child, Self)> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(descriptor) => Ok((child, Self(descriptor))),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// Reads what the process says, until it has ended.
fn await_outcome(mut child: Child, outcome: PipeReader) -> Result<Outcome, LayerError> {
    let mut text = Vec::new();
    let read = outcome.take(MAX_OUTCOME_BYTES).read_to_end(&mut text);
    if read.is_err() || text.len() as u64 >= MAX_OUTCOME_BYTES {
        // It would wait for ever to say more.
        let _ = child.kill();
    }
    let status = child
        .wait()
        .map_err(|error| LayerError::converter(format!("cannot be waited for: {error}")))?;
    if status.success() {
        Outcome::parse(&text)
            .map_err(|error| LayerError::converter(format!("has said what makes no sense: {error}")))
    } else {
        Err(crash(status, &text))
    }
}

fn crash(status: ExitStatus, text: &[u8]) -> LayerError {
    let how = match status.signal() {
        Some(libc::SIGKILL) => "was killed, perhaps for want of memory".to_owned(),
        Some(libc::SIGSYS) => {
            "was stopped by the kernel when it tried what no conversion does (SIGSYS)".to_owned()
        }
        Some(libc::SIGABRT) => "gave up, perhaps over its memory limit (SIGABRT)".to_owned(),
        Some(libc::SIGSEGV | libc::SIGBUS) => "crashed on a wrong address".to_owned(),
        _ => format!("ended early ({status})"),
    };
    let words: String = printable(String::from_utf8_lossy(text).trim())
        .chars()
        .take(LAST_WORDS)
        .collect();
    if words.is_empty() {
        LayerError::converter(how)
    } else {
        LayerError::converter(format!("{how}; its last words: {words}"))
    }
}

/// Writes to `blob` the layer that puts right what `layers`, from the lowest up, show of their directories, and gives its
/// length. Nothing if all is right.
pub(in super::super) async fn settle_directories(
    converter: &Converter,
    layers: Vec<(File, bool)>,
    blob: File,
    limits: LayerLimits,
    working: TaskTrackerToken,
) -> Result<Option<u64>, LayerError> {
    let (files, implied): (Vec<OwnedFd>, Vec<bool>) = layers
        .into_iter()
        .map(|(file, implied)| (file.into(), implied))
        .unzip();
    let (ours, theirs) = UnixStream::pair().map_err(LayerError::write)?;
    let request = Request::Directories { implied, limits };
    let process = converter.start(&request, theirs.into(), blob, working).await?;
    // At most a few short messages, which the socket holds.
    descriptors::send(ours, &files).map_err(LayerError::write)?;
    match process.outcome().await? {
        Outcome::Directories { blob_bytes } => Ok(blob_bytes),
        Outcome::Failed(error) => Err(error),
        Outcome::Layer { .. } => Err(LayerError::converter("has done something else".to_owned())),
    }
}
