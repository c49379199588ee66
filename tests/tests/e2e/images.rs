//! Images: what is pulled is what is found in the container, once on the disk, under all its names.

use std::{collections::BTreeSet, process::Command, thread};

use bulkhead_proto::cri::{Image as CriImage, ImageFsInfoRequest};
use bulkhead_tests::{
    ContainerSpec, Daemon, DaemonOptions, Environment, PodSpec, Probe, Tree,
    registry::{Archive, Image, Layer, Registry},
};
use serde_json::json;

/// What a runtime mounts into every container, and what it writes for the pod.
const MOUNTED: [&str; 6] = [
    "proc",
    "sys",
    "dev",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/hostname",
];

/// The file of the test image with a second name that a higher layer takes away.
const LOSES_A_LINK: &str = "data/changed/linked";

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_image_of_many_layers_is_file_by_file_what_umoci_unpacks() {
    let daemon = Daemon::shared();
    let registry = Registry::start();

    // The image with the node's own tools on top, which are told apart again below.
    let mut image = Image::of_the_node("layers:latest");
    let (tools, probe) = Probe::layer();
    image.layers.push(Layer::gzip(&tools.finish()));
    let reference = registry.push("layers-and-probe:latest", &image);
    let pod = daemon.run_pod(PodSpec::new("layers").with("/linux/security_context/privileged", true));
    let container = pod.run(
        ContainerSpec::of(&reference)
            .command(&["top", "-b", "-d", "3600"])
            .security("privileged", true),
    );
    let mut found = Tree::in_container(&container, &probe);

    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let layout = directory.path().join("layout");
    let bundle = directory.path().join("bundle");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .expect("a tool of the node starts");
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    };
    let source = format!("docker://{}", Environment::get().image("layers:latest"));
    run(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &source,
            &format!("oci:{}:image", layout.display()),
        ],
    );
    run(
        "umoci",
        &[
            "unpack",
            "--image",
            &format!("{}:image", layout.display()),
            bundle.to_str().expect("UTF-8"),
        ],
    );
    let mut expected = Tree::on_the_node(bundle.join("rootfs").to_str().expect("UTF-8"));

    let parents = |path: &str| {
        path.rsplit_once('/')
            .map_or(String::new(), |(parent, _)| parent.to_owned())
    };
    let touched: BTreeSet<String> = MOUNTED
        .iter()
        .map(|path| parents(path))
        .chain([String::new()])
        .collect();
    for tree in [&mut expected, &mut found] {
        for path in MOUNTED {
            tree.prune(path);
        }
        for (path, entry) in &mut tree.entries {
            // Mount points that the image lacks are made, and the probe is put in the root.
            if touched.contains(path) {
                entry.modified.clear();
            }
        }
    }
    // Overlayfs shows the count of links that a file has in its own layer (ovl_getattr; only files with an index in the
    // upper directory are counted anew). A layer cannot know which of its names another one hides, since images with
    // other layers above share it. So the count is compared with the names wherever no name was taken away.
    let mut more_links_than_names = Vec::new();
    for (path, entry) in &mut found.entries {
        let links = entry.links.parse::<usize>().unwrap_or_default();
        if links > entry.names.len() {
            more_links_than_names.push(path.as_str());
            entry.links = entry.names.len().to_string();
        }
    }
    assert_eq!(more_links_than_names, [LOSES_A_LINK]);
    for (what, kind) in [
        ("device", "c"),
        ("device", "b"),
        ("FIFO", "p"),
        ("symbolic link", "l"),
        ("directory", "d"),
    ] {
        let count = expected
            .entries
            .values()
            .filter(|entry| entry.kind == kind)
            .count();
        assert!(
            count > 0,
            "the test image has no {what} ({kind}), so this test would prove nothing"
        );
    }
    let interesting = expected.entries.values();
    assert!(
        interesting.clone().any(|entry| entry.names.len() > 1),
        "the test image has no hard links"
    );
    assert!(
        interesting
            .clone()
            .any(|entry| entry.xattrs.contains_key("security.capability")),
        "no capabilities"
    );
    assert!(
        interesting.clone().any(|entry| entry.owner.0 != "0"),
        "no owner but root"
    );
    let differences = expected.differences(&found);
    assert!(
        differences.is_empty(),
        "{} of {} files differ; umoci's (left) and the container's (right):\n{}",
        differences.len(),
        expected.entries.len(),
        differences.join("\n")
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn layers_may_be_packed_in_any_way_the_specification_has() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("packing"));
    for packing in ["plain", "zstd", "docker", "index"] {
        let spec = ContainerSpec::of(&format!("packing/{packing}:latest")).command(&["cat", "/etc/passwd"]);
        let container = pod.run(spec);
        assert_eq!(container.wait_exited().exit_code, 0, "{packing}");
        assert!(
            daemon
                .crictl()
                .ok(["logs", container.id()])
                .starts_with("root:x:0:0:"),
            "{packing}"
        );
    }
}

