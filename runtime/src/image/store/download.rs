//! Downloads of layers, each for any number of pulls.
//!
//! A download is a task of its own. The pulls that want its layer wait for its outcome and do nothing else for it, so one
//! that is given up, or not run for a while, takes nothing from the others. With the last of them the download ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::super::config::MOST_DOWNLOADS;
use super::super::converter::Conversion;
use super::super::layer::{ExpectedLayer, LayerError, LayerLimits};
use super::super::registry::Session;
use super::super::{Converter, ImageError, LayerKey};
use super::layers::{HeldLayer, LayerStore};
use super::{Work, lock};

/// What a download takes.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// The image, as messages name it.
    pub(super) reference: String,
    pub(super) session: Arc<Session>,
    pub(super) layer: ExpectedLayer,
    pub(super) limits: LayerLimits,
}

/// What came of a download, for all who wait for it.
type Outcome = Result<Arc<HeldLayer>, ImageError>;

/// The downloads under way.
#[derive(Debug)]
pub(super) struct Downloads {
    layers: Arc<LayerStore>,
    work: Work,
    converter: Converter,
    places: Arc<Semaphore>,
    under_way: Mutex<HashMap<LayerKey, Weak<Download>>>,
}

/// A download that somebody waits for.
#[derive(Debug)]
struct Download {
    outcome: watch::Receiver<Option<Outcome>>,
    /// Bytes that have come.
    received: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Downloads {
    pub(super) fn new(layers: Arc<LayerStore>, work: Work, converter: Converter) -> Self {
        Self {
            layers,
            work,
            converter,
            places: Arc::new(Semaphore::new(MOST_DOWNLOADS)),
            under_way: Mutex::default(),
        }
    }

    /// The layer, downloaded if it is not here.
    pub(super) async fn layer(&self, order: Order) -> Result<HeldLayer, ImageError> {
        let key = order.layer.key();
        loop {
            if let Some(held) = self.layers.hold(key) {
                return Ok(held);
            }
            let (download, is_own) = self.join(&order);
            let mut outcome = download.outcome.clone();
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(broken_off(&order))),
                Err(_) => Err(broken_off(&order)),
            };
            match outcome {
                // Taken once more, for this pull alone; the outcome goes with the last who waited.
                Ok(layer) => {
                    if let Some(held) = self.layers.hold(layer.layer().key()) {
                        return Ok(held);
                    }
                }
                Err(error) if is_own => return Err(error),
                // Another pull's registry or credentials may have been at fault: try with our own.
                Err(error) => tracing::debug!(layer = %key.source, %error, "another pull's download failed"),
            }
        }
    }

    /// Bytes that have come of a layer whose download is under way.
    pub(super) fn received(&self, key: LayerKey) -> Option<u64> {
        let download = lock(&self.under_way).get(&key).and_then(Weak::upgrade)?;
        Some(download.received.load(Ordering::Relaxed))
    }

    /// The download of this layer that is under way, or a new one; and whether it is new.
    fn join(&self, order: &Order) -> (Arc<Download>, bool) {
        let mut under_way = lock(&self.under_way);
        let found = under_way.get(&order.layer.key()).and_then(Weak::upgrade);
        if let Some(download) = found.filter(|download| download.outcome.borrow().is_none()) {
            return (download, false);
        }
        under_way.retain(|_, download| download.strong_count() > 0);
        let (outcome, receiver) = watch::channel(None);
        let received = Arc::<AtomicU64>::default();
        let transfer = download(
            Arc::clone(&self.layers),
            self.work.clone(),
            self.converter.clone(),
            Arc::clone(&self.places),
            order.clone(),
            Arc::clone(&received),
        );
        let task = tokio::spawn(async move {
            let result = transfer.await.map(Arc::new);
            outcome.send_replace(Some(result));
        });
        let download = Arc::new(Download {
            outcome: receiver,
            received,
            task: task.abort_handle(),
        });
        under_way.insert(order.layer.key(), Arc::downgrade(&download));
        (download, true)
    }
}

fn broken_off(order: &Order) -> ImageError {
    ImageError::Interrupted {
        reference: order.reference.clone(),
        reason: "its download was broken off; pull it again".to_owned(),
    }
}

/// Downloads one layer straight into its conversion. Given up, it takes both with it.
async fn download(
    layers: Arc<LayerStore>,
    work: Work,
    converter: Converter,
    places: Arc<Semaphore>,
    order: Order,
    received: Arc<AtomicU64>,
) -> Result<HeldLayer, ImageError> {
    let Order {
        reference,
        session,
        layer: expected,
        limits,
    } = order;
    let _place = places.acquire_owned().await;
    let (blob, key) = (expected.blob, expected.key());
    // A registry that does not answer costs no process.
    let mut stream = session
        .blob_stream(blob, expected.blob_bytes, &format!("layer {blob}"))
        .await?;
    let fail = |error: LayerError| ImageError::Layer {
        reference: reference.clone(),
        layer: blob,
        error: Box::new(error),
    };
    let temporary = layers.new_blob()?;
    let file = temporary
        .reopen()
        .map_err(|error| ImageError::store("open", temporary.path(), error))?;
    let mut conversion = Conversion::start(&converter, expected, limits, file, work.begin())
        .await
        .map_err(fail)?;
    // However long the conversion takes: only the registry's silence is timed.
    while let Some(bytes) = stream.next().await? {
        received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        conversion.feed(bytes).await.map_err(fail)?;
    }
    let converted = conversion.finish().await.map_err(fail)?;
    work.blocking(move || layers.adopt(temporary, &converted, key))
        .await
}
