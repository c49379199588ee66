//! The daemon's start: every pod that was remembered is found again or known to be gone, and what belongs to none is
//! removed. Only then may a client ask.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::Arc,
};

use bulkhead_proto::agent::{ContainerState, ListContainersRequest};
use futures_util::future::join_all;

use super::{
    error::PodError,
    machine::{Machine, MachineEnd, MachineError},
    network,
    pod::Pod,
    process::ProcessIdentity,
    run::blocking,
    size::MachineSize,
    stop,
};
use crate::{
    container::{self, Container, disk},
    daemon::{Daemon, StartError},
    identity::is_id,
    image::ImageId,
    store::{ContainerPhase, ContainerRecord, PodPhase, PodRecord, StoreError},
};

/// Finds everything again.
///
/// # Errors
///
/// [`StartError`] only where the durable state cannot be read or written: what is wrong with one pod stays with it.
pub(crate) async fn recover(daemon: &Arc<Daemon>) -> Result<(), StartError> {
    let store = daemon.store.clone();
    let remembered = tokio::task::spawn_blocking(move || store.load())
        .await
        .unwrap_or_else(|panic| {
            let source = Box::new(redb::Error::Io(std::io::Error::other(panic)));
            Err(StoreError::Access { what: "read", source })
        })?;
    for damaged in &remembered.damaged {
        tracing::error!(error = %damaged, "a record is left out; what belongs to it is removed");
    }
    let mut containers: HashMap<String, Vec<ContainerRecord>> = HashMap::new();
    for record in remembered.containers {
        containers.entry(record.pod_id.clone()).or_default().push(record);
    }
    let pods = remembered.pods.into_iter().map(|record| {
        let containers = containers.remove(&record.id).unwrap_or_default();
        recover_pod(daemon, record, containers)
    });
    let pods: Vec<_> = pods.collect();
    for recovered in join_all(pods).await {
        recovered?;
    }
    for orphan in containers.into_values().flatten() {
        tracing::warn!(container = %orphan.id, pod = %orphan.pod_id, "forgetting a container whose pod is not known");
        daemon.store.remove_container(orphan.id).await?;
    }
    reap(daemon).await;
    settle_networks(daemon);
    daemon.images.collect().await?;
    Ok(())
}

async fn recover_pod(
    daemon: &Arc<Daemon>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
) -> Result<(), StoreError> {
    let phase = record.phase();
    if !is_id(&record.id) {
        tracing::error!(pod = %record.id, "a pod with an impossible id is forgotten");
        return daemon.store.remove_pod(record.id, Vec::new()).await;
    }
    let pod = Arc::new(from_record(daemon, record));
    if phase == PodPhase::Creating {
        tracing::warn!(pod = %pod.id, "a pod was being made when the daemon ended; removing what there is of it");
        return match remove_remains(daemon, &pod).await {
            Ok(()) => {
                let containers = containers.into_iter().map(|container| container.id).collect();
                daemon.store.remove_pod(pod.id.clone(), containers).await
            }
            Err(error) => {
                tracing::error!(pod = %pod.id, %error, "the pod stays listed until it can be removed");
                pod.change(|state| {
                    state.phase = PodPhase::NotReady;
                    state.message = format!("its creation was broken off and could not be undone: {error}");
                });
                daemon.store.put_pod(pod.record()).await?;
                list(daemon, &pod, containers);
                pod.tell_end(daemon);
                Ok(())
            }
        };
    }
    let found = match phase {
        PodPhase::Ready => Some(find(daemon, &pod).await),
        _ => None,
    };
    let containers = list(daemon, &pod, containers);
    match found {
        Some(Ok(found)) => adopt(daemon, &pod, found, &containers).await,
        Some(Err(error)) => {
            tracing::warn!(pod = %pod.id, %error, "the pod's virtual machine is not there any more");
            lose(daemon, &pod, &containers, Some(&error)).await?;
        }
        None => lose(daemon, &pod, &containers, None).await?,
    }
    Ok(())
}

fn from_record(daemon: &Daemon, record: PodRecord) -> Pod {
    let paths = daemon.directories.pod(&record.id);
    let machine = record.machine.clone().unwrap_or_default();
    let vm = daemon.config.vm_of(&record.runtime_handler);
    let config = record.config.unwrap_or_default();
    let configured = MachineSize::of_pod(config.linux.as_ref(), &vm, daemon.host_size);
    let size = MachineSize {
        vcpus: u8::try_from(machine.vcpus)
            .ok()
            .filter(|vcpus| *vcpus > 0)
            .unwrap_or(configured.vcpus),
        memory_mib: if machine.memory_mib > 0 {
            machine.memory_mib
        } else {
            configured.memory_mib
        },
        ..configured
    };
    let pod = Pod::new(
        record.id,
        config,
        record.runtime_handler,
        record.created_at_ns,
        record.cgroup,
        paths,
        size,
    );
    let phase = PodPhase::try_from(record.phase).unwrap_or(PodPhase::NotReady);
    pod.change(|state| {
        state.phase = phase;
        state.record = record.machine;
        state.message = record.message;
        state.addresses = record.addresses;
    });
    pod
}

