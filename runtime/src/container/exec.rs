//! ExecSync: a command beside a container's first process, its output in memory.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{
    agent::{
        AcknowledgeExitRequest, ExecProcessRequest, ExitStatus, ProcessSpec, SignalProcessRequest, limits,
    },
    cri::ExecSyncResponse,
};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use super::{
    Container, ContainerError, agent_error,
    exit::exit_code,
    signal,
    streams::{OutputStream, collect},
};
use crate::{
    daemon::Daemon,
    identity::new_exec_id,
    logs::Stream,
    refusal::Refusal,
    sandbox::{
        agent::Agent,
        machine::{Machine, MachineEnd},
    },
    store::ContainerPhase,
};

/// Most bytes of each stream that are returned; what comes beyond is let go.
const OUTPUT_BYTES: usize = 16 << 20;

/// How long is waited for the end of what was killed. The agent waits for its output as well, which nobody reads any more.
const KILLED: Duration = Duration::from_secs(5);

/// Longest timeout that is counted: a century.
const LONGEST_S: u64 = 100 * 365 * 86400;

/// Runs a command in a running container and waits for its end, at most `timeout_s` seconds, for 0 without bound. When the
/// future is dropped, the command is killed.
///
/// # Errors
///
/// [`ContainerError::Timeout`] when the time was over: then all that the command started is killed.
pub async fn exec_sync(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    command: Vec<String>,
    timeout_s: i64,
) -> Result<ExecSyncResponse, ContainerError> {
    check_command(&command)?;
    let seconds = u64::try_from(timeout_s)
        .map_err(|_| Refusal::invalid("timeout", format!("{timeout_s} seconds are less than none")))?;
    if container.phase() != ContainerPhase::Running {
        return Err(container.wrong_state("executed in", "; only a running container can"));
    }
    let machine = daemon.pods.find(&container.pod_id)?.machine()?;
    let limit = Duration::from_secs(seconds.min(LONGEST_S));

    let exec = Exec::new(container, machine);
    let guard = KillOnDrop::new(&exec, daemon.streaming.tasks());
    let running = exec.run(command, limit);
    let ran = if limit.is_zero() {
        running.await
    } else {
        // The agent ends it in time; a guest that does not is not waited for.
        let bound = limit + daemon.config.timeouts.agent();
        let timeout = ContainerError::Timeout {
            id: container.id.clone(),
            seconds: timeout_s,
        };
        tokio::time::timeout(bound, running).await.unwrap_or(Err(timeout))
    };
    let (status, stdout, stderr) = match ran {
        Ok(ended) => ended,
        Err(error) => return Err(exec.explained(error).await),
    };
    guard.disarm();
    exec.acknowledge().await;
    if status.timed_out {
        return Err(ContainerError::Timeout {
            id: container.id.clone(),
            seconds: timeout_s,
        });
    }
    Ok(ExecSyncResponse {
        stdout,
        stderr,
        exit_code: exit_code(&status),
    })
}

/// Refuses what cannot be a command.
pub(super) fn check_command(command: &[String]) -> Result<(), Refusal> {
    if command.is_empty() || command.iter().any(|word| word.contains('\0')) {
        return Err(Refusal::invalid("cmd", "it is empty or contains NUL"));
    }
    if command.len() > limits::LIST_ENTRIES || command.iter().any(|word| word.len() >= limits::ARGUMENT_BYTES)
    {
        return Err(Refusal::invalid("cmd", "it is longer than Linux takes"));
    }
    Ok(())
}

/// A process beside a container's first one.
#[derive(Clone, Debug)]
pub(super) struct Exec {
    pub(super) container: Arc<Container>,
    pub(super) machine: Arc<Machine>,
    pub(super) id: String,
    /// Held while the agent starts it.
    starting: Arc<Mutex<()>>,
}

impl Exec {
    /// One that is not started yet.
    pub(super) fn new(container: &Arc<Container>, machine: Arc<Machine>) -> Self {
        Self {
            container: Arc::clone(container),
            machine,
            id: new_exec_id(),
            starting: Arc::default(),
        }
    }

