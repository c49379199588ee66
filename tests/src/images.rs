//! The image service by gRPC, and images taken from the node's registry to be changed.

use std::{fs, process::Command};

use bulkhead_proto::cri::{
    Image as CriImage, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
};
use serde_json::Value;
use tonic::Status;

use crate::{
    Cri, Daemon, Environment,
    registry::{Image, Layer},
};

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.into(),
        ..ImageSpec::default()
    }
}

impl Daemon {
    /// PullImage; the image's id.
    pub fn try_pull(&self, name: &str) -> Result<String, Status> {
        self.cri().try_pull(name)
    }

    /// ImageStatus; nothing for an image that is not there.
    #[track_caller]
    pub fn image(&self, name: &str) -> Option<CriImage> {
        let request = ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        let answer = self.cri().image(async |c| c.image_status(request).await);
        answer.expect("ImageStatus is answered").image
    }

    /// ListImages.
    #[track_caller]
    pub fn images(&self) -> Vec<CriImage> {
        let answer = self
            .cri()
            .image(async |c| c.list_images(ListImagesRequest::default()).await);
        answer.expect("ListImages is answered").images
    }

    /// RemoveImage.
    pub fn try_remove_image(&self, name: &str) -> Result<(), Status> {
        self.cri().try_remove_image(name)
    }
}

impl Cri {
    /// PullImage; the image's id.
    pub fn try_pull(&self, name: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(spec(name)),
            auth: None,
            sandbox_config: None,
        };
        self.image(async |c| c.pull_image(request).await)
            .map(|answer| answer.image_ref)
    }

    /// RemoveImage.
    pub fn try_remove_image(&self, name: &str) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(name)),
        };
        self.image(async |c| c.remove_image(request).await).map(drop)
    }
}

impl Image {
    /// A test image of the node's registry, such as `busybox:latest`, as another tool copies it.
    pub fn of_the_node(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for an image");
        let layout = directory.path().join("layout");
        let source = format!("docker://{}", Environment::get().image(name));
        let target = format!("oci:{}:copy", layout.display());
        let output = Command::new("skopeo")
            .args(["copy", "--src-tls-verify=false", &source, &target])
            .output()
            .expect("skopeo starts");
        assert!(output.status.success(), "skopeo copy {source}: {output:?}");

        let blob = |digest: &Value| {
            let digest = digest.as_str().expect("a digest");
            let path = layout.join("blobs").join(digest.replace(':', "/"));
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON in an OCI layout");
        let index = parse(&fs::read(layout.join("index.json")).expect("an OCI layout has an index"));
        let manifest = parse(&blob(at(&index, "/manifests/0/digest")));
        let config = parse(&blob(at(&manifest, "/config/digest")));
        let diff_ids = at(&config, "/rootfs/diff_ids").as_array().expect("diff ids");
        let layers = at(&manifest, "/layers").as_array().expect("layers");
        let layers = layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| {
                let media_type = at(layer, "/mediaType").as_str().expect("a media type");
                let mut copy = Layer::of(&[], blob(at(layer, "/digest")), media_type);
                copy.diff_id = diff_id.as_str().expect("a diff id").into();
                copy
            })
            .collect();
        Self {
            layers,
            config: at(&config, "/config").clone(),
            architecture: "amd64".into(),
        }
    }
}

/// The value at a JSON pointer's path.
fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value
        .pointer(pointer)
        .unwrap_or_else(|| panic!("nothing at {pointer} in {value:#}"))
}
