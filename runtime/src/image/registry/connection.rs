//! Requests to one registry on behalf of one pull.

use std::error::Error as _;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Response, StatusCode};

use super::super::config::is_loopback;
use super::super::{Credentials, Digest, ImageConfig, ImageError, Reference, Version};
use super::auth::{self, Challenge};
use super::manifest::MANIFEST_TYPES;

const USER_AGENT: &str = concat!("bulkhead/", env!("CARGO_PKG_VERSION"));

/// Storage behind a registry redirects once or twice.
const MAX_REDIRECTS: usize = 5;

/// The most bytes read of an error's or a token's body.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Parts in which a registry's silence is counted.
const PARTS_OF_SILENCE: u32 = 8;

/// All registries, and how this host speaks to them.
#[derive(Debug)]
pub(in super::super) struct Registries {
    config: ImageConfig,
    /// For registries on loopback: without proxies and without the host's certificates.
    loopback: OnceLock<Client>,
    /// For all others. Made when first used, for it reads the host's certificates.
    system: OnceLock<Client>,
}

impl Registries {
    pub(in super::super) fn new(config: ImageConfig) -> Self {
        Self {
            config,
            loopback: OnceLock::new(),
            system: OnceLock::new(),
        }
    }

    /// Prepares requests about `reference`'s repository. Nothing is sent yet.
    pub(in super::super) fn session(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, ImageError> {
        let registry = reference.registry();
        let scheme = if self.config.is_plain_http(registry) {
            "http"
        } else {
            "https"
        };
        let host = if registry == super::super::DEFAULT_REGISTRY {
            "registry-1.docker.io"
        } else {
            registry
        };
        let credentials = credentials.filter(|credentials| credentials.is_for(registry));
        let authorization = credentials.as_ref().and_then(auth::unasked);
        Ok(Session {
            client: self.client(registry)?,
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            reference: reference.clone(),
            credentials,
            authorization: Mutex::new(authorization),
            stall: Duration::from_secs(self.config.stall_timeout_seconds),
        })
    }

    fn client(&self, registry: &str) -> Result<Client, ImageError> {
        let loopback = is_loopback(registry);
        let made = if loopback { &self.loopback } else { &self.system };
        if let Some(client) = made.get() {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(Duration::from_secs(self.config.connect_timeout_seconds))
            .redirect(Policy::custom(follow));
        if loopback {
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| ImageError::Tls {
            registry: registry.to_owned(),
            reason: innermost(&error),
        })?;
        Ok(made.get_or_init(|| client).clone())
    }
}

/// Follows redirects to storage, but never from TLS to none. Credentials stay behind when the host changes: the client
/// drops them itself.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let was_secure = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error(format!("more than {MAX_REDIRECTS} redirects"))
    } else if was_secure && attempt.url().scheme() != "https" {
        attempt.error("a redirect from https to http")
    } else {
        attempt.follow()
    }
}

/// Requests about one repository, with one set of credentials.
#[derive(Debug)]
pub(in super::super) struct Session {
    client: Client,
    /// `scheme://host/v2/repository`.
    base: String,
    reference: Reference,
    credentials: Option<Credentials>,
    /// What the registry let through last.
    authorization: Mutex<Option<HeaderValue>>,
    stall: Duration,
}

impl Session {
    /// A manifest or an index, and the media type the registry gave it.
    pub(in super::super) async fn manifest(
        &self,
        version: &Version,
        limit: u64,
    ) -> Result<(Bytes, Option<String>), ImageError> {
        let (name, what) = match version {
            Version::Tag(tag) => (tag.clone(), format!("its manifest with the tag {tag}")),
            Version::Digest(digest) => (digest.to_string(), format!("its manifest {digest}")),
        };
        let url = format!("{}/manifests/{name}", self.base);
        let response = self.get(&url, &MANIFEST_TYPES.join(", "), &what).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media_type = media_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        let body = self
            .read_whole(response, &what, limit, "max_manifest_bytes")
            .await?;
        Ok((body, media_type))
    }

    /// A blob that is small enough to be held in memory.
    pub(in super::super) async fn blob(
        &self,
        digest: Digest,
        what: &str,
        limit: u64,
        key: &'static str,
    ) -> Result<Bytes, ImageError> {
        let response = self.get(&self.blob_url(digest), "*/*", what).await?;
        self.read_whole(response, what, limit, key).await
    }

