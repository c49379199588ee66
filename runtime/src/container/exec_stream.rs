//! Exec: a command beside a container's first process, with a client at its standard streams.
//!
//! A client that goes away takes its command with it: everything that the command started is killed.

use std::{convert::Infallible, future::pending, io, sync::Arc};

use bulkhead_proto::{
    agent::{ExecProcessRequest, ExitStatus, ProcessSpec, StreamHeader, StreamKind},
    cri::ExecRequest,
};
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio_util::task::TaskTracker;

use super::{
    Container, ContainerError, agent_error,
    attach::{check_streams, resize, running},
    exec::{Exec, KillOnDrop, check_command},
    exit::exit_code,
    streams::{OutputStream, pass_on},
};
use crate::{
    daemon::Daemon,
    logs::Stream,
    sandbox::stream::AgentStream,
    store::ContainerPhase,
    streaming::{
        Job,
        flow::{Inlet, Outlet},
        remote_command::{Command, CommandIo, Wanted},
    },
};

/// Checks a request and makes of it what the streaming server is to do.
///
/// # Errors
///
/// [`ContainerError`].
pub fn job(daemon: &Daemon, container: &Arc<Container>, request: ExecRequest) -> Result<Job, ContainerError> {
    check_command(&request.cmd)?;
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check_streams(wanted)?;
    let machine = running(daemon, container, "executed in")?;
    let command = ExecCommand {
        exec: Exec::new(container, machine),
        args: request.cmd,
        wanted,
        tasks: daemon.streaming.tasks().clone(),
    };
    Ok(Job::Exec(wanted, Box::new(command)))
}

struct ExecCommand {
    exec: Exec,
    args: Vec<String>,
    wanted: Wanted,
    /// What is waited for when the daemon ends.
    tasks: TaskTracker,
}

impl Command for ExecCommand {
    fn run(self: Box<Self>, io: CommandIo) -> BoxFuture<'static, Result<i32, String>> {
        Box::pin(async move { self.serve(io).await.map_err(|error| error.to_string()) })
    }
}

impl ExecCommand {
    async fn serve(self, io: CommandIo) -> Result<i32, ContainerError> {
        let exec = self.exec.clone();
        if exec.container.phase() != ContainerPhase::Running {
            return Err(exec
                .container
                .wrong_state("executed in", "; only a running container can"));
        }
        let guard = KillOnDrop::new(&exec, &self.tasks);
        match self.run_with(io).await {
            Ok(status) => {
                guard.disarm();
                exec.acknowledge().await;
                Ok(exit_code(&status))
            }
            Err(error) => Err(exec.explained(error).await),
        }
    }

    /// Runs the command until it has ended and the client has all that it printed.
    async fn run_with(self, io: CommandIo) -> Result<ExitStatus, ContainerError> {
        let Self {
            exec, args, wanted, ..
        } = self;
        let stdout = Output::open(&exec, Stream::Stdout, io.stdout).await?;
        let stderr = Output::open(&exec, Stream::Stderr, io.stderr).await?;
        let stdin = match io.stdin {
            Some(client) => Some((open_stdin(&exec).await?, client)),
            None => None,
        };
        let request = ExecProcessRequest {
            container_id: exec.container.id.clone(),
            exec_id: exec.id.clone(),
            process: Some(ProcessSpec {
                args,
                env: wanted.tty.then(|| b"TERM=xterm".to_vec()).into_iter().collect(),
                terminal: wanted.tty,
                stdin: wanted.stdin,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
                ..ProcessSpec::default()
            }),
            inherit: true,
            timeout_ns: 0,
        };
        exec.start(request).await?;
        let ended = async {
            let waiting = async {
                let waited = exec.agent().wait_process(&exec.container.id, &exec.id).await;
                waited.map_err(agent_error(&exec.container))
            };
            let (status, (), ()) = tokio::try_join!(waiting, stdout.flow(&exec), stderr.flow(&exec))?;
            Ok(status)
        };
        let typing = async {
            match stdin {
                Some((stream, client)) => type_in(stream, client).await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = ended => ended,
            never = typing => match never {},
            never = resize(exec.agent(), &exec.container.id, &exec.id, io.sizes) => match never {},
            end = exec.machine.ended() => Err(exec.ended_with(&end)),
        }
    }
}

/// An output of the command on its way to the client, where that wants it.
struct Output(Option<(OutputStream, Outlet)>);

impl Output {
    async fn open(exec: &Exec, kind: Stream, client: Option<Outlet>) -> Result<Self, ContainerError> {
        Ok(Self(match client {
            Some(client) => Some((exec.open(kind).await?, client)),
            None => None,
        }))
    }

    async fn flow(self, exec: &Exec) -> Result<(), ContainerError> {
        match self.0 {
            Some((stream, client)) => {
                let passed = pass_on(stream, client).await;
                passed.map_err(|error| exec.stream_error(error))
            }
            None => Ok(()),
        }
    }
}

async fn open_stdin(exec: &Exec) -> Result<AgentStream, ContainerError> {
    let header = StreamHeader {
        container_id: exec.container.id.clone(),
        exec_id: exec.id.clone(),
        kind: StreamKind::Stdin.into(),
        ..StreamHeader::default()
    };
    AgentStream::open(exec.agent(), &header)
        .await
        .map_err(|source| ContainerError::Stream {
            id: exec.container.id.clone(),
            source,
        })
}

/// Gives a command what its client types, and closes its input behind the last of it. Waits for ever then: the agent closes
/// the connection, not the host.
async fn type_in(mut stream: AgentStream, mut client: Inlet) -> Infallible {
    let typed: io::Result<()> = async {
        while let Ok(Some(bytes)) = client.next().await {
            stream.write_all(&bytes).await?;
        }
        stream.shutdown().await
    }
    .await;
    if typed.is_err() {
        // A command that reads no more is no reason to hold the client's connection up.
        while let Ok(Some(_)) = client.next().await {}
    }
    pending().await
}
