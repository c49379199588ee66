//! `bulkhead images`: images, and how far pulls have come.

use std::path::Path;

use bulkhead_proto::cri::{
    Image, ListImagesRequest, StatusRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use serde::Deserialize;
use tonic::transport::Channel;

use super::client::{ANSWER_BYTES, AdminError, connect};
use super::columns::{age, aligned, mebibytes};
use crate::identity::short;

/// What the daemon tells of a pull under way, in its verbose status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Pull {
    image: String,
    seconds: u64,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Layer {
    bytes: u64,
    received: u64,
}

/// The images and pulls of the daemon that listens on a socket.
#[derive(Debug)]
pub struct Images {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

impl Images {
    /// Connects to the daemon.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn of(socket: &Path) -> Result<Self, AdminError> {
        let channel = connect(socket).await?;
        Ok(Self {
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES),
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES),
        })
    }

    /// A table of the images as they are now, and one of the pulls under way if there are any.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn table(&mut self) -> Result<String, AdminError> {
        let listed = self.images.list_images(ListImagesRequest::default()).await?;
        let status = self.runtime.status(StatusRequest { verbose: true }).await?;
        let pulls = status.into_inner().info.remove("pulls").unwrap_or_default();
        // A daemon of another version may tell nothing of them, or something else.
        let pulls: Vec<Pull> = serde_json::from_str(&pulls).unwrap_or_default();
        Ok(render(&listed.into_inner().images, &pulls))
    }
}

fn render(images: &[Image], pulls: &[Pull]) -> String {
    let mut rows: Vec<_> = images.iter().flat_map(rows).collect();
    rows.sort();
    rows.insert(0, ["IMAGE", "ID", "SIZE", "PINNED"].map(str::to_owned));
    let mut text = aligned(&rows);
    if !pulls.is_empty() {
        let mut rows = vec![["PULLING", "LAYERS", "RECEIVED", "", "SINCE"].map(str::to_owned)];
        rows.extend(pulls.iter().map(progress));
        text.push('\n');
        text.push_str(&aligned(&rows));
    }
    text
}

/// A row for each tag; for each digest where there is none.
fn rows(image: &Image) -> Vec<[String; 4]> {
    let names = if image.repo_tags.is_empty() {
        &image.repo_digests
    } else {
        &image.repo_tags
    };
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let row = |name: &String| {
        [
            name.clone(),
            short(id).to_owned(),
            mebibytes(image.size / 1024),
            if image.pinned { "yes" } else { "no" }.to_owned(),
        ]
    };
    names.iter().map(row).collect()
}

fn progress(pull: &Pull) -> [String; 5] {
    let whole = pull
        .layers
        .iter()
        .filter(|layer| layer.received >= layer.bytes)
        .count();
    let (received, bytes) = pull
        .layers
        .iter()
        .fold((0_u64, 0_u64), |(received, bytes), layer| {
            (
                received.saturating_add(layer.received),
                bytes.saturating_add(layer.bytes),
            )
        });
    let percent = u128::from(received) * 100 / u128::from(bytes.max(1));
    let known = !pull.layers.is_empty();
    let if_known = |text: String| if known { text } else { "-".to_owned() };
    [
        pull.image.clone(),
        if_known(format!("{whole}/{}", pull.layers.len())),
        if_known(format!(
            "{} of {}",
            mebibytes(received / 1024),
            mebibytes(bytes / 1024)
        )),
        if_known(format!("{percent} %")),
        age(pull.seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_pulls_are_shown_below_each_other() {
        let image = |tags: &[&str], pinned| Image {
            id: "sha256:0123456789abcdef0123".into(),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: vec!["r.io/a@sha256:00".into()],
            size: 3 << 19,
            pinned,
            ..Image::default()
        };
        let pulls = r#"[{"image":"r.io/b:1","seconds":61,"more":1,"layers":[
            {"digest":"sha256:1","bytes":1048576,"received":1048576},{"bytes":3145728,"received":1048576}]},
            {"image":"r.io/c:1","seconds":0,"layers":[]}]"#;
        let pulls: Vec<Pull> = serde_json::from_str(pulls).unwrap();
        assert_eq!(
            render(
                &[image(&["r.io/z:2", "r.io/a:1"], true), image(&[], false)],
                &pulls
            ),
            "IMAGE             ID             SIZE     PINNED\n\
             r.io/a:1          0123456789abc  1.5 MiB  yes\n\
             r.io/a@sha256:00  0123456789abc  1.5 MiB  no\n\
             r.io/z:2          0123456789abc  1.5 MiB  yes\n\
             \n\
             PULLING   LAYERS  RECEIVED                  SINCE\n\
             r.io/b:1  1/2     2.0 MiB of 4.0 MiB  50 %  1 min\n\
             r.io/c:1  -       -                   -     0 s\n"
        );
        assert_eq!(render(&[], &[]), "IMAGE  ID  SIZE  PINNED\n");
    }
}
