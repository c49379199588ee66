//! The size of writable layers, measured by walking them.
//!
//! A file system quota for each container would give it at no cost, but needs the disk to be made for it, and quota
//! files that grow with it. A walk costs time in proportion to what was written, so it is done in a child process and
//! its result stands for a time in proportion to its cost. Nobody waits long for it: who asks during a long walk is told
//! what the last one found.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
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
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    measured: Option<Measurement>,
    /// Closed when the walk that is under way has ended.
    walk: Option<watch::Receiver<()>>,
}

#[derive(Clone, Copy, Debug)]
struct Measurement {
    usage: Usage,
    at: Instant,
    took: Duration,
}

impl Measurement {
    fn is_fresh(self) -> bool {
        self.at.elapsed() < FRESH.max(self.took * COST)
    }
}

impl LayerUsage {
    /// Begins to measure the tree at `upper`, unless the last result still stands or a walk is under way.
    pub fn refresh(&self, upper: PathBuf, reaper: &Reaper) {
        let mut state = locked(&self.state);
        if state.walk.is_some() || state.measured.is_some_and(Measurement::is_fresh) {
            return;
        }
        let (walking, walk) = watch::channel(());
        state.walk = Some(walk);
        let (shared, reaper) = (Arc::clone(&self.state), reaper.clone());
        tokio::spawn(async move {
            measure(&shared, upper, &reaper).await;
            drop(walking);
        });
    }

    /// What was measured, after waiting until `deadline` for a walk that is under way; nothing while the first one takes
    /// longer.
    pub async fn latest(&self, deadline: Instant) -> Option<Usage> {
        let walk = locked(&self.state).walk.clone();
        if let Some(mut walk) = walk {
            // It sends nothing, and its end closes the channel.
            let _ended = timeout_at(deadline, walk.changed()).await;
        }
        locked(&self.state).measured.map(|measurement| measurement.usage)
    }
}

async fn measure(state: &Mutex<State>, upper: PathBuf, reaper: &Reaper) {
    let begun = Instant::now();
    let walked = walk(upper, reaper).await;
    let mut state = locked(state);
    state.walk = None;
    match walked {
        Ok(usage) => {
            state.measured = Some(Measurement {
                usage,
                at: Instant::now(),
                took: begun.elapsed(),
            });
        }
        Err(error) => log::warning!("cannot measure a writable layer: {error}"),
    }
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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
