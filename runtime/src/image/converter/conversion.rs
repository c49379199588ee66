//! One layer on its way from a registry through its converter, hashed as it goes by.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::digest::Hasher;
use super::super::layer::{Converted, ExpectedLayer, LayerError, LayerLimits};
use super::process::{Converter, PATIENCE, Process};
use super::wire::{Outcome, Request};

/// Bytes between the daemon and a converter. What a pipe holds by default makes them take turns too often.
const PIPE_BYTES: usize = 1 << 20;

/// A conversion under way. Dropped, it is given up and its process killed.
#[derive(Debug)]
pub(in super::super) struct Conversion {
    blob: File,
    expected: ExpectedLayer,
    hasher: Hasher,
    received: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Running {
        input: pipe::Sender,
        process: Process,
    },
    /// The process ended before its input did, for a reason that the rest of the download may explain.
    Ended(Result<Converted, LayerError>),
    /// Whatever there is to be said has been said.
    Over,
}

impl Conversion {
    /// Starts the converter of one layer. `blob` must be empty and open for reading and writing. `working` is given back
    /// when the process has ended.
    pub(in super::super) async fn start(
        converter: &Converter,
        expected: ExpectedLayer,
        limits: LayerLimits,
        blob: File,
        working: TaskTrackerToken,
    ) -> Result<Self, LayerError> {
        let (theirs, ours) = io::pipe().map_err(LayerError::write)?;
        // Where users may have no more of them, what there is will do.
        let _ = fcntl_setpipe_size(&ours, PIPE_BYTES);
        let input = pipe::Sender::from_owned_fd(OwnedFd::from(ours)).map_err(LayerError::write)?;
        let request = Request::Layer {
            blob: expected.blob,
            diff_id: expected.diff_id,
            limits,
        };
        let file = blob.try_clone().map_err(LayerError::write)?;
        let process = converter.start(&request, theirs.into(), file, working).await?;
        Ok(Self {
            blob,
            expected,
            hasher: Hasher::default(),
            received: 0,
            state: State::Running { input, process },
        })
    }

    /// Takes the next bytes of the download, when the converter takes them.
    ///
    /// # Errors
    ///
    /// What is wrong whatever may follow: no more needs to be downloaded.
    pub(in super::super) async fn feed(&mut self, bytes: Bytes) -> Result<(), LayerError> {
        self.received += bytes.len() as u64;
        if self.received > self.expected.blob_bytes {
            self.state = State::Over;
            return Err(LayerError::TooLong {
                expected: self.expected.blob_bytes,
            });
        }
        self.hasher.update(&bytes);
        let State::Running { input, .. } = &mut self.state else {
            return Ok(());
        };
        match tokio::time::timeout(PATIENCE, input.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            // It has ended, and says why.
            Ok(Err(_)) => self.end().await,
            Err(_) => {
                self.state = State::Over;
                Err(LayerError::stuck(PATIENCE))
            }
        }
    }

    /// Takes the end of the download, and waits for the end of the conversion.
    pub(in super::super) async fn finish(mut self) -> Result<Converted, LayerError> {
        self.end().await?;
        if self.received < self.expected.blob_bytes {
            return Err(LayerError::Truncated {
                expected: self.expected.blob_bytes,
                received: self.received,
            });
        }
        let actual = self.hasher.finish();
        if actual != self.expected.blob {
            return Err(LayerError::WrongDigest { actual });
        }
        match self.state {
            State::Ended(ended) => ended,
            State::Running { .. } | State::Over => Err(LayerError::Cancelled),
        }
    }

    /// Waits for the process's end. What is wrong with the download explains whatever is wrong with the content, and not
    /// the other way round, so that is kept until the download has ended; but a limit or a full disk is what it is.
    async fn end(&mut self) -> Result<(), LayerError> {
        let process = match std::mem::replace(&mut self.state, State::Over) {
            State::Running { process, .. } => process,
            ended => {
                self.state = ended;
                return Ok(());
            }
        };
        let ended = match process.outcome().await {
            Ok(outcome) => self.converted(outcome),
            Err(error) => Err(error),
        };
        match ended {
            Err(error) if !error.blames_content() => Err(error),
            ended => {
                self.state = State::Ended(ended);
                Ok(())
            }
        }
    }

    fn converted(&self, outcome: Outcome) -> Result<Converted, LayerError> {
        let (blob_bytes, hides_lower, implies_directories, entries) = match outcome {
            Outcome::Layer {
                blob_bytes,
                hides_lower,
                implies_directories,
                entries,
            } => (blob_bytes, hides_lower, implies_directories, entries),
            Outcome::Failed(error) => return Err(error),
            Outcome::Directories { .. } => {
                return Err(LayerError::converter("has done something else".to_owned()));
            }
        };
        let file = self.blob.try_clone().map_err(LayerError::write)?;
        let length = file.metadata().map_err(LayerError::write)?.len();
        if length != blob_bytes {
            let reason = format!("has written {length} bytes but says {blob_bytes}");
            return Err(LayerError::converter(reason));
        }
        Ok(Converted {
            file,
            blob_bytes,
            hides_lower,
            implies_directories,
            entries,
        })
    }
}
