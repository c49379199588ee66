//! What a child tells the agent on its way: a pipe of small frames that closes with the child's execve(2).

use std::{
    error::Error,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

use crate::{error_text::with_causes, io::pipe};

/// Longest text of a failure, in bytes. A frame fits the pipe's atomic size.
const TEXT_BYTES: usize = 2048;

/// A step of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The container's root is ready; the child waits at the gate.
    Prepared,
    /// The next step is execve(2). If nothing follows, it succeeded.
    Executing,
    /// The child ends here.
    Failed(ChildFailure),
}

/// Why a child ended before it was the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ChildFailure {
    /// Whose fault it is.
    pub blame: Blame,
    /// What failed, with its causes.
    pub message: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request or the image: it can never work.
    Request,
    /// The guest.
    Guest,
}

impl ChildFailure {
    /// A failure of the request.
    pub fn of_request(error: &dyn Error) -> Self {
        Self {
            blame: Blame::Request,
            message: with_causes(error),
        }
    }

    /// A failure of the guest.
    pub fn of_guest(error: &dyn Error) -> Self {
        Self {
            blame: Blame::Guest,
            message: with_causes(error),
        }
    }
}

const PREPARED: u8 = 1;
const EXECUTING: u8 = 2;
const FAILED_REQUEST: u8 = 3;
const FAILED_GUEST: u8 = 4;

/// Length of a frame's head: its kind, and the length of its text (little endian).
const HEAD_BYTES: usize = 3;

impl Report {
    fn encode(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Prepared => (PREPARED, ""),
            Self::Executing => (EXECUTING, ""),
            Self::Failed(failure) => {
                let end = failure.message.floor_char_boundary(TEXT_BYTES);
                let kind = match failure.blame {
                    Blame::Request => FAILED_REQUEST,
                    Blame::Guest => FAILED_GUEST,
                };
                (kind, failure.message.get(..end).unwrap_or_default())
            }
        };
        let mut frame = vec![kind];
        frame.extend(u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        frame.extend(text.as_bytes());
        frame
    }

    /// Takes a report from the front of `bytes`; `None` where more are needed.
    fn decode(bytes: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let [kind, low, high, rest @ ..] = bytes.as_slice() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let Some(text) = rest.get(..length) else {
            return Ok(None);
        };
        let failed = |blame| {
            Self::Failed(ChildFailure {
                blame,
                message: String::from_utf8_lossy(text).into_owned(),
            })
        };
        let report = match *kind {
            PREPARED => Self::Prepared,
            EXECUTING => Self::Executing,
            FAILED_REQUEST => failed(Blame::Request),
            FAILED_GUEST => failed(Blame::Guest),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        bytes.drain(..HEAD_BYTES + length);
        Ok(Some(report))
    }
}

/// The child's end.
#[derive(Debug)]
pub struct Reporter(File);

impl Reporter {
    /// Sends a report. An agent that no longer listens has given the child up.
    pub fn send(&mut self, report: &Report) {
        let _given_up = self.0.write_all(&report.encode());
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The agent's end.
#[derive(Debug)]
pub struct Reports {
    pipe: AsyncFd<OwnedFd>,
    received: Vec<u8>,
}

/// A pipe for reports.
pub fn channel() -> io::Result<(Reports, Reporter)> {
    let (read, write) = pipe::new()?;
    Ok((
        Reports {
            pipe: pipe::own_end(read)?,
            received: Vec::new(),
        },
        Reporter(File::from(write)),
    ))
}

impl Reports {
    /// The next report; `None` once the child has ended or has become its program.
    pub async fn next(&mut self) -> io::Result<Option<Report>> {
        loop {
            if let Some(report) = Report::decode(&mut self.received)? {
                return Ok(Some(report));
            }
            let mut part = [0; 512];
            let length = pipe::read_part(&self.pipe, &mut part).await?;
            if length == 0 {
                return Ok(None);
            }
            self.received.extend(part.iter().take(length));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_back_however_they_are_cut() {
        let failure = ChildFailure {
            blame: Blame::Request,
            message: "é".repeat(TEXT_BYTES),
        };
        let mut bytes: Vec<u8> = [Report::Prepared, Report::Executing, Report::Failed(failure)]
            .iter()
            .flat_map(Report::encode)
            .collect();
        let mut given = Vec::new();
        let mut received = Vec::new();
        for byte in bytes.drain(..) {
            received.push(byte);
            while let Some(report) = Report::decode(&mut received).unwrap() {
                given.push(report);
            }
        }
        assert_eq!(given[..2], [Report::Prepared, Report::Executing]);
        assert_eq!(
            given[2],
            Report::Failed(ChildFailure {
                blame: Blame::Request,
                message: "é".repeat(TEXT_BYTES / 2)
            })
        );
        assert!(Report::decode(&mut vec![9, 0, 0]).is_err());
    }
}