fn small(mark: &str) -> Image {
    Image::new(vec![Layer::gzip(
        &Archive::new().file("mark", 0o644, mark.as_bytes()).finish(),
    )])
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_image_has_one_id_and_all_its_names() {
    let daemon = Daemon::shared();
    let registry = Registry::start();
    let image = small("names").configured(json!({ "User": "1234", "Cmd": ["/x"] }));
    let one = registry.push("names/one:tag", &image);
    let two = registry.push("names/two:other", &image);
    let digest = registry.manifest_digest("names/one:tag");

    let id = daemon.try_pull(&one).expect("a good image");
    assert_eq!(id, image.id());
    assert_eq!(daemon.try_pull(&two).expect("the same image"), id);
    let status = daemon.image(&id).expect("it is there");
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(status.repo_tags.clone()), [one.clone(), two.clone()]);
    let by_digest = [
        format!("{}/names/one@{digest}", registry.host()),
        format!("{}/names/two@{digest}", registry.host()),
    ];
    assert_eq!(sorted(status.repo_digests.clone()), by_digest);
    assert!(status.size > 0, "{status:?}");
    assert_eq!(status.uid.map(|uid| uid.value), Some(1234));
    let bare = id.strip_prefix("sha256:").expect("a digest");
    for name in [
        one.as_str(),
        &two,
        &by_digest[0],
        &by_digest[1],
        bare,
        &bare[..12],
    ] {
        assert_eq!(daemon.image(name).as_ref(), Some(&status), "{name}");
    }
    assert_eq!(
        daemon.image(&format!("{}/names/three:tag", registry.host())),
        None
    );
    let listed = daemon
        .images()
        .into_iter()
        .filter(|listed| listed.id == id)
        .count();
    assert_eq!(listed, 1);

    daemon.try_remove_image(&two).expect("it is removed");
    for name in [&one, &two, &id, &by_digest[0]] {
        assert_eq!(
            daemon.image(name),
            None,
            "removing by one name removes all: {name}"
        );
    }
    daemon
        .try_remove_image(&two)
        .expect("removing what is gone is no error");

    let pulled = daemon.try_pull(&by_digest[0]).expect("a pull by digest");
    assert_eq!(pulled, id);
    let status = daemon.image(&id).expect("it is there");
    assert_eq!(
        (status.repo_tags, status.repo_digests),
        (vec![], vec![by_digest[0].clone()])
    );
    daemon.try_remove_image(&id).expect("it is removed");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_tag_that_moves_takes_its_name_along() {
    let daemon = Daemon::shared();
    let registry = Registry::start();
    let reference = registry.push("moving:tag", &small("old"));
    let old = daemon.try_pull(&reference).expect("a good image");
    registry.push("moving:tag", &small("new"));
    let new = daemon.try_pull(&reference).expect("a good image");
    assert_ne!(old, new);
    assert_eq!(daemon.image(&reference).map(|image| image.id), Some(new.clone()));
    let status = daemon.image(&old).expect("the old one is still there");
    assert_eq!(status.repo_tags, Vec::<String>::new());
    assert_eq!(status.repo_digests.len(), 1, "{status:?}");
    for id in [old, new] {
        daemon.try_remove_image(&id).expect("it is removed");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_layer_is_downloaded_once_and_kept_once() {
    let daemon = Daemon::private(DaemonOptions::new());
    let registry = Registry::start();
    let noise: Vec<u8> = (0..500_000u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let shared = Layer::gzip(&Archive::new().file("noise", 0o644, &noise).finish());
    let own = |mark: &str| Layer::gzip(&Archive::new().file("mark", 0o644, mark.as_bytes()).finish());
    let images: Vec<String> = ["a", "b", "c"]
        .iter()
        .map(|mark| {
            registry.push(
                &format!("shared/{mark}"),
                &Image::new(vec![shared.clone(), own(mark)]),
            )
        })
        .collect();
    // All at once, and each of them twice.
    thread::scope(|scope| {
        for reference in images.iter().chain(&images) {
            let daemon = &daemon;
            scope.spawn(move || daemon.try_pull(reference).expect("a good image"));
        }
    });
    let blob = format!("/blobs/{}", shared.digest);
    let requests = registry.requests();
    let downloads = requests
        .iter()
        .filter(|request| request.starts_with("GET ") && request.ends_with(&blob))
        .count();
    assert_eq!(downloads, 1, "{requests:#?}");
    assert_eq!(daemon.images().len(), 3);

    let used = used_bytes(&daemon);
    assert!(
        (2_000_000..4_000_000).contains(&used),
        "three images with one layer of 2 MB use {used} bytes"
    );
    for image in daemon.images() {
        daemon.try_remove_image(&image.id).expect("it is removed");
    }
    let used = used_bytes(&daemon);
    assert!(used < 500_000, "{used} bytes are used when all is removed");
}

fn used_bytes(daemon: &Daemon) -> u64 {
    let answer = daemon
        .cri()
        .image(async |c| c.image_fs_info(ImageFsInfoRequest::default()).await);
    let answer = answer.expect("ImageFsInfo is answered");
    let usage = answer
        .image_filesystems
        .first()
        .expect("one file system for images");
    assert!(usage.timestamp > 0, "{usage:?}");
    let mountpoint = &usage.fs_id.as_ref().expect("an id of the file system").mountpoint;
    assert!(std::path::Path::new(mountpoint).is_dir(), "{usage:?}");
    usage.used_bytes.as_ref().expect("used bytes").value
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_image_removed_in_use_stays_for_its_container() {
    let daemon = Daemon::private(DaemonOptions::new());
    let registry = Registry::start();
    let mut image = Image::of_the_node("busybox:latest");
    image.layers.push(Layer::gzip(
        &Archive::new().file("mark", 0o644, b"still here").finish(),
    ));
    let reference = registry.push("in-use:latest", &image);
    let pod = daemon.run_pod(PodSpec::new("in-use"));
    let container = pod.run(ContainerSpec::of(&reference).command(&["top", "-b", "-d", "3600"]));
    let before = used_bytes(&daemon);
    daemon
        .try_remove_image(&reference)
        .expect("an image in use can be removed");
    assert_eq!(daemon.image(&reference), None);
    assert_eq!(container.sh("cat /mark"), "still here");
    container.remove();
    drop(pod);
    let after = used_bytes(&daemon);
    assert!(
        after < before,
        "{before} bytes before, {after} when nothing uses the image"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn the_images_own_settings_hold_unless_the_container_has_others() {
    let daemon = Daemon::shared();
    let registry = Registry::start();
    let image = Image::of_the_node("busybox:latest").configured(json!({
        "Entrypoint": ["sh", "-c", "echo entry $0 $@; echo $FROM_IMAGE $PATH; pwd; trap 'exit 9' USR2; echo ready; while :; do sleep 1; done"],
        "Cmd": ["default", "words"],
        "Env": ["FROM_IMAGE=image", "PATH=/bin:/image/bin"],
        "WorkingDir": "/var/www",
        "StopSignal": "SIGUSR2",
    }));
    let reference = registry.push("settings:latest", &image);
    let pod = daemon.run_pod(PodSpec::new("settings"));
    for (spec, expected) in [
        (
            ContainerSpec::of(&reference),
            "entry default words\nimage /bin:/image/bin\n/var/www\nready",
        ),
        (
            ContainerSpec::of(&reference)
                .with("/args", json!(["other"]))
                .with("/envs", json!([{ "key": "FROM_IMAGE", "value": "container" }]))
                .with("/working_dir", "/tmp"),
            "entry other\ncontainer /bin:/image/bin\n/tmp\nready",
        ),
    ] {
        let container = pod.run(spec);
        container.wait_for_log("ready");
        assert_eq!(daemon.crictl().ok(["logs", container.id()]), expected);
        container.stop(200);
        assert_eq!(
            container.status().exit_code,
            9,
            "the image's stop signal was sent"
        );
    }
    let command = pod.run(ContainerSpec::of(&reference).command(&["echo", "nothing of the image"]));
    command.wait_exited();
    assert_eq!(daemon.crictl().ok(["logs", command.id()]), "nothing of the image");
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_container_names_its_image_as_kubelets_need_it() {
    let daemon = Daemon::shared();
    let name = Environment::get().image("busybox:latest");
    let id = daemon.try_pull(&name).expect("a good image");
    let image: CriImage = daemon.image(&id).expect("it is there");
    let pod = daemon.run_pod(PodSpec::new("image-names"));
    for spec in [
        ContainerSpec::of(&id)
            .command(&["true"])
            .with("/image/user_specified_image", name.as_str()),
        ContainerSpec::of(&name).command(&["true"]),
    ] {
        let container = pod.create(spec);
        let status = container.status();
        assert_eq!(status.image_id, id);
        assert!(image.repo_digests.contains(&status.image_ref), "{status:?}");
        let shown = status.image.map(|image| image.image).unwrap_or_default();
        assert!(image.repo_tags.contains(&shown), "{shown}");
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_image_comes_from_its_registrys_mirror_with_the_nodes_credentials() {
    let daemon = Daemon::shared();
    let mirrored = daemon.try_pull("registry.example/busybox:latest").unwrap();
    let itself = daemon
        .try_pull(&Environment::get().image("busybox:latest"))
        .unwrap();
    assert_eq!(mirrored, itself, "one image under two names");
    let image = daemon.image(&mirrored).unwrap();
    assert!(
        image
            .repo_tags
            .contains(&"registry.example/busybox:latest".to_owned()),
        "{image:?}"
    );
    // Without them there is nothing to be had.
    let strict = Daemon::private(DaemonOptions::new().config("images.docker_config", ""));
    let refused = strict.try_pull("registry.example/busybox:latest").unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("localhost:5001"), "{refused:?}");
}
