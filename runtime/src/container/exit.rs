//! The end of a container: seen by the agent or by the end of its machine, written down, then shown.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{AcknowledgeExitRequest, ExitStatus, exit_status::How};
use tokio::task::JoinHandle;
use tonic::Code;

use super::{Container, ContainerState, start::Output};
use crate::{
    daemon::Daemon,
    identity::now_ns,
    sandbox::{
        agent::AgentError,
        machine::{Machine, MachineEnd},
    },
    store::ContainerPhase,
};

/// How long output may still come after the agent has said that all has.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a container may take to be seen as exited when its machine is gone.
const SETTLE: Duration = Duration::from_secs(20);

/// Exit code of a container that the kernel killed for want of memory, as of any that SIGKILL ended.
const OOM_KILLED: i32 = 137;

/// Failures of an agent in a row, after which its pod is ended: it breaks the protocol.
const FAILURES: u32 = 5;

/// How a container ended.
#[derive(Debug)]
enum Ending {
    /// As the agent says.
    Process(ExitStatus),
    /// With its machine.
    Machine(Arc<MachineEnd>),
    /// The agent does not know of it.
    Unknown(String),
}

/// Waits for the end of a running container.
pub(super) async fn watch(
    daemon: Arc<Daemon>,
    container: Arc<Container>,
    machine: Arc<Machine>,
    output: Output,
) {
    let ending = wait(&container, &machine).await;
    finish_output(&container, output).await;
    container.detach_all();
    let state = match &ending {
        Ending::Process(status) => exited(&container.state(), status),
        Ending::Machine(end) => ended_with_machine(&container.state(), end),
        Ending::Unknown(message) => ContainerState {
            phase: ContainerPhase::Exited,
            finished_at_ns: now_ns(),
            exit_code: 255,
            reason: "Unknown".to_owned(),
            message: message.clone(),
            guest_pid: 0,
            ..container.state()
        },
    };
    tracing::info!(pod = %container.pod_id, container = %container.id, exit_code = state.exit_code,
        reason = state.reason, "a container has exited");
    let written = daemon.store.put_container(container.record(&state)).await;
    match written {
        // Only when it is on the disk may the agent forget it.
        Ok(()) if matches!(ending, Ending::Process(_)) => acknowledge(&machine, &container.id).await,
        Ok(()) => {}
        Err(error) => {
            tracing::error!(container = %container.id, %error, "the container's exit is not on the disk");
        }
    }
    container.set_log(None);
    container.show_exited(&daemon, state);
}

/// Makes sure that a container whose machine has ended is exited.
pub(crate) async fn settle(daemon: &Arc<Daemon>, container: &Arc<Container>, end: &MachineEnd) {
    let state = container.state();
    match state.phase {
        ContainerPhase::Exited => return,
        ContainerPhase::Created => {}
        ContainerPhase::Running => {
            // Whoever watches it is about to see the same; a log that cannot be written must not hold that up.
            if tokio::time::timeout(DRAIN, container.exited()).await.is_ok() {
                return;
            }
            if let Some(log) = container.open_log() {
                log.give_up.cancel();
            }
            if tokio::time::timeout(SETTLE, container.exited()).await.is_ok() {
                return;
            }
            tracing::error!(container = %container.id, "nobody has seen the container exit with its machine");
        }
    }
    let state = ended_with_machine(&container.state(), end);
    show(daemon, container, state).await;
}

/// Marks a container whose machine, or whose process in it, was not found again.
pub(crate) async fn lose(daemon: &Arc<Daemon>, container: &Arc<Container>, end: &MachineEnd) {
    let state = ended_with_machine(&container.state(), end);
    let state = if end == &MachineEnd::default() {
        ContainerState {
            exit_code: 255,
            reason: "Unknown".to_owned(),
            message: "the container was not found again when the daemon started".to_owned(),
            ..state
        }
    } else {
        state
    };
    show(daemon, container, state).await;
}

/// Writes a last state down and shows it, unless the container has exited in between.
pub(super) async fn show(daemon: &Arc<Daemon>, container: &Arc<Container>, state: ContainerState) {
    if container.phase() == ContainerPhase::Exited {
        return;
    }
    if let Err(error) = daemon.store.put_container(container.record(&state)).await {
        tracing::error!(container = %container.id, %error, "the container's exit is not on the disk");
    }
    container.set_log(None);
    container.detach_all();
    container.show_exited(daemon, state);
}

