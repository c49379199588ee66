//! What is done with containers: starting, signalling, waiting, removing. Creating one and running a further process
//! in one have files of their own.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::mount::{UnmountFlags, unmount};
use tokio::time::timeout;

use super::{
    create::rootfs_place,
    error::{ContainerError, step},
    launch::report::{Report, Reports},
    pod_init::PodInit,
    process::{ExitStatus, Process},
    state::{Container, Exec, Phase, Starter, locked},
    table::Table,
};
use crate::{
    init::{offload::offload, reaper::Reaper},
    io::registry::Registry,
    storage::{layers::Layers, tree},
    sys::signals::LARGEST,
};

/// How long killed processes may take to be gone before a container is not removable.
const REMOVAL: Duration = Duration::from_secs(20);

/// The containers, and what they need of the agent.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Collects their processes.
    pub reaper: Reaper,
    /// Finds their streams.
    pub registry: Registry,
    /// Mounts their layers.
    pub layers: Layers,
    /// Knows them by name.
    pub table: Table,
    /// Process 1 of the pod's process namespace, once a container asked for it.
    pub pod_init: Arc<Mutex<Option<PodInit>>>,
}

impl Engine {
    /// Without containers.
    pub fn new(reaper: Reaper, registry: Registry) -> Self {
        Self {
            reaper,
            registry,
            layers: Layers::default(),
            table: Table::default(),
            pod_init: Arc::default(),
        }
    }

    /// Starts the program of a created container. Gives its process id and when it was started.
    pub async fn start(&self, id: &str) -> Result<(u32, u64), ContainerError> {
        let container = self.table.get(id)?;
        let _changing = container.changing.lock().await;
        container.must_be(Phase::Created, "started")?;
        let starter = locked(&container.starter).take();
        let Some(Starter { gate, reports }) = starter else {
            return Err(container.wrong_state("started"));
        };
        let started_at_ns = container.first.mark_started();
        open_gate(gate);
        program_runs(reports).await?;
        Ok((container.first.pid(), started_at_ns))
    }

    /// Sends a signal to a process: a container's first where `exec` is empty.
    pub fn signal(&self, id: &str, exec: &str, number: u32, all: bool) -> Result<(), ContainerError> {
        const SIGKILL: u32 = libc::SIGKILL.cast_unsigned();
        if !(1..=LARGEST).contains(&number) {
            return Err(ContainerError::BadSignal(number));
        }
        let container = self.table.get(id)?;
        let with_process = |process: &Process| {
            if all && number != SIGKILL {
                return Err(ContainerError::NotKill(number));
            }
            if all {
                return Ok(process.kill_group()?);
            }
            process.signal(number).map_err(step("send the signal"))
        };
        if !exec.is_empty() {
            return with_process(&*container.exec(exec)?);
        }
        if number != SIGKILL && container.phase() == Phase::Created {
            return Err(container.wrong_state("sent a signal other than SIGKILL"));
        }
        with_process(&container.first)
    }

    /// Waits for the end of a process and of its output.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<ExitStatus, ContainerError> {
        let finished = self.with_process(id, exec, Process::finished)?;
        // The container may be removed meanwhile, and nothing of it is to be held for those who wait.
        finished
            .await
            .ok_or_else(|| ContainerError::NotFound(id.to_owned()))
    }

    /// Lets go of a process that has ended.
    pub fn acknowledge(&self, id: &str, exec: &str) -> Result<(), ContainerError> {
        let container = self.table.get(id)?;
        if exec.is_empty() {
            if container.phase() != Phase::Stopped {
                return Err(container.wrong_state("acknowledged"));
            }
            container.first.close_streams();
            return Ok(());
        }
        let process = container.exec(exec)?;
        if process.progress().status().is_none() {
            return Err(ContainerError::StillRuns {
                container: id.to_owned(),
                exec: exec.to_owned(),
            });
        }
        locked(&container.execs).remove(exec);
        Ok(())
    }

    /// Sets the window of a process's terminal.
    pub fn resize(&self, id: &str, exec: &str, rows: u16, columns: u16) -> Result<(), ContainerError> {
        self.with_process(id, exec, |process| match process.terminal() {
            Some(terminal) => terminal
                .resize(rows, columns)
                .map_err(step("set the window of the terminal")),
            None => Err(ContainerError::NoTerminal {
                container: id.to_owned(),
                exec: exec.to_owned(),
            }),
        })?
    }

    /// Kills what runs of a container and frees all it holds. One that is not there is no error.
    pub async fn remove(&self, id: &str) -> Result<(), ContainerError> {
        let container = match self.table.get(id) {
            Ok(container) => container,
            Err(ContainerError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let _changing = container.changing.lock().await;
        if !self.table.holds(&container) {
            return Ok(());
        }
        drop(locked(&container.starter).take());
        container.cgroup.kill()?;
        let gone = async {
            container.first.exited().await;
            let execs: Vec<Arc<Process>> = locked(&container.execs)
                .values()
                .filter_map(|exec| match exec {
                    Exec::Started(process) => Some(process.clone()),
                    Exec::Starting => None,
                })
                .collect();
            for exec in execs {
                exec.exited().await;
            }
            container.cgroup.emptied().await
        };
        timeout(REMOVAL, gone)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(step("kill every process of the container"))?;

        self.registry.remove_container(id);
        locked(&container.execs).clear();
        let root = locked(&container.root).take();
        let (place, is_mounted) = (rootfs_place(id), root.is_some());
        let writable = container.writable.directory().to_owned();
        // All in a child process: the kernel forgets the files of a mount one by one, and a tree may be large.
        offload(&self.reaper, move || {
            if is_mounted {
                unmount(&place, UnmountFlags::DETACH)?;
            }
            match fs::remove_dir(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            tree::remove(&writable).map(|()| Vec::new())
        })
        .await
        .map_err(step("remove the container's root file system and writable layer"))?;
        if let Some(root) = root {
            root.forget();
        }
        container.cgroup.remove()?;
        self.table.forget(id);
        Ok(())
    }

    /// Kills every process of every container.
    pub fn kill_all(&self) -> Result<(), ContainerError> {
        for container in self.table.all() {
            container.cgroup.kill()?;
        }
        Ok(())
    }

    fn with_process<R>(
        &self,
        id: &str,
        exec: &str,
        action: impl FnOnce(&Process) -> R,
    ) -> Result<R, ContainerError> {
        let container: Arc<Container> = self.table.get(id)?;
        if exec.is_empty() {
            return Ok(action(&container.first));
        }
        Ok(action(&*container.exec(exec)?))
    }
}

/// Lets a prepared process become its program. One that was killed meanwhile has closed its side, which shows in its
/// reports.
fn open_gate(gate: OwnedFd) {
    let _killed = File::from(gate).write_all(&[1]);
}

/// Waits until a child has become its program.
pub(super) async fn program_runs(mut reports: Reports) -> Result<(), ContainerError> {
    let mut executing = false;
    loop {
        match reports.next().await.map_err(step("hear of the process"))? {
            Some(Report::Failed(failure)) => return Err(failure.into()),
            Some(Report::Executing) => executing = true,
            Some(Report::Prepared) => {}
            None if executing => return Ok(()),
            None => return Err(ContainerError::DiedEarly),
        }
    }
}
