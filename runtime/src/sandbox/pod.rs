//! A pod sandbox and its state.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bulkhead_proto::cri::{PodSandboxConfig, PodSandboxMetadata};
use tokio::sync::watch;

use super::{error::PodError, machine::Machine, paths::PodPaths, run::StartupTimes, size::MachineSize};
use crate::{
    container::disk::ImageSlot,
    daemon::Daemon,
    events::{Change, Subject},
    identity::short,
    image::ImageId,
    stats::{GuestStats, History},
    store::{MachineRecord, PodPhase, PodRecord},
    turn::Turns,
};

/// A pod sandbox. What does not change in its life is in its fields.
#[derive(Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// The request's configuration, as it came.
    pub config: PodSandboxConfig,
    /// The request's runtime handler.
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// Its control group on the host.
    pub cgroup: String,
    /// Its files.
    pub paths: PodPaths,
    /// The size of its machine.
    pub size: MachineSize,
    /// For whoever changes its state.
    pub(crate) turns: Turns,
    state: watch::Sender<PodState>,
    /// What its machine cost the host before.
    pub(crate) history: History,
    /// What its guest is asked of its use.
    pub(crate) guest_stats: GuestStats,
    /// Whether its end has been told.
    end_told: AtomicBool,
    /// The images whose disks are on the machine's bus, or on their way to it.
    images: Mutex<HashMap<ImageId, Arc<ImageSlot>>>,
}

/// What changes in a pod's life.
#[derive(Clone, Debug)]
pub struct PodState {
    /// Where in its life it is.
    pub phase: PodPhase,
    /// Its machine, while that may run.
    pub machine: Option<Arc<Machine>>,
    /// What is remembered of the machine.
    pub record: Option<MachineRecord>,
    /// Why it is not ready.
    pub message: String,
    /// Its addresses in the cluster's network, the first of which is the one to be reached at.
    pub addresses: Vec<String>,
    /// What CNI's plugins found wrong with its network, when this daemon found it again and had it checked.
    pub network_fault: String,
    /// How long its start took.
    pub startup: Option<StartupTimes>,
}

impl Pod {
    /// A pod in the making.
    pub(super) fn new(
        id: String,
        config: PodSandboxConfig,
        runtime_handler: String,
        created_at_ns: i64,
        cgroup: String,
        paths: PodPaths,
        size: MachineSize,
    ) -> Self {
        let state = PodState {
            phase: PodPhase::Creating,
            machine: None,
            record: None,
            message: String::new(),
            addresses: Vec::new(),
            network_fault: String::new(),
            startup: None,
        };
        Self {
            id,
            config,
            runtime_handler,
            created_at_ns,
            cgroup,
            paths,
            size,
            turns: Turns::default(),
            state: watch::Sender::new(state),
            history: History::default(),
            guest_stats: GuestStats::default(),
            end_told: AtomicBool::new(false),
            images: Mutex::default(),
        }
    }

    /// The name that no other pod may have: two requests with the same are for the same pod.
    pub fn name(metadata: &PodSandboxMetadata) -> String {
        format!(
            "{}_{}_{}_{}",
            metadata.name, metadata.namespace, metadata.uid, metadata.attempt
        )
    }

    /// The host name of its containers.
    pub fn hostname(&self) -> &str {
        if self.config.hostname.is_empty() {
            short(&self.id)
        } else {
            &self.config.hostname
        }
    }

    /// Its state now.
    pub fn state(&self) -> PodState {
        self.state.borrow().clone()
    }

    /// Whether it is ready now.
    pub fn is_ready(&self) -> bool {
        self.state.borrow().phase == PodPhase::Ready
    }

    /// Its machine, if it is ready.
    ///
    /// # Errors
    ///
    /// [`PodError::NotReady`].
    pub fn machine(&self) -> Result<Arc<Machine>, PodError> {
        let state = self.state.borrow();
        match &state.machine {
            Some(machine) if state.phase == PodPhase::Ready => Ok(Arc::clone(machine)),
            _ => Err(PodError::NotReady {
                id: self.id.clone(),
                why: state.message.clone(),
            }),
        }
    }

    /// Changes its state.
    pub(super) fn change(&self, change: impl FnOnce(&mut PodState)) {
        self.state.send_modify(change);
    }

    /// Tells, once, that it has ended: its containers have, and its machine.
    pub(super) fn tell_end(self: &Arc<Self>, daemon: &Daemon) {
        daemon.events.step(daemon, Subject::Pod(self), || {
            if self.end_told.swap(true, Ordering::AcqRel) {
                Vec::new()
            } else {
                vec![Change::Stopped]
            }
        });
    }

    /// The place of an image among its disks.
    pub(crate) fn image_slot(&self, image: ImageId) -> Arc<ImageSlot> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(images.entry(image).or_default())
    }

    /// Lets all images go, when the machine is gone.
    pub(super) fn drop_images(&self) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is remembered of it.
    pub(super) fn record(&self) -> PodRecord {
        let state = self.state.borrow();
        PodRecord {
            id: self.id.clone(),
            config: Some(self.config.clone()),
            runtime_handler: self.runtime_handler.clone(),
            created_at_ns: self.created_at_ns,
            phase: state.phase.into(),
            cgroup: self.cgroup.clone(),
            machine: state.record.clone(),
            message: state.message.clone(),
            addresses: state.addresses.clone(),
        }
    }
}
