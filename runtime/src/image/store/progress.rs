//! How far pulls have come, for the log and for whoever asks.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::layer::ExpectedLayer;
use super::super::{Digest, Reference};
use super::{ImageStore, lock};

/// How often a pull under way is told of in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A pull under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The image, in full.
    pub reference: String,
    /// Since it was asked for.
    pub elapsed: Duration,
    /// Its layers, from the lowest up; none until the manifest has come.
    pub layers: Vec<LayerProgress>,
}

/// How far a layer has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The digest of what the registry sends.
    pub digest: Digest,
    /// Bytes of that.
    pub bytes: u64,
    /// How many of them have come; all where the layer is here already.
    pub received: u64,
}

impl PullProgress {
    /// Bytes of all layers: those that have come, and all.
    pub fn bytes(&self) -> (u64, u64) {
        self.layers.iter().fold((0, 0), |(received, bytes), layer| {
            (received + layer.received, bytes + layer.bytes)
        })
    }
}

/// The pulls under way, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<Vec<Arc<Pulling>>>);

#[derive(Debug)]
pub(super) struct Pulling {
    reference: String,
    started: Instant,
    layers: Mutex<Vec<ExpectedLayer>>,
}

impl Pulls {
    /// Lists a pull until the result is dropped.
    pub(super) fn list(self: &Arc<Self>, reference: &Reference) -> Listed {
        let pulling = Arc::new(Pulling {
            reference: reference.to_string(),
            started: Instant::now(),
            layers: Mutex::default(),
        });
        lock(&self.0).push(Arc::clone(&pulling));
        Listed {
            pulls: Arc::clone(self),
            pulling,
        }
    }

    pub(super) fn under_way(&self) -> Vec<Arc<Pulling>> {
        lock(&self.0).clone()
    }
}

/// A pull that is listed.
#[derive(Debug)]
pub(super) struct Listed {
    pulls: Arc<Pulls>,
    pulling: Arc<Pulling>,
}

impl Listed {
    /// Tells which layers it is about.
    pub(super) fn found(&self, layers: &[ExpectedLayer]) {
        *lock(&self.pulling.layers) = layers.to_vec();
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.pulls.0).retain(|pulling| !Arc::ptr_eq(pulling, &self.pulling));
    }
}

impl ImageStore {
    pub(super) fn progress(&self, pulling: &Pulling) -> PullProgress {
        let layers = lock(&pulling.layers).clone();
        let layer = |layer: &ExpectedLayer| {
            let received = if self.layers.has(layer.key()) {
                layer.blob_bytes
            } else {
                self.downloads.received(layer.key()).unwrap_or(0)
            };
            LayerProgress {
                digest: layer.blob,
                bytes: layer.blob_bytes,
                received: received.min(layer.blob_bytes),
            }
        };
        PullProgress {
            reference: pulling.reference.clone(),
            elapsed: pulling.started.elapsed(),
            layers: layers.iter().map(layer).collect(),
        }
    }

    /// Tells of a pull in the log from time to time, for as long as this is polled.
    pub(super) async fn log_progress(&self, listed: &Listed) -> Infallible {
        loop {
            tokio::time::sleep(LOG_INTERVAL).await;
            let progress = self.progress(&listed.pulling);
            let (received, bytes) = progress.bytes();
            let whole = progress
                .layers
                .iter()
                .filter(|layer| layer.received == layer.bytes);
            tracing::info!(
                image = progress.reference,
                received_bytes = received,
                bytes,
                whole_layers = whole.count(),
                layers = progress.layers.len(),
                elapsed = ?progress.elapsed,
                "pulling"
            );
        }
    }
}
