//! Attaches pods to the cluster's network and detaches them.

mod operations;
mod readiness;
mod turns;

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, RwLock as AsyncRwLock},
    task::{AbortHandle, spawn_blocking},
};

use self::turns::Turns;
use super::{
    cni::{
        cache::{Cache, write_durably},
        capabilities::Dns,
        config::NetworkList,
        plugin::Runner,
    },
    config::NetworkConfig,
    error::NetworkError,
    guest::{GuestInterface, GuestNeighbor, GuestRoute},
    host_ports::{HostPorts, PortMapping},
    locked,
    prefix::IpPrefix,
};

/// The network that pods are attached to.
#[derive(Debug)]
pub struct PodNetwork {
    inner: Arc<Inner>,
    tasks: Vec<AbortHandle>,
}

/// What is to be attached: a pod, and what its network's plugins may be told of it.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// The pod's id.
    pub pod_id: String,
    /// Its network namespace, which is there.
    pub namespace_path: PathBuf,
    /// Its name, Kubernetes namespace and UID.
    pub name: String,
    /// See `name`.
    pub namespace: String,
    /// See `name`.
    pub uid: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its host name; may be empty.
    pub hostname: String,
    /// Its host ports; those with host port 0 mean nothing.
    pub port_mappings: Vec<PortMapping>,
    /// Queue pairs of each of its devices; 0 is taken for 1.
    pub queue_pairs: u8,
    /// Its control group, as the kubelet names it.
    pub cgroup_parent: Option<String>,
    /// Its own name servers, where it has them.
    pub dns: Option<Dns>,
}

/// What a pod has been given.
#[derive(Debug)]
pub struct Attached {
    /// Its interfaces, the first being the network's main one.
    pub interfaces: Vec<GuestInterface>,
    /// Its routes, in an order in which they can be set.
    pub routes: Vec<GuestRoute>,
    /// Its neighbours.
    pub neighbors: Vec<GuestNeighbor>,
    /// Its addresses: the first is `PodSandboxStatus.network.ip`, the others `additional_ips`. At least one.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug)]
struct Inner {
    enabled: bool,
    runner: Runner,
    conf_dir: PathBuf,
    template: Option<PathBuf>,
    cache: Cache,
    /// The pods that were attached when the network was opened. No other can be a left-over of an earlier daemon.
    found: HashSet<String>,
    pod_cidr_file: PathBuf,
    state: Mutex<State>,
    ports: Mutex<HostPorts>,
    pod_cidrs: Mutex<Vec<IpPrefix>>,
    turns: Turns,
    /// ADD and DEL share it; GC must have it alone.
    plugins: AsyncRwLock<()>,
    ask_status: Notify,
}

/// What pods would be attached to now.
#[derive(Debug)]
struct State {
    list: Result<Arc<NetworkList>, String>,
    /// Whether the plugins of `list` are ready.
    status: Result<(), String>,
}

impl PodNetwork {
    /// Opens the network: reads the configuration, and watches it from then on. What is remembered of pods is kept under
    /// `state_dir`, which must survive a reboot. Where the configuration gives pods no network, nothing is read or watched, and
    /// pods that were attached before are detached all the same. Must be called in the daemon's asynchronous runtime.
    ///
    /// # Errors
    ///
    /// When what is remembered cannot be read. That there is no configuration is no error: see [`PodNetwork::readiness`].
    pub fn open(config: &NetworkConfig, state_dir: &Path) -> io::Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        let cache = Cache::open(&given(&config.cache_dir).unwrap_or_else(|| state_dir.join("network")))?;
        let mut ports = HostPorts::default();
        let mut found = HashSet::new();
        for entry in cache.list(None)? {
            let mappings = entry.capabilities.get("portMappings");
            ports.restore(&entry.pod_id, &entry.pod_name, mappings);
            found.insert(entry.pod_id);
        }
        let pod_cidr_file = cache.directory().join("pod-cidr");
        let pod_cidrs = match fs::read_to_string(&pod_cidr_file) {
            Ok(text) => parse_cidrs(text.trim()).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let inner = Arc::new(Inner {
            enabled: config.enabled,
            runner: Runner {
                bin_dirs: config.bin_dirs.clone(),
                timeout: Duration::from_secs(config.plugin_timeout_seconds),
            },
            conf_dir: config.conf_dir.clone(),
            template: given(&config.conf_template),
            cache,
            found,
            pod_cidr_file,
            state: Mutex::new(State {
                list: Err(if config.enabled {
                    "the CNI configuration has not been read yet".to_owned()
                } else {
                    "pods are given none, because `network.enabled` is false".to_owned()
                }),
                status: Ok(()),
            }),
            ports: Mutex::new(ports),
            pod_cidrs: Mutex::new(pod_cidrs),
            turns: Turns::default(),
            plugins: AsyncRwLock::new(()),
            ask_status: Notify::new(),
        });
        let tasks = if config.enabled {
            inner.start(&runtime)
        } else {
            Vec::new()
        };
        Ok(Arc::new(Self { inner, tasks }))
    }

