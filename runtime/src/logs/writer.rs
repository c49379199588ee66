//! Writes the log of one container: a task that owns the file.
//!
//! A disk that takes nothing holds the container up: what it prints is kept, tried again and not acknowledged. Only when
//! the container is being ended and the disk still takes nothing is output given up, counted and told.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    condition::LogCondition,
    format::{Splitter, Stream},
    position::{LogPaths, Offsets, PositionNote, open_log},
};

/// Chunks that wait to be written, beyond the one that is being written.
const QUEUE: usize = 2;

/// Between two tries on a disk that takes nothing.
const RETRY: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file, or its note, cannot be opened.
    #[error("cannot open the log {path}: {source}; see that its directory exists and is writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The writer is gone: the container has ended.
    #[error("the log is closed: the container has ended")]
    Closed,
}

/// What became of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOutcome {
    /// Bytes of output that could not be written.
    pub lost: u64,
}

/// The writer of one container's log.
#[derive(Debug)]
pub struct LogWriter {
    chunks: mpsc::Sender<Message>,
    reopen: mpsc::Sender<oneshot::Sender<Result<(), LogError>>>,
    written: watch::Receiver<Offsets>,
    give_up: CancellationToken,
    condition: LogCondition,
    task: JoinHandle<LogOutcome>,
}

/// Takes the output of one stream to the writer.
#[derive(Debug)]
pub struct LogInput {
    stream: Stream,
    chunks: mpsc::Sender<Message>,
    written: watch::Receiver<Offsets>,
}

#[derive(Debug)]
enum Message {
    Output(Stream, Bytes),
    End(Stream),
}

impl LogWriter {
    /// Opens the log and starts the task. A log that an earlier daemon wrote is gone on with; the offsets say from where.
    /// Blocking, in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`LogError::Open`].
    pub fn open(paths: LogPaths, container: &str) -> Result<(Self, Offsets), LogError> {
        let sink = Sink::open(&paths)?;
        let offsets = sink.offsets;
        let (chunks, queue) = mpsc::channel(QUEUE);
        let (reopen, requests) = mpsc::channel(4);
        let (progress, written) = watch::channel(offsets);
        let give_up = CancellationToken::new();
        let condition = LogCondition::default();
        let task = Task {
            container: container.to_owned(),
            paths,
            sink: Some(sink),
            splitters: (Splitter::new(Stream::Stdout), Splitter::new(Stream::Stderr)),
            progress,
            requests,
            give_up: give_up.clone(),
            condition: condition.clone(),
            lost: 0,
        };
        let task = tokio::spawn(task.run(queue));
        Ok((
            Self {
                chunks,
                reopen,
                written,
                give_up,
                condition,
                task,
            },
            offsets,
        ))
    }

    /// The way for one stream's output.
    pub fn input(&self, stream: Stream) -> LogInput {
        LogInput {
            stream,
            chunks: self.chunks.clone(),
            written: self.written.clone(),
        }
    }

    /// What asks for the file to be opened anew.
    pub fn reopener(&self) -> LogReopener {
        LogReopener {
            requests: self.reopen.clone(),
        }
    }

    /// What makes the writer give up on a disk that takes nothing.
    pub fn give_up(&self) -> CancellationToken {
        self.give_up.clone()
    }

    /// What tells how the writing goes.
    pub fn condition(&self) -> LogCondition {
        self.condition.clone()
    }

    /// Whether everything that was handed over has been taken: then nobody waits for the disk.
    pub fn is_idle(&self) -> bool {
        self.chunks.capacity() == self.chunks.max_capacity() && self.condition.is_idle()
    }

    /// Waits until every input has been dropped and everything is in the file.
    pub async fn finish(self) -> LogOutcome {
        drop(self.chunks);
        self.task.await.unwrap_or_default()
    }
}

impl LogInput {
    /// Hands output over; waits while the writer is behind.
    ///
    /// # Errors
    ///
    /// [`LogError::Closed`].
    pub async fn write(&self, output: Bytes) -> Result<(), LogError> {
        self.chunks
            .send(Message::Output(self.stream, output))
            .await
            .map_err(|_| LogError::Closed)
    }

    /// Says that the stream has ended.
    ///
    /// # Errors
    ///
    /// [`LogError::Closed`].
    pub async fn end(&self) -> Result<(), LogError> {
        self.chunks
            .send(Message::End(self.stream))
            .await
            .map_err(|_| LogError::Closed)
    }

    /// Bytes of the stream that are in the log by now.
    pub fn written(&mut self) -> u64 {
        let offsets = *self.written.borrow_and_update();
        self.stream_offset(offsets)
    }

    /// Waits until more is in the log than when [`LogInput::written`] was last asked.
    ///
    /// # Errors
    ///
    /// [`LogError::Closed`].
    pub async fn progress(&mut self) -> Result<u64, LogError> {
        self.written.changed().await.map_err(|_| LogError::Closed)?;
        Ok(self.written())
    }

    fn stream_offset(&self, offsets: Offsets) -> u64 {
        match self.stream {
            Stream::Stdout => offsets.stdout,
            Stream::Stderr => offsets.stderr,
        }
    }
}

/// Asks a writer to open its file anew.
#[derive(Clone, Debug)]
pub struct LogReopener {
    requests: mpsc::Sender<oneshot::Sender<Result<(), LogError>>>,
}

impl LogReopener {
    /// When this returns, the file under the log's name is the one that is written.
    ///
    /// # Errors
    ///
    /// [`LogError`]; then the old file is still written.
    pub async fn reopen(&self) -> Result<(), LogError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(answer).await.map_err(|_| LogError::Closed)?;
        answered.await.map_err(|_| LogError::Closed)?
    }
}

