//! Attach: a client at the standard streams of a container's first process, from then on.

use std::{convert::Infallible, future::pending, sync::Arc};

use bulkhead_proto::{agent::ResizeTerminalRequest, cri::AttachRequest};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::{
    Container, ContainerError,
    attachers::{PATIENCE, STREAMS},
    stdin::Input,
};
use crate::{
    daemon::Daemon,
    logs::Stream,
    refusal::Refusal,
    sandbox::{agent::Agent, machine::Machine},
    store::ContainerPhase,
    streaming::{
        Job,
        flow::{Broken, Inlet, Outlet},
        remote_command::{Command, CommandIo, Wanted, WindowSize},
    },
};

/// Checks a request and makes of it what the streaming server is to do.
///
/// # Errors
///
/// [`ContainerError`].
pub fn job(
    daemon: &Daemon,
    container: &Arc<Container>,
    request: &AttachRequest,
) -> Result<Job, ContainerError> {
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check_streams(wanted)?;
    let config = &container.config;
    if wanted.tty != config.tty {
        let (has, asks) = if config.tty {
            ("has a", "no")
        } else {
            ("has no", "a")
        };
        let reason = format!("the container {has} terminal and the request asks for {asks} terminal");
        return Err(Refusal::invalid("tty", reason).into());
    }
    if wanted.stdin && !config.stdin {
        let reason = "the container was made without stdin (ContainerConfig.stdin)";
        return Err(Refusal::invalid("stdin", reason).into());
    }
    let machine = running(daemon, container, "attached to")?;
    let attach = Attach {
        container: Arc::clone(container),
        machine,
        wanted,
    };
    Ok(Job::Attach(wanted, Box::new(attach)))
}

/// Refuses streams that are none or do not go together.
pub(super) fn check_streams(wanted: Wanted) -> Result<(), Refusal> {
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Refusal::invalid(
            "stdin, stdout, stderr",
            "none of them is asked for",
        ));
    }
    if wanted.tty && wanted.stderr {
        let reason = "a terminal has no stderr of its own; with tty, ask for stdout alone";
        return Err(Refusal::invalid("stderr", reason));
    }
    Ok(())
}

/// The machine of a running container.
pub(super) fn running(
    daemon: &Daemon,
    container: &Container,
    operation: &'static str,
) -> Result<Arc<Machine>, ContainerError> {
    if container.phase() != ContainerPhase::Running {
        return Err(container.wrong_state(operation, "; only a running container can"));
    }
    Ok(daemon.pods.find(&container.pod_id)?.machine()?)
}

/// Sets the window of a process's terminal to each size that the client tells, for ever.
pub(super) async fn resize(
    agent: &Agent,
    container: &str,
    exec: &str,
    mut sizes: watch::Receiver<Option<WindowSize>>,
) -> Infallible {
    loop {
        let size = *sizes.borrow_and_update();
        if let Some(WindowSize { width, height }) = size {
            let request = ResizeTerminalRequest {
                container_id: container.to_owned(),
                exec_id: exec.to_owned(),
                rows: height.into(),
                columns: width.into(),
            };
            if let Err(error) = agent.resize_terminal(request).await {
                tracing::debug!(container, exec, %error, "a terminal keeps its size");
            }
        }
        if sizes.changed().await.is_err() {
            return pending().await;
        }
    }
}

struct Attach {
    container: Arc<Container>,
    machine: Arc<Machine>,
    wanted: Wanted,
}

impl Command for Attach {
    fn run(self: Box<Self>, io: CommandIo) -> BoxFuture<'static, Result<i32, String>> {
        Box::pin(async move { self.serve(io).await.map_err(|error| error.to_string()) })
    }
}

impl Attach {
    /// Serves until the container ends, which is a success whatever its exit code.
    async fn serve(&self, io: CommandIo) -> Result<i32, ContainerError> {
        let container = &self.container;
        if container.phase() != ContainerPhase::Running {
            return Err(container.wrong_state("attached to", "; only a running container can"));
        }
        let streams = [
            self.wanted.stdout.then_some(Stream::Stdout),
            self.wanted.stderr.then_some(Stream::Stderr),
        ];
        let attached = container.attachers.attach(streams);
        let [stdout, stderr] = attached.ok_or_else(|| ContainerError::Crowded {
            id: container.id.clone(),
            most: STREAMS / streams.len(),
        })?;
        let printing = async {
            tokio::try_join!(pass_on(stdout, io.stdout), pass_on(stderr, io.stderr))?;
            container.exited().await;
            Ok(0)
        };
        let typing = async {
            if let Some(inlet) = io.stdin {
                self.take_input(inlet).await;
            }
            pending::<Infallible>().await
        };
        tokio::select! {
            printed = printing => printed.map_err(|Broken| ContainerError::FellBehind {
                id: container.id.clone(),
                seconds: PATIENCE.as_secs(),
            }),
            never = typing => match never {},
            never = resize(self.machine.agent(), &container.id, "", io.sizes) => match never {},
        }
    }

    async fn take_input(&self, mut inlet: Inlet) {
        let sender = self.container.stdin.sender(&self.container, &self.machine);
        // With the client's input ends the container's, also when the client just goes.
        let _once = self
            .container
            .config
            .stdin_once
            .then(|| EndOnDrop(sender.clone()));
        while let Ok(Some(bytes)) = inlet.next().await {
            // A process that reads no more is no reason to hold the client up.
            let _is_closed = sender.send(Input::Bytes(bytes)).await;
        }
    }
}

/// Gives a client what comes for it until that ends.
async fn pass_on(from: Option<Inlet>, to: Option<Outlet>) -> Result<(), Broken> {
    let (Some(mut from), Some(to)) = (from, to) else {
        return Ok(());
    };
    while let Some(bytes) = from.next().await? {
        to.send(bytes).await?;
    }
    to.finish().await;
    Ok(())
}

/// Closes a container's input behind the one client that may have it.
struct EndOnDrop(mpsc::Sender<Input>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let sender = self.0.clone();
        tokio::spawn(async move {
            let _is_closed = sender.send(Input::End).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_must_be_some_and_go_together() {
        let checked = |stdin, stdout, stderr, tty| {
            check_streams(Wanted {
                stdin,
                stdout,
                stderr,
                tty,
            })
        };
        assert!(checked(true, false, false, false).is_ok());
        assert!(checked(true, true, false, true).is_ok());
        for (refused, field) in [
            (checked(false, false, false, true), "stdin, stdout, stderr"),
            (checked(false, true, true, true), "stderr"),
        ] {
            let Err(Refusal::Invalid { field: told, .. }) = refused else {
                panic!("not refused as invalid");
            };
            assert_eq!(told, field);
        }
    }
}
