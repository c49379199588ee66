//! The verbose half of statuses: one JSON object, under the key that crictl shows.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    container::Container,
    daemon::Daemon,
    image::{Image, PullProgress},
    logs::format::rfc3339,
    sandbox::{Pod, run::StartupTimes},
};

/// What a status has of this: nothing for clients that do not ask for it.
pub(super) fn if_asked(
    is_verbose: bool,
    info: impl FnOnce() -> HashMap<String, String>,
) -> HashMap<String, String> {
    if is_verbose { info() } else { HashMap::new() }
}

/// `info` of a pod. `pid` is the VMM's on this host, 0 when it does not run: it is fed to tools that enter namespaces, for
/// which a number of the guest would be somebody else's.
pub(super) fn pod(pod: &Pod) -> HashMap<String, String> {
    let state = pod.state();
    let running = state.machine.as_ref().filter(|machine| machine.end().is_none());
    let record = state.record.unwrap_or_default();
    let linux = pod.config.linux.clone().unwrap_or_default();
    one(&json!({
        "pid": running.map_or(0, |machine| machine.identity().pid),
        "runtimeType": "bulkhead",
        "runtimeHandler": pod.runtime_handler,
        "message": state.message,
        "netNamespace": pod.paths.namespace,
        "networkFault": state.network_fault,
        "cgroup": pod.cgroup,
        "machine": {
            "vcpus": pod.size.vcpus,
            "memoryMiB": pod.size.memory_mib,
            "scratchMiB": pod.size.scratch_mib,
            "kernel": record.kernel_release,
            "agent": record.agent_version,
            "console": pod.paths.console(),
            "log": pod.paths.vmm_log(),
            "vsock": pod.paths.vsock(),
        },
        "startup": state.startup.as_ref().map(startup),
        "config": {
            "hostname": pod.hostname(),
            "logDirectory": pod.config.log_directory,
            "cgroupParent": linux.cgroup_parent,
            "sysctls": linux.sysctls,
        },
    }))
}

/// `info` of a container.
pub(super) fn container(daemon: &Daemon, container: &Container) -> HashMap<String, String> {
    let state = container.state();
    let pod = daemon.pods.find(&container.pod_id).ok();
    let machine = pod
        .and_then(|pod| pod.machine().ok())
        .filter(|machine| machine.end().is_none());
    let config = &container.config;
    one(&json!({
        "sandboxID": container.pod_id,
        "pid": machine.filter(|_| state.guest_pid != 0).map_or(0, |machine| machine.identity().pid),
        "guestPid": state.guest_pid,
        "runtimeType": "bulkhead",
        "removing": false,
        "imageId": container.image.id,
        "stopSignal": container.stop_signal,
        "logFault": container.log_fault().map(|fault| json!({
            "since": rfc3339(fault.since),
            "reason": fault.reason,
        })),
        "config": {
            "command": config.command,
            "args": config.args,
            "workingDir": config.working_dir,
            "logPath": config.log_path,
            "tty": config.tty,
        },
    }))
}

/// `info` of an image: its configuration as the registry gave it.
pub(super) fn image(daemon: &Daemon, image: &Image) -> HashMap<String, String> {
    let spec: Value = daemon
        .images
        .config_json(image)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| json!({ "diffId": layer.diff_id.to_string(), "bytes": layer.blob_bytes }))
        .collect();
    one(&json!({ "imageSpec": spec, "layers": layers }))
}

/// `info` of the runtime.
pub(super) fn runtime(daemon: &Daemon) -> HashMap<String, String> {
    let config = &daemon.config;
    let value = json!({
        "root": config.root,
        "stateDir": config.state,
        "socket": config.cri.socket,
        "vmm": config.vm.vmm,
        "kernel": config.vm.kernel,
        "initramfs": config.vm.initramfs,
        "cmdline": config.vm.cmdline,
        "vcpus": config.vm.vcpus,
        "memoryMiB": config.vm.memory_mib,
        "scratchMiB": config.vm.scratch_mib,
        "handlers": config.handlers,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let pulls: Vec<Value> = daemon.images.pulls().iter().map(pull).collect();
    HashMap::from([
        ("config".to_owned(), value.to_string()),
        ("pulls".to_owned(), Value::from(pulls).to_string()),
    ])
}

/// A pull under way, as `bulkhead images` shows it.
fn pull(progress: &PullProgress) -> Value {
    let layers: Vec<Value> = progress
        .layers
        .iter()
        .map(|layer| json!({ "digest": layer.digest.to_string(), "bytes": layer.bytes, "received": layer.received }))
        .collect();
    json!({
        "image": progress.reference,
        "seconds": progress.elapsed.as_secs(),
        "layers": layers,
    })
}

fn one(value: &Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), value.to_string())])
}

/// Milliseconds of each phase, for whoever measures.
fn startup(times: &StartupTimes) -> Value {
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "recordMs": ms(times.record),
        "networkMs": ms(times.network),
        "resourcesMs": ms(times.resources),
        "spawnMs": ms(times.spawn),
        "bootMs": ms(times.boot),
        "guestKernelMs": ms(times.guest_kernel),
        "guestAgentMs": ms(times.guest_agent),
        "networkWaitMs": ms(times.network_wait),
        "configureMs": ms(times.configure),
        "totalMs": ms(times.total),
    })
}
