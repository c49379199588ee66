//! The daemon's parts, put together: what operations on pods and containers work with.

use std::{path::PathBuf, sync::Arc};

use crate::{
    config::Config,
    container::Container,
    events::{Change, Events, Subject},
    image::{Converter, ImageError, ImageStore},
    lock::{DirectoryLock, LockError},
    network::PodNetwork,
    observe::metrics::Metrics,
    sandbox::{
        Pod,
        host::Host,
        paths::PodDirectories,
        recover,
        scratch::{ScratchError, ScratchTemplates},
        size::HostSize,
    },
    store::{Store, StoreError},
    streaming::{OpenError, StreamingServer},
    table::Table,
};

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another daemon has its directories.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The durable state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image store.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The record of pods' networks.
    #[error("cannot watch the network's configuration or keep its records: {0}")]
    Network(#[source] std::io::Error),
    /// The template of scratch disks.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The streaming server.
    #[error(transparent)]
    Streaming(#[from] OpenError),
    /// A directory of its own.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Everything that an operation needs.
#[derive(Debug)]
pub struct Daemon {
    /// As it was read at the start.
    pub config: Config,
    /// The host's kernel.
    pub host: Arc<dyn Host>,
    /// What the host has.
    pub host_size: HostSize,
    /// The durable state.
    pub store: Store,
    /// The images.
    pub images: Arc<ImageStore>,
    /// The cluster's network.
    pub network: Arc<PodNetwork>,
    /// Templates of scratch disks.
    pub scratch: ScratchTemplates,
    /// Where the files of pods are.
    pub directories: PodDirectories,
    /// Where clients of exec, attach and port-forward connect to.
    pub streaming: StreamingServer,
    /// Every pod.
    pub pods: Table<Pod>,
    /// Every container.
    pub containers: Table<Container>,
    /// What happens to both.
    pub events: Events,
    /// Figures for operators.
    pub metrics: Arc<Metrics>,
    _locks: [DirectoryLock; 2],
}

impl Daemon {
    /// Takes the directories, opens the state and finds again what was there. Must be called in a tokio runtime. Layers
    /// are converted by `converter`'s processes.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        config: Config,
        host: Arc<dyn Host>,
        converter: Converter,
    ) -> Result<Arc<Self>, StartError> {
        let locks = [
            DirectoryLock::take(&config.root)?,
            DirectoryLock::take(&config.state)?,
        ];
        let directories = PodDirectories::new(&config.root, &config.state);
        for directory in directories.all() {
            std::fs::create_dir_all(directory).map_err(|source| StartError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        }
        let store = Store::open(&config.root.join("bulkhead.redb"))?;
        let images = ImageStore::open(
            &config.root,
            Arc::clone(store.database()),
            config.images.clone(),
            converter,
        )?;
        let network = PodNetwork::open(&config.network, &config.root).map_err(StartError::Network)?;
        let scratch = ScratchTemplates::open(config.root.join("scratch"))?;
        let mib = config.vm.scratch_mib;
        let templates = scratch.clone();
        tokio::task::spawn_blocking(move || templates.prepare(mib))
            .await
            .unwrap_or_else(|panic| {
                let source = std::io::Error::other(panic);
                Err(ScratchError::File {
                    path: config.root.join("scratch"),
                    source,
                })
            })?;
        let (pods, containers) = (Table::default(), Table::default());
        let metrics = Metrics::new(pods.clone(), containers.clone(), Arc::clone(&images));
        let streaming = StreamingServer::open(&config.streaming).await?;
        let daemon = Arc::new(Self {
            config,
            host,
            host_size: HostSize::here(),
            store,
            images,
            network,
            scratch,
            directories,
            pods,
            containers,
            events: Events::default(),
            metrics: Arc::new(metrics),
            streaming,
            _locks: locks,
        });
        recover::recover(&daemon).await?;
        Ok(daemon)
    }

    /// Lists a container no more.
    pub(crate) fn forget_container(&self, container: &Arc<Container>) {
        self.events.step(self, Subject::Container(container), || {
            match self.containers.remove(&container.id) {
                Some(_) => vec![Change::Deleted],
                None => Vec::new(),
            }
        });
    }

    /// The containers of a pod.
    pub fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.containers
            .all()
            .into_iter()
            .filter(|container| container.pod_id == pod)
            .collect()
    }
}
