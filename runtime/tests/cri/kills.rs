//! The daemon as a process that is killed, or told to end, in the middle of changing its images.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bulkhead_proto::cri::{
    ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest,
    image_service_client::ImageServiceClient,
};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    build::{Archive, BuiltLayer, push},
    node::PATIENCE,
    registry::{Answer, Registry},
};

/// How often it is killed while it pulls, and as often while it removes.
const KILLS: u32 = 8;

/// A running daemon, with directories that outlive it.
struct Process {
    child: Child,
    client: ImageServiceClient<Channel>,
}

impl Process {
    async fn start(directory: &Path) -> Self {
        let socket = directory.join("cri.sock");
        let config = directory.join("config.toml");
        let text = format!(
            "root = '{}'\nstate = '{}'\n[cri]\nsocket = '{}'\n[vm]\nscratch_mib = 32\n",
            directory.join("root").display(),
            directory.join("state").display(),
            socket.display(),
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkheadd"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        // A daemon that was killed has left its socket there, at which nobody listens.
        while UnixStream::connect(&socket).await.is_err() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "bulkheadd does not start: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "bulkheadd does not serve");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self {
            child,
            client: ImageServiceClient::new(channel),
        }
    }

    /// Kills it after so long, whatever it is doing for its clients.
    async fn kill_after(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn pull(&self, image: &str) -> Result<(), Status> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        self.client.clone().pull_image(request).await.map(drop)
    }

    async fn remove(&self, image: &str) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(image)),
        };
        self.client.clone().remove_image(request).await.map(drop)
    }

    /// The tags of all images.
    async fn list(&self) -> Vec<String> {
        let listed = self
            .client
            .clone()
            .list_images(ListImagesRequest::default())
            .await;
        let images = listed.unwrap().into_inner().images;
        images.into_iter().flat_map(|image| image.repo_tags).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// Files of the image store, by their paths there.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Every file that there is.
fn files(directory: &Path) -> Files {
    let images = directory.join("root/images");
    let mut files = BTreeMap::new();
    for part in ["layers", "incoming"] {
        for entry in fs::read_dir(images.join(part)).unwrap() {
            let path = entry.unwrap().path();
            let content = fs::read(&path).unwrap();
            files.insert(path.strip_prefix(&images).unwrap().to_owned(), content);
        }
    }
    files
}

/// Two images with a layer in common, on a registry that takes its time.
fn two_images(registry: &Registry) -> [String; 2] {
    let layer = |name: &str, seed: u32| {
        let noise = (0..300_000_u32).map(|i| i.wrapping_mul(seed).to_le_bytes()[2]);
        BuiltLayer::gzip(Archive::new().file(name, noise.collect::<Vec<u8>>()).finish())
    };
    let shared = layer("shared", 2_654_435_761);
    [("one", 2_246_822_519), ("two", 3_266_489_917)].map(|(name, seed)| {
        let layers = [shared.clone(), layer(name, seed)];
        push(registry, name, "latest", &layers, json!({"User": name}));
        for layer in &layers {
            let path = format!("/v2/{name}{}", layer.path_end());
            let slow = Answer::Slow(
                layer.blob.len() / 10,
                Duration::from_millis(10),
                layer.blob.clone(),
            );
            registry.set(&path, slow);
        }
        format!("{}/{name}:latest", registry.name())
    })
}

/// Asserts that exactly the files of the listed images are there, as an undisturbed daemon makes them. Gives how many
/// images that are.
async fn check(daemon: &Process, directory: &Path, expected: &BTreeMap<String, Files>) -> usize {
    let listed = daemon.list().await;
    let wanted: Files = listed.iter().flat_map(|image| expected[image].clone()).collect();
    let found = files(directory);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&wanted), "of {listed:?}");
    assert!(found == wanted, "the layers of {listed:?} are not what they are");
    listed.len()
}

/// Points in time from the beginning to the end of something that takes so long.
fn points(length: Duration) -> impl Iterator<Item = Duration> {
    (0..KILLS).map(move |point| length * point / (KILLS - 1))
}

#[test]
fn a_daemon_killed_while_images_change_has_whole_images_and_no_stray_file() {
    Runtime::new().unwrap().block_on(async {
        let registry = Registry::start().await;
        let images = two_images(&registry);
        let [one, two] = &images;

        // What an undisturbed daemon makes of each, and how long that takes.
        let mut expected = BTreeMap::new();
        let (mut pulling, mut removing) = (Duration::ZERO, Duration::ZERO);
        for image in &images {
            let directory = tempfile::tempdir().unwrap();
            let daemon = Process::start(directory.path()).await;
            let begun = Instant::now();
            daemon.pull(image).await.unwrap();
            pulling = pulling.max(begun.elapsed());
            expected.insert(image.clone(), files(directory.path()));
            let begun = Instant::now();
            daemon.remove(image).await.unwrap();
            removing = removing.max(begun.elapsed());
            assert!(files(directory.path()).is_empty());
        }

        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let mut found = Vec::new();
        for (pulling, removing) in points(pulling).zip(points(removing)) {
            let daemon = Process::start(directory).await;
            let _broken_off = tokio::join!(daemon.kill_after(pulling), daemon.pull(one), daemon.pull(two));
            drop(daemon);
            let daemon = Process::start(directory).await;
            found.push(check(&daemon, directory, &expected).await);

            daemon.pull(one).await.unwrap();
            daemon.pull(two).await.unwrap();
            assert_eq!(check(&daemon, directory, &expected).await, 2);
            let _broken_off = tokio::join!(
                daemon.kill_after(removing),
                daemon.remove(one),
                daemon.remove(two)
            );
            drop(daemon);
            let daemon = Process::start(directory).await;
            found.push(check(&daemon, directory, &expected).await);
            for image in &images {
                daemon.remove(image).await.unwrap();
            }
            assert!(files(directory).is_empty());
        }
        println!("images found after each kill: {found:?}");
    });
}

#[test]
fn a_daemon_told_to_end_gives_its_pulls_up_and_leaves_nothing_of_them() {
    Runtime::new().unwrap().block_on(async {
        let registry = Registry::start().await;
        let [one, _] = two_images(&registry);
        let layer = BuiltLayer::plain(Archive::new().file("half", vec![7; 500_000]).finish());
        push(&registry, "stuck", "latest", &[layer.clone()], json!({}));
        let half = layer.blob[..layer.blob.len() / 2].to_vec();
        registry.set(
            &format!("/v2/stuck{}", layer.path_end()),
            Answer::Stalled(layer.blob.len(), half),
        );
        let stuck = format!("{}/stuck", registry.name());

        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Process::start(directory.path()).await;
        daemon.pull(&one).await.unwrap();
        let whole = files(directory.path());
        let end = async {
            let started = Instant::now();
            while files(directory.path()).len() == whole.len() {
                assert!(started.elapsed() < PATIENCE, "the pull does not begin");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            daemon.signal(Signal::TERM);
        };
        let (pulled, ()) = tokio::join!(daemon.pull(&stuck), end);
        let error = pulled.unwrap_err();
        assert!(error.message().contains("the daemon is ending"), "{error:?}");
        assert!(daemon.child.wait().unwrap().success());
        assert!(files(directory.path()) == whole, "something of the pull is left");
    });
}
