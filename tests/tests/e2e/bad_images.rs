//! Registries and images that are broken or malicious: each pull is refused in words and leaves nothing behind.

use std::{collections::BTreeSet, fs, net::TcpListener, path::Path};

use bulkhead_tests::{
    ContainerSpec, Daemon, DaemonOptions, PodSpec, assert_refused,
    registry::{Archive, Body, Header, Image, Layer, Registry, digest_of},
};
use serde_json::json;
use tonic::Code;

/// A private daemon with low limits, a registry, and what the daemon's directory held before anything was pulled.
struct Setting {
    daemon: Daemon,
    registry: Registry,
    before: BTreeSet<String>,
}

impl Setting {
    fn new() -> Self {
        let options = DaemonOptions::new()
            .config("images.max_layer_bytes", 8 << 20)
            .config("images.max_layer_entries", 500)
            .config("images.max_image_layers", 5)
            .config("images.max_manifest_bytes", 64 << 10)
            .config("images.max_config_bytes", 64 << 10)
            .config("images.stall_timeout_seconds", 5)
            .config("images.request_attempts", 2);
        let daemon = Daemon::private(options);
        let before = files_below(daemon.root());
        Self {
            daemon,
            registry: Registry::start(),
            before,
        }
    }

    /// Pulls `name`, which must be refused with `words`, and sees that nothing is left of it.
    #[track_caller]
    fn refused(&self, name: &str, codes: &[Code], words: &[&str]) -> String {
        let reference = if name.starts_with("localhost") {
            name.to_owned()
        } else {
            format!("{}/{name}", self.registry.host())
        };
        let status = match self.daemon.try_pull(&reference) {
            Ok(id) => panic!("{reference} was pulled as {id}"),
            Err(status) => status,
        };
        assert!(codes.contains(&status.code()), "{status:?} is none of {codes:?}");
        let code = status.code();
        let message = assert_refused(Err::<(), _>(status), code, words);
        assert!(
            message.contains(reference.as_str()),
            "the message names no image: {message}"
        );
        self.assert_nothing_left(&reference);
        message
    }

    #[track_caller]
    fn assert_nothing_left(&self, reference: &str) {
        assert_eq!(self.daemon.image(reference), None);
        assert_eq!(self.daemon.images(), []);
        let left: Vec<_> = files_below(self.daemon.root())
            .difference(&self.before)
            .cloned()
            .collect();
        assert!(left.is_empty(), "left of {reference}: {left:#?}");
    }

    /// The daemon is as good as new: a right image is pulled.
    #[track_caller]
    fn still_pulls(&self) {
        let good = Image::new(vec![Layer::gzip(
            &Archive::new().file("good", 0o644, b"x").finish(),
        )]);
        let reference = self.registry.push("good:latest", &good);
        assert_eq!(self.daemon.try_pull(&reference).expect("a good image"), good.id());
    }
}

fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)
        .expect("a directory can be read")
        .filter_map(Result::ok)
    {
        if entry.path().is_dir() {
            found.append(&mut files_below(&entry.path()));
        }
        found.insert(entry.path().display().to_string());
    }
    found
}

/// Incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn archive() -> Vec<u8> {
    Archive::new()
        .directory("etc", 0o755)
        .file("etc/noise", 0o644, &noise(200_000))
        .finish()
}

const DAMAGED: &[Code] = &[
    Code::DataLoss,
    Code::Internal,
    Code::Unknown,
    Code::FailedPrecondition,
    Code::InvalidArgument,
];
const AWAY: &[Code] = &[Code::Unavailable, Code::Unknown];
const TOO_LARGE: &[Code] = &[
    Code::ResourceExhausted,
    Code::OutOfRange,
    Code::FailedPrecondition,
];
const UNSUPPORTED: &[Code] = &[
    Code::FailedPrecondition,
    Code::Unimplemented,
    Code::InvalidArgument,
];

