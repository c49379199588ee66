//! RunPodSandbox: from a request to a machine whose agent answers.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::{
    agent::{ConfigureNetworkRequest, ConfigureSandboxRequest, HelloResponse},
    cri::PodSandboxConfig,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    boot, cgroup,
    error::PodError,
    guest_files,
    machine::{Machine, MachineError, SCRATCH_SERIAL, make_directories},
    network::{self, Joined},
    pod::Pod,
    rollback::Rollback,
    size::MachineSize,
    stop, validate,
};
use crate::{
    daemon::Daemon,
    events::{Change, Subject},
    identity::{new_id, now_ns},
    store::{MachineRecord, PodPhase},
};

/// Where the time of a pod's start went.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartupTimes {
    /// Writing the intent down.
    pub record: Duration,
    /// Joining the network in the pod's namespace: beside the next three.
    pub network: Duration,
    /// Control group and scratch disk.
    pub resources: Duration,
    /// From there until the VMM's process was started.
    pub spawn: Duration,
    /// From there until the agent said hello.
    pub boot: Duration,
    /// Of the boot, what the guest's kernel took until it started the agent.
    pub guest_kernel: Duration,
    /// Of the boot, what the agent took until it said hello.
    pub guest_agent: Duration,
    /// From there until the network was joined as well.
    pub network_wait: Duration,
    /// Giving the machine its interfaces, and telling the agent of the pod.
    pub configure: Duration,
    /// All of it.
    pub total: Duration,
}

