//! The control service of the double.

use std::{sync::atomic::Ordering, time::Duration};

use bulkhead_proto::agent::{agent_server, *};
use tonic::{Request, Response, Status};

use super::{
    processes::{Container, Guest, Process},
    stats, vsock,
};

/// The service.
#[derive(Clone, Debug)]
pub struct Agent {
    guest: Guest,
}

impl Agent {
    pub fn new(guest: Guest) -> Self {
        Self { guest }
    }

    fn process(&self, container: &str, exec: &str) -> Result<Process, Status> {
        self.guest
            .process(container, exec)
            .ok_or_else(|| Status::not_found(format!("there is no process {exec:?} of {container}")))
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Agent {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        Ok(Response::new(vsock::hello(&self.guest)))
    }

    async fn configure_sandbox(
        &self,
        request: Request<ConfigureSandboxRequest>,
    ) -> Result<Response<ConfigureSandboxResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.scratch_disk, "scratch");
        if self.guest.manners.refuses {
            return Err(Status::invalid_argument(format!(
                "host name {:?} is not liked",
                request.hostname
            )));
        }
        Ok(Response::new(ConfigureSandboxResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = request.into_inner();
        assert!(!request.layers.is_empty(), "a container has layers");
        let process = request.process.unwrap();
        if process.args == ["impossible"] {
            return Err(Status::invalid_argument(
                "there is no user \"nobody-knows\" in the image",
            ));
        }
        let user = process.user.unwrap();
        let id = request.container_id;
        let first = Process::new(process.args);
        if !process.stderr {
            first.stderr.nobody_reads();
        }
        if !process.stdin {
            first.stdin.closed.store(true, Ordering::Relaxed);
        }
        let container = Container {
            started: false,
            limits: request.resources.unwrap_or_default(),
            first,
            execs: Default::default(),
        };
        self.guest.containers.lock().unwrap().insert(id, container);
        let uid = user.uid.unwrap_or(0);
        let groups = [vec![user.gid.unwrap_or(0)], user.supplemental_groups].concat();
        Ok(Response::new(CreateContainerResponse {
            user: Some(ResolvedUser {
                uid,
                gid: user.gid.unwrap_or(0),
                groups,
            }),
        }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        if self.guest.manners.slow_start {
            tokio::time::sleep(Duration::MAX).await;
        }
        let id = request.into_inner().container_id;
        let process = {
            let mut containers = self.guest.containers.lock().unwrap();
            let container = containers.get_mut(&id).ok_or_else(|| Status::not_found(id))?;
            if container.first.args == ["cannot"] {
                return Err(Status::invalid_argument("there is no program \"cannot\" in PATH"));
            }
            container.started = true;
            container.first.clone()
        };
        process.start(&self.guest);
        Ok(Response::new(StartContainerResponse {
            pid: 77,
            started_at_ns: 0,
        }))
    }

    async fn update_container(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let request = request.into_inner();
        let limits = request.resources.unwrap();
        if let Some(limit) = limits.memory_limit_bytes.filter(|limit| *limit < 4096) {
            return Err(Status::failed_precondition(format!(
                "more than {limit} bytes are in use"
            )));
        }
        let mut containers = self.guest.containers.lock().unwrap();
        containers.get_mut(&request.container_id).unwrap().limits = limits;
        Ok(Response::new(UpdateContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<ExecProcessRequest>,
    ) -> Result<Response<ExecProcessResponse>, Status> {
        let request = request.into_inner();
        if self.guest.manners.slow_exec {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(request.inherit);
        let spec = request.process.unwrap();
        assert!(!(spec.terminal && spec.stderr), "a terminal has one output");
        assert_eq!(spec.terminal, spec.env == [b"TERM=xterm"]);
        if spec.args == ["cannot"] {
            return Err(Status::invalid_argument("there is no program \"cannot\" in PATH"));
        }
        let process = Process::new(spec.args);
        if !spec.stderr {
            process.stderr.nobody_reads();
        }
        if !spec.stdout {
            process.stdout.nobody_reads();
        }
        let mut containers = self.guest.containers.lock().unwrap();
        let container = containers
            .get_mut(&request.container_id)
            .ok_or_else(|| Status::not_found("no container"))?;
        container.execs.insert(request.exec_id, process.clone());
        drop(containers);
        self.guest.made.notify_waiters();
        process.start(&self.guest);
        if request.timeout_ns > 0 {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_nanos(request.timeout_ns)).await;
                let how = Some(exit_status::How::Signaled(9));
                process.finish(ExitStatus {
                    how,
                    timed_out: true,
                    ..ExitStatus::default()
                });
            });
        }
        Ok(Response::new(ExecProcessResponse {
            pid: 78,
            started_at_ns: 0,
        }))
    }

    async fn signal_process(
        &self,
        request: Request<SignalProcessRequest>,
    ) -> Result<Response<SignalProcessResponse>, Status> {
        let request = request.into_inner();
        assert!(!request.all || request.signal == 9, "all only with SIGKILL");
        let process = self.process(&request.container_id, &request.exec_id)?;
        process.signal(request.signal);
        if process.args == ["mourned"] {
            let first = self.process(&request.container_id, "")?;
            first.stdout.print("an exec was killed\n");
        }
        Ok(Response::new(SignalProcessResponse {}))
    }

    async fn wait_process(
        &self,
        request: Request<WaitProcessRequest>,
    ) -> Result<Response<WaitProcessResponse>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.container_id, &request.exec_id)?;
        let mut ended = process.ended.subscribe();
        let status = *ended.wait_for(Option::is_some).await.unwrap();
        process.stdout.drained().await;
        process.stderr.drained().await;
        Ok(Response::new(WaitProcessResponse { status }))
    }

    async fn acknowledge_exit(
        &self,
        request: Request<AcknowledgeExitRequest>,
    ) -> Result<Response<AcknowledgeExitResponse>, Status> {
        let request = request.into_inner();
        self.process(&request.container_id, &request.exec_id)?;
        if let Some(container) = self
            .guest
            .containers
            .lock()
            .unwrap()
            .get_mut(&request.container_id)
        {
            container.execs.remove(&request.exec_id);
        }
        Ok(Response::new(AcknowledgeExitResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        if let Some(container) = self.guest.containers.lock().unwrap().remove(&id) {
            container.first.signal(9);
        }
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.guest.containers.lock().unwrap();
        let containers = containers.iter().map(|(id, container)| ContainerState {
            container_id: id.clone(),
            phase: container.phase().into(),
            pid: 77,
            status: *container.first.ended.borrow(),
            started_at_ns: 0,
        });
        Ok(Response::new(ListContainersResponse {
            containers: containers.collect(),
        }))
    }

    async fn configure_network(
        &self,
        _: Request<ConfigureNetworkRequest>,
    ) -> Result<Response<ConfigureNetworkResponse>, Status> {
        Err(Status::unimplemented("the double has no network"))
    }

    async fn reseed(&self, _: Request<ReseedRequest>) -> Result<Response<ReseedResponse>, Status> {
        Err(Status::unimplemented("the double has no entropy"))
    }

    async fn resize_terminal(
        &self,
        request: Request<ResizeTerminalRequest>,
    ) -> Result<Response<ResizeTerminalResponse>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.container_id, &request.exec_id)?;
        process.size.send_replace((request.columns, request.rows));
        Ok(Response::new(ResizeTerminalResponse {}))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        stats::answer(&self.guest, &request.into_inner()).await
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        Err(Status::unimplemented("the double is killed"))
    }
}
