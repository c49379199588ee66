//! Keeping an image's layers for as long as somebody uses them.

use std::sync::Arc;

use super::super::Image;
use super::ImageStore;

/// Keeps the layers of one image on disk. When the last lease of a removed image is dropped, they are deleted.
#[derive(Debug)]
pub struct ImageLease {
    store: Arc<ImageStore>,
    image: Arc<Image>,
}

impl ImageLease {
    pub(super) fn new(store: Arc<ImageStore>, image: Arc<Image>) -> Self {
        Self { store, image }
    }

    /// The image as it was when leased.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        if !self.store.write().unlease(self.image.id) {
            return;
        }
        let store = Arc::clone(&self.store);
        let collect = move || {
            if let Err(error) = store.collect_now() {
                tracing::warn!(%error, "a removed image stays on disk until the next start");
            }
        };
        // Deleting waits for the disk, which must not hold up whoever gives the lease back.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(collect)),
            Err(_) => collect(),
        }
    }
}
