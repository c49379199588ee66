//! Requests about one repository on behalf of one pull, to the hosts that its registry is reached by.
//!
//! Each request goes to one host after the other until one has what is asked for. Those that failed for the moment are
//! then asked again after a while, and so on, within the attempts and the time that the configuration grants.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;

use super::super::{Credentials, Digest, ImageConfig, ImageError, Reference, Version};
use super::blob::BlobStream;
use super::clients::Clients;
use super::docker_config::DockerConfig;
use super::failure::Names;
use super::hosts::{self, Endpoint};
use super::manifest::{Descriptor, MANIFEST_TYPES};
use super::patience::Patience;
use super::peer::{Answer, Ask, Needs, Peer};
use super::retry::{Backoff, Retry};
use super::tls::TlsMaterial;

/// All registries, and how this host speaks to them.
#[derive(Debug)]
pub(in super::super) struct Registries {
    config: ImageConfig,
    clients: Arc<Clients>,
}

impl Registries {
    pub(in super::super) fn new(config: ImageConfig) -> Self {
        Self {
            config,
            clients: Arc::default(),
        }
    }

    /// Prepares requests about `reference`'s repository by what the host's files say now. Nothing is sent yet.
    pub(in super::super) async fn session(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, ImageError> {
        let preparation = Preparation {
            config: self.config.clone(),
            clients: Arc::clone(&self.clients),
            reference: reference.clone(),
            credentials,
        };
        let fail = |reason| ImageError::HostConfig {
            reference: reference.to_string(),
            reason,
        };
        let peers = tokio::task::spawn_blocking(move || preparation.peers()).await;
        let peers = peers
            .unwrap_or_else(|error| Err(format!("reading its registry's files was broken off: {error}")))
            .map_err(fail)?;
        Ok(Session {
            reference: reference.clone(),
            peers,
            backoff: Backoff::new(&self.config),
        })
    }
}

/// What hosts' files and secrets are brought together of.
struct Preparation {
    config: ImageConfig,
    clients: Arc<Clients>,
    reference: Reference,
    credentials: Option<Credentials>,
}

impl Preparation {
    fn peers(&self) -> Result<Vec<Peer>, String> {
        let registry = self.reference.registry();
        let directory = &self.config.registry_config_dir;
        let plain_http = self.config.is_plain_http(registry);
        let endpoints =
            hosts::endpoints(directory, registry, plain_http).map_err(|error| error.to_string())?;
        let hosts_file = hosts::file_of(directory, registry);
        endpoints
            .into_iter()
            .map(|endpoint| self.peer(endpoint, hosts_file.clone()))
            .collect()
    }

    fn peer(&self, endpoint: Endpoint, hosts_file: PathBuf) -> Result<Peer, String> {
        let (credentials, unshown) = self.credentials_for(&endpoint.host)?;
        let names = Names {
            reference: self.reference.to_string(),
            registry: match &endpoint.namespace {
                Some(registry) => format!("{} (for {registry})", endpoint.host),
                None => self.reference.registry().to_owned(),
            },
            repository: self.reference.repository().to_owned(),
            hosts_file,
            unshown,
        };
        let tls = TlsMaterial::read(&endpoint.options)?;
        let connect_timeout = Duration::from_secs(self.config.connect_timeout_seconds);
        let clients = Arc::clone(&self.clients);
        let patience = Patience::new(&self.config);
        Ok(Peer::new(
            endpoint,
            credentials,
            tls,
            connect_timeout,
            clients,
            names,
            patience,
        ))
    }

    /// What may be shown to `host`, or why there is nothing: the pull's own credentials if they are for it, or else
    /// those of Docker's file.
    fn credentials_for(&self, host: &str) -> Result<(Option<Credentials>, Option<String>), String> {
        if let Some(credentials) = &self.credentials {
            let server = credentials.server.as_deref();
            // Those that name no server are for the registry in the image's name.
            let registry = Credentials {
                server: Some(server.unwrap_or(self.reference.registry()).to_owned()),
                secret: credentials.secret.clone(),
            };
            if registry.is_for(host) {
                return Ok((Some(registry), None));
            }
        }
        if self.config.docker_config.as_os_str().is_empty() {
            return Ok((None, None));
        }
        let file = DockerConfig::read(&self.config.docker_config)?;
        file.credentials(host, self.reference.repository())
    }
}

/// Requests about one repository, with one set of credentials.
#[derive(Debug)]
pub(in super::super) struct Session {
    reference: Reference,
    /// Never none.
    peers: Vec<Peer>,
    backoff: Backoff,
}

impl Session {
    /// A manifest or an index, and the media type the registry gave it. What is asked for by digest has it.
    pub(in super::super) async fn manifest(
        &self,
        version: &Version,
        limit: u64,
    ) -> Result<(Bytes, Option<String>), ImageError> {
        let (name, what, needs) = match version {
            Version::Tag(tag) => (
                tag.clone(),
                format!("its manifest with the tag {tag}"),
                Needs::Resolve,
            ),
            Version::Digest(digest) => (digest.to_string(), format!("its manifest {digest}"), Needs::Pull),
        };
        let ask = Ask {
            path: &format!("manifests/{name}"),
            accept: &MANIFEST_TYPES.join(", "),
            what: &what,
            needs,
            from: 0,
            length: None,
            digest: match version {
                Version::Tag(_) => None,
                Version::Digest(digest) => Some(*digest),
            },
            whole: Some((limit, "max_manifest_bytes")),
        };
        let (_, answer) = self.ask(&ask, 0, &mut self.backoff.clone()).await?;
        let media_type = answer
            .response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media_type = media_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        Ok((answer.body, media_type))
    }

