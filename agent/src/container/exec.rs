//! Starts a further process in a running container.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    create::resolve_user,
    engine::{Engine, program_runs},
    error::{ContainerError, step},
    launch::{
        ProcessPlan,
        exec::{self, ExecPlan},
        report::Reports,
    },
    process::{Process, Supervision},
    process_io::ProcessIo,
    spec::ProcessSpec,
    state::{Container, Phase, locked},
    user::ResolvedUser,
};
use crate::io::registry::ProcessName;

/// A process that is to be started.
#[derive(Debug)]
pub struct ExecRequest {
    /// Which process of which container.
    pub name: ProcessName,
    /// What it is.
    pub spec: ProcessSpec,
    /// Whether the first process's own stands in for what is left out.
    pub inherit: bool,
    /// After this everything that it started is killed.
    pub timeout: Option<Duration>,
}

impl Engine {
    /// Starts it. Gives its id and when it was started.
    pub async fn exec(&self, request: ExecRequest) -> Result<(u32, u64), ContainerError> {
        let container = self.table.get(&request.name.container)?;
        container.must_be(Phase::Running, "given a further process")?;
        let reservation = container.reserve_exec(&request.name.exec)?;
        let name = request.name.clone();
        match self.make_exec(&container, request) {
            Ok((process, reports)) => {
                program_runs(reports).await?;
                let started = (process.pid(), process.mark_started());
                reservation.fill(process);
                Ok(started)
            }
            Err(error) => {
                self.registry.drop_parked(&name);
                Err(error)
            }
        }
    }

    fn make_exec(
        &self,
        container: &Container,
        request: ExecRequest,
    ) -> Result<(Arc<Process>, Reports), ContainerError> {
        let ExecRequest {
            name,
            mut spec,
            inherit,
            timeout,
        } = request;
        let user = user_of(container, &spec, inherit)?;
        if inherit {
            spec.inherit(&container.spec);
        }
        let cgroup = Arc::new(container.cgroup.of_exec(&name.exec)?);
        let oom_kills_before = container.cgroup.oom_kills();
        let (exited, has_exited) = watch::channel(false);
        let io = ProcessIo::make(&spec, &container.devpts, user.uid, &has_exited)?;
        let plan = ExecPlan {
            process: ProcessPlan::new(&spec, user),
            first: container.first.pidfd(),
            streams: io.child,
        };
        let (child, reports) = exec::make(plan, &cgroup).map_err(|error| {
            // Its processes may have ended since it was looked at.
            match container.phase() {
                Phase::Running => step("start a process in the container")(error),
                _ => container.wrong_state("given a further process"),
            }
        })?;
        let end = self.reaper.track(child.pid);
        let process = Process::supervise(
            name,
            child,
            io.streams,
            io.terminal,
            &self.registry,
            Supervision {
                end,
                cgroup,
                ends_group: false,
                timeout,
                memory: container.cgroup.clone(),
                oom_kills_before,
                exited,
            },
        );
        Ok((Arc::new(process), reports))
    }
}

fn user_of(container: &Container, spec: &ProcessSpec, inherit: bool) -> Result<ResolvedUser, ContainerError> {
    if spec.user.is_none() && inherit {
        return Ok(container.user.clone());
    }
    match locked(&container.root).as_ref() {
        Some(root) => resolve_user(spec.user.as_ref(), root.path()),
        None => Err(ContainerError::NotFound(container.id.clone())),
    }
}