/// The open file.
#[derive(Debug)]
struct Sink {
    /// None for a container without a log: its output is let go.
    log: Option<File>,
    note: PositionNote,
    offsets: Offsets,
}

impl Sink {
    fn open(paths: &LogPaths) -> Result<Self, LogError> {
        let note = PositionNote::open(&paths.note).map_err(|source| LogError::Open {
            path: paths.note.clone(),
            source,
        })?;
        let Some(path) = &paths.log else {
            let offsets = note.recover(None).map_err(|source| LogError::Open {
                path: paths.note.clone(),
                source,
            })?;
            return Ok(Self {
                log: None,
                note,
                offsets,
            });
        };
        let failed = |source| LogError::Open {
            path: path.clone(),
            source,
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let log = open_log(path).map_err(failed)?;
        let offsets = note.recover(Some(&log)).map_err(failed)?;
        Ok(Self {
            log: Some(log),
            note,
            offsets,
        })
    }

    /// Writes what is left of `records`. Says how much of it the file took, also when it failed.
    fn write(&mut self, records: &[u8], offsets: Offsets) -> (usize, io::Result<()>) {
        let mut done = 0;
        if let Some(log) = &mut self.log {
            while let Some(rest) = records.get(done..).filter(|rest| !rest.is_empty()) {
                match log.write(rest) {
                    Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                    Ok(length) => done += length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return (done, Err(error)),
                }
            }
        }
        if let Err(error) = self.note.write(self.log.as_ref(), offsets) {
            tracing::warn!(%error, "cannot note how far a log has been written");
        }
        self.offsets = offsets;
        (records.len(), Ok(()))
    }
}

struct Task {
    container: String,
    paths: LogPaths,
    /// Away only while a write is on its way.
    sink: Option<Sink>,
    splitters: (Splitter, Splitter),
    progress: watch::Sender<Offsets>,
    requests: mpsc::Receiver<oneshot::Sender<Result<(), LogError>>>,
    give_up: CancellationToken,
    condition: LogCondition,
    lost: u64,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) -> LogOutcome {
        loop {
            tokio::select! {
                biased;
                Some(answer) = self.requests.recv() => self.reopen(answer).await,
                message = queue.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => break,
                },
            }
        }
        LogOutcome { lost: self.lost }
    }

    async fn take(&mut self, message: Message) {
        let (stream, bytes) = match message {
            Message::Output(stream, bytes) => (stream, Some(bytes)),
            Message::End(stream) => (stream, None),
        };
        let splitter = match stream {
            Stream::Stdout => &mut self.splitters.0,
            Stream::Stderr => &mut self.splitters.1,
        };
        let mut records = Vec::new();
        let now = SystemTime::now();
        let taken = match bytes {
            Some(bytes) => splitter.push(&bytes, now, &mut records),
            None => splitter.finish(now, &mut records),
        };
        if records.is_empty() {
            return;
        }
        let mut offsets = *self.progress.borrow();
        match stream {
            Stream::Stdout => offsets.stdout += taken,
            Stream::Stderr => offsets.stderr += taken,
        }
        self.write(records, offsets, taken).await;
        self.progress.send_replace(offsets);
    }

    /// Writes records, however long the disk takes to take them, unless they are given up.
    async fn write(&mut self, records: Vec<u8>, offsets: Offsets, taken: u64) {
        let records = Arc::new(records);
        let mut done = 0;
        let mut pauses = RETRY.iter();
        let mut pause = Duration::ZERO;
        self.condition.begin(SystemTime::now());
        while let Some(mut sink) = self.sink.take() {
            let batch = Arc::clone(&records);
            let attempt = tokio::task::spawn_blocking(move || {
                let (length, result) = sink.write(batch.get(done..).unwrap_or_default(), offsets);
                (sink, length, result)
            });
            let Ok((sink, length, result)) = attempt.await else {
                break;
            };
            self.sink = Some(sink);
            done += length;
            let Err(error) = result else {
                if self.condition.end() {
                    tracing::info!(container = self.container, "the log can be written again");
                }
                return;
            };
            if self.give_up.is_cancelled() {
                self.condition.end();
                self.lost += taken;
                tracing::error!(container = self.container, %error, bytes = taken,
                    "output is lost: the container is ending and its log cannot be written");
                return;
            }
            if self.condition.fail(&error, SystemTime::now()) {
                tracing::error!(container = self.container, %error, log = ?self.paths.log,
                    "the log cannot be written; the container waits until it can");
            }
            pause = pauses.next().copied().unwrap_or(pause);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.give_up.cancelled() => {}
                Some(answer) = self.requests.recv() => self.reopen(answer).await,
            }
        }
    }

    async fn reopen(&mut self, answer: oneshot::Sender<Result<(), LogError>>) {
        let Some(path) = self.paths.log.clone() else {
            let _ = answer.send(Ok(()));
            return;
        };
        let target = path.clone();
        let opened = tokio::task::spawn_blocking(move || open_log(&target)).await;
        let result = match opened.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(log) => {
                if let Some(sink) = &mut self.sink {
                    if let Err(error) = sink.note.write(Some(&log), sink.offsets) {
                        tracing::warn!(%error, "cannot note how far a log has been written");
                    }
                    sink.log = Some(log);
                }
                Ok(())
            }
            Err(source) => Err(LogError::Open { path, source }),
        };
        let _ = answer.send(result);
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
