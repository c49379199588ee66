//! RuntimeService.

use std::sync::Arc;

#[allow(clippy::wildcard_imports, reason = "requests and answers of all 37 calls")]
use bulkhead_proto::cri::{runtime_service_server::RuntimeService, *};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    answers,
    error::Failure,
    events::{self, EventStream},
    handler::{absent, answer, container, detached, known, pod},
    info, lists, metrics,
    parts::{self, Parts},
    stats, status,
};
use crate::{
    container::{self, ContainerError},
    daemon::Daemon,
    refusal::Refusal,
    sandbox::{self, PodError},
};

/// The service, on a daemon.
#[derive(Clone, Debug)]
pub(super) struct RuntimeHandlers {
    daemon: Arc<Daemon>,
}

impl RuntimeHandlers {
    pub(super) fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeHandlers {
    type StreamPodSandboxesStream = Parts<StreamPodSandboxesResponse>;
    type StreamContainersStream = Parts<StreamContainersResponse>;
    type StreamContainerStatsStream = Parts<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Parts<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = EventStream;
    type StreamPodSandboxMetricsStream = Parts<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(status::version()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let answer = status::status(&self.daemon, request.get_ref().verbose).await;
        Ok(Response::new(answer))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        Ok(Response::new(status::runtime_config()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        answer("RunPodSandbox", async {
            let RunPodSandboxRequest {
                config,
                runtime_handler,
            } = request.into_inner();
            let config = config.ok_or_else(|| Refusal::invalid("config", "it is missing"))?;
            // A client that goes away drops this future, and with it the guard: what was made is undone.
            let cancelled = CancellationToken::new();
            let guard = cancelled.clone().drop_guard();
            let made = detached(&self.daemon, PodError::Interrupted, |daemon| async move {
                sandbox::run::run(&daemon, config, runtime_handler, cancelled).await
            });
            let pod_sandbox_id = made.await?;
            guard.disarm();
            Ok(RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        answer("StopPodSandbox", async {
            if let Some(pod) = known(pod(&self.daemon, &request.into_inner().pod_sandbox_id))? {
                detached(&self.daemon, PodError::Interrupted, |daemon| async move {
                    sandbox::stop::stop(&daemon, &pod).await
                })
                .await?;
            }
            Ok(StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        answer("RemovePodSandbox", async {
            if let Some(pod) = known(pod(&self.daemon, &request.into_inner().pod_sandbox_id))? {
                detached(&self.daemon, PodError::Interrupted, |daemon| async move {
                    sandbox::stop::remove(&daemon, &pod).await
                })
                .await?;
            }
            Ok(RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        answer("PodSandboxStatus", async {
            let request = request.into_inner();
            let pod = pod(&self.daemon, &request.pod_sandbox_id)?;
            // Before the states are read: an event of a later change must not look older than this answer.
            let timestamp = self.daemon.events.now_ns();
            let containers = self.daemon.containers_of(&pod.id);
            Ok(PodSandboxStatusResponse {
                status: Some(answers::pod_status(&pod)),
                info: info::if_asked(request.verbose, || info::pod(&pod)),
                containers_statuses: containers
                    .iter()
                    .map(|container| answers::container_status(container))
                    .collect(),
                timestamp,
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let items = lists::pods(&self.daemon, request.into_inner().filter.as_ref());
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        answer("CreateContainer", async {
            let CreateContainerRequest {
                pod_sandbox_id,
                config,
                sandbox_config: _,
            } = request.into_inner();
            let config = config.ok_or_else(|| Refusal::invalid("config", "it is missing"))?;
            let pod = pod(&self.daemon, &pod_sandbox_id)?;
            let made = detached(&self.daemon, ContainerError::Interrupted, |daemon| async move {
                container::create::create(&daemon, &pod, config).await
            });
            Ok(CreateContainerResponse {
                container_id: made.await?,
            })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        answer("StartContainer", async {
            let container = container(&self.daemon, &request.into_inner().container_id)?;
            let started = detached(&self.daemon, ContainerError::Interrupted, |daemon| async move {
                container::start::start(&daemon, &container).await
            });
            started.await?;
            Ok(StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        answer("StopContainer", async {
            let StopContainerRequest {
                container_id,
                timeout,
            } = request.into_inner();
            if let Some(container) = known(container(&self.daemon, &container_id))? {
                let stopped = detached(&self.daemon, ContainerError::Interrupted, |daemon| async move {
                    container::stop::stop(&daemon, &container, timeout).await
                });
                stopped.await?;
            }
            Ok(StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        answer("RemoveContainer", async {
            if let Some(container) = known(container(&self.daemon, &request.into_inner().container_id))? {
                let removed = detached(&self.daemon, ContainerError::Interrupted, |daemon| async move {
                    container::remove::remove(&daemon, &container).await
                });
                removed.await?;
            }
            Ok(RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = lists::containers(&self.daemon, request.into_inner().filter.as_ref());
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        answer("ContainerStatus", async {
            let request = request.into_inner();
            let container = container(&self.daemon, &request.container_id)?;
            Ok(ContainerStatusResponse {
                status: Some(answers::container_status(&container)),
                info: info::if_asked(request.verbose, || info::container(&self.daemon, &container)),
            })
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        answer("ReopenContainerLog", async {
            let container = container(&self.daemon, &request.into_inner().container_id)?;
            container.reopen_log().await?;
            Ok(ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        answer("ExecSync", async {
            let ExecSyncRequest {
                container_id,
                cmd,
                timeout,
            } = request.into_inner();
            let container = container(&self.daemon, &container_id)?;
            // Not detached: a client that goes away ends its command.
            Ok(container::exec::exec_sync(&self.daemon, &container, cmd, timeout).await?)
        })
        .await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let pods = lists::pods(&self.daemon, request.into_inner().filter.as_ref());
        Ok(parts::stream(pods, |pod_sandboxes| StreamPodSandboxesResponse {
            pod_sandboxes,
        }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let containers = lists::containers(&self.daemon, request.into_inner().filter.as_ref());
        Ok(parts::stream(containers, |containers| StreamContainersResponse {
            containers,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        answer("UpdateContainerResources", async {
            let UpdateContainerResourcesRequest {
                container_id,
                linux,
                windows: _,
                annotations: _,
            } = request.into_inner();
            let container = container(&self.daemon, &container_id)?;
            let limits = linux.ok_or_else(|| Refusal::invalid("linux", "it is missing"))?;
            let updated = detached(&self.daemon, ContainerError::Interrupted, |daemon| async move {
                container::update::update(&daemon, &container, limits).await
            });
            updated.await?;
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        answer("Exec", async {
            let request = request.into_inner();
            let container = container(&self.daemon, &request.container_id)?;
            let job = container::exec_stream::job(&self.daemon, &container, request)?;
            let url = self.daemon.streaming.offer(job)?;
            Ok(ExecResponse { url })
        })
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        answer("Attach", async {
            let request = request.into_inner();
            let container = container(&self.daemon, &request.container_id)?;
            let job = container::attach::job(&self.daemon, &container, &request)?;
            let url = self.daemon.streaming.offer(job)?;
            Ok(AttachResponse { url })
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        answer("PortForward", async {
            let request = request.into_inner();
            let pod = pod(&self.daemon, &request.pod_sandbox_id)?;
            let job = sandbox::port_forward::job(&pod, &request.port)?;
            let url = self.daemon.streaming.offer(job)?;
            Ok(PortForwardResponse { url })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        answer("ContainerStats", async {
            let container = container(&self.daemon, &request.into_inner().container_id)?;
            let stats = stats::of_container(&self.daemon, &container).await?;
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let stats = stats::of_containers(&self.daemon, request.into_inner().filter).await;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let stats = stats::of_containers(&self.daemon, request.into_inner().filter).await;
        Ok(parts::stream(stats, |container_stats| {
            StreamContainerStatsResponse { container_stats }
        }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        answer("PodSandboxStats", async {
            let pod = pod(&self.daemon, &request.into_inner().pod_sandbox_id)?;
            let stats = stats::of_pod(&self.daemon, &pod).await?;
            Ok(PodSandboxStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let stats = stats::of_pods(&self.daemon, request.into_inner().filter).await;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stats = stats::of_pods(&self.daemon, request.into_inner().filter).await;
        Ok(parts::stream(stats, |pod_sandbox_stats| {
            StreamPodSandboxStatsResponse { pod_sandbox_stats }
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        answer("UpdateRuntimeConfig", async {
            let config = request
                .into_inner()
                .runtime_config
                .and_then(|config| config.network_config);
            let cidr = config.unwrap_or_default().pod_cidr;
            self.daemon.network.set_pod_cidr(&cidr)?;
            Ok(UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        absent("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Result<Response<CheckpointPodResponse>, Status> {
        absent("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<RestorePodRequest>,
    ) -> Result<Response<RestorePodResponse>, Status> {
        absent("RestorePod")
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let listening = self.daemon.events.listen();
        let listening = listening.map_err(|error| Failure::from(error).into_status())?;
        Ok(Response::new(events::stream(listening)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(ListMetricDescriptorsResponse {
            descriptors: metrics::descriptors(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = metrics::of_pods(&self.daemon).await;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let metrics = metrics::of_pods(&self.daemon).await;
        Ok(parts::stream(metrics, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        absent("UpdatePodSandboxResources")
    }
}
