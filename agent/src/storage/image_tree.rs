//! An image that a container sees beside its own: its layers together, read-only.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    layers::Layer,
    overlay::{Overlay, OverlayError},
};
use crate::init::log;

/// A mounted image, unmounted at its end. What was bound of it stays where it was bound.
#[derive(Debug)]
pub struct ImageTree {
    mounted: Mounted,
}

#[derive(Debug)]
enum Mounted {
    /// One layer needs no overlay.
    Layer(Layer),
    Overlay(Option<Overlay>, PathBuf),
}

impl ImageTree {
    /// Puts `layers`, lowest first, together; where there are several, at the directory `place`, which is made.
    pub fn mount(mut layers: Vec<Layer>, place: &Path) -> Result<Self, OverlayError> {
        if layers.len() == 1
            && let Some(layer) = layers.pop()
        {
            let mounted = Mounted::Layer(layer);
            return Ok(Self { mounted });
        }
        let place_error = |source: io::Error| OverlayError::Place {
            path: place.to_owned(),
            source,
        };
        fs::create_dir_all(place).map_err(place_error)?;
        let overlay = Overlay::mount(layers, None, place).inspect_err(|_| remove(place))?;
        Ok(Self {
            mounted: Mounted::Overlay(Some(overlay), place.to_owned()),
        })
    }

    /// Where its root is.
    pub fn path(&self) -> PathBuf {
        match &self.mounted {
            Mounted::Layer(layer) => layer.path(),
            Mounted::Overlay(_, place) => place.clone(),
        }
    }
}

impl Drop for ImageTree {
    fn drop(&mut self) {
        if let Mounted::Overlay(overlay, place) = &mut self.mounted {
            drop(overlay.take());
            remove(place);
        }
    }
}

fn remove(place: &Path) {
    if let Err(error) = fs::remove_dir(place) {
        log::error!("cannot remove {}: {error}", place.display());
    }
}
