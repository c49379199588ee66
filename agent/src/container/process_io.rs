//! The standard streams and the terminal that a process is started with.

use std::os::fd::{AsFd, OwnedFd};

use tokio::sync::watch;

use super::{
    error::{ContainerError, step},
    spec::ProcessSpec,
};
use crate::io::{
    streams::{ChildStreams, ProcessStreams},
    terminal::Terminal,
};

/// Both sides of a process's streams.
#[derive(Debug)]
pub struct ProcessIo {
    /// For the child.
    pub child: ChildStreams,
    /// For the host.
    pub streams: ProcessStreams,
    /// Its terminal.
    pub terminal: Option<Terminal>,
}

impl ProcessIo {
    /// Makes what `spec` asks for, owned by user `uid`; terminals come from `devpts`. `exited` tells when the process
    /// has ended.
    pub fn make(
        spec: &ProcessSpec,
        devpts: &OwnedFd,
        uid: u32,
        exited: &watch::Receiver<bool>,
    ) -> Result<Self, ContainerError> {
        if spec.terminal {
            let terminal = Terminal::new(devpts.as_fd(), uid).map_err(step("make a terminal"))?;
            let (child, streams) = ProcessStreams::with_terminal(spec.streams, &terminal, exited)
                .map_err(step("open the terminal"))?;
            return Ok(Self {
                child,
                streams,
                terminal: Some(terminal),
            });
        }
        let make_pipes = step("make the pipes of a process");
        let (child, streams) = ProcessStreams::with_pipes(spec.streams, exited).map_err(make_pipes)?;
        child
            .give_to(uid, spec.streams)
            .map_err(step("give the pipes of a process to its user"))?;
        Ok(Self {
            child,
            streams,
            terminal: None,
        })
    }
}
