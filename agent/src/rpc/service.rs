//! The control service.
//!
//! What changes the guest runs in a task of its own: a host that hangs up in the middle of a call cancels the call, and
//! not the change, which is then seen whole by whoever asks next.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bulkhead_proto::agent::{self, agent_server::Agent};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::{answers, bounds::Bounded, status::Coded};
use crate::{
    container::{
        engine::Engine,
        exec::ExecRequest,
        sandbox::Sandbox,
        spec::{ContainerSpec, ProcessSpec, Resources},
    },
    init::{clock, log},
    io::registry::ProcessName,
    network::configure,
    stats,
    sys::entropy,
};

/// Least entropy that a reseeding takes, in bytes.
const LEAST_ENTROPY: usize = 32;

/// The service and what it works on.
#[derive(Clone, Debug)]
pub struct AgentService {
    engine: Engine,
    sandbox: Arc<Mutex<SandboxState>>,
    started_ns: u64,
    shutdown: Arc<Notify>,
}

/// How far the pod is.
#[derive(Debug, Default)]
enum SandboxState {
    #[default]
    Unconfigured,
    Configuring,
    Configured(Arc<Sandbox>),
}

type Answer<T> = Result<Response<T>, Status>;

impl AgentService {
    /// A service for `engine`; `shutdown` is told when the machine shall end.
    pub fn new(engine: Engine, started_ns: u64, shutdown: Arc<Notify>) -> Self {
        Self {
            engine,
            sandbox: Arc::default(),
            started_ns,
            shutdown,
        }
    }

    async fn configure_pod(&self, request: agent::ConfigureSandboxRequest) -> Result<(), Status> {
        {
            let mut state = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
            if !matches!(*state, SandboxState::Unconfigured) {
                return Err(Status::failed_precondition(
                    "the pod is configured already; a guest serves one pod for its life",
                ));
            }
            *state = SandboxState::Configuring;
        }
        let result = Sandbox::configure(&request, &self.engine.reaper).await;
        let mut state = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(sandbox) => {
                *state = SandboxState::Configured(Arc::new(sandbox));
                Ok(())
            }
            Err(error) => {
                *state = SandboxState::Unconfigured;
                Err(error.status())
            }
        }
    }

    fn configured(&self) -> Result<Arc<Sandbox>, Status> {
        match &*self.sandbox.lock().unwrap_or_else(PoisonError::into_inner) {
            SandboxState::Configured(sandbox) => Ok(sandbox.clone()),
            _ => Err(Status::failed_precondition(
                "the pod is not configured; ConfigureSandbox comes before containers",
            )),
        }
    }
}

/// Takes a request within its bounds.
fn checked<T: Bounded>(request: Request<T>) -> Result<T, Status> {
    let request = request.into_inner();
    request.check().map_err(|error| error.status())?;
    Ok(request)
}

