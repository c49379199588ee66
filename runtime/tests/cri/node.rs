//! A node for a test: directories, a registry with one image, a daemon that can be killed, and a client.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bulkhead_proto::cri::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient, *,
};
use bulkhead_runtime::{
    config::Config,
    cri::server::serve,
    daemon::{Daemon, StartError},
    image::{Converter, ImageStore},
    observe::endpoint::MetricsEndpoint,
    sandbox::host::Host,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    build::{Archive, BuiltLayer, push},
    registry::Registry,
};

/// Longest that anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The host's kernel, as far as a test looks at it: what exists, by name.
#[derive(Debug, Default)]
pub struct FakeHost {
    pub namespaces: Mutex<BTreeSet<PathBuf>>,
    pub cgroups: Mutex<BTreeSet<String>>,
    /// Files of control groups; none where nothing is counted.
    pub files: Mutex<BTreeMap<(String, String), String>>,
    /// What cannot be removed.
    pub stuck: Mutex<Option<&'static str>>,
}

impl Host for FakeHost {
    fn create_network_namespace(&self, path: &Path) -> io::Result<()> {
        File::create_new(path)?;
        self.namespaces.lock().unwrap().insert(path.to_owned());
        Ok(())
    }

    fn remove_network_namespace(&self, path: &Path) -> io::Result<()> {
        if *self.stuck.lock().unwrap() == Some("namespace") {
            return Err(io::Error::other("it is stuck"));
        }
        if self.namespaces.lock().unwrap().remove(path) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn create_cgroup(&self, path: &str) -> io::Result<Option<File>> {
        self.cgroups.lock().unwrap().insert(path.to_owned());
        Ok(None)
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<()> {
        self.cgroups.lock().unwrap().remove(path);
        Ok(())
    }

    fn read_cgroup(&self, path: &str, file: &str) -> io::Result<String> {
        let files = self.files.lock().unwrap();
        let found = files.get(&(path.to_owned(), file.to_owned()));
        found.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A node. Its client's calls block.
pub struct Node {
    pub directory: tempfile::TempDir,
    pub host: Arc<FakeHost>,
    pub config: Config,
    daemon: Option<(Runtime, Arc<ImageStore>)>,
    client: Runtime,
    pub channel: Channel,
    metrics_address: Option<SocketAddr>,
    pub image: String,
    _registry: Registry,
}

impl Node {
    /// A node whose machines behave.
    pub fn new() -> Self {
        Self::with("")
    }

    /// A node whose machines have these manners (see [`crate::double::Manners`]).
    pub fn with(manners: &str) -> Self {
        Self::changed(|config| manners.clone_into(&mut config.vm.cmdline))
    }

    /// A node with another configuration.
    pub fn changed(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vmm = directory.path().join("vmm");
        let test = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nBULKHEAD_MACHINE_DOUBLE={} exec {} --exact machine --ignored --nocapture\n",
            std::process::id(),
            test.display()
        );
        fs::write(&vmm, script).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        for file in ["vmlinux", "initramfs"] {
            fs::write(directory.path().join(file), "a file").unwrap();
        }
        let mut config = Config::default();
        config.root = directory.path().join("root");
        config.state = directory.path().join("state");
        config.cri.socket = directory.path().join("cri.sock");
        config.vm.vmm = vmm;
        config.vm.kernel = directory.path().join("vmlinux");
        config.vm.initramfs = directory.path().join("initramfs");
        config.vm.cmdline = String::new();
        config.vm.scratch_mib = 32;
        config.network.enabled = false;
        change(&mut config);

        let client = Runtime::new().unwrap();
        let registry = client.block_on(Registry::start());
        let layer = BuiltLayer::plain(
            Archive::new()
                .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
                .finish(),
        );
        push(&registry, "test/image", "latest", &[layer], serde_json::json!({}));
        let image = format!("{}/test/image:latest", registry.name());
        let socket = config.cri.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let channel = {
            let _entered = client.enter();
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
        };
        let mut node = Self {
            directory,
            host: Arc::default(),
            config,
            daemon: None,
            client,
            channel,
            metrics_address: None,
            image,
            _registry: registry,
        };
        node.start();
        node.pull();
        node
    }

    /// Starts the daemon and waits until it serves.
    pub fn start(&mut self) {
        let runtime = Runtime::new().unwrap();
        let daemon = runtime.block_on(self.start_daemon()).unwrap();
        let images = Arc::clone(&daemon.images);
        let endpoint = MetricsEndpoint::open((Ipv4Addr::LOCALHOST, 0).into(), Arc::clone(&daemon.metrics));
        let endpoint = runtime.block_on(endpoint).unwrap();
        self.metrics_address = Some(endpoint.address().unwrap());
        runtime.spawn(endpoint.serve());
        let (ready, is_ready) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let told = || ready.send(()).unwrap();
            serve(daemon, told, std::future::pending()).await.unwrap();
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        self.daemon = Some((runtime, images));
    }

    /// Where the daemon tells Prometheus its figures.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address.unwrap()
    }

    /// A second daemon on the same directories.
    pub fn second(&self) -> Result<Arc<Daemon>, StartError> {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(self.start_daemon())
    }

    async fn start_daemon(&self) -> Result<Arc<Daemon>, StartError> {
        // Started again, this program would run its tests.
        let converter = Converter::at(env!("CARGO_BIN_EXE_bulkheadd"));
        Daemon::start(self.config.clone(), Arc::clone(&self.host) as _, converter).await
    }

    /// Ends the daemon at once: nothing it does is finished, nothing it holds is given back.
    pub fn kill(&mut self) {
        let (runtime, images) = self.daemon.take().unwrap();
        // A process that is killed gives back no leases, but what is dropped in this one would.
        runtime.block_on(images.close());
        drop(images);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

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

    /// How many converted layers are on disk.
    pub fn layers(&self) -> usize {
        fs::read_dir(self.config.root.join("images/layers"))
            .unwrap()
            .count()
    }

    /// Calls RuntimeService.
    pub fn runtime<T>(
        &self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        self.client.block_on(async {
            tokio::time::timeout(PATIENCE, call(client))
                .await
                .expect("an answer in time")
                .map(tonic::Response::into_inner)
        })
    }

    /// All messages of a call of RuntimeService that streams.
    pub fn streamed<T>(
        &self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<tonic::Response<Streaming<T>>, Status>,
    ) -> Vec<T> {
        let mut stream = self.runtime(call).unwrap();
        self.client.block_on(async {
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                messages.push(message);
            }
            messages
        })
    }

    /// Reads the next message of a stream; `None` at its end.
    pub fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
        self.client.block_on(async {
            tokio::time::timeout(PATIENCE, stream.message())
                .await
                .expect("a message or the end in time")
        })
    }

    /// Runs a client of something else than gRPC.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.client.block_on(async {
            let waited = tokio::time::timeout(PATIENCE, work).await;
            waited.expect("an end in time")
        })
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

    /// Calls ImageService.
    pub fn images<T>(
        &self,
        call: impl AsyncFnOnce(ImageServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = ImageServiceClient::new(self.channel.clone());
        self.client
            .block_on(async { call(client).await.map(tonic::Response::into_inner) })
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

    /// The log of a container, without times.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log_path(name)).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(format!("{name}.log"))
    }

    /// Everything that a pod could leave behind.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["root/pods", "state/pods", "state/netns"] {
            for entry in fs::read_dir(self.directory.path().join(directory)).unwrap() {
                left.push(entry.unwrap().path().display().to_string());
            }
        }
        left.extend(
            self.host
                .namespaces
                .lock()
                .unwrap()
                .iter()
                .map(|path| path.display().to_string()),
        );
        left.extend(self.host.cgroups.lock().unwrap().iter().cloned());
        left
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.daemon.is_some() && !std::thread::panicking() {
            for pod in self.pods() {
                self.remove_pod(&pod.id).unwrap();
            }
            assert_eq!(self.left(), Vec::<String>::new(), "something was left behind");
        }
    }
}

/// Waits for a condition.
pub fn until<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = met() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there.
pub fn runs(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}
