//! Socket device (virtio 1.2, section 5.10), wholly in this process: no kernel module of the host sees what a guest
//! sends, and context ids mean nothing outside the machine.
//!
//! # What is spoken on the host's socket
//!
//! The host's side is a listening `AF_UNIX`/`SOCK_STREAM` socket. A client says in its first line what it wants: at most
//! 64 bytes of ASCII that end in a newline, with the port as a decimal number below 2^32 - 1. It has 5 seconds for it.
//! The answer is one line, `OK <port>` or `ERR <reason>`; after `ERR` the connection is closed.
//!
//! - `CONNECT <port>`: a connection to that port of the guest. `OK` names the port that the client has on the host; from
//!   then on the bytes are the guest's, in both directions. What a client sends before the answer waits. `ERR` when
//!   nobody in the guest listens there, when the guest does not answer within 10 seconds or when its driver is not ready.
//! - `LISTEN <port>`: the connections that the guest opens to that port of context id 2. After `OK <port>` the client
//!   gets each as one byte 0 with one descriptor (`SCM_RIGHTS`): its end of a stream socket pair. It says nothing more;
//!   if it does, or closes its end, nobody listens any more. `ERR port in use` when somebody else does. A guest that
//!   connects where nobody listens is refused, and so is one whose client has too many untaken connections. This works
//!   before the guest runs and lasts over its restarts.
//!
//! The end of a stream is passed on for each direction by itself: `shutdown(SHUT_WR)` on one side is the end of reading
//! on the other, `SHUT_RD` makes writes on the other fail. Everything sent before an end arrives before it. A side that
//! closes its end altogether never looks like one that merely sends no more: that it does not receive is told first, or
//! together. A connection that the guest resets ends like one that it closes.
//!
//! # What is bounded
//!
//! [`muxer::MOST_CONNECTIONS`] connections and [`lobby::MOST_CLIENTS`] other clients at once;
//! [`credit::BUFFER_BYTES`] for each connection whose client reads slowly, after which the guest has no credit to send
//! more; nothing for a guest that reads slowly, whose client is simply not read.
//!
//! Connections are not saved: a restored guest hears that they are gone.

mod backlog;
mod command;
mod config;
mod connection;
mod credit;
#[cfg(test)]
mod fake_guest;
mod lobby;
mod muxer;
mod packet;
mod queue;
mod state;

use std::{io, os::unix::net::UnixListener, sync::Arc};

use rustix::net::sockopt::socket_acceptconn;

use super::{
    device::{Activation, DeviceError, DeviceKind, SavedDevice, VirtioDevice},
    ring,
    stage::Stage,
};
use packet::HOST_CID;
use queue::{Endpoint, Rings};

const NAME: &str = "vsock";

/// To the guest, from the guest, events. Linux fills the first with buffers of two pages each, used or not: with 256 that was
/// a tenth of a boot's exits.
const QUEUE_SIZES: [u16; 3] = [64, 256, 16];

/// The device. Its worker runs from the start, since clients are to be answered before there is a driver.
#[derive(Debug)]
pub struct Vsock {
    cid: u32,
    listener: Arc<UnixListener>,
    stage: Stage<Endpoint>,
    /// Whether a driver is ready.
    active: bool,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Some context ids have a meaning of their own.
    #[error("the guest cannot have the context id {0}; it takes 3 to 4294967294")]
    Cid(u32),
    /// The socket cannot be listened at.
    #[error(
        "the host's socket of the vsock device cannot be used: {0}; it takes a listening unix stream socket"
    )]
    Socket(#[source] io::Error),
    /// The worker could not be started.
    #[error(transparent)]
    Worker(#[from] DeviceError),
}

impl Vsock {
    /// A device for a guest with this context id, whose clients come to `listener`. Starts a thread.
    ///
    /// # Errors
    ///
    /// [`VsockError`].
    pub fn new(cid: u32, listener: UnixListener) -> Result<Self, VsockError> {
        if u64::from(cid) <= HOST_CID || cid == u32::MAX {
            return Err(VsockError::Cid(cid));
        }
        let listening = socket_acceptconn(&listener).map_err(|error| VsockError::Socket(error.into()))?;
        if !listening {
            return Err(VsockError::Socket(io::ErrorKind::InvalidInput.into()));
        }
        listener.local_addr().map_err(VsockError::Socket)?;
        listener.set_nonblocking(true).map_err(VsockError::Socket)?;
        let mut vsock = Self {
            cid,
            listener: Arc::new(listener),
            stage: Stage::Inactive,
            active: false,
        };
        vsock.take_stage(|_| ());
        vsock.run()?;
        Ok(vsock)
    }

    /// Stops the worker and changes its endpoint, which is made if it was lost.
    fn take_stage(&mut self, change: impl FnOnce(&mut Endpoint)) {
        if let Some(endpoint) = self.stage.pause() {
            change(endpoint);
        } else {
            let mut endpoint = Endpoint::new(self.cid, Arc::clone(&self.listener));
            change(&mut endpoint);
            self.stage = Stage::Paused(endpoint);
        }
    }

    fn run(&mut self) -> Result<(), DeviceError> {
        self.stage.resume(NAME, "virtio-vsock")
    }

    /// Gets ready to run on the driver's queues. `restored` when its connections are those of another process.
    fn take(&mut self, activation: Activation, restored: bool) {
        let accepted = activation.features;
        let interrupt = activation.interrupt.clone();
        match ring::take_all(activation) {
            Ok([to_guest, from_guest, events]) => {
                let rings = Rings {
                    to_guest,
                    from_guest,
                    events,
                    accepted,
                    reset_untold: restored,
                };
                self.take_stage(|endpoint| endpoint.start_guest(rings));
                self.active = true;
            }
            Err(error) => interrupt.needs_reset(&error.to_string()),
        }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        config::FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.cid, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.take(activation, false);
        self.run()
    }

    fn pause(&mut self) {
        if self.active {
            self.stage.pause();
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.run()
    }

    fn reset(&mut self) {
        self.active = false;
        self.take_stage(Endpoint::lose_guest);
        // Without a worker the clients are not answered until the next driver comes, which starts one or fails aloud.
        let _ = self.run();
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        state::save(self)
    }

    fn restore(&mut self, saved: &SavedDevice, activation: Option<Activation>) -> Result<(), DeviceError> {
        state::restore(self, saved, activation)
    }
}

#[cfg(test)]
mod tests;
