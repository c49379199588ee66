//! Downloads of layers, each for any number of pulls.
//!
//! A download is a task of its own. The pulls that want its layer wait for its outcome and do nothing else for it, so one
//! that is given up, or not run for a while, takes nothing from the others. With the last of them the download ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::super::config::MOST_DOWNLOADS;
use super::super::layer::{ExpectedLayer, LayerError, LayerLimits, Piece, convert};
use super::super::registry::Session;
use super::super::{DiffId, ImageError};
use super::layers::{HeldLayer, LayerStore};
use super::{Work, lock};

/// Pieces of a layer between the network and its conversion. A piece is what the connection had received at once, up to some
/// hundred KiB.
const QUEUED_PIECES: usize = 4;

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
    places: Arc<Semaphore>,
    under_way: Mutex<HashMap<DiffId, Weak<Download>>>,
}

/// A download that somebody waits for.
#[derive(Debug)]
struct Download {
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Downloads {
    pub(super) fn new(layers: Arc<LayerStore>, work: Work) -> Self {
        Self {
            layers,
            work,
            places: Arc::new(Semaphore::new(MOST_DOWNLOADS)),
            under_way: Mutex::default(),
        }
    }

    /// The layer, downloaded if it is not here.
    pub(super) async fn layer(&self, order: Order) -> Result<HeldLayer, ImageError> {
        let diff_id = order.layer.diff_id;
        loop {
            if let Some(held) = self.layers.hold(diff_id) {
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
                    if let Some(held) = self.layers.hold(layer.layer().diff_id) {
                        return Ok(held);
                    }
                }
                Err(error) if is_own => return Err(error),
                // Another pull's registry or credentials may have been at fault: try with our own.
                Err(error) => tracing::debug!(layer = %diff_id, %error, "another pull's download failed"),
            }
        }
    }

    /// The download of this layer that is under way, or a new one; and whether it is new.
    fn join(&self, order: &Order) -> (Arc<Download>, bool) {
        let mut under_way = lock(&self.under_way);
        let found = under_way.get(&order.layer.diff_id).and_then(Weak::upgrade);
        if let Some(download) = found.filter(|download| download.outcome.borrow().is_none()) {
            return (download, false);
        }
        under_way.retain(|_, download| download.strong_count() > 0);
        let (outcome, receiver) = watch::channel(None);
        let transfer = download(
            Arc::clone(&self.layers),
            self.work.clone(),
            Arc::clone(&self.places),
            order.clone(),
        );
        let task = tokio::spawn(async move {
            let result = transfer.await.map(Arc::new);
            outcome.send_replace(Some(result));
        });
        let download = Arc::new(Download {
            outcome: receiver,
            task: task.abort_handle(),
        });
        under_way.insert(order.layer.diff_id, Arc::downgrade(&download));
        (download, true)
    }
}

fn broken_off(order: &Order) -> ImageError {
    ImageError::Interrupted {
        reference: order.reference.clone(),
        reason: "its download was broken off; pull it again".to_owned(),
    }
}

/// Downloads one layer straight into its conversion.
async fn download(
    layers: Arc<LayerStore>,
    work: Work,
    places: Arc<Semaphore>,
    order: Order,
) -> Result<HeldLayer, ImageError> {
    let Order {
        reference,
        session,
        layer: expected,
        limits,
    } = order;
    let _place = places.acquire_owned().await;
    let blob = expected.blob;
    // A registry that does not answer costs no thread.
    let mut stream = session.blob_stream(blob, &format!("layer {blob}")).await?;
    let (sender, pieces) = mpsc::channel(QUEUED_PIECES);
    let conversion = conversion(layers, &work, reference, expected, limits, pieces)?;
    let transfer = async move {
        // Ends with this block, whatever comes of it, and the conversion with it: so both always end.
        let sender = sender;
        while let Some(bytes) = stream.next().await? {
            // However long the conversion takes: only the registry's silence is timed.
            if sender.send(Piece::Data(bytes)).await.is_err() {
                // The conversion has ended, and knows why.
                return Ok(());
            }
        }
        let _ = sender.send(Piece::End).await;
        Ok::<(), ImageError>(())
    };
    let (transferred, converted) = futures_util::join!(transfer, conversion);
    match (transferred, converted) {
        // The conversion was merely told that no more comes.
        (Err(cause), Err(ImageError::Layer { error, .. })) if matches!(*error, LayerError::Cancelled) => {
            Err(cause)
        }
        (_, converted) => converted,
    }
}

/// Starts a conversion, and gives what comes of it.
///
/// On a thread of its own, and not one of the runtime's for blocking calls: it waits for the registry, and a few slow
/// registries would take those from everything else, name look-ups for their own downloads included.
fn conversion(
    layers: Arc<LayerStore>,
    work: &Work,
    reference: String,
    expected: ExpectedLayer,
    limits: LayerLimits,
    pieces: mpsc::Receiver<Piece>,
) -> Result<impl Future<Output = Result<HeldLayer, ImageError>>, ImageError> {
    let (result, converted) = oneshot::channel();
    let fail = {
        let reference = reference.clone();
        move |reason: String| ImageError::Interrupted { reference, reason }
    };
    let run = move || {
        let temporary = layers.new_blob()?;
        let file = temporary
            .reopen()
            .map_err(|error| ImageError::store("open", temporary.path(), error))?;
        let layer = expected.blob;
        let converted = convert(pieces, file, &expected, limits).map_err(|error| ImageError::Layer {
            reference,
            layer,
            error: Box::new(error),
        })?;
        layers.adopt(temporary, &converted, expected.diff_id)
    };
    let working = work.begin();
    let started = thread::Builder::new()
        .name("layer-convert".into())
        .spawn(move || {
            // Nobody takes it any more where the download was given up.
            let _ = result.send(run());
            drop(working);
        });
    if let Err(error) = started {
        return Err(fail(format!("no thread can be started to convert it: {error}")));
    }
    Ok(async move {
        converted
            .await
            .unwrap_or_else(|_| Err(fail("its conversion was broken off; pull it again".to_owned())))
    })
}