/// Runs a change to its end whatever becomes of the caller.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Status::internal(format!("the agent gave the change up: {error}"))))
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn hello(&self, request: Request<agent::HelloRequest>) -> Answer<agent::HelloResponse> {
        // The host decides whether it can speak this version; there is no older one to fall back to.
        let _newest = request.into_inner().protocol_version;
        Ok(Response::new(answers::hello(self.started_ns)))
    }

    async fn configure_sandbox(
        &self,
        request: Request<agent::ConfigureSandboxRequest>,
    ) -> Answer<agent::ConfigureSandboxResponse> {
        let request = checked(request)?;
        let service = self.clone();
        to_its_end(async move { service.configure_pod(request).await }).await?;
        Ok(Response::new(agent::ConfigureSandboxResponse {}))
    }

    async fn configure_network(
        &self,
        request: Request<agent::ConfigureNetworkRequest>,
    ) -> Answer<agent::ConfigureNetworkResponse> {
        configure::configure(&checked(request)?, &self.engine.reaper)
            .await
            .map_err(|error| error.status())?;
        Ok(Response::new(agent::ConfigureNetworkResponse {}))
    }

    async fn reseed(&self, request: Request<agent::ReseedRequest>) -> Answer<agent::ReseedResponse> {
        let request = request.into_inner();
        let length = request.entropy.len();
        if !(LEAST_ENTROPY..=entropy::MOST_BYTES).contains(&length) {
            return Err(Status::invalid_argument(format!(
                "entropy has {length} bytes; {LEAST_ENTROPY} to {} are taken",
                entropy::MOST_BYTES
            )));
        }
        entropy::add_and_reseed(&request.entropy).map_err(|error| {
            Status::internal(format!("cannot reseed the random number generator: {error}"))
        })?;
        clock::set_realtime_ns(request.realtime_ns)
            .map_err(|error| Status::internal(format!("cannot set the clock: {error}")))?;
        Ok(Response::new(agent::ReseedResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<agent::CreateContainerRequest>,
    ) -> Answer<agent::CreateContainerResponse> {
        let spec = ContainerSpec::parse(checked(request)?).map_err(|error| error.status())?;
        let sandbox = self.configured()?;
        let engine = self.engine.clone();
        let user = to_its_end(async move {
            let created = engine.create(spec, &sandbox).await;
            created.map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(agent::CreateContainerResponse {
            user: Some(answers::user(user)),
        }))
    }

    async fn start_container(
        &self,
        request: Request<agent::StartContainerRequest>,
    ) -> Answer<agent::StartContainerResponse> {
        let request = checked(request)?;
        let engine = self.engine.clone();
        let (pid, started_at_ns) = to_its_end(async move {
            let started = engine.start(&request.container_id).await;
            started.map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(agent::StartContainerResponse {
            pid,
            started_at_ns,
        }))
    }

    async fn update_container(
        &self,
        request: Request<agent::UpdateContainerRequest>,
    ) -> Answer<agent::UpdateContainerResponse> {
        let request = checked(request)?;
        let resources = request.resources.unwrap_or_default();
        let resources = Resources::parse(resources).map_err(|error| error.status())?;
        let engine = self.engine.clone();
        to_its_end(async move {
            let updated = engine.update(&request.container_id, &resources).await;
            updated.map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(agent::UpdateContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<agent::ExecProcessRequest>,
    ) -> Answer<agent::ExecProcessResponse> {
        let request = checked(request)?;
        let process = request
            .process
            .ok_or_else(|| Status::invalid_argument("the process is missing"))?;
        let exec = ExecRequest {
            name: ProcessName {
                container: request.container_id,
                exec: request.exec_id,
            },
            spec: ProcessSpec::parse(process).map_err(|error| error.status())?,
            inherit: request.inherit,
            timeout: (request.timeout_ns != 0).then(|| Duration::from_nanos(request.timeout_ns)),
        };
        let engine = self.engine.clone();
        let (pid, started_at_ns) = to_its_end(async move {
            let started = engine.exec(exec).await;
            started.map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(agent::ExecProcessResponse { pid, started_at_ns }))
    }

    async fn signal_process(
        &self,
        request: Request<agent::SignalProcessRequest>,
    ) -> Answer<agent::SignalProcessResponse> {
        let request = checked(request)?;
        self.engine
            .signal(
                &request.container_id,
                &request.exec_id,
                request.signal,
                request.all,
            )
            .map_err(|error| error.status())?;
        Ok(Response::new(agent::SignalProcessResponse {}))
    }

    async fn wait_process(
        &self,
        request: Request<agent::WaitProcessRequest>,
    ) -> Answer<agent::WaitProcessResponse> {
        let request = checked(request)?;
        let status = self
            .engine
            .wait(&request.container_id, &request.exec_id)
            .await
            .map_err(|error| error.status())?;
        Ok(Response::new(agent::WaitProcessResponse {
            status: Some(answers::exit_status(status)),
        }))
    }

    async fn acknowledge_exit(
        &self,
        request: Request<agent::AcknowledgeExitRequest>,
    ) -> Answer<agent::AcknowledgeExitResponse> {
        let request = checked(request)?;
        self.engine
            .acknowledge(&request.container_id, &request.exec_id)
            .map_err(|error| error.status())?;
        Ok(Response::new(agent::AcknowledgeExitResponse {}))
    }

    async fn resize_terminal(
        &self,
        request: Request<agent::ResizeTerminalRequest>,
    ) -> Answer<agent::ResizeTerminalResponse> {
        let request = checked(request)?;
        let size = |value: u32, what: &str| {
            u16::try_from(value).map_err(|_| {
                Status::invalid_argument(format!("a terminal of {value} {what}; {} are the most", u16::MAX))
            })
        };
        let rows = size(request.rows, "rows")?;
        let columns = size(request.columns, "columns")?;
        self.engine
            .resize(&request.container_id, &request.exec_id, rows, columns)
            .map_err(|error| error.status())?;
        Ok(Response::new(agent::ResizeTerminalResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<agent::RemoveContainerRequest>,
    ) -> Answer<agent::RemoveContainerResponse> {
        let request = checked(request)?;
        let engine = self.engine.clone();
        to_its_end(async move {
            let removed = engine.remove(&request.container_id).await;
            removed.map_err(|error| error.status())
        })
        .await?;
        Ok(Response::new(agent::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        _request: Request<agent::ListContainersRequest>,
    ) -> Answer<agent::ListContainersResponse> {
        let containers = self.engine.table.all();
        Ok(Response::new(agent::ListContainersResponse {
            containers: containers
                .iter()
                .map(|container| answers::container(container))
                .collect(),
        }))
    }

    async fn stats(&self, request: Request<agent::StatsRequest>) -> Answer<agent::StatsResponse> {
        let request = checked(request)?;
        let all = self.engine.table.all();
        let wanted = if request.container_ids.is_empty() {
            all.clone()
        } else {
            request
                .container_ids
                .iter()
                .map(|id| self.engine.table.get(id).map_err(|error| error.status()))
                .collect::<Result<_, _>>()?
        };
        let answer = stats::answer::of(&wanted, &all, request.processes, &self.engine.reaper).await;
        Ok(Response::new(answer))
    }

    async fn shutdown(&self, _request: Request<agent::ShutdownRequest>) -> Answer<agent::ShutdownResponse> {
        log::info!("the host asks for the machine's end");
        self.shutdown.notify_one();
        Ok(Response::new(agent::ShutdownResponse {}))
    }
}