/// Puts a pod and its containers into the tables.
fn list(daemon: &Arc<Daemon>, pod: &Arc<Pod>, containers: Vec<ContainerRecord>) -> Vec<Arc<Container>> {
    let name = Pod::name(&pod.config.metadata.clone().unwrap_or_default());
    match daemon.pods.reserve(&name, &pod.id) {
        Ok(reservation) => reservation.fill(Arc::clone(pod)),
        Err(taken) => {
            // Cannot be, since names are reserved; but the pod must stay listed so that it can be removed.
            tracing::error!(pod = %pod.id, error = %taken, "two pods have one name");
            if let Ok(reservation) = daemon.pods.reserve(&pod.id, &pod.id) {
                reservation.fill(Arc::clone(pod));
            }
        }
    }
    let containers: Vec<_> = containers
        .into_iter()
        .map(|record| Arc::new(Container::from_record(record)))
        .collect();
    for container in &containers {
        let reserved = daemon
            .containers
            .reserve(&container.name(), &container.id)
            .or_else(|_| daemon.containers.reserve(&container.id, &container.id));
        if let Ok(reservation) = reserved {
            reservation.fill(Arc::clone(container));
        }
    }
    containers
}

/// A machine that was found again, and what its guest runs.
struct Found {
    machine: Arc<Machine>,
    disks: Vec<String>,
    containers: Vec<ContainerState>,
}

async fn find(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<Found, MachineError> {
    let record = pod.state().record.unwrap_or_default();
    let identity = ProcessIdentity {
        pid: record.pid,
        start_ticks: record.start_ticks,
        boot_id: record.boot_id,
    };
    let asked = async {
        let (machine, state) =
            Machine::find(&pod.id, identity, &pod.paths, daemon.config.timeouts.agent()).await?;
        machine.agent().hello().await?;
        let containers = machine
            .agent()
            .list_containers(ListContainersRequest::default())
            .await?
            .containers;
        Ok(Found {
            machine: Arc::new(machine),
            disks: state.disks,
            containers,
        })
    };
    let after = daemon.config.timeouts.recovery();
    tokio::time::timeout(after, asked)
        .await
        .unwrap_or(Err(MachineError::Silent {
            after,
            console: Vec::new(),
        }))
}

/// Takes a running pod over.
async fn adopt(daemon: &Arc<Daemon>, pod: &Arc<Pod>, found: Found, containers: &[Arc<Container>]) {
    let Found {
        machine,
        disks,
        containers: running,
    } = found;
    pod.change(|state| state.machine = Some(Arc::clone(&machine)));
    // A machine may have the disk of an image that was removed, with no container of it left.
    let kept = daemon.images.kept().into_iter();
    let used = containers
        .iter()
        .filter_map(|container| container.image.id.parse::<ImageId>().ok());
    let on_the_bus: HashSet<ImageId> = kept
        .chain(used)
        .filter(|image| disks.contains(&disk::serial(*image)))
        .collect();
    for image in on_the_bus {
        if let Err(error) = disk::note_attached(daemon, pod, image) {
            tracing::warn!(pod = %pod.id, %image, %error, "an image in use is not in the store any more");
        }
    }
    container::recover::adopt_all(daemon, pod, &machine, containers, running).await;
    tracing::info!(pod = %pod.id, pid = machine.identity().pid, "found a running pod again");
    tokio::spawn(stop::watch(Arc::clone(daemon), Arc::clone(pod), machine));
}

/// Shows a pod whose machine is gone, and frees what it held.
async fn lose(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    containers: &[Arc<Container>],
    why: Option<&MachineError>,
) -> Result<(), StoreError> {
    let end = MachineEnd::left_behind(&pod.paths);
    pod.change(|state| {
        state.phase = PodPhase::NotReady;
        if let Some(why) = why {
            state.message = format!("its virtual machine was not found again: {why}: {end}");
        }
    });
    if let Err(error) = stop::free_all(daemon, pod).await {
        tracing::error!(pod = %pod.id, %error, "what the pod held is not all removed; StopPodSandbox tries again");
    }
    for container in containers {
        if container.phase() != ContainerPhase::Exited {
            container::exit::lose(daemon, container, &end).await;
        }
    }
    // Before anybody listens: who comes later finds it in the lists.
    pod.tell_end(daemon);
    daemon.store.put_pod(pod.record()).await
}

/// Takes pods out of the network that are not known any more, and checks the others. Plugins may be slow or hang, so nobody waits
/// for it.
fn settle_networks(daemon: &Arc<Daemon>) {
    let daemon = Arc::clone(daemon);
    let pods = daemon.pods.all();
    tokio::spawn(async move {
        let living: Vec<String> = pods.iter().map(|pod| pod.id.clone()).collect();
        for error in daemon.network.collect(&living).await {
            tracing::error!(%error, "what was left in the network of a pod that is not known cannot be removed");
        }
        if daemon.network.is_enabled() {
            network::check(&daemon, pods).await;
        }
    });
}

async fn remove_remains(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<(), PodError> {
    stop::free_all(daemon, pod).await?;
    let paths = pod.paths.clone();
    blocking(move || stop::remove_files(&paths))
        .await
        .map_err(|source| PodError::Host {
            id: pod.id.clone(),
            action: "remove the pod's files".to_owned(),
            source,
        })
}

/// Removes what has the form of a pod and is none that is known.
async fn reap(daemon: &Arc<Daemon>) {
    let mut strangers = HashSet::new();
    for directory in daemon.directories.all() {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        let names = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok());
        strangers.extend(names.filter(|name| is_id(name) && daemon.pods.find(name).is_err()));
    }
    for id in strangers {
        let paths = daemon.directories.pod(&id);
        let host = Arc::clone(&daemon.host);
        let reaped = blocking(move || {
            if let Ok(cgroup) = fs::read_to_string(paths.cgroup_note()) {
                host.remove_cgroup(&cgroup)?;
            }
            host.remove_network_namespace(&paths.namespace)?;
            stop::remove_files(&paths)
        });
        match reaped.await {
            Ok(()) => tracing::warn!(pod = %id, "removed what was left of a pod that is not known"),
            Err(error) => {
                tracing::error!(pod = %id, %error, "what was left of a pod that is not known cannot be removed");
            }
        }
    }
}
