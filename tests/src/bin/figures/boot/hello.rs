//! Waiting for the agent's first message, and for nothing longer than a boot can take.

use std::{
    io::Read,
    os::fd::{AsFd, OwnedFd},
    process::Child,
};

use anyhow::{Context, Result, bail};
use bulkhead_proto::agent::{HelloResponse, wire};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Longest boot, in seconds: what takes longer hangs.
const BOOT_SECONDS: i64 = 120;

/// A started VMM, which is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Child,
    end: OwnedFd,
}

impl Vmm {
    pub(super) fn hold(child: Child) -> Result<Self> {
        let pid = Pid::from_child(&child);
        Ok(Self {
            child,
            end: pidfd_open(pid, PidfdFlags::empty()).context("a VMM cannot be watched")?,
        })
    }

    /// Waits until there is something to be had from `channel`.
    pub(super) fn wait_for(&self, channel: impl AsFd) -> Result<()> {
        let mut watched = [
            PollFd::new(&channel, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN),
        ];
        let most = Timespec {
            tv_sec: BOOT_SECONDS,
            tv_nsec: 0,
        };
        poll(&mut watched, Some(&most))?;
        let [channel, end] = &watched;
        if channel.revents().contains(PollFlags::IN) {
            return Ok(());
        }
        if end.revents().contains(PollFlags::IN) {
            bail!("the VMM ended before its guest had said hello");
        }
        bail!("the guest did not say hello within {BOOT_SECONDS} s");
    }

    /// Waits for the message on the connections that the agent opens, the next of which `accept` gives. An agent whose
    /// connection took too long opens another.
    pub(super) fn hello<C: Read + AsFd>(&self, accept: impl Fn() -> Result<C>) -> Result<HelloResponse> {
        loop {
            if let Some(hello) = self.read_hello(accept()?)? {
                return Ok(hello);
            }
        }
    }

    /// Reads the message from one connection, which may end before.
    fn read_hello(&self, mut connection: impl Read + AsFd) -> Result<Option<HelloResponse>> {
        let mut received = Vec::new();
        loop {
            if let Some((hello, _)) = wire::decode(&received)? {
                return Ok(Some(hello));
            }
            self.wait_for(&connection)?;
            let mut part = [0; 512];
            let count = connection.read(&mut part)?;
            match part.get(..count) {
                Some(bytes) if count > 0 => received.extend_from_slice(bytes),
                _ => return Ok(None),
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
