//! Requests to one host: its address, what it is shown, where it sends us, and what of ours may go there.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode, Url};

use super::super::{Credentials, Digest, ImageError};
use super::auth::{self, Challenge};
use super::clients::{Clients, Manner};
use super::failure::{Failure, Names};
use super::hosts::Endpoint;
use super::patience::Patience;
use super::tls::TlsMaterial;

/// Storage behind a registry redirects once or twice.
const MAX_REDIRECTS: usize = 5;

/// The most bytes read of an error's or a token's body.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// What a host is asked for.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// Path behind the repository, such as `manifests/latest`.
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// How messages name it.
    pub(super) what: &'a str,
    pub(super) needs: Needs,
    /// The first byte that is wanted.
    pub(super) from: u64,
    /// Bytes that the whole has, where that is known.
    pub(super) length: Option<u64>,
    /// What the whole must have, where it is read at once.
    pub(super) digest: Option<Digest>,
    /// Reads all of it, up to so many bytes as the configuration's key says.
    pub(super) whole: Option<(u64, &'static str)>,
}

impl<'a> Ask<'a> {
    /// Asks for a blob from its first byte on, to be read piece by piece.
    pub(super) fn blob(path: &'a str, what: &'a str) -> Self {
        Self {
            path,
            accept: "*/*",
            what,
            needs: Needs::Pull,
            from: 0,
            length: None,
            digest: None,
            whole: None,
        }
    }
}

/// What a host must be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// To say what a tag means.
    Resolve,
    /// To send content, which is known by its digest.
    Pull,
}

/// What a host answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// All of the content, if that was asked for.
    pub(super) body: Bytes,
    /// Where the content begins: at the byte that was wanted, or at the first.
    pub(super) from: u64,
}

/// A host of a registry, as one pull speaks to it.
#[derive(Debug)]
pub(super) struct Peer {
    endpoint: Endpoint,
    repository: String,
    credentials: Option<Credentials>,
    tls: Arc<TlsMaterial>,
    connect_timeout: Duration,
    clients: Arc<Clients>,
    pub(super) names: Names,
    pub(super) patience: Patience,
    /// What the host let through last.
    authorization: Mutex<Option<HeaderValue>>,
    /// Why no connection can be made.
    pub(super) down: OnceLock<ImageError>,
}

impl Peer {
    pub(super) fn new(
        endpoint: Endpoint,
        credentials: Option<Credentials>,
        tls: TlsMaterial,
        connect_timeout: Duration,
        clients: Arc<Clients>,
        names: Names,
        patience: Patience,
    ) -> Self {
        Self {
            connect_timeout: endpoint.options.dial_timeout.unwrap_or(connect_timeout),
            endpoint,
            repository: names.repository.clone(),
            authorization: Mutex::new(credentials.as_ref().and_then(auth::unasked)),
            credentials,
            tls: Arc::new(tls),
            clients,
            names,
            patience,
            down: OnceLock::new(),
        }
    }