    /// Starts it. That goes on when this future is dropped, and only when it is done is the process ended: an order to end it
    /// that came before it was there would end nothing.
    pub(super) async fn start(&self, request: ExecProcessRequest) -> Result<(), ContainerError> {
        let exec = self.clone();
        let turn = Arc::clone(&self.starting).lock_owned().await;
        let started = tokio::spawn(async move {
            let started = exec.agent().exec_process(request).await;
            drop(turn);
            started.map(drop).map_err(agent_error(&exec.container))
        });
        started.await.unwrap_or(Err(ContainerError::Interrupted))
    }

    async fn run(
        &self,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), ContainerError> {
        let stdout = self.open(Stream::Stdout).await?;
        let stderr = self.open(Stream::Stderr).await?;
        let request = ExecProcessRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
            process: Some(ProcessSpec {
                args: command,
                stdout: true,
                stderr: true,
                ..ProcessSpec::default()
            }),
            inherit: true,
            timeout_ns: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
        };
        self.start(request).await?;
        let ended = async {
            tokio::try_join!(
                async {
                    let waited = self.agent().wait_process(&self.container.id, &self.id).await;
                    waited.map_err(agent_error(&self.container))
                },
                async {
                    collect(stdout, OUTPUT_BYTES)
                        .await
                        .map_err(|error| self.stream_error(error))
                },
                async {
                    collect(stderr, OUTPUT_BYTES)
                        .await
                        .map_err(|error| self.stream_error(error))
                },
            )
        };
        tokio::select! {
            ended = ended => ended,
            end = self.machine.ended() => Err(self.ended_with(&end)),
        }
    }

    /// The reason of a failure, where that is the end of the machine.
    pub(super) async fn explained(&self, error: ContainerError) -> ContainerError {
        let end = match &error {
            ContainerError::Agent { source, .. } => self.machine.end_behind(source).await,
            ContainerError::Stream { .. } => self.machine.end(),
            _ => None,
        };
        end.map_or(error, |end| self.ended_with(&end))
    }

    pub(super) fn ended_with(&self, end: &MachineEnd) -> ContainerError {
        self.stream_error(std::io::Error::other(format!(
            "the pod's virtual machine ended: {end}"
        )))
    }

    pub(super) async fn open(&self, stream: Stream) -> Result<OutputStream, ContainerError> {
        OutputStream::open(self.agent(), &self.container.id, &self.id, stream, 0)
            .await
            .map_err(|source| ContainerError::Stream {
                id: self.container.id.clone(),
                source,
            })
    }

    pub(super) fn stream_error(&self, error: std::io::Error) -> ContainerError {
        ContainerError::Stream {
            id: self.container.id.clone(),
            source: error.into(),
        }
    }

    pub(super) fn agent(&self) -> &Agent {
        self.machine.agent()
    }

    pub(super) async fn acknowledge(&self) {
        let request = AcknowledgeExitRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
        };
        if let Err(error) = self.agent().acknowledge_exit(request).await {
            tracing::debug!(container = %self.container.id, exec = %self.id, %error,
                "the agent was not told that an exit is known");
        }
    }

    /// Ends what nobody waits for any more.
    async fn abandon(self) {
        let _started_or_not = self.starting.lock().await;
        let request = SignalProcessRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
            signal: signal::KILL,
            all: true,
        };
        if let Err(error) = self.agent().signal_process(request).await {
            tracing::debug!(container = %self.container.id, exec = %self.id, %error, "nothing of an exec was left to end");
        }
        let waited = self.agent().wait_process(&self.container.id, &self.id);
        let _ = tokio::time::timeout(KILLED, waited).await;
        self.acknowledge().await;
    }
}

/// Kills an exec whose caller went away or lost patience.
pub(super) struct KillOnDrop {
    exec: Option<Exec>,
    /// What is waited for when the daemon ends.
    tasks: TaskTracker,
}

impl KillOnDrop {
    /// From now on, whoever holds it answers for the process.
    pub(super) fn new(exec: &Exec, tasks: &TaskTracker) -> Self {
        Self {
            exec: Some(exec.clone()),
            tasks: tasks.clone(),
        }
    }

    pub(super) fn disarm(mut self) {
        self.exec = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.take() {
            self.tasks.spawn(exec.abandon());
        }
    }
}
