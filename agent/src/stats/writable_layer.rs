//! The size of writable layers, measured by walking them.
//!
//! A file system quota for each container would give it at no cost, but needs the disk to be made for it, and quota
//! files that grow with it. A walk costs time in proportion to what was written, so it is done in a child process and
//! its result stands for a time in proportion to its cost.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    init::{log, offload::offload, reaper::Reaper},
    storage::tree::{self, Usage},
};

/// How long a result stands at least.
const FRESH: Duration = Duration::from_secs(10);

/// A walk takes at most this part of the time: one twentieth.
const COST: u32 = 20;

/// Entries after which a walk stops; a layer that has more is reported as this large.
const MOST_ENTRIES: u64 = 500_000;

/// The latest measurement of one layer.
#[derive(Debug, Default)]
pub struct LayerUsage {
    measured: tokio::sync::Mutex<Option<Measurement>>,
}

#[derive(Clone, Copy, Debug)]
struct Measurement {
    usage: Usage,
    at: Instant,
    took: Duration,
}

impl LayerUsage {
    /// The use of the tree at `upper`, measured now or a short while ago.
    pub async fn of(&self, upper: PathBuf, reaper: &Reaper) -> Usage {
        // Held across the walk, so that callers at the same time share one.
        let mut measured = self.measured.lock().await;
        if let Some(measurement) = *measured
            && measurement.at.elapsed() < FRESH.max(measurement.took * COST)
        {
            return measurement.usage;
        }
        let begun = Instant::now();
        match walk(upper, reaper).await {
            Ok(usage) => {
                *measured = Some(Measurement {
                    usage,
                    at: Instant::now(),
                    took: begun.elapsed(),
                });
                usage
            }
            Err(error) => {
                log::warning!("cannot measure a writable layer: {error}");
                measured.map(|measurement| measurement.usage).unwrap_or_default()
            }
        }
    }
}

async fn walk(upper: PathBuf, reaper: &Reaper) -> io::Result<Usage> {
    let result = offload(reaper, move || {
        let usage = tree::usage(&upper, MOST_ENTRIES)?;
        Ok([usage.bytes.to_le_bytes(), usage.inodes.to_le_bytes()].concat())
    })
    .await?;
    match result.as_chunks() {
        ([bytes, inodes], []) => Ok(Usage {
            bytes: u64::from_le_bytes(*bytes),
            inodes: u64::from_le_bytes(*inodes),
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