    /// A blob, piece by piece.
    pub(in super::super) async fn blob_stream(
        &self,
        digest: Digest,
        what: &str,
    ) -> Result<BlobStream<'_>, ImageError> {
        let response = self.get(&self.blob_url(digest), "*/*", what).await?;
        Ok(BlobStream {
            session: self,
            response,
            what: what.to_owned(),
        })
    }

    fn blob_url(&self, digest: Digest) -> String {
        format!("{}/blobs/{digest}", self.base)
    }

    /// Sends a GET, shows credentials when asked to, and lets nothing pass but 200.
    async fn get(&self, url: &str, accept: &str, what: &str) -> Result<Response, ImageError> {
        let mut shown = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut response = self.send(url, accept, shown.as_ref(), what).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
            let challenges: Vec<_> = challenges
                .filter_map(|value| value.to_str().ok())
                .map(str::to_owned)
                .collect();
            // A token may have expired; but what was just got and refused will not get better.
            shown = self.answer_challenge(&challenges).await?;
            if let Some(authorization) = &shown {
                self.authorization
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone_from(&shown);
                response = self.send(url, accept, Some(authorization), what).await?;
            }
        }
        if response.status() == StatusCode::OK {
            Ok(response)
        } else {
            Err(self.refusal(response, what).await)
        }
    }

    async fn send(
        &self,
        url: &str,
        accept: &str,
        authorization: Option<&HeaderValue>,
        what: &str,
    ) -> Result<Response, ImageError> {
        let mut request = self.client.get(url).header(ACCEPT, accept);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        self.in_time(what, request.send())
            .await?
            .map_err(|error| self.unreachable(&error))
    }

    /// What to show for one of `challenges`; nothing if there is nothing to show.
    async fn answer_challenge(&self, challenges: &[String]) -> Result<Option<HeaderValue>, ImageError> {
        let Some(challenge) = auth::choose(challenges) else {
            return Ok(None);
        };
        let Challenge::Bearer { realm, service } = challenge else {
            return Ok(self.credentials.as_ref().and_then(auth::basic));
        };
        let request = auth::TokenRequest {
            realm: &realm,
            service: service.as_deref(),
            scope: &format!("repository:{}:pull", self.reference.repository()),
            credentials: self.credentials.as_ref(),
            secure_registry: self.base.starts_with("https:"),
        };
        let request = request
            .build(&self.client)
            .map_err(|reason| self.unauthorized(reason))?;
        let what = "an access token";
        let response = self
            .in_time(what, request.send())
            .await?
            .map_err(|error| self.unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, what).await);
        }
        let body = self
            .read_whole(response, what, MAX_ANSWER_BYTES, "max_manifest_bytes")
            .await?;
        let value =
            auth::token_from(&body).ok_or_else(|| self.bad_answer(what, "something that is no token"))?;
        Ok(Some(value))
    }

    async fn read_whole(
        &self,
        mut response: Response,
        what: &str,
        limit: u64,
        key: &'static str,
    ) -> Result<Bytes, ImageError> {
        let mut body = Vec::new();
        while let Some(piece) = self
            .in_time(what, response.chunk())
            .await?
            .map_err(|error| self.broken(&error, what))?
        {
            if (body.len() + piece.len()) as u64 > limit {
                let reference = self.reference.to_string();
                return Err(ImageError::TooLarge {
                    reference,
                    what: what.to_owned(),
                    limit,
                    unit: "bytes",
                    key,
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    }

    /// Waits for the registry, but not longer than it may be silent.
    ///
    /// The time is counted in parts, each of which counts once however long it was: a process or a machine that was not
    /// run for a while finds its timers expired before it has looked at what has come meanwhile.
    async fn in_time<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T, ImageError> {
        let mut work = pin!(work);
        for _ in 0..PARTS_OF_SILENCE {
            if let Ok(done) = tokio::time::timeout(self.stall / PARTS_OF_SILENCE, &mut work).await {
                return Ok(done);
            }
        }
        Err(ImageError::Stalled {
            reference: self.reference.to_string(),
            registry: self.registry(),
            what: what.to_owned(),
            seconds: self.stall.as_secs(),
        })
    }

    /// The error that an answer other than 200 stands for.
    async fn refusal(&self, mut response: Response, what: &str) -> ImageError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(printable);
        let mut body = Vec::new();
        while let Ok(Ok(Some(piece))) = self.in_time(what, response.chunk()).await
            && (body.len() as u64) < MAX_ANSWER_BYTES
        {
            body.extend_from_slice(&piece);
        }
        let said = said_in(&body);
        let (reference, registry) = (self.reference.to_string(), self.registry());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(format!("{status}{said}")),
            StatusCode::NOT_FOUND => ImageError::Missing {
                reference,
                registry,
                what: what.to_owned(),
            },
            StatusCode::TOO_MANY_REQUESTS => ImageError::RateLimited {
                reference,
                registry,
                retry_after,
            },
            _ => self.bad_answer(what, &format!("{status}{said}")),
        }
    }

    fn registry(&self) -> String {
        self.reference.registry().to_owned()
    }

    fn unauthorized(&self, reason: String) -> ImageError {
        ImageError::Unauthorized {
            reference: self.reference.to_string(),
            registry: self.registry(),
            reason,
        }
    }

    fn bad_answer(&self, what: &str, answer: &str) -> ImageError {
        ImageError::BadAnswer {
            reference: self.reference.to_string(),
            registry: self.registry(),
            what: format!("a request for {what}"),
            answer: answer.to_owned(),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ImageError {
        if error.is_redirect() {
            return self.bad_answer("content", &innermost(error));
        }
        let reason = innermost(error);
        ImageError::Unreachable {
            reference: self.reference.to_string(),
            registry: self.registry(),
            reason,
        }
    }

    fn broken(&self, error: &reqwest::Error, what: &str) -> ImageError {
        let reason = format!(
            "the connection broke while {what} was sent ({})",
            innermost(error)
        );
        ImageError::Unreachable {
            reference: self.reference.to_string(),
            registry: self.registry(),
            reason,
        }
    }
}

/// A blob on its way.
#[derive(Debug)]
pub(in super::super) struct BlobStream<'a> {
    session: &'a Session,
    response: Response,
    what: String,
}

impl BlobStream<'_> {
    /// The next bytes, or nothing at the end.
    pub(in super::super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let piece = self.session.in_time(&self.what, self.response.chunk()).await?;
        piece.map_err(|error| self.session.broken(&error, &self.what))
    }
}

/// The message at the bottom of an error: the layers above it say little.
fn innermost(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if error.source().is_none() {
        error.to_string()
    } else {
        deepest.to_string()
    }
}

/// What a registry's error body says (distribution-spec, "Error Codes"), to follow its status.
fn said_in(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Body { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    match errors.first() {
        Some(Item { code, message }) => format!(": {} {}", printable(code), printable(message)),
        None => String::new(),
    }
}

/// A stranger's text for our messages: short, in one line.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