async fn wait(container: &Container, machine: &Arc<Machine>) -> Ending {
    let mut failures = 0;
    loop {
        let error = tokio::select! {
            biased;
            waited = machine.agent().wait_process(&container.id, "") => match waited {
                Ok(status) => return Ending::Process(status),
                Err(error) => error,
            },
            end = machine.ended() => return Ending::Machine(end),
        };
        if let AgentError::Refused {
            code: Code::NotFound,
            message,
        } = &error
        {
            return Ending::Unknown(format!("the pod's agent has lost the container: {message}"));
        }
        failures += 1;
        if failures >= FAILURES {
            tracing::error!(pod = %container.pod_id, container = %container.id, %error,
                "the pod's agent cannot be asked for its containers; its machine is ended");
            if let Err(error) = machine.kill().await {
                tracing::error!(pod = %container.pod_id, %error, "the machine cannot be ended");
            }
            return Ending::Machine(machine.ended().await);
        }
        tokio::select! {
            end = machine.ended() => return Ending::Machine(end),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Waits until all output is in the log.
async fn finish_output(container: &Container, output: Output) {
    let Output { mut pumps, writer } = output;
    let give_up = writer.give_up();
    loop {
        let drained = async {
            for pump in &mut pumps {
                let _ = pump.await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_ok() {
            break;
        }
        // A log that cannot be written holds its container up until that is stopped; a stream that does not end is the
        // guest's doing and holds nobody up.
        pumps.retain(|pump| !pump.is_finished());
        if give_up.is_cancelled() || writer.is_idle() {
            tracing::warn!(container = %container.id, "the pod's agent does not end the container's output");
            pumps.iter().for_each(JoinHandle::abort);
            break;
        }
    }
    drop(pumps);
    let outcome = writer.finish().await;
    if outcome.lost > 0 {
        tracing::error!(container = %container.id, bytes = outcome.lost, "output of the container is lost");
    }
}

async fn acknowledge(machine: &Machine, container: &str) {
    let request = AcknowledgeExitRequest {
        container_id: container.to_owned(),
        exec_id: String::new(),
    };
    if let Err(error) = machine.agent().acknowledge_exit(request).await {
        tracing::debug!(container, %error, "the agent was not told that an exit is known");
    }
}

/// The state of a container whose first process ended so.
///
/// A process of it that the kernel killed for want of memory is what its end is told by, whichever process that was and
/// however the first one then ended by itself: a container that lost a part of its work must not look like one that did it.
pub(super) fn exited(before: &ContainerState, status: &ExitStatus) -> ContainerState {
    let (exit_code, reason, message) = match (exit_code(status), status.oom_killed) {
        (OOM_KILLED, true) => (
            OOM_KILLED,
            "OOMKilled",
            "the container used more memory than it may have".to_owned(),
        ),
        (code, true) => (
            OOM_KILLED,
            "OOMKilled",
            format!(
                "a process of the container was killed when it used more memory than it may have; the container's \
                 first process then ended with {code}"
            ),
        ),
        (0, false) => (0, "Completed", String::new()),
        (code, false) => (code, "Error", String::new()),
    };
    let now = now_ns();
    let told = i64::try_from(status.exited_at_ns).unwrap_or(now);
    ContainerState {
        phase: ContainerPhase::Exited,
        // The guest's clock is believed as far as it can be right.
        finished_at_ns: told.clamp(before.started_at_ns.min(now), now),
        exit_code,
        reason: reason.to_owned(),
        message,
        guest_pid: 0,
        ..before.clone()
    }
}

fn ended_with_machine(before: &ContainerState, end: &MachineEnd) -> ContainerState {
    let (exit_code, reason, message) = match before.phase {
        ContainerPhase::Created => (
            137,
            "Error",
            "the pod was stopped before the container was started".to_owned(),
        ),
        _ => (
            end.exit_code(),
            end.reason(),
            format!("the pod's virtual machine ended: {end}"),
        ),
    };
    ContainerState {
        phase: ContainerPhase::Exited,
        finished_at_ns: now_ns(),
        exit_code,
        reason: reason.to_owned(),
        message,
        guest_pid: 0,
        ..before.clone()
    }
}

/// The exit code as shells count: 128 and the signal's number for a process that a signal ended.
pub(super) fn exit_code(status: &ExitStatus) -> i32 {
    match status.how {
        Some(How::Exited(code)) => i32::try_from(code & 0xff).unwrap_or(255),
        Some(How::Signaled(signal)) => 128 + i32::try_from(signal & 0x7f).unwrap_or(0),
        None => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> ContainerState {
        ContainerState {
            phase: ContainerPhase::Running,
            started_at_ns: 1000,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            guest_pid: 7,
        }
    }

    fn end(how: How, oom_killed: bool) -> (i32, String) {
        let status = ExitStatus {
            how: Some(how),
            oom_killed,
            ..ExitStatus::default()
        };
        let state = exited(&running(), &status);
        assert_eq!((state.phase, state.guest_pid), (ContainerPhase::Exited, 0));
        (state.exit_code, state.reason)
    }

    #[test]
    fn exits_signals_and_oom_kills_are_told_apart() {
        assert_eq!(end(How::Exited(0), false), (0, "Completed".to_owned()));
        assert_eq!(end(How::Exited(7), false), (7, "Error".to_owned()));
        assert_eq!(end(How::Signaled(15), false), (143, "Error".to_owned()));
        assert_eq!(end(How::Signaled(9), true), (137, "OOMKilled".to_owned()));
        assert_eq!(end(How::Exited(1), true), (137, "OOMKilled".to_owned()));
        assert_eq!(end(How::Exited(0), true), (137, "OOMKilled".to_owned()));
    }

    #[test]
    fn an_oom_kill_is_told_with_how_the_first_process_ended() {
        let message = |how| {
            let status = ExitStatus {
                how: Some(how),
                oom_killed: true,
                ..ExitStatus::default()
            };
            exited(&running(), &status).message
        };
        assert!(message(How::Exited(3)).ends_with("ended with 3"));
        assert!(!message(How::Signaled(9)).contains("137"));
    }

    #[test]
    fn a_guests_clock_is_believed_only_as_far_as_it_can_be_right() {
        let at = |exited_at_ns| {
            let status = ExitStatus {
                how: Some(How::Exited(0)),
                exited_at_ns,
                ..ExitStatus::default()
            };
            exited(&running(), &status).finished_at_ns
        };
        assert_eq!(at(5000), 5000);
        assert_eq!(at(0), 1000);
        assert!(at(u64::MAX) <= now_ns());
    }

    #[test]
    fn a_container_ends_with_its_machine() {
        let state = ended_with_machine(&running(), &MachineEnd::default());
        assert_eq!((state.exit_code, state.reason.as_str()), (137, "MachineKilled"));
        let created = ContainerState {
            phase: ContainerPhase::Created,
            ..running()
        };
        assert_eq!(
            ended_with_machine(&created, &MachineEnd::default()).exit_code,
            137
        );
    }
}