    /// A blob that is small enough to be held in memory, as its descriptor describes it.
    pub(in super::super) async fn blob(
        &self,
        descriptor: &Descriptor,
        what: &str,
        limit: u64,
        key: &'static str,
    ) -> Result<Bytes, ImageError> {
        let path = blob_path(descriptor.digest);
        let ask = Ask {
            length: Some(descriptor.size),
            digest: Some(descriptor.digest),
            whole: Some((limit, key)),
            ..Ask::blob(&path, what)
        };
        let (_, answer) = self.ask(&ask, 0, &mut self.backoff.clone()).await?;
        Ok(answer.body)
    }

    /// A blob, piece by piece, of `length` bytes in all.
    pub(in super::super) async fn blob_stream(
        &self,
        digest: Digest,
        length: u64,
        what: &str,
    ) -> Result<BlobStream<'_>, ImageError> {
        BlobStream::open(self, blob_path(digest), length, what).await
    }

    pub(super) fn peer(&self, index: usize) -> Option<&Peer> {
        self.peers.get(index % self.peers.len().max(1))
    }

    pub(super) fn backoff(&self) -> Backoff {
        self.backoff.clone()
    }

    /// Asks the hosts from the one with number `first` on, and gives the answer with the number of the host it is from.
    pub(super) async fn ask(
        &self,
        ask: &Ask<'_>,
        first: usize,
        backoff: &mut Backoff,
    ) -> Result<(usize, Answer), ImageError> {
        let count = self.peers.len();
        let mut hosts: Vec<_> = (first..first + count)
            .filter_map(|index| Some((index % count, self.peers.get(index % count)?)))
            .filter(|(_, peer)| peer.may(ask.needs))
            .map(|(index, peer)| Tried {
                index,
                peer,
                error: peer.down.get().cloned(),
                over: peer.down.get().is_some(),
            })
            .collect();
        // Where none could be reached before, perhaps one can be by now.
        if hosts.iter().all(|host| host.over) {
            for host in &mut hosts {
                host.over = false;
            }
        }
        loop {
            // How long the first that may be asked again wants to be left alone.
            let mut pause: Option<Option<Duration>> = None;
            for host in hosts.iter_mut().filter(|host| !host.over) {
                let failure = match host.peer.ask(ask).await {
                    Ok(answer) => return Ok((host.index, answer)),
                    Err(failure) => failure,
                };
                tracing::debug!(error = %failure.error, retry = ?failure.retry, "a registry's host failed");
                match (failure.retry, pause) {
                    (Retry::Never, _) => host.over = true,
                    (Retry::Later(asked), None) => pause = Some(asked),
                    (Retry::Later(asked), Some(earlier)) => {
                        pause = Some(earlier.zip(asked).map(|(a, b)| a.min(b)));
                    }
                }
                host.error = Some(*failure.error);
            }
            let Some(wait) = pause.and_then(|asked| backoff.next(asked)) else {
                return Err(self.failed(ask, hosts));
            };
            tracing::info!(image = %self.reference, what = ask.what, ?wait, "a registry is asked again later");
            tokio::time::sleep(wait).await;
        }
    }

    fn failed(&self, ask: &Ask<'_>, hosts: Vec<Tried<'_>>) -> ImageError {
        let mut tried: Vec<_> = hosts.into_iter().filter_map(|host| host.error).collect();
        let reference = self.reference.to_string();
        if tried.len() > 1 {
            return ImageError::AllFailed {
                reference,
                registry: self.reference.registry().to_owned(),
                what: ask.what.to_owned(),
                tried,
            };
        }
        tried.pop().unwrap_or_else(|| {
            let (may, capability) = match ask.needs {
                Needs::Resolve => ("say what a tag means", "resolve"),
                Needs::Pull => ("be asked for content", "pull"),
            };
            let file = self
                .peers
                .first()
                .map(|peer| peer.names.hosts_file.display().to_string());
            let reason = format!(
                "no host of registry {} may {may}; give one the capability \"{capability}\" in {}",
                self.reference.registry(),
                file.unwrap_or_default()
            );
            ImageError::HostConfig { reference, reason }
        })
    }
}

/// A host that a request may go to.
struct Tried<'a> {
    index: usize,
    peer: &'a Peer,
    /// Why it did not have it.
    error: Option<ImageError>,
    /// Whether it is not asked any more.
    over: bool,
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/{digest}")
}
