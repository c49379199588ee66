//! A real image from a real registry, against what umoci unpacks of it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::compare::{assert_same, tree};
use crate::disks::{Stacked, write_disk};
use crate::host::{Host, pull};
use crate::layers::build_tree;
use crate::tools::{run, text};

/// Debian's registry, on a port of loopback; ended when dropped.
struct DockerRegistry {
    process: Child,
    name: String,
}

impl DockerRegistry {
    fn start(directory: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let name = format!("localhost:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {name}}}\n",
            text(&directory.join("registry"))
        );
        let path = directory.join("registry.yml");
        fs::write(&path, config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", text(&path)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("docker-registry cannot be run ({error}): install the package docker-registry")
            });
        let start = Instant::now();
        while std::net::TcpStream::connect(&name).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "docker-registry does not listen at {name}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, name }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Makes an image of three layers with umoci, as a builder does: unpack, change, pack the difference.
fn build_image(layout: &Path, bundle: &Path) {
    let image = format!("{}:app", text(layout));
    let umoci = |arguments: &[&str]| run("umoci", "umoci", arguments);
    umoci(&["init", "--layout", text(layout)]);
    umoci(&["new", "--image", &image]);
    umoci(&["unpack", "--image", &image, text(bundle)]);
    let rootfs = bundle.join("rootfs");
    let pack = || umoci(&["repack", "--refresh-bundle", "--image", &image, text(bundle)]);

    build_tree(&rootfs.join("tree"));
    fs::set_permissions(rootfs.join("tree"), fs::Permissions::from_mode(0o750)).unwrap();
    // Left as it is, the directory is in no later layer's archive, though what is in it changes.
    let leave_directory = || {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        fs::File::open(rootfs.join("tree"))
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    leave_directory();
    pack();

    fs::remove_file(rootfs.join("tree/size-4097")).unwrap();
    fs::remove_dir_all(rootfs.join("tree/many")).unwrap();
    fs::remove_file(rootfs.join("tree/hard")).unwrap();
    fs::write(rootfs.join("tree/size-1"), "no longer one byte").unwrap();
    fs::remove_file(rootfs.join("tree/pipe")).unwrap();
    fs::create_dir(rootfs.join("tree/pipe")).unwrap();
    fs::write(rootfs.join("tree/pipe/in-it"), "now a directory").unwrap();
    fs::remove_dir(rootfs.join("tree/empty")).unwrap();
    std::os::unix::fs::symlink("pipe", rootfs.join("tree/empty")).unwrap();
    leave_directory();
    pack();

    fs::create_dir(rootfs.join("tree/many")).unwrap();
    fs::write(rootfs.join("tree/many/again"), "made anew").unwrap();
    fs::write(rootfs.join("tree/size-4097"), "back").unwrap();
    fs::remove_dir_all(rootfs.join("tree/pipe")).unwrap();
    leave_directory();
    fs::hard_link(rootfs.join("tree/size-0"), rootfs.join("another-name")).unwrap();
    pack();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_looks_as_umoci_unpacks_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    build_image(&at("layout"), &at("bundle"));
    let registry = DockerRegistry::start(directory.path());
    let image = format!("{}:app", text(&at("layout")));
    let destination = format!("docker://{}/app:latest", registry.name);
    for format in ["oci", "v2s2"] {
        let arguments = [
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--format",
            format,
        ];
        run(
            "skopeo",
            "skopeo",
            &[&arguments[..], &[&format!("oci:{image}"), &destination]].concat(),
        );

        let host = Host::new();
        let store = host.open();
        let id = pull(&store, &format!("{}/app", registry.name)).await.unwrap();
        let image = store.resolve(&id.to_string()).unwrap();
        assert_eq!(image.layers.len(), 3);
        assert!(
            image.directories.is_some(),
            "the upper layers' archives have an entry for the directory after all"
        );
        let work = tempfile::tempdir().unwrap();
        let disk = work.path().join("disk");
        write_disk(store.disk(&image).unwrap(), &disk);
        let stacked = Stacked::of(&disk, work.path());
        let mut actual = tree(&stacked.path);

        let unpacked = work.path().join("unpacked");
        run(
            "umoci",
            "umoci",
            &[
                "unpack",
                "--image",
                &format!("{}:app", text(&at("layout"))),
                text(&unpacked),
            ],
        );
        let mut expected = tree(&unpacked.join("rootfs"));
        for nodes in [&mut expected, &mut actual] {
            for node in nodes.values_mut().filter(|node| node.kind == "directory") {
                // Overlayfs counts one link for every directory.
                node.links = 1;
            }
        }
        assert!(expected.len() > 50, "{} files", expected.len());
        assert_same(&expected, &actual);
    }
}
