//! What a test asks of its node.

use bulkhead_proto::cri::{runtime_service_client::RuntimeServiceClient, *};
use tonic::Status;

use super::{Node, until};

impl Node {
    pub fn pull(&self) -> String {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image: self.image.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.images(async |mut c| c.pull_image(request).await)
            .unwrap()
            .image_ref
    }

    pub fn remove_image(&self) {
        let request = RemoveImageRequest {
            image: Some(ImageSpec {
                image: self.image.clone(),
                ..Default::default()
            }),
        };
        self.images(async |mut c| c.remove_image(request).await).unwrap();
    }

    pub fn listed_images(&self) -> Vec<Image> {
        self.images(async |mut c| c.list_images(ListImagesRequest::default()).await)
            .unwrap()
            .images
    }

    /// The URL of a command in a container.
    pub fn exec_url(&self, id: &str, cmd: &[&str], streams: &[&str]) -> Result<String, Status> {
        let request = ExecRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            tty: streams.contains(&"resize"),
            stdin: streams.contains(&"stdin"),
            stdout: streams.contains(&"stdout"),
            stderr: streams.contains(&"stderr"),
        };
        self.runtime(async |mut c| c.exec(request).await)
            .map(|answer| answer.url)
    }

    /// The URL of a command that prints, from within [`wait`](Self::wait).
    pub async fn exec_url_now(&self, id: &str, cmd: &[&str]) -> String {
        let request = ExecRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        client.exec(request).await.unwrap().into_inner().url
    }

    /// Kills a container, from within [`wait`](Self::wait).
    pub async fn stop_container_now(&self, id: &str) {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout: 0,
        };
        let mut client = RuntimeServiceClient::new(self.channel.clone());
        client.stop_container(request).await.unwrap();
    }

    /// The URL of a container's own streams.
    pub fn attach_url(&self, id: &str, streams: &[&str]) -> Result<String, Status> {
        let request = AttachRequest {
            container_id: id.into(),
            tty: streams.contains(&"resize"),
            stdin: streams.contains(&"stdin"),
            stdout: streams.contains(&"stdout"),
            stderr: streams.contains(&"stderr"),
        };
        self.runtime(async |mut c| c.attach(request).await)
            .map(|answer| answer.url)
    }

    /// The URL of a pod's ports.
    pub fn forward_url(&self, pod: &str, port: &[i32]) -> Result<String, Status> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.into(),
            port: port.to_vec(),
        };
        self.runtime(async |mut c| c.port_forward(request).await)
            .map(|answer| answer.url)
    }

    pub fn try_run_pod(&self, config: PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        self.runtime(async |mut c| c.run_pod_sandbox(request).await)
            .map(|answer| answer.pod_sandbox_id)
    }

    pub fn run_pod(&self, name: &str) -> String {
        self.try_run_pod(self.pod_config(name)).unwrap()
    }

    /// A pod whose logs are below the node's directory.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: "test".into(),
                uid: "uid".into(),
                attempt: 0,
            }),
            log_directory: self.directory.path().join("logs").to_str().unwrap().into(),
            ..Default::default()
        }
    }

    pub fn container_config(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                ..Default::default()
            }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..Default::default()
        }
    }

    pub fn try_create(&self, pod: &str, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(self.pod_config("any")),
        };
        self.runtime(async |mut c| c.create_container(request).await)
            .map(|answer| answer.container_id)
    }

    pub fn create(&self, pod: &str, name: &str, command: &[&str]) -> String {
        self.try_create(pod, self.container_config(name, command))
            .unwrap()
    }

    pub fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: id.into(),
        };
        self.runtime(async |mut c| c.start_container(request).await)
            .map(drop)
    }

    /// Creates and starts a container.
    pub fn run(&self, pod: &str, name: &str, command: &[&str]) -> String {
        let id = self.create(pod, name, command);
        self.start_container(&id).unwrap();
        id
    }

    pub fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        self.runtime(async |mut c| c.stop_container(request).await)
            .map(drop)
    }

    pub fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: id.into(),
        };
        self.runtime(async |mut c| c.remove_container(request).await)
            .map(drop)
    }

    pub fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime(async |mut c| c.stop_pod_sandbox(request).await)
            .map(drop)
    }

    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime(async |mut c| c.remove_pod_sandbox(request).await)
            .map(drop)
    }

    pub fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout,
        };
        self.runtime(async |mut c| c.exec_sync(request).await)
    }

    pub fn try_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.runtime(async |mut c| c.container_status(request).await)
            .map(|answer| answer.status.unwrap())
    }

    pub fn status(&self, id: &str) -> ContainerStatus {
        self.try_status(id).unwrap()
    }

    /// `info` of a container's verbose status.
    pub fn container_info(&self, id: &str) -> serde_json::Value {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        };
        let answer = self.runtime(async |mut c| c.container_status(request).await);
        serde_json::from_str(&answer.unwrap().info["info"]).unwrap()
    }

    pub fn pod_status(&self, id: &str) -> PodSandboxStatusResponse {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: true,
        };
        self.runtime(async |mut c| c.pod_sandbox_status(request).await)
            .unwrap()
    }

    pub fn pod_state(&self, id: &str) -> PodSandboxState {
        self.pod_status(id).status.unwrap().state()
    }

    /// `info` of a pod's verbose status.
    pub fn pod_info(&self, id: &str) -> serde_json::Value {
        serde_json::from_str(&self.pod_status(id).info["info"]).unwrap()
    }

    pub fn vmm_pid(&self, id: &str) -> i32 {
        self.pod_info(id)["pid"].as_i64().unwrap().try_into().unwrap()
    }

    pub fn pods(&self) -> Vec<PodSandbox> {
        self.runtime(async |mut c| c.list_pod_sandbox(ListPodSandboxRequest::default()).await)
            .unwrap()
            .items
    }

    pub fn containers(&self) -> Vec<Container> {
        self.runtime(async |mut c| c.list_containers(ListContainersRequest::default()).await)
            .unwrap()
            .containers
    }

    pub fn wait_exited(&self, id: &str) -> ContainerStatus {
        until("a container to exit", || {
            let status = self.status(id);
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
    }

    pub fn wait_not_ready(&self, id: &str) {
        until("a pod to be not ready", || {
            (self.pod_state(id) == PodSandboxState::SandboxNotready).then_some(())
        });
    }
}
