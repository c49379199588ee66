//! New limits for a container that is there: all of them, or none.

use super::{
    cgroup::{Cgroup, value_of},
    engine::Engine,
    error::ContainerError,
    spec::Resources,
    state::Phase,
};
use crate::{error_text::with_causes, init::log};

impl Engine {
    /// Sets the limits of a container that has not ended.
    pub async fn update(&self, id: &str, resources: &Resources) -> Result<(), ContainerError> {
        let container = self.table.get(id)?;
        let _changing = container.changing.lock().await;
        if container.phase() == Phase::Stopped {
            return Err(container.wrong_state("given other limits"));
        }
        let cgroup = container.cgroup();
        for (file, value) in &resources.files {
            if file == "memory.max"
                && let Ok(limit) = value.parse()
                && let Some(used) = unreclaimable(cgroup).filter(|used| *used > limit)
            {
                // The kernel would take such a limit and kill.
                return Err(ContainerError::OverLimit {
                    container: id.to_owned(),
                    used,
                    limit,
                });
            }
        }
        apply(cgroup, &resources.files)
    }
}

/// Writes control files in order. Where one is refused, those before it get back what they held.
fn apply(cgroup: &Cgroup, files: &[(String, String)]) -> Result<(), ContainerError> {
    let mut changed: Vec<(&str, String)> = Vec::new();
    for (file, value) in files {
        let before = cgroup.read(file);
        if let Err(error) = cgroup.set(file, value) {
            for (file, before) in changed.into_iter().rev() {
                if let Err(error) = cgroup.set(file, &before) {
                    log::error!("a limit stays changed: {}", with_causes(&error));
                }
            }
            return Err(error.into());
        }
        changed.extend(before.map(|before| (file.as_str(), before.trim().to_owned())));
    }
    Ok(())
}

/// Bytes of memory that are neither page cache nor otherwise given back when they are wanted.
fn unreclaimable(cgroup: &Cgroup) -> Option<u64> {
    let stat = cgroup.read("memory.stat")?;
    let of = |key| value_of(&stat, key).unwrap_or(0);
    let used: u64 = cgroup.read("memory.current")?.trim().parse().ok()?;
    let reclaimable = of("inactive_file") + of("active_file") + of("slab_reclaimable");
    Some(used.saturating_sub(reclaimable))
}
