//! What the store has under way, so that a daemon that ends can wait for it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::ImageError;

/// How long work that was begun may take when the daemon ends. What takes longer is undone by the next one.
const FAREWELL: Duration = Duration::from_secs(5);

/// All work of one store.
#[derive(Debug, Clone, Default)]
pub(super) struct Work {
    ending: CancellationToken,
    under_way: TaskTracker,
}

impl Work {
    /// Counts a piece of work until the result is dropped.
    pub(super) fn begin(&self) -> TaskTrackerToken {
        self.under_way.token()
    }

    /// Waits until the store is to end.
    pub(super) async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Runs `work` where it may wait for the disk. It runs to its end even if nobody waits for it any more.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let working = self.begin();
        let work = move || {
            let result = work();
            drop(working);
            result
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(ImageError::Interrupted {
                reference: "store".into(),
                reason: format!("its work was broken off: {error}"),
            }),
        }
    }

    /// Gives up what may be given up, and waits for the rest.
    pub(super) async fn end(&self) {
        self.ending.cancel();
        self.under_way.close();
        if tokio::time::timeout(FAREWELL, self.under_way.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.under_way.len(),
                "images are still being changed; the next start cleans up after them"
            );
        }
    }
}
