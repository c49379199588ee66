//! Images as read-only volumes of containers.

use std::fs;

use bulkhead_tests::{ContainerSpec, Daemon, Environment, Pod, PodSpec, create_arguments};
use serde_json::{Value, json};

fn volume(image: &str, path: &str) -> Value {
    json!([{
        "container_path": "/mnt/image",
        "readonly": true,
        "image": { "image": image },
        "image_sub_path": path,
    }])
}

/// What `crictl` prints of a container that cannot be made.
fn refused(pod: &Pod<'_>, spec: &ContainerSpec) -> String {
    pod.daemon().crictl().fails(create_arguments(pod, spec))
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn an_image_of_many_layers_is_a_read_only_volume() {
    let daemon = Daemon::shared();
    let image = Environment::get().image("layers:latest");
    let id = daemon.try_pull(&image).unwrap();
    let pod = daemon.run_pod(PodSpec::new("volume"));
    // The container of the image itself, and one that has it beside its own.
    let itself = pod.run(ContainerSpec::of(&image).command(&["top", "-b", "-d", "3600"]));
    let container = pod.run(ContainerSpec::idle().with("/mounts", volume(&id, "")));
    let list = "find . -xdev -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o -path ./etc -prune -o -print | sort | md5sum";
    assert_eq!(
        container.sh(&format!("cd /mnt/image && {list}")),
        itself.sh(&format!("cd / && {list}").replace("-print", "-path ./mnt -prune -o -print")),
    );
    let touched = container.exec(&["touch", "/mnt/image/new"]);
    assert_ne!(touched.code, 0);
    assert!(
        touched.error_text().contains("Read-only file system"),
        "{touched:?}"
    );
    assert_eq!(container.sh("/mnt/image/bin/busybox echo it runs"), "it runs");
    let status = container.status();
    let mounted = status.mounts[0].image.clone().unwrap();
    assert_eq!(mounted.image_ref, id);
    assert!(status.mounts[0].readonly);

    // As long as a container of the pod may read it, its layers stay.
    daemon.try_remove_image(&id).unwrap();
    assert_eq!(
        container.sh("/mnt/image/bin/busybox echo it still runs"),
        "it still runs"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_part_of_an_image_is_a_volume_and_no_link_leads_out_of_it() {
    let daemon = Daemon::shared();
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    let pod = daemon.run_pod(PodSpec::new("part"));
    let container = pod.run(ContainerSpec::idle().with("/mounts", volume(&image, "etc")));
    assert_eq!(
        container.sh("cat /mnt/image/passwd"),
        container.sh("cat /etc/passwd"),
        "the part is the image's etc"
    );
    let container = pod.run(
        ContainerSpec::idle()
            .with("/metadata/name", "file")
            .with("/mounts", volume(&image, "etc/passwd")),
    );
    assert!(container.sh("cat /mnt/image").contains("root:"));
    for missing in ["no/such/path", "etc/passwd/x", "proc/self/root/etc"] {
        let spec = ContainerSpec::idle().with("/mounts", volume(&image, missing));
        let message = refused(&pod, &spec);
        for word in [
            "FailedPrecondition desc = ImageVolumeMountFailed: ",
            missing,
            "/mnt/image",
        ] {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_is_no_image_volume_is_refused_in_words() {
    let daemon = Daemon::shared();
    let image = Environment::get().image("busybox:latest");
    daemon.pull_once(&image);
    let pod = daemon.run_pod(PodSpec::new("no-volume"));
    let changed = |pointer: &str, value: Value| {
        let mut mounts = volume(&image, "");
        mounts[0][pointer] = value;
        ContainerSpec::idle().with("/mounts", mounts)
    };
    for (spec, code, word) in [
        (changed("readonly", json!(false)), "InvalidArgument", "readonly"),
        (
            changed("host_path", json!("/tmp")),
            "InvalidArgument",
            "host_path",
        ),
        (
            changed("image_sub_path", json!("../etc")),
            "InvalidArgument",
            "image_sub_path",
        ),
        (
            changed("image", json!({ "image": "localhost:5000/not-here:1" })),
            "NotFound",
            "localhost:5000/not-here:1",
        ),
    ] {
        let message = refused(&pod, &spec);
        let start = format!("{code} desc = ImageVolumeMountFailed: ");
        assert!(message.contains(&start) && message.contains(word), "{message}");
    }
    // Nothing of them is left.
    let logs = fs::read_dir(pod.log_directory()).map_or(0, Iterator::count);
    assert_eq!(logs, 0);
}