    /// Whether pods are attached at all, as the configuration says.
    pub fn is_enabled(&self) -> bool {
        self.inner.enabled
    }

    /// Whether pods can be attached, if they are to be. Tells what is known already, and never blocks.
    ///
    /// # Errors
    ///
    /// Why not, with what to do.
    pub fn readiness(&self) -> Result<(), String> {
        if !self.inner.enabled {
            return Ok(());
        }
        let state = locked(&self.inner.state);
        match &state.list {
            Ok(_) => state.status.clone(),
            Err(reason) => Err(reason.clone()),
        }
    }

    /// Attaches a pod: runs ADD, and joins a tap to each interface. What has been done is undone when something fails. Goes on to
    /// its end when nobody waits for it any more; then [`PodNetwork::detach`] must be called.
    ///
    /// # Errors
    ///
    /// [`NetworkError`].
    pub async fn attach(&self, pod: &Attachment) -> Result<Attached, NetworkError> {
        let (inner, pod) = (Arc::clone(&self.inner), pod.clone());
        in_task(async move { inner.attach(&pod).await }).await
    }

    /// Detaches a pod: runs DEL as it was added, whatever the configuration is now. A pod that is not attached is not an error.
    /// Call it before the pod's namespace is removed. Goes on to its end when nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// [`NetworkError`]. It may be called again.
    pub async fn detach(&self, pod_id: &str) -> Result<(), NetworkError> {
        let (inner, pod_id) = (Arc::clone(&self.inner), pod_id.to_owned());
        in_task(async move { inner.detach(&pod_id).await }).await
    }

    /// Asks the plugins whether a pod is attached as it was. Keeps nobody from attaching or detaching it: then it is given up, and
    /// the plugin that was asked is killed.
    ///
    /// # Errors
    ///
    /// [`NetworkError`], [`NetworkError::NotAttached`] and [`NetworkError::CheckGivenUp`] among them.
    pub async fn check(&self, pod_id: &str) -> Result<(), NetworkError> {
        self.inner.check(pod_id).await
    }

    /// Detaches every pod that was attached when the network was opened and is not `living`, and lets the plugins forget what
    /// belongs to no pod. Pods may be attached meanwhile. Gives what failed; it is tried again when called again.
    pub async fn collect(&self, living: &[String]) -> Vec<NetworkError> {
        let inner = Arc::clone(&self.inner);
        let living: HashSet<String> = living.iter().cloned().collect();
        let done = in_task(async move { Ok(inner.collect(&living).await) }).await;
        done.unwrap_or_else(|error| vec![error])
    }

    /// Takes the node's pod CIDR, as `UpdateRuntimeConfig` has it: one network, or one of each family with a comma between. It is
    /// remembered, handed to plugins that ask for `ipRanges`, and filled into the template of configurations.
    ///
    /// # Errors
    ///
    /// [`NetworkError::PodCidr`] and [`NetworkError::Template`].
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<(), NetworkError> {
        let inner = &self.inner;
        // What the kubelet says before it knows one.
        if !inner.enabled || cidr.trim().is_empty() {
            return Ok(());
        }
        let cidrs =
            parse_cidrs(cidr).ok_or_else(|| NetworkError::PodCidr(cidr.chars().take(120).collect()))?;
        inner.fill_in_template(&cidrs)?;
        write_durably(&inner.pod_cidr_file, cidr.as_bytes()).map_err(inner.record("write"))?;
        *locked(&inner.pod_cidrs) = cidrs;
        inner.look();
        Ok(())
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn parse_cidrs(text: &str) -> Option<Vec<IpPrefix>> {
    let cidrs: Vec<IpPrefix> = text
        .split(',')
        .map(|cidr| cidr.trim().parse().ok())
        .collect::<Option<_>>()?;
    match cidrs.as_slice() {
        [_] => Some(cidrs),
        [a, b] if a.address.is_ipv4() != b.address.is_ipv4() => Some(cidrs),
        _ => None,
    }
}

/// Does what must not stop halfway, because somebody gave up waiting.
async fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T, NetworkError>> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(NetworkError::Task(error.to_string())),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(NetworkError::Task(error.to_string())),
    }
}

#[cfg(test)]
mod real_plugins;
#[cfg(test)]
mod tests;
