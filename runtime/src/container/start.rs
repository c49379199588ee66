//! StartContainer: opens the log and the streams, then lets the agent start the process.

use std::sync::Arc;

use bulkhead_proto::agent::{RemoveContainerRequest, StartContainerRequest};
use tokio::task::JoinHandle;

use super::{
    Container, ContainerError, ContainerState, OpenLog, agent_error, exit,
    streams::{OutputStream, pump},
};
use crate::{
    daemon::Daemon,
    identity::now_ns,
    logs::{
        LogWriter, Stream,
        position::{LogPaths, Offsets},
    },
    sandbox::{Pod, machine::Machine},
    store::ContainerPhase,
};

/// Exit code and reason of a container whose process could not be started. For this reason alone the kubelet does not take the
/// end of the log for the message of a container that wrote none: there is none to take.
const START_FAILED: i32 = 128;
const CANNOT_RUN: &str = "ContainerCannotRun";

/// What carries a running container's output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) pumps: Vec<JoinHandle<()>>,
    pub(super) writer: LogWriter,
}

/// Starts a created container.
///
/// # Errors
///
/// [`ContainerError`]. A container that could not be started is exited, and its status says why; one in another state is
/// left as it is.
pub async fn start(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let _turn = container.turns.take().await;
    daemon.containers.find(&container.id)?;
    if container.phase() != ContainerPhase::Created {
        return Err(container.wrong_state("started", "; a container starts once, create another"));
    }
    let pod = daemon.pods.find(&container.pod_id)?;
    let machine = pod.machine()?;
    match start_process(&pod, container, &machine).await {
        Ok((output, state)) => {
            container.show_running(daemon, state).await;
            tracing::info!(pod = %pod.id, container = %container.id, "started a container");
            tokio::spawn(exit::watch(
                Arc::clone(daemon),
                Arc::clone(container),
                machine,
                output,
            ));
            Ok(())
        }
        Err(error) => {
            tracing::warn!(pod = %pod.id, container = %container.id, %error, "a container could not be started");
            let now = now_ns();
            let failed = ContainerState {
                phase: ContainerPhase::Exited,
                started_at_ns: 0,
                finished_at_ns: now,
                exit_code: START_FAILED,
                reason: CANNOT_RUN.to_owned(),
                message: error.to_string(),
                guest_pid: 0,
            };
            exit::show(daemon, container, failed).await;
            Err(error)
        }
    }
}

async fn start_process(
    pod: &Pod,
    container: &Arc<Container>,
    machine: &Arc<Machine>,
) -> Result<(Output, ContainerState), ContainerError> {
    let output = open_output(pod, container, machine).await?;
    let request = StartContainerRequest {
        container_id: container.id.clone(),
    };
    match machine.agent().start_container(request).await {
        Ok(answer) => {
            let state = ContainerState {
                phase: ContainerPhase::Running,
                started_at_ns: now_ns(),
                guest_pid: answer.pid,
                ..container.state()
            };
            Ok((output, state))
        }
        Err(error) => {
            output.pumps.iter().for_each(JoinHandle::abort);
            container.set_log(None);
            // One that did not answer in time may have started it.
            let request = RemoveContainerRequest {
                container_id: container.id.clone(),
            };
            if let Err(error) = machine.agent().remove_container(request).await {
                tracing::warn!(container = %container.id, %error, "what was started may be left in the guest");
            }
            Err(agent_error(container)(error))
        }
    }
}

/// Opens the log and the streams, and lets them flow. A log that an earlier daemon wrote is gone on with.
pub(super) async fn open_output(
    pod: &Pod,
    container: &Arc<Container>,
    machine: &Arc<Machine>,
) -> Result<Output, ContainerError> {
    let paths = LogPaths {
        log: container.log_path.clone(),
        note: pod.paths.log_position(&container.id),
    };
    let id = container.id.clone();
    let runtime = tokio::runtime::Handle::current();
    let opened = tokio::task::spawn_blocking(move || {
        let _entered = runtime.enter();
        LogWriter::open(paths, &id)
    });
    let (writer, offsets) = opened
        .await
        .map_err(|_| ContainerError::Interrupted)?
        .map_err(|source| ContainerError::Log {
            id: container.id.clone(),
            source,
        })?;

    let mut pumps = Vec::new();
    let streams: &[Stream] = if container.config.tty {
        &[Stream::Stdout]
    } else {
        &[Stream::Stdout, Stream::Stderr]
    };
    let mut opened = Vec::new();
    for kind in streams {
        let offset = offset(offsets, *kind);
        let stream = OutputStream::open(machine.agent(), &container.id, "", *kind, offset)
            .await
            .map_err(|source| ContainerError::Stream {
                id: container.id.clone(),
                source,
            })?;
        opened.push((*kind, stream));
    }
    for (kind, stream) in opened {
        let input = writer.input(kind);
        pumps.push(tokio::spawn(pump(
            Arc::clone(machine),
            container.id.clone(),
            kind,
            stream,
            input,
            Arc::clone(&container.attachers),
        )));
    }
    container.set_log(Some(OpenLog {
        reopener: writer.reopener(),
        give_up: writer.give_up(),
        condition: writer.condition(),
    }));
    Ok(Output { pumps, writer })
}

fn offset(offsets: Offsets, stream: Stream) -> u64 {
    match stream {
        Stream::Stdout => offsets.stdout,
        Stream::Stderr => offsets.stderr,
    }
}
