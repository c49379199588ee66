//! A pod's virtual machine, as the daemon holds it: its process, its control socket and its agent.
//!
//! The daemon makes every file and socket of a machine and hands them over open, so the VMM needs no path. The process is no
//! part of the daemon: it goes on when the daemon ends, and is found again by its number, start time and boot.

mod end;
mod launch;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bulkhead_proto::agent::HelloResponse;
use bulkhead_vmm::{
    config::DiskAccess,
    control::{
        client::{Client, ControlError},
        protocol::MachineState,
    },
};
use rustix::process::Signal;
use tokio::sync::watch;

use super::{
    agent::{Agent, AgentError},
    doorbell::{self, DoorbellError},
    paths::{PodPaths, SocketPath},
    process::{Process, ProcessIdentity},
};
use crate::network::GuestInterface;

pub use end::MachineEnd;
pub use launch::MachinePlan;
pub(super) use launch::make_directories;

/// Serial of the disk that holds what a pod's containers write.
pub const SCRATCH_SERIAL: &str = "scratch";

/// Between the closing of a machine's sockets and its end being known; long, for a host that swaps.
const MOMENT: Duration = Duration::from_secs(5);

/// How long a killed process may take to end.
const KILL: Duration = Duration::from_secs(10);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file that it is made of cannot be had.
    #[error("cannot {action} {path}: {source}{}", remedy(action))]
    File {
        /// What was done with it.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Its process cannot be started or watched.
    #[error("the process of the virtual machine cannot be handled: {0}")]
    Process(#[source] io::Error),
    /// It ended before its agent answered.
    #[error("the virtual machine ended before its agent answered: {0}")]
    Ended(Arc<MachineEnd>),
    /// It runs, and its agent does not answer.
    #[error(
        "the agent in the virtual machine did not answer within {} s{}; if the host is slow, raise `timeouts.boot_seconds`",
        after.as_secs(), end::shown(console)
    )]
    Silent {
        /// How long was waited.
        after: Duration,
        /// The last lines of the guest's kernel log.
        console: Vec<String>,
    },
    /// What the guest said first is not what an agent says.
    #[error("the guest of the virtual machine did not come up: {0}")]
    Doorbell(#[from] DoorbellError),
    /// Its agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Its control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It was killed and does not end.
    #[error(
        "process {pid} of the virtual machine does not end though it was killed; the host's kernel holds it"
    )]
    Unkillable {
        /// The process.
        pid: u32,
    },
    /// What answers is not the machine that was looked for.
    #[error("the control socket of the virtual machine belongs to {0:?}")]
    Another(String),
}

fn remedy(action: &str) -> &'static str {
    match action {
        "open the guest's kernel" => "; build one with hack/build, or set `vm.kernel`",
        "open the guest's initramfs" => "; build one with hack/build, or set `vm.initramfs`",
        "start" => "; build it with hack/build, or set `vm.vmm`",
        _ => "",
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    process: Arc<Process>,
    control: PathBuf,
    agent: Agent,
    ended: watch::Receiver<Option<Arc<MachineEnd>>>,
    console: PathBuf,
    timeout: Duration,
}