impl StartupTimes {
    /// Each with its name in figures.
    pub fn phases(&self) -> [(&'static str, Duration); 10] {
        [
            ("record", self.record),
            ("network", self.network),
            ("resources", self.resources),
            ("spawn", self.spawn),
            ("boot", self.boot),
            ("guest_kernel", self.guest_kernel),
            ("guest_agent", self.guest_agent),
            ("network_wait", self.network_wait),
            ("configure", self.configure),
            ("total", self.total),
        ]
    }
}

/// Makes a pod and returns its id when it is ready. A request whose client goes away is undone, as is one that fails.
///
/// # Errors
///
/// [`PodError`]; then nothing is left of the pod, or if something could not be removed, the pod is listed as not ready.
pub async fn run(
    daemon: &Arc<Daemon>,
    config: PodSandboxConfig,
    runtime_handler: String,
    cancelled: CancellationToken,
) -> Result<String, PodError> {
    let started = Instant::now();
    let name = Pod::name(validate::pod(&config, &runtime_handler, &daemon.config)?);
    let id = new_id();
    tracing::Span::current().record("pod", &id);
    let reservation = daemon.pods.reserve(&name, &id)?;

    let linux = config.linux.as_ref();
    let vm = daemon.config.vm_of(&runtime_handler);
    let size = MachineSize::of_pod(linux, &vm, daemon.host_size);
    let parent = linux
        .map(|linux| linux.cgroup_parent.as_str())
        .filter(|parent| !parent.is_empty());
    let cgroup = cgroup::path(parent.unwrap_or(&daemon.config.vm.cgroup_parent), &id);
    let paths = daemon.directories.pod(&id);
    let pod = Arc::new(Pod::new(
        id.clone(),
        config,
        runtime_handler,
        now_ns(),
        cgroup,
        paths,
        size,
    ));

    tracing::info!(pod = %id, name, vcpus = size.vcpus, memory_mib = size.memory_mib, "making a pod");
    let mut rollback = Rollback::default();
    let made = make(daemon, &pod, &cancelled, &mut rollback).await;
    match made {
        Ok((machine, mut times)) => {
            times.total = started.elapsed();
            pod.change(|state| state.startup = Some(times));
            rollback.keep();
            daemon.metrics.pod_started(&times);
            daemon.events.step(daemon, Subject::Pod(&pod), || {
                reservation.fill(Arc::clone(&pod));
                vec![Change::Created, Change::Started]
            });
            tracing::info!(pod = %id, pid = machine.identity().pid, ?times, "the pod is ready");
            tokio::spawn(stop::watch(Arc::clone(daemon), pod, machine));
            Ok(id)
        }
        Err(error) => {
            tracing::warn!(pod = %id, %error, "the pod could not be made; what had been made is removed");
            let left = rollback.undo().await;
            if !left.is_empty() {
                let message = format!(
                    "its creation failed ({error}) and could not be undone: {}",
                    left.join("; ")
                );
                tracing::error!(pod = %id, message, "the pod stays listed until it can be removed");
                pod.change(|state| {
                    state.phase = PodPhase::NotReady;
                    state.message = message;
                });
                if let Err(error) = daemon.store.put_pod(pod.record()).await {
                    tracing::error!(pod = %id, %error, "the pod's state is not on the disk");
                }
                daemon.events.step(daemon, Subject::Pod(&pod), || {
                    reservation.fill(Arc::clone(&pod));
                    vec![Change::Created]
                });
                pod.tell_end(daemon);
            }
            Err(error)
        }
    }
}

async fn make(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    cancelled: &CancellationToken,
    rollback: &mut Rollback,
) -> Result<(Arc<Machine>, StartupTimes), PodError> {
    let mut times = StartupTimes::default();
    let mut lap = Lap::start();
    let (store, id) = (daemon.store.clone(), pod.id.clone());
    rollback.add("record in the durable state", async move {
        store.remove_pod(id, Vec::new()).await
    });
    daemon.store.put_pod(pod.record()).await?;
    times.record = lap.end();

    let paths = pod.paths.clone();
    rollback.add("files", blocking(move || stop::remove_files(&paths)));
    make_directories(&pod.paths).map_err(|source| PodError::Machine {
        id: pod.id.clone(),
        source,
    })?;
    write_note(&pod.paths.cgroup_note(), &pod.cgroup).map_err(|source| PodError::Host {
        id: pod.id.clone(),
        action: "note the pod's control group".to_owned(),
        source,
    })?;
    let (host, path) = (Arc::clone(&daemon.host), pod.paths.namespace.clone());
    rollback.add(
        "network namespace",
        blocking(move || host.remove_network_namespace(&path)),
    );
    let (to_leave, id) = (Arc::clone(daemon), pod.id.clone());
    rollback.add("place in the network", async move {
        network::detach(&to_leave, &id).await
    });

    // Nobody needs a machine without its place in the network.
    let give_up = cancelled.child_token();
    let joining = async {
        let joined = join_network(daemon, pod).await;
        if joined.is_err() {
            give_up.cancel();
        }
        joined
    };
    let (joined, booted) = tokio::join!(
        joining.instrument(tracing::info_span!("network")),
        boot::boot(daemon, pod, &give_up, rollback, &mut times).instrument(tracing::info_span!("boot"))
    );
    let both = lap.end();
    // What is wrong with the network is the cause, where both failed.
    let (joined, network) = joined?;
    let (machine, hello) = booted?;
    times.network = network;
    times.network_wait = both.saturating_sub(times.resources + times.spawn + times.boot);

    let Joined {
        interfaces,
        request,
        addresses,
    } = joined;
    let configuring = async {
        for interface in interfaces {
            machine
                .add_net(interface)
                .await
                .map_err(|source| PodError::Machine {
                    id: pod.id.clone(),
                    source: source.into(),
                })?;
        }
        configure(pod, &machine, request, &addresses).await
    };
    configuring.instrument(tracing::info_span!("configure")).await?;
    times.configure = lap.end();

    pod.change(|state| {
        state.phase = PodPhase::Ready;
        state.addresses = addresses;
        state.machine = Some(Arc::clone(&machine));
        state.record = Some(remember(&machine, pod.size, &hello));
    });
    daemon.store.put_pod(pod.record()).await?;
    if cancelled.is_cancelled() {
        return Err(PodError::Cancelled { id: pod.id.clone() });
    }
    Ok((machine, times))
}

/// Makes the pod's network namespace and joins it to the network; says how long the latter took.
async fn join_network(daemon: &Arc<Daemon>, pod: &Pod) -> Result<(Joined, Duration), PodError> {
    make_namespace(daemon, pod).await?;
    let mut lap = Lap::start();
    let joined = network::attach(daemon, pod).await?;
    Ok((joined, lap.end()))
}

async fn make_namespace(daemon: &Arc<Daemon>, pod: &Pod) -> Result<(), PodError> {
    let (host, path) = (Arc::clone(&daemon.host), pod.paths.namespace.clone());
    blocking(move || host.create_network_namespace(&path))
        .await
        .map_err(|source| PodError::Host {
            id: pod.id.clone(),
            action: format!("make the network namespace {}", pod.paths.namespace.display()),
            source,
        })
}

/// Tells the agent of the pod and its network.
async fn configure(
    pod: &Pod,
    machine: &Machine,
    network: ConfigureNetworkRequest,
    addresses: &[String],
) -> Result<(), PodError> {
    let hostname = pod.hostname();
    let resolv_conf = match guest_files::resolv_conf(pod.config.dns_config.as_ref()) {
        Some(text) => text,
        None => tokio::fs::read_to_string("/etc/resolv.conf")
            .await
            .unwrap_or_default(),
    };
    let request = ConfigureSandboxRequest {
        hostname: hostname.to_owned(),
        scratch_disk: SCRATCH_SERIAL.to_owned(),
        resolv_conf: Some(resolv_conf),
        hosts: Some(guest_files::hosts(hostname, addresses)),
        etc_hostname: Some(format!("{hostname}\n")),
        sysctls: pod
            .config
            .linux
            .as_ref()
            .map(|linux| linux.sysctls.clone())
            .unwrap_or_default(),
        shm_size: 0,
        realtime_ns: u64::try_from(now_ns()).unwrap_or_default(),
    };
    let agent = machine.agent();
    let told = async {
        if !network.interfaces.is_empty() {
            agent.configure_network(network).await?;
        }
        agent.configure_sandbox(request).await
    };
    tokio::select! {
        answer = told => match answer {
            Ok(_) => Ok(()),
            Err(source) => Err(PodError::Agent { id: pod.id.clone(), source }),
        },
        end = machine.ended() => {
            Err(PodError::Machine { id: pod.id.clone(), source: MachineError::Ended(end) })
        }
    }
}

fn remember(machine: &Machine, size: MachineSize, hello: &HelloResponse) -> MachineRecord {
    let identity = machine.identity().clone();
    MachineRecord {
        pid: identity.pid,
        start_ticks: identity.start_ticks,
        boot_id: identity.boot_id,
        vcpus: size.vcpus.into(),
        memory_mib: size.memory_mib,
        kernel_release: hello.kernel_release.clone(),
        agent_version: hello.agent_version.clone(),
    }
}

fn write_note(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)
}

/// Runs something that blocks away from the daemon's threads for requests.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// A stopwatch.
pub(super) struct Lap(Instant);

impl Lap {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start or the last call.
    pub(super) fn end(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap
    }
}
