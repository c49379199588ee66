//! ImageService.

use std::{collections::HashMap, sync::Arc};

use bulkhead_proto::cri::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse,
    PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest,
    StreamImagesResponse, UInt64Value, image_service_server::ImageService,
};
use tonic::{Request, Response, Status};

use super::{
    answers,
    error::Failure,
    handler::answer,
    info,
    parts::{self, Parts},
};
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

#[tonic::async_trait]
impl ImageService for ImageHandlers {
    type StreamImagesStream = Parts<StreamImagesResponse>;

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
        let images = self.listed(request.into_inner().filter);
        Ok(parts::stream(images, |images| StreamImagesResponse { images }))
    }
}

fn name(image: Option<ImageSpec>) -> Result<String, Refusal> {
    let name = image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Refusal::invalid("image", "it is missing"));
    }
    Ok(name)
}
