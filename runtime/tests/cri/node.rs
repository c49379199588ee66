//! A node for a test: directories, a registry with one image, a daemon that can be killed, and a client.

mod calls;

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
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
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
use tokio::{net::UnixStream, runtime::Runtime, sync::Notify, task::JoinHandle};
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

/// How a client's calls reach the daemon whose socket is, or will be, there.
pub fn channel(client: &Runtime, socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let _entered = client.enter();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// A daemon that serves.
struct Serving {
    runtime: Runtime,
    images: Arc<ImageStore>,
    /// Asks it to end.
    end: Arc<Notify>,
    served: JoinHandle<()>,
}

/// A node. Its client's calls block.
pub struct Node {
    pub directory: tempfile::TempDir,
    pub host: Arc<FakeHost>,
    pub config: Config,
    daemon: Option<Serving>,
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
        let channel = channel(&client, config.cri.socket.clone());
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
        let end = Arc::new(Notify::new());
        let asked = Arc::clone(&end);
        let served = runtime.spawn(async move {
            let told = || ready.send(()).unwrap();
            serve(daemon, told, asked.notified()).await.unwrap();
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        self.daemon = Some(Serving {
            runtime,
            images,
            end,
            served,
        });
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
        let Serving { runtime, images, .. } = self.daemon.take().unwrap();
        // A process that is killed gives back no leases, but what is dropped in this one would.
        runtime.block_on(images.close());
        drop(images);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// Asks the daemon to end, as a signal does, and waits until it has.
    pub fn stop(&mut self) {
        let Serving {
            runtime, end, served, ..
        } = self.daemon.take().unwrap();
        end.notify_one();
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, served).await })
            .unwrap()
            .unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
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

    /// Lets a client do something beside the test.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.client.spawn(work)
    }

    /// Runs a client of something else than gRPC.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.client.block_on(async {
            let waited = tokio::time::timeout(PATIENCE, work).await;
            waited.expect("an end in time")
        })
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