    pub(super) fn may(&self, needs: Needs) -> bool {
        match needs {
            Needs::Resolve => self.endpoint.options.resolve,
            Needs::Pull => self.endpoint.options.pull,
        }
    }

    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let answered = self.answer(ask).await;
        if let Err(failure) = &answered
            && failure.down
        {
            let _ = self.down.set((*failure.error).clone());
        }
        answered
    }

    async fn answer(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let mut response = self.get(ask).await?;
        let from = self.check_extent(ask, &response)?;
        let body = match ask.whole {
            Some((limit, key)) => self.read_whole(&mut response, ask.what, limit, key).await?,
            None => Bytes::new(),
        };
        match ask.digest {
            Some(expected) if Digest::of(&body) != expected => {
                Err(self.names.wrong_digest(ask.what, expected, Digest::of(&body)))
            }
            _ => Ok(Answer { response, body, from }),
        }
    }

    /// Sends a GET, shows credentials when asked to, and lets nothing pass but content.
    async fn get(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        let shown = self.lock().clone();
        let (mut response, own) = self.send(ask, shown.as_ref()).await?;
        // Where we were sent elsewhere, that is not who our credentials are for.
        if response.status() == StatusCode::UNAUTHORIZED && own {
            let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
            let challenges: Vec<_> = challenges
                .filter_map(|value| value.to_str().ok())
                .map(str::to_owned)
                .collect();
            // A token may have expired; but what was just got and refused will not get better.
            let authorization = self.answer_challenge(&challenges).await?;
            if authorization.is_some() {
                self.lock().clone_from(&authorization);
                (response, _) = self.send(ask, authorization.as_ref()).await?;
            }
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if ask.from > 0 => Ok(response),
            _ => Err(self.refusal(response, ask.what).await),
        }
    }

    /// The answer to a GET, and whether it came from the host itself and not from where that sent us.
    async fn send(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, bool), Failure> {
        let mut url = self.url(ask)?;
        let mut own = true;
        for _ in 0..=MAX_REDIRECTS {
            let client = self.client(&url, own).await?;
            let mut headers = if own {
                self.headers(authorization)
            } else {
                HeaderMap::new()
            };
            headers.insert(ACCEPT, plain_header(ask.accept));
            if ask.from > 0 {
                headers.insert(RANGE, plain_header(&format!("bytes={}-", ask.from)));
            }
            let response = self
                .in_time(ask.what, client.get(url.clone()).headers(headers).send())
                .await?;
            let response = response.map_err(|error| self.names.unanswered(&error))?;
            let Some(next) = target(&url, &response) else {
                return Ok((response, own));
            };
            let next = next.map_err(|reason| self.names.redirects(ask.what, &reason))?;
            own = own && next.origin() == url.origin();
            url = next;
        }
        let reason = format!("in a circle, or more than {MAX_REDIRECTS} redirects far");
        Err(self.names.redirects(ask.what, &reason))
    }

    fn url(&self, ask: &Ask<'_>) -> Result<Url, Failure> {
        let text = format!("{}/{}/{}", self.endpoint.base, self.repository, ask.path);
        let mut url = Url::parse(&text).map_err(|error| {
            self.names.host_config(format!(
                "{text:?} is no URL ({error}); correct the registry's name"
            ))
        })?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// What is for the host alone.
    fn headers(&self, authorization: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = self.endpoint.options.headers.clone();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        headers
    }

    /// The client for `url`, which shows the host itself who we are, and nobody else.
    async fn client(&self, url: &Url, own: bool) -> Result<Client, Failure> {
        let tls = if own {
            (*self.tls).clone()
        } else {
            self.tls.anonymous()
        };
        let manner = Manner::new(url, tls, self.connect_timeout);
        let client = self.clients.client(&manner).await;
        client.map_err(|reason| self.names.host_config(reason))
    }

    /// What to show for one of `challenges`; nothing if there is nothing to show.
    async fn answer_challenge(&self, challenges: &[String]) -> Result<Option<HeaderValue>, Failure> {
        let Some(challenge) = auth::choose(challenges) else {
            return Ok(None);
        };
        let Challenge::Bearer { realm, service } = challenge else {
            return Ok(self.credentials.as_ref().and_then(auth::basic));
        };
        let what = "an access token";
        let realm = Url::parse(&realm).map_err(|_| {
            self.names
                .unauthorized(format!("its token server {realm:?} is no URL"))
        })?;
        let own = Url::parse(&self.endpoint.base).is_ok_and(|base| base.origin() == realm.origin());
        let request = auth::TokenRequest {
            realm: &realm,
            service: service.as_deref(),
            scope: &format!("repository:{}:pull", self.repository),
            credentials: self.credentials.as_ref(),
            secure_registry: self.endpoint.base.starts_with("https:"),
            headers: if own { self.headers(None) } else { HeaderMap::new() },
        };
        let client = self.client(&realm, own).await?;
        let request = request
            .build(&client)
            .map_err(|reason| self.names.unauthorized(reason))?;
        // A redirect is not followed: the secret is for the server that was named.
        let response = self.in_time(what, request.send()).await?;
        let mut response = response.map_err(|error| self.names.unanswered(&error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, what).await);
        }
        let body = self
            .read_whole(&mut response, what, MAX_ANSWER_BYTES, "max_manifest_bytes")
            .await?;
        let value = auth::token_from(&body)
            .ok_or_else(|| self.names.bad_answer(what, "something that is no token"))?;
        Ok(Some(value))
    }

    /// Where the content of an answer begins; an error if it is not the content that is wanted.
    fn check_extent(&self, ask: &Ask<'_>, response: &Response) -> Result<u64, Failure> {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = header(CONTENT_RANGE).unwrap_or("none");
            let fits = content_range(range).is_some_and(|(first, total)| {
                first == ask.from && (total.is_none() || ask.length.is_none() || total == ask.length)
            });
            if !fits {
                let answer = format!("the range {range:?} where it begins at byte {}", ask.from);
                return Err(self.names.bad_answer(ask.what, &answer));
            }
            return Ok(ask.from);
        }
        let announced: Option<u64> = header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        match (announced, ask.length) {
            (Some(actual), Some(expected)) if actual != expected => {
                Err(self.names.wrong_length(ask.what, expected, actual))
            }
            _ => Ok(0),
        }
    }

    async fn read_whole(
        &self,
        response: &mut Response,
        what: &str,
        limit: u64,
        key: &'static str,
    ) -> Result<Bytes, Failure> {
        let mut body = Vec::new();
        let mut meter = self.patience.meter();
        loop {
            let waited = self.patience.wait(response.chunk()).await;
            let (piece, waited) =
                waited.map_err(|_| Failure::lasting(self.names.silent(what, self.patience)))?;
            let piece = piece.map_err(|error| self.names.broken(what, &super::failure::innermost(&error)))?;
            let Some(piece) = piece else {
                return Ok(body.into());
            };
            meter
                .count(piece.len(), waited)
                .map_err(|trickle| Failure::lasting(self.names.trickle(what, trickle)))?;
            if (body.len() + piece.len()) as u64 > limit {
                return Err(self.names.too_large(what, limit, key));
            }
            body.extend_from_slice(&piece);
        }
    }

    /// The failure that an answer without the content stands for.
    async fn refusal(&self, mut response: Response, what: &str) -> Failure {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).cloned();
        let retry_after = retry_after.as_ref().and_then(|value| value.to_str().ok());
        let mut body = Vec::new();
        // What it says is nice to have, and waited for as long as one byte would be.
        let reading = async {
            while let Ok(Some(piece)) = response.chunk().await {
                body.extend_from_slice(&piece);
                if body.len() as u64 >= MAX_ANSWER_BYTES {
                    break;
                }
            }
        };
        let _ = self.patience.wait(reading).await;
        self.names.refusal(what, status, retry_after, &body)
    }

    async fn in_time<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
        match self.patience.wait(work).await {
            Ok((done, _)) => Ok(done),
            Err(_) => Err(Failure::lasting(self.names.silent(what, self.patience))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an answer sends us, if it does; why we do not go there.
fn target(from: &Url, response: &Response) -> Option<Result<Url, String>> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| redirects)?;
    let next = location.to_str().ok().and_then(|text| from.join(text).ok());
    Some(match next {
        Some(next) if from.scheme() == "https" && next.scheme() == "http" => {
            Err(format!("from https to http at {}", next.authority()))
        }
        Some(next) if matches!(next.scheme(), "http" | "https") => Ok(next),
        _ => Err("to something that is no address".to_owned()),
    })
}

/// A header of our own making: letters, digits and punctuation, which every header may have.
fn plain_header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// The first byte of a `Content-Range`, and how many there are in all if that is said (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "",
            "bytes",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes */10",
            "items 0-1/2",
            "bytes -1-2/3",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
