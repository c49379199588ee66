//! The control queue (section 5.1.6.5): the driver says how many pairs of queues it uses.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::tap::Tap;
use crate::virtio::{requests::Serve, ring::Chain};

/// Bytes of the command: class, command, number of pairs.
const COMMAND_BYTES: usize = 4;

/// What carries out the commands.
#[derive(Debug)]
pub struct Control {
    /// One for each pair.
    taps: Vec<Arc<Tap>>,
    /// Pairs in use.
    pairs: u16,
}

impl Control {
    /// For a device with these taps, of which the first `pairs` are in use.
    pub fn new(taps: Vec<Arc<Tap>>, pairs: u16) -> Self {
        Self { taps, pairs }
    }

    /// Pairs in use.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Carries a command out, if it is one that is known.
    fn carry_out(&mut self, command: [u8; COMMAND_BYTES]) -> Option<()> {
        let [class, command, low, high] = command;
        let is_known =
            (u32::from(class), u32::from(command)) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        let pairs = u16::from_le_bytes([low, high]);
        if !is_known || pairs == 0 || usize::from(pairs) > self.taps.len() {
            return None;
        }
        use_taps(&self.taps, pairs).ok()?;
        self.pairs = pairs;
        Some(())
    }
}

/// Lets the host spread packets over the first `pairs` of an interface's queues and over no other.
///
/// # Errors
///
/// What the kernel says.
pub fn use_taps(taps: &[Arc<Tap>], pairs: u16) -> std::io::Result<()> {
    for (index, tap) in taps.iter().enumerate() {
        tap.set_used(index < usize::from(pairs))?;
    }
    Ok(())
}

impl Serve for Control {
    fn serve(&mut self, request: &Chain<'_>) -> usize {
        let mut command = [0; COMMAND_BYTES];
        let is_whole = request.readable.copy_out(0, &mut command) == COMMAND_BYTES;
        let done = is_whole.then(|| self.carry_out(command)).flatten();
        let [answer, ..] = match done {
            Some(()) => VIRTIO_NET_OK,
            None => VIRTIO_NET_ERR,
        }
        .to_le_bytes();
        request.writable.copy_in(0, &[answer])
    }
}
