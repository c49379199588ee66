//! The standard streams of one process: the child's ends to start it with, and the tasks that serve the agent's ends.

use std::{io, os::fd::OwnedFd};

use bulkhead_proto::agent::StreamKind;
use rustix::fs::{Mode, OFlags, fchown, open};
use tokio::sync::{mpsc, watch};

use super::{
    input::{self, SinkKind},
    output::{self, Attachment},
    pipe,
    terminal::Terminal,
};

/// Connections that may wait for a stream's task. It takes them at once, so one would do.
const WAITING_ATTACHMENTS: usize = 4;

/// Which streams a process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSet {
    /// Standard input is connected.
    pub stdin: bool,
    /// Standard output is connected.
    pub stdout: bool,
    /// Standard error is connected; with a terminal it is part of standard output.
    pub stderr: bool,
}

/// The descriptors that become 0, 1 and 2 of the process.
#[derive(Debug)]
pub struct ChildStreams {
    /// In their order.
    pub fds: [OwnedFd; 3],
}

impl ChildStreams {
    /// Gives pipes to user `uid`, so that a process can open /dev/stdout and its like by name.
    ///
    /// `/dev/null` is everybody's and stays as it is; a terminal has been given to the user already.
    pub fn give_to(&self, uid: u32, owned: StreamSet) -> io::Result<()> {
        let [stdin, stdout, stderr] = &self.fds;
        for (fd, ours) in [
            (stdin, owned.stdin),
            (stdout, owned.stdout),
            (stderr, owned.stderr),
        ] {
            if ours {
                fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)?;
            }
        }
        Ok(())
    }
}

/// The agent's side of the streams of one process.
#[derive(Debug)]
pub struct ProcessStreams {
    stdin: Option<mpsc::Sender<Attachment>>,
    stdout: Option<mpsc::Sender<Attachment>>,
    stderr: Option<mpsc::Sender<Attachment>>,
    ended: Vec<watch::Receiver<bool>>,
}

impl ProcessStreams {
    /// Makes pipes for the streams in `set`. `exited` tells when the process has ended.
    pub fn with_pipes(set: StreamSet, exited: &watch::Receiver<bool>) -> io::Result<(ChildStreams, Self)> {
        let mut streams = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            ended: Vec::new(),
        };
        let stdin = if set.stdin {
            let (read, write) = pipe::new()?;
            streams.stdin = Some(serve_input(write, SinkKind::Pipe, exited)?);
            read
        } else {
            null()?
        };
        let mut output = |wanted: bool| -> io::Result<(OwnedFd, Option<mpsc::Sender<Attachment>>)> {
            if !wanted {
                return Ok((null()?, None));
            }
            let (read, write) = pipe::new()?;
            let (sender, ended) = serve_output(read, exited)?;
            streams.ended.push(ended);
            Ok((write, Some(sender)))
        };
        let (stdout, stdout_sender) = output(set.stdout)?;
        let (stderr, stderr_sender) = output(set.stderr)?;
        streams.stdout = stdout_sender;
        streams.stderr = stderr_sender;
        let fds = [stdin, stdout, stderr];
        Ok((ChildStreams { fds }, streams))
    }

    /// Serves the streams of a process with a terminal: one each way. An output that nobody asked for is still read,
    /// since a full terminal would stop the process.
    pub fn with_terminal(
        set: StreamSet,
        terminal: &Terminal,
        exited: &watch::Receiver<bool>,
    ) -> io::Result<(ChildStreams, Self)> {
        let mut streams = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            ended: Vec::new(),
        };
        if set.stdin {
            let master = terminal.master().try_clone_to_owned()?;
            streams.stdin = Some(serve_input(master, SinkKind::Terminal, exited)?);
        }
        let master = terminal.master().try_clone_to_owned()?;
        if set.stdout {
            let (sender, ended) = serve_output(master, exited)?;
            streams.stdout = Some(sender);
            streams.ended.push(ended);
        } else {
            tokio::spawn(output::discard(pipe::own_end(master)?));
        }
        let fds = [terminal.open()?, terminal.open()?, terminal.open()?];
        Ok((ChildStreams { fds }, streams))
    }

    /// Where connections for `kind` go; `None` where the process has no such stream.
    pub fn attachments(&self, kind: StreamKind) -> Option<mpsc::Sender<Attachment>> {
        match kind {
            StreamKind::Stdin => self.stdin.clone(),
            StreamKind::Stdout => self.stdout.clone(),
            StreamKind::Stderr => self.stderr.clone(),
            StreamKind::Port => None,
        }
    }

    /// Waits until every output has ended and the host has acknowledged all of it.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let ended = self.ended.clone();
        async move {
            for mut stream in ended {
                // A stream whose task is gone has been given up with its process.
                let _given_up = stream.wait_for(|ended| *ended).await;
            }
        }
    }
}

fn serve_input(
    sink: OwnedFd,
    kind: SinkKind,
    exited: &watch::Receiver<bool>,
) -> io::Result<mpsc::Sender<Attachment>> {
    let (sender, receiver) = mpsc::channel(WAITING_ATTACHMENTS);
    tokio::spawn(input::run(pipe::own_end(sink)?, kind, receiver, exited.clone()));
    Ok(sender)
}

fn serve_output(
    source: OwnedFd,
    exited: &watch::Receiver<bool>,
) -> io::Result<(mpsc::Sender<Attachment>, watch::Receiver<bool>)> {
    let (sender, receiver) = mpsc::channel(WAITING_ATTACHMENTS);
    let (ended, has_ended) = watch::channel(false);
    tokio::spawn(output::run(
        pipe::own_end(source)?,
        receiver,
        exited.clone(),
        ended,
    ));
    Ok((sender, has_ended))
}

fn null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}