#[test]
#[ignore = "runs in the node: hack/test"]
fn names_that_lead_nowhere_are_told() {
    let setting = Setting::new();
    let registry = &setting.registry;
    registry.push("there:tag", &Image::new(vec![Layer::gzip(&archive())]));
    setting.refused("there:other", &[Code::NotFound], &["other", "tag"]);
    setting.refused("not/there:tag", &[Code::NotFound], &["not/there"]);
    let digest = digest_of(b"nothing");
    setting.refused(&format!("there@{digest}"), &[Code::NotFound], &[&digest]);

    // A port that was free a moment ago, and a name that no name server has.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let message = setting.refused(
        &format!("localhost:{port}/x:latest"),
        AWAY,
        &["reached", &port.to_string()],
    );
    assert!(
        message.starts_with("RegistryUnavailable"),
        "the kubelet knows the case by this prefix: {message}"
    );

    for bad in [
        "localhost:5000/UPPER/case",
        "localhost:5000/",
        "localhost:5000/a:b:c",
        "a@sha256:short",
        "-",
        "a//b",
    ] {
        assert_refused(setting.daemon.try_pull(bad), Code::InvalidArgument, &[bad]);
    }
    setting.assert_nothing_left("anything");
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_registry_that_fails_is_told_with_its_answer() {
    let setting = Setting::new();
    let put = |tag: &str, body: Body| {
        setting
            .registry
            .put_manifest("broken", tag, "application/vnd.oci.image.manifest.v1+json", body);
    };
    put("failing", Body::Status(500));
    setting.refused("broken:failing", AWAY, &["500"]);
    put("forbidden", Body::Status(403));
    setting.refused("broken:forbidden", &[Code::PermissionDenied], &["forbids access"]);
    put(
        "no-json",
        Body::Bytes(b"<html>welcome to the portal</html>".to_vec()),
    );
    setting.refused("broken:no-json", DAMAGED, &["manifest"]);
    put("empty", Body::Bytes(Vec::new()));
    setting.refused("broken:empty", DAMAGED, &["manifest"]);
    put("endless", Body::Endless(noise(64 << 10)));
    setting.refused(
        "broken:endless",
        TOO_LARGE,
        &["manifest", "65536", "max_manifest_bytes"],
    );
    put("stalled", Body::Stalled(b"{".to_vec()));
    setting.refused("broken:stalled", AWAY, &["manifest", "5 s"]);
    let image = Image::new(vec![Layer::gzip(&archive())]);
    setting.registry.push("broken:no-config", &image);
    setting.registry.put_blob(&image.id(), Body::Status(404));
    setting.refused("broken:no-config", &[Code::NotFound], &["configuration"]);
    setting
        .registry
        .put_blob(&image.id(), Body::Endless(noise(64 << 10)));
    setting.refused("broken:no-config", TOO_LARGE, &["configuration", "65536"]);
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn what_does_not_have_its_digest_is_refused() {
    let setting = Setting::new();
    let registry = &setting.registry;
    let good = Layer::gzip(&archive());
    let other = Layer::gzip(&Archive::new().file("other", 0o644, &noise(1000)).finish());

    registry.push("forged:manifest", &Image::new(vec![good.clone()]));
    let wanted = registry.manifest_digest("forged:manifest");
    registry.push("forged:other", &Image::new(vec![other.clone()]));
    let body = noise(300);
    registry.put_manifest(
        "forged",
        &wanted,
        "application/vnd.oci.image.manifest.v1+json",
        Body::Bytes(body.clone()),
    );
    setting.refused(
        &format!("forged@{wanted}"),
        DAMAGED,
        &[&wanted, &digest_of(&body)],
    );

    let image = Image::new(vec![good.clone()]).configured(json!({ "User": "config" }));
    registry.push("forged:config", &image);
    registry.put_blob(&image.id(), Body::Bytes(b"{}".to_vec()));
    let expected = format!("has 2 bytes in registry {}", registry.host());
    setting.refused("forged:config", DAMAGED, &[&image.id(), &expected]);
    // Of the right length, it is still another one.
    let forged = Image::new(vec![good.clone()])
        .configured(json!({ "User": "forged" }))
        .config_json();
    assert_eq!(forged.len(), image.config_json().len());
    registry.put_blob(&image.id(), Body::Bytes(forged.clone()));
    setting.refused("forged:config", DAMAGED, &[&image.id(), &digest_of(&forged)]);

    let Body::Bytes(bytes) = &good.body else {
        unreachable!("a whole body")
    };
    let mut changed = bytes.clone();
    *changed.last_mut().expect("a layer has bytes") ^= 1;
    for (name, served) in [("another-layer", noise(bytes.len())), ("changed-layer", changed)] {
        let mut layer = good.clone();
        layer.body = Body::Bytes(served);
        registry.push(&format!("forged:{name}"), &Image::new(vec![other.clone(), layer]));
        setting.refused(&format!("forged:{name}"), DAMAGED, &[&good.digest]);
    }

    let mut layer = good.clone();
    layer.diff_id = digest_of(b"something else");
    registry.push("forged:diff-id", &Image::new(vec![layer]));
    setting.refused(
        "forged:diff-id",
        DAMAGED,
        &[&good.diff_id, &digest_of(b"something else")],
    );
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_layer_that_ends_too_early_too_late_or_never_is_refused() {
    let setting = Setting::new();
    let registry = &setting.registry;
    let push = |name: &str, layer: Layer| registry.push(&format!("length:{name}"), &Image::new(vec![layer]));
    let good = Layer::gzip(&archive());
    let Body::Bytes(bytes) = good.body.clone() else {
        unreachable!("a whole body")
    };

    push(
        "cut",
        Layer {
            body: Body::Cut(bytes.clone(), bytes.len() / 2),
            ..good.clone()
        },
    );
    setting.refused("length:cut", &[DAMAGED, AWAY].concat(), &[&good.digest]);
    push(
        "short",
        Layer {
            size: good.size + 1000,
            ..good.clone()
        },
    );
    setting.refused(
        "length:short",
        &[DAMAGED, AWAY].concat(),
        &[&good.digest, &good.size.to_string()],
    );
    push(
        "long",
        Layer {
            size: good.size - 1000,
            ..good.clone()
        },
    );
    setting.refused(
        "length:long",
        DAMAGED,
        &[&good.digest, &(good.size - 1000).to_string()],
    );
    push(
        "stalled",
        Layer {
            body: Body::Stalled(bytes[..1000].to_vec()),
            ..good.clone()
        },
    );
    setting.refused("length:stalled", AWAY, &[&good.digest, "5 s"]);
    push(
        "endless",
        Layer {
            body: Body::Endless(noise(64 << 10)),
            ..Layer::plain(&noise(1000))
        },
    );
    setting.refused("length:endless", DAMAGED, &["1000"]);

    // 64 MiB of zeros in 64 KiB of gzip.
    let bomb = Archive::new().file("zeros", 0o644, &vec![0; 64 << 20]).finish();
    for (name, layer) in [("bomb", Layer::gzip(&bomb)), ("zstd-bomb", Layer::zstd(&bomb))] {
        push(name, layer);
        setting.refused(
            &format!("length:{name}"),
            TOO_LARGE,
            &["8388608", "max_layer_bytes"],
        );
    }
    let mut many = Archive::new();
    for number in 0..501 {
        many = many.file(&format!("f{number}"), 0o644, b"");
    }
    push("many", Layer::gzip(&many.finish()));
    setting.refused("length:many", TOO_LARGE, &["500", "max_layer_entries"]);
    let layers = (0..6).map(|n| Layer::gzip(&Archive::new().file(&format!("l{n}"), 0o644, b"").finish()));
    registry.push("length:layers", &Image::new(layers.collect()));
    setting.refused("length:layers", TOO_LARGE, &["5", "max_image_layers"]);
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_corrupt_layer_is_refused() {
    let setting = Setting::new();
    let registry = &setting.registry;
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let good = archive();
    let Body::Bytes(packed) = Layer::gzip(&good).body else {
        unreachable!("a whole body")
    };
    let mut broken = packed.clone();
    for byte in broken.iter_mut().skip(5000).take(100) {
        *byte ^= 0x55;
    }
    let mut checksum = good.clone();
    checksum[148] ^= 1;
    let half = good[..good.len() / 2].to_vec();
    for (name, bytes, media_type, diff_id, words) in [
        ("gzip-broken", broken, gzip, &good, "gzip"),
        (
            "gzip-cut",
            packed[..packed.len() / 2].to_vec(),
            gzip,
            &good,
            "gzip",
        ),
        ("not-gzip", noise(2000), gzip, &good, ""),
        ("checksum", checksum.clone(), tar, &checksum, "checksum"),
        ("tar-cut", half.clone(), tar, &half, "ends"),
        ("not-tar", noise(4096), tar, &noise(4096), "tar"),
    ] {
        let layer = Layer::of(diff_id, bytes, media_type);
        let digest = layer.digest.clone();
        registry.push(&format!("corrupt:{name}"), &Image::new(vec![layer]));
        setting.refused(&format!("corrupt:{name}"), DAMAGED, &[&digest, words]);
    }
    let layer = Layer::of(&good, good.clone(), "application/x-lharc");
    registry.push("corrupt:type", &Image::new(vec![layer]));
    setting.refused("corrupt:type", UNSUPPORTED, &["application/x-lharc"]);
    let foreign = Image {
        architecture: "s390x".into(),
        ..Image::new(vec![Layer::gzip(&good)])
    };
    registry.push("corrupt:foreign", &foreign);
    setting.refused("corrupt:foreign", UNSUPPORTED, &["s390x", "amd64"]);
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn no_entry_of_a_layer_leads_out_of_it() {
    let setting = Setting::new();
    let registry = &setting.registry;
    let header = |name: &'static [u8], kind: u8, target: &'static [u8]| Header {
        name,
        kind,
        target,
        ..Header::default()
    };
    for (name, archive, word) in [
        (
            "dots",
            Archive::new().file("../../../../../../../../bulkhead-escaped", 0o644, b"x"),
            "bulkhead-escaped",
        ),
        (
            "inner-dots",
            Archive::new()
                .directory("a", 0o755)
                .file("a/../../bulkhead-escaped", 0o644, b"x"),
            "bulkhead-escaped",
        ),
        (
            "pax-dots",
            Archive::new()
                .pax("path", b"../../bulkhead-escaped")
                .file("fine", 0o644, b"x"),
            "bulkhead-escaped",
        ),
        (
            "link-dots",
            Archive::new().hard_link("shadow", "../../../../../../../etc/shadow"),
            "etc/shadow",
        ),
        (
            "link-host",
            Archive::new().hard_link("passwd", "/etc/passwd"),
            "passwd",
        ),
        (
            "link-through-symlink",
            Archive::new()
                .symlink("out", "/etc")
                .hard_link("passwd", "out/passwd"),
            "passwd",
        ),
        (
            "whiteout-dots",
            Archive::new().file("a/.wh...", 0o644, b""),
            ".wh...",
        ),
        ("link-itself", Archive::new().hard_link("loop", "loop"), "loop"),
        (
            "below-file",
            Archive::new()
                .file("file", 0o644, b"x")
                .file("file/below", 0o644, b"x"),
            "below",
        ),
        (
            "link-loop",
            Archive::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/file", 0o644, b"x"),
            "a/file",
        ),
        (
            "root-is-link",
            Archive::new().header(&header(b"./", b'2', b"etc")),
            "root",
        ),
        (
            "long-name",
            Archive::new().pax("path", &[b'n'; 300]).file("x", 0o644, b""),
            "nnnn",
        ),
    ] {
        registry.push(
            &format!("out:{name}"),
            &Image::new(vec![Layer::plain(&archive.finish())]),
        );
        setting.refused(&format!("out:{name}"), DAMAGED, &[word]);
    }
    for path in [
        "/bulkhead-escaped",
        "/var/bulkhead-escaped",
        "/var/tmp/bulkhead-escaped",
    ] {
        assert!(!fs::exists(path).expect("a path"), "{path} was written");
    }
    setting.still_pulls();
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_symbolic_link_in_a_layer_is_followed_inside_the_image() {
    let setting = Setting::new();
    let mut image = Image::of_the_node("busybox:latest");
    let before = fs::read_dir("/etc").expect("/etc").count();
    let escaping = Archive::new()
        .symlink("absolute", "/etc")
        .file("absolute/bulkhead-one", 0o644, b"one")
        .symlink("upwards", "../../../../../etc")
        .file("upwards/bulkhead-two", 0o644, b"two")
        .file("/leading/slash", 0o644, b"three");
    image.layers.push(Layer::gzip(&escaping.finish()));
    // The whole of busybox is more than the others may have.
    let daemon = Daemon::private(DaemonOptions::new());
    let reference = setting.registry.push("inside:latest", &image);
    let pod = daemon.run_pod(PodSpec::new("inside"));
    let container = pod.run(ContainerSpec::of(&reference).command(&["top", "-b", "-d", "3600"]));
    assert_eq!(
        container.sh("cat /etc/bulkhead-one /etc/bulkhead-two /leading/slash"),
        "onetwothree"
    );
    assert_eq!(container.sh("readlink /absolute"), "/etc");
    assert_eq!(
        fs::read_dir("/etc").expect("/etc").count(),
        before,
        "the host's own /etc is untouched"
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_pull_that_its_caller_gives_up_ends() {
    let setting = Setting::new();
    let good = Layer::gzip(&archive());
    let Body::Bytes(bytes) = good.body.clone() else {
        unreachable!("a whole body")
    };
    let slow = Layer {
        body: Body::Stalled(bytes[..100].to_vec()),
        ..good
    };
    let reference = setting.registry.push("given-up:latest", &Image::new(vec![slow]));
    let said = setting
        .daemon
        .crictl()
        .fails(["pull", "--pull-timeout", "2s", &reference]);
    assert!(said.contains("DeadlineExceeded"), "{said}");
    bulkhead_tests::until("what was pulled so far to be gone", || {
        let left: Vec<_> = files_below(setting.daemon.root())
            .difference(&setting.before)
            .cloned()
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    setting.still_pulls();
}
