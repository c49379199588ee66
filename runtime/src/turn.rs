//! Turns: one operation at a time changes the state of a pod or container, the others wait in order.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of one object.
#[derive(Clone, Debug)]
pub struct Turns {
    next: Arc<Semaphore>,
}

/// An operation's turn: until it is dropped, nobody else's begins.
#[derive(Debug)]
#[must_use = "a turn ends when it is dropped"]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Waits for a turn.
    pub async fn take(&self) -> Turn {
        // Only a closed semaphore gives nothing, and nobody closes this one.
        Turn {
            _permit: Arc::clone(&self.next).acquire_owned().await.ok(),
        }
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            next: Arc::new(Semaphore::new(1)),
        }
    }
}
