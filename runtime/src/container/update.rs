//! UpdateContainerResources: other limits for a container that is there.

use std::sync::{Arc, PoisonError};

use bulkhead_proto::{agent::UpdateContainerRequest, cri::LinuxContainerResources};

use super::{Container, ContainerError, agent_error, resources};
use crate::{daemon::Daemon, refusal::Refusal, sandbox::size::MachineSize, store::ContainerPhase};

/// Puts `update` into force over what the container has. What it does not say (0, empty) stays.
///
/// # Errors
///
/// [`ContainerError`]; then all limits are as before.
pub async fn update(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    update: LinuxContainerResources,
) -> Result<(), ContainerError> {
    let _turn = container.turns.take().await;
    daemon.containers.find(&container.id)?;
    if container.phase() == ContainerPhase::Exited {
        return Err(container.wrong_state("given other limits", ""));
    }
    let pod = daemon.pods.find(&container.pod_id)?;
    let machine = pod.machine()?;
    let before = container.resources().unwrap_or_default();
    let wanted = resources::merged(&before, &update);
    check(&before, &wanted, &pod.size)?;

    let request = |limits: &LinuxContainerResources| {
        Ok::<_, Refusal>(UpdateContainerRequest {
            container_id: container.id.clone(),
            resources: Some(resources::changed("linux", limits)?),
        })
    };
    let (undo, request) = (request(&before)?, request(&wanted)?);
    let updated = machine.agent().update_container(request).await;
    updated.map_err(agent_error(container))?;

    set(container, Some(wanted.clone()));
    if let Err(error) = daemon
        .store
        .put_container(container.record(&container.state()))
        .await
    {
        set(container, Some(before));
        if let Err(error) = machine.agent().update_container(undo).await {
            tracing::error!(container = %container.id, %error, "limits that could not be written down stay in force");
        }
        return Err(error.into());
    }
    tracing::info!(pod = %container.pod_id, container = %container.id, ?wanted, "changed a container's limits");
    Ok(())
}

fn set(container: &Container, resources: Option<LinuxContainerResources>) {
    *container.resources.lock().unwrap_or_else(PoisonError::into_inner) = resources;
}

/// Refuses what would be accepted and have no effect.
fn check(
    before: &LinuxContainerResources,
    wanted: &LinuxContainerResources,
    machine: &MachineSize,
) -> Result<(), Refusal> {
    if wanted.oom_score_adj != before.oom_score_adj {
        return Err(Refusal::impossible(
            "linux.oom_score_adj",
            format!(
                "it is {} since the container's processes were started, and theirs for good; create the container again",
                before.oom_score_adj
            ),
        ));
    }
    let memory = i64::from(machine.memory_mib) << 20;
    let limit = wanted.memory_limit_in_bytes;
    if limit > memory && limit > before.memory_limit_in_bytes {
        return Err(Refusal::not_yet(
            "linux.memory_limit_in_bytes",
            format!("{limit} bytes are more than the pod's machine has ({memory}), which would have to grow"),
        ));
    }
    let processors = |limits: &LinuxContainerResources| {
        let period = if limits.cpu_period > 0 {
            limits.cpu_period
        } else {
            100_000
        };
        // Rounded up: part of a processor takes one.
        limits.cpu_quota.saturating_add(period - 1) / period
    };
    let cpus = processors(wanted);
    if cpus > i64::from(machine.vcpus) && cpus > processors(before) {
        return Err(Refusal::not_yet(
            "linux.cpu_quota",
            format!(
                "it is the time of {cpus} processors, and the pod's machine has {}, which would have to become more",
                machine.vcpus
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_does_not_have_is_refused_unless_it_was_so_before() {
        let machine = MachineSize {
            vcpus: 1,
            memory_mib: 128,
            scratch_mib: 16,
        };
        let limits = |memory_limit_in_bytes, cpu_quota| LinuxContainerResources {
            memory_limit_in_bytes,
            cpu_quota,
            ..LinuxContainerResources::default()
        };
        let before = limits(64 << 20, 50_000);
        let refused =
            |before: &_, wanted| check(before, &wanted, &machine).map_err(|refusal| refusal.to_string());
        assert_eq!(refused(&before, limits(128 << 20, 100_000)), Ok(()));
        let error = refused(&before, limits(129 << 20, 50_000)).unwrap_err();
        assert!(
            error.starts_with("linux.memory_limit_in_bytes: 135266304 bytes are more"),
            "{error}"
        );
        let error = refused(&before, limits(64 << 20, 100_001)).unwrap_err();
        assert!(
            error.starts_with("linux.cpu_quota: it is the time of 2 processors"),
            "{error}"
        );
        let generous = limits(1 << 30, 400_000);
        assert_eq!(refused(&generous, limits(1 << 29, 300_000)), Ok(()));
        let adjusted = LinuxContainerResources {
            oom_score_adj: 7,
            ..before.clone()
        };
        assert!(
            refused(&before, adjusted)
                .unwrap_err()
                .starts_with("linux.oom_score_adj")
        );
    }
}
