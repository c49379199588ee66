//! The transmit queue: what the guest prints goes to the log.

use super::ring_file::ConsoleLog;
use crate::virtio::{
    requests::Serve,
    ring::{Chain, Ring},
};

/// Bytes copied out of the guest at once.
const BLOCK: usize = 16 * 1024;

/// Where output goes.
#[derive(Debug)]
pub struct Output {
    log: ConsoleLog,
    /// The queue for input, which is kept and never used.
    pub input: Ring,
}

impl Output {
    pub fn new(log: ConsoleLog, input: Ring) -> Self {
        Self { log, input }
    }
}

impl Serve for Output {
    fn serve(&mut self, request: &Chain<'_>) -> usize {
        let output = &request.readable;
        let mut block = [0; BLOCK];
        // What would be pushed out of the file by the rest of the same chain need not be written at all.
        let kept = usize::try_from(self.log.max_bytes()).unwrap_or(usize::MAX);
        let mut at = output.len().saturating_sub(kept);
        loop {
            let count = output.copy_out(at, &mut block);
            if count == 0 {
                return 0;
            }
            self.log.append(block.get(..count).unwrap_or_default());
            at += count;
        }
    }
}