impl Machine {
    /// Starts the machine: its guest begins to boot. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; then there is no process.
    pub async fn start(plan: MachinePlan) -> Result<Self, MachineError> {
        let paths = plan.paths.clone();
        let timeout = plan.timeout;
        let child = tokio::task::spawn_blocking(move || launch::launch(plan))
            .await
            .map_err(|panic| MachineError::Process(io::Error::other(panic)))??;
        let process = ProcessIdentity::of(child.id()).and_then(Process::hold);
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                // It may have ended already: then its report says why, else it must not stay.
                return Err(
                    end::of_child(child, &paths).map_or(MachineError::Process(error), |end| {
                        MachineError::Ended(Arc::new(end))
                    }),
                );
            }
        };
        Ok(Self::held(process, Some(child), &paths, timeout))
    }

    /// Finds a running machine again: its process lives and its control socket answers with its name. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// [`MachineError`] where there is no such machine any more.
    pub async fn find(
        name: &str,
        identity: ProcessIdentity,
        paths: &PodPaths,
        timeout: Duration,
    ) -> Result<(Self, MachineState), MachineError> {
        let process = Process::hold(identity).map_err(MachineError::Process)?;
        let machine = Self::held(process, None, paths, timeout);
        let state = machine.control(Client::state).await?;
        if state.name != name {
            return Err(MachineError::Another(state.name));
        }
        Ok((machine, state))
    }

    fn held(
        process: Process,
        child: Option<std::process::Child>,
        paths: &PodPaths,
        timeout: Duration,
    ) -> Self {
        let process = Arc::new(process);
        let (sender, ended) = watch::channel(None);
        tokio::spawn(end::watch(Arc::clone(&process), child, paths.clone(), sender));
        Self {
            process,
            control: paths.control(),
            agent: Agent::new(paths.vsock(), timeout),
            ended,
            console: paths.console(),
            timeout,
        }
    }

    /// Waits until the agent says hello.
    ///
    /// # Errors
    ///
    /// [`MachineError`] as soon as the machine ends, or when the time is over. The machine is not killed then.
    pub async fn wait_for_agent(&self, after: Duration) -> Result<HelloResponse, MachineError> {
        let socket = SocketPath::new(self.agent.socket()).map_err(|source| MachineError::File {
            action: "use",
            path: self.agent.socket().clone(),
            source,
        })?;
        tokio::select! {
            biased;
            hello = doorbell::wait(socket.get()) => match hello {
                Ok(hello) => Ok(hello),
                Err(error) => {
                    // Its sockets close a moment before its end is known.
                    match tokio::time::timeout(MOMENT, self.ended()).await {
                        Ok(end) => Err(MachineError::Ended(end)),
                        Err(_) => Err(error.into()),
                    }
                }
            },
            end = self.ended() => Err(MachineError::Ended(end)),
            () = tokio::time::sleep(after) => {
                Err(MachineError::Silent { after, console: super::console::last_lines(&self.console, 5) })
            }
        }
    }

    /// Its agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its process.
    pub fn identity(&self) -> &ProcessIdentity {
        self.process.identity()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Arc<MachineEnd> {
        let mut ended = self.ended.clone();
        // The sender is dropped only after it has sent.
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }

    /// Whether a call of its agent failed because the machine ended: its sockets close a moment before its end is known.
    pub async fn end_behind(&self, error: &AgentError) -> Option<Arc<MachineEnd>> {
        match error {
            AgentError::Unreachable { .. } => tokio::time::timeout(MOMENT, self.ended()).await.ok(),
            _ => self.end(),
        }
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<Arc<MachineEnd>> {
        self.ended.borrow().clone()
    }

    /// Puts a read-only disk on the bus.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub async fn add_disk(&self, serial: String, segments: Vec<(OwnedFd, u64)>) -> Result<(), ControlError> {
        self.control(move |client| {
            let segments: Vec<_> = segments
                .iter()
                .map(|(file, length)| (file.as_fd(), *length))
                .collect();
            client.add_disk(&serial, DiskAccess::ReadOnly, &segments)
        })
        .await
    }

    /// Puts a network interface on the bus.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub async fn add_net(&self, interface: GuestInterface) -> Result<(), ControlError> {
        self.control(move |client| {
            // No interface of Linux has packets of more, and the guest takes its own from the agent.
            let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
            let taps: Vec<_> = interface.taps.iter().map(AsFd::as_fd).collect();
            client.add_net(interface.mac.to_string(), mtu, &taps)
        })
        .await
    }

    /// How the VMM sees it.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub async fn state(&self) -> Result<MachineState, ControlError> {
        self.control(Client::state).await
    }

    /// Kills it and waits until its process is gone.
    ///
    /// # Errors
    ///
    /// [`MachineError::Unkillable`].
    pub async fn kill(&self) -> Result<(), MachineError> {
        self.process.signal(Signal::KILL);
        match tokio::time::timeout(KILL, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MachineError::Unkillable {
                pid: self.identity().pid,
            }),
        }
    }

    async fn control<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let path = self.control.clone();
        let timeout = self.timeout;
        let answer = tokio::task::spawn_blocking(move || {
            let path = SocketPath::new(&path).map_err(ControlError::Unreachable)?;
            request(&Client::connect(path.get(), timeout)?)
        });
        answer
            .await
            .unwrap_or_else(|panic| Err(ControlError::Unreachable(io::Error::other(panic))))
    }
}
