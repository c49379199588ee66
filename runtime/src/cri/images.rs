//! ImageService.

use std::{collections::HashMap, sync::Arc};

use bulkhead_proto::cri::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse,
    PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest,
    StreamImagesResponse, UInt64Value, image_service_server::ImageService,
};
use futures_util::stream::Iter;
use prost::Message;
use tonic::{Request, Response, Status};

use super::{answers, error::Failure, info, runtime::answer};
use crate::{
    daemon::Daemon,
    identity::now_ns,
    image::{Credentials, Reference},
    refusal::Refusal,
};

/// The service, on a daemon.
#[derive(Clone, Debug)]
pub(super) struct ImageHandlers {
    daemon: Arc<Daemon>,
}

impl ImageHandlers {
    pub(super) fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// All images, or the one that is asked for.
    fn listed(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let asked = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let store = &self.daemon.images;
        let images = if asked.is_empty() {
            store.list()
        } else {
            store.resolve(&asked).into_iter().collect()
        };
        images
            .iter()
            .map(|image| answers::image(image, store.is_pinned(image)))
            .collect()
    }
}

/// Most images of one message of a stream, and most bytes of them: clients take 4 MiB by default.
const PART_IMAGES: usize = 200;
const PART_BYTES: usize = 1 << 20;

/// `images` in parts that fit a message each. An image that is larger alone has a part of its own.
fn parts(images: Vec<Image>) -> Vec<Vec<Image>> {
    let mut parts: Vec<Vec<Image>> = Vec::new();
    let mut bytes = 0;
    for image in images {
        let size = image.encoded_len();
        match parts.last_mut() {
            Some(part) if part.len() < PART_IMAGES && bytes + size <= PART_BYTES => {
                part.push(image);
                bytes += size;
            }
            _ => {
                parts.push(vec![image]);
                bytes = size;
            }
        }
    }
    parts
}

#[tonic::async_trait]
impl ImageService for ImageHandlers {
    type StreamImagesStream = Iter<std::vec::IntoIter<Result<StreamImagesResponse, Status>>>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse {
            images: self.listed(request.into_inner().filter),
        }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        answer("ImageStatus", async {
            let ImageStatusRequest { image, verbose } = request.into_inner();
            let name = name(image)?;
            let Some(image) = self.daemon.images.resolve(&name) else {
                return Ok(ImageStatusResponse::default());
            };
            let info = if verbose {
                let (daemon, image) = (Arc::clone(&self.daemon), Arc::clone(&image));
                tokio::task::spawn_blocking(move || info::image(&daemon, &image))
                    .await
                    .unwrap_or_default()
            } else {
                HashMap::new()
            };
            Ok(ImageStatusResponse {
                image: Some(answers::image(&image, self.daemon.images.is_pinned(&image))),
                info,
            })
        })
        .await
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        answer("PullImage", async {
            let PullImageRequest {
                image,
                auth,
                sandbox_config: _,
            } = request.into_inner();
            let name = name(image)?;
            let reference: Reference = name.parse()?;
            let auth = auth.unwrap_or_default();
            let credentials = Credentials::from_auth_config(
                &auth.username,
                &auth.password,
                &auth.auth,
                &auth.server_address,
                &auth.identity_token,
                &auth.registry_token,
            )?;
            tracing::info!(image = %reference, "pulling an image");
            // Not detached: a client that goes away ends its pull.
            let pulled = self.daemon.images.pull(&reference, credentials).await;
            let id = pulled.map_err(|error| Failure::of_pull(&error))?;
            tracing::info!(image = %reference, %id, "pulled an image");
            Ok(PullImageResponse {
                image_ref: id.to_string(),
            })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        answer("RemoveImage", async {
            let name = name(request.into_inner().image)?;
            self.daemon.images.remove(&name).await?;
            Ok(RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let usage = self.daemon.images.usage();
        let filesystem = FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(UInt64Value {
                value: usage.used_bytes,
            }),
            inodes_used: Some(UInt64Value {
                value: usage.inodes_used,
            }),
        };
        // Containers write to disks that are files of the same file system.
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let parts = parts(self.listed(request.into_inner().filter));
        let answers: Vec<_> = parts
            .into_iter()
            .map(|images| Ok(StreamImagesResponse { images }))
            .collect();
        Ok(Response::new(futures_util::stream::iter(answers)))
    }
}

fn name(image: Option<ImageSpec>) -> Result<String, Refusal> {
    let name = image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Refusal::invalid("image", "it is missing"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_images_comes_in_parts_that_fit() {
        let image = |name: usize, tags: usize| Image {
            id: name.to_string(),
            repo_tags: vec!["x".repeat(1000); tags],
            ..Image::default()
        };
        assert!(parts(Vec::new()).is_empty());
        let many: Vec<_> = (0..1001).map(|index| image(index, 1)).collect();
        let large: Vec<_> = (0..10).map(|index| image(index, 400)).collect();
        let huge = vec![image(0, 1), image(1, 5000), image(2, 1)];
        for (images, expected) in [(many, 6), (large, 5), (huge, 3)] {
            let parts = parts(images.clone());
            assert_eq!(parts.len(), expected);
            for part in &parts {
                let bytes: usize = part.iter().map(Message::encoded_len).sum();
                assert!(part.len() <= PART_IMAGES && (bytes <= PART_BYTES || part.len() == 1));
            }
            assert_eq!(parts.concat(), images);
        }
    }
}
