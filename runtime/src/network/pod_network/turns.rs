//! Operations on one pod come one after the other, as CNI's specification demands, and CHECK makes room for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use crate::network::locked;

/// Whose turn it is, by pod.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Turn>>);

#[derive(Debug)]
struct Turn {
    /// Held by the operation that is under way, and waited for by others.
    lock: Weak<AsyncMutex<()>>,
    wanted: CancellationToken,
}

impl Turns {
    /// Waits until no other operation on the pod is under way.
    pub(super) async fn take(&self, pod_id: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut turns = locked(&self.0);
            if let Some((lock, wanted)) = turns.get(pod_id).and_then(Turn::taken) {
                wanted.cancel();
                lock
            } else {
                Turn::begin(&mut turns, pod_id).0
            }
        };
        lock.lock_owned().await
    }

    /// Takes the turn when no operation on the pod is under way, and none waits. The token is cancelled as soon as one comes.
    pub(super) fn take_idle(&self, pod_id: &str) -> Option<(OwnedMutexGuard<()>, CancellationToken)> {
        let mut turns = locked(&self.0);
        if turns.get(pod_id).and_then(Turn::taken).is_some() {
            return None;
        }
        let (lock, wanted) = Turn::begin(&mut turns, pod_id);
        Some((lock.try_lock_owned().ok()?, wanted))
    }
}

impl Turn {
    /// Nothing when nobody has it or waits for it any more.
    fn taken(&self) -> Option<(Arc<AsyncMutex<()>>, &CancellationToken)> {
        Some((self.lock.upgrade()?, &self.wanted))
    }

    fn begin(turns: &mut HashMap<String, Self>, pod_id: &str) -> (Arc<AsyncMutex<()>>, CancellationToken) {
        turns.retain(|_, turn| turn.lock.strong_count() > 0);
        let (lock, wanted) = (Arc::new(AsyncMutex::new(())), CancellationToken::new());
        let turn = Self {
            lock: Arc::downgrade(&lock),
            wanted: wanted.clone(),
        };
        turns.insert(pod_id.to_owned(), turn);
        (lock, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_idle_turn_is_asked_back_and_others_wait_for_each_other() {
        let turns = Turns::default();
        let (idle, wanted) = turns.take_idle("a").unwrap();
        assert!(turns.take_idle("a").is_none());
        drop(turns.take("b").await);
        assert!(!wanted.is_cancelled());
        let (first, ()) = tokio::join!(turns.take("a"), async {
            wanted.cancelled().await;
            drop(idle);
        });
        // Whoever waits counts as well.
        assert!(turns.take_idle("a").is_none());
        drop(first);
        assert!(turns.take_idle("a").is_some());
    }
}
