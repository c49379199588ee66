//! What a registry asks for and what it is shown: basic authentication and bearer tokens
//! (distribution's "Token Authentication Specification").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;

use super::super::{Credentials, Secret};

/// How OAuth 2 token servers know us.
const CLIENT_ID: &str = "bulkhead";

/// A way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// The first challenge we can answer, bearer tokens before passwords.
pub(super) fn choose(headers: &[String]) -> Option<Challenge> {
    let challenges = || {
        headers
            .iter()
            .flat_map(|header| ChallengeParser::new(header))
            .filter_map(Result::ok)
    };
    let bearer = challenges()
        .filter(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))
        .find_map(|found| {
            let parameter = |name: &str| {
                let (_, value) = found
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            Some(Challenge::Bearer {
                realm: parameter("realm")?,
                service: parameter("service"),
            })
        });
    bearer.or_else(|| {
        challenges()
            .any(|challenge| challenge.scheme.eq_ignore_ascii_case("basic"))
            .then_some(Challenge::Basic)
    })
}

/// What is shown without having been asked: a token that is for the registry itself.
pub(super) fn unasked(credentials: &Credentials) -> Option<HeaderValue> {
    match &credentials.secret {
        Secret::RegistryToken(token) => bearer(token),
        _ => None,
    }
}

/// User and password for the registry itself.
pub(super) fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let Secret::Password { username, password } = &credentials.secret else {
        return None;
    };
    secret_header(&format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A request to a token server.
#[derive(Debug)]
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    pub(super) credentials: Option<&'a Credentials>,
    /// Whether the registry that named the server is spoken to over TLS.
    pub(super) secure_registry: bool,
    /// What is sent besides.
    pub(super) headers: HeaderMap,
}

impl TokenRequest<'_> {
    pub(super) fn build(self, client: &Client) -> Result<RequestBuilder, String> {
        let mut url = self.realm.clone();
        let scheme_allowed = url.scheme() == "https" || url.scheme() == "http" && !self.secure_registry;
        if !scheme_allowed {
            return Err(format!("its token server {url} would be spoken to without TLS"));
        }
        let mut headers = self.headers;
        let parameters = [("service", self.service), ("scope", Some(self.scope))];
        let parameters = parameters
            .iter()
            .filter_map(|(key, value)| Some((*key, (*value)?)));
        if let Some(Secret::IdentityToken(token)) = self.credentials.map(|credentials| &credentials.secret) {
            let body = form(parameters.chain([
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
                ("client_id", CLIENT_ID),
            ]));
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form_type);
            return Ok(client.post(url).headers(headers).body(body));
        }
        url.query_pairs_mut().extend_pairs(parameters);
        if let Some(value) = self.credentials.and_then(basic) {
            headers.insert(AUTHORIZATION, value);
        }
        Ok(client.get(url).headers(headers))
    }
}

fn form<'a>(parameters: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    // A URL's query is encoded just as a form is.
    let Ok(mut url) = Url::parse("http://form/") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(parameters);
    url.query().unwrap_or_default().to_owned()
}

/// The `Authorization` made of a token server's answer.
pub(super) fn token_from(body: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let Answer { token, access_token } = serde_json::from_slice(body).ok()?;
    let token = if token.is_empty() { access_token } else { token };
    if token.is_empty() { None } else { bearer(&token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(headers: &[&str]) -> Option<Challenge> {
        choose(
            &headers
                .iter()
                .map(|header| (*header).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_token_server_is_preferred_to_a_password() {
        let bearer = r#"Bearer realm="https://auth.x/token",service="reg,istry",scope="a""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.x/token".into(),
            service: Some("reg,istry".into()),
        };
        assert_eq!(chosen(&[bearer]), Some(expected.clone()));
        assert_eq!(chosen(&["Basic realm=\"x\"", bearer]), Some(expected));
        assert_eq!(chosen(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(chosen(&["Bearer service=\"x\""]), None);
        assert_eq!(chosen(&["Negotiate", "=,\"", ""]), None);
    }

    #[test]
    fn tokens_are_found_under_either_name() {
        let token = |body: &str| token_from(body.as_bytes()).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(token(r#"{"token":"a"}"#), Some("Bearer a".into()));
        assert_eq!(
            token(r#"{"access_token":"b","expires_in":3}"#),
            Some("Bearer b".into())
        );
        assert_eq!(token(r#"{"token":""}"#), None);
        assert_eq!(token(r#"{"token":"a\nb"}"#), None);
        assert_eq!(token("<html>"), None);
    }

    #[test]
    fn secrets_go_to_no_token_server_without_tls() {
        super::super::install_crypto_provider();
        let client = Client::builder().tls_certs_only([]).build().unwrap();
        let build = |realm: &str, secure_registry| {
            let request = TokenRequest {
                realm: &realm.parse().unwrap(),
                service: Some("s&s"),
                scope: "a:b",
                credentials: None,
                secure_registry,
                headers: HeaderMap::new(),
            };
            request
                .build(&client)
                .map(|request| request.build().unwrap().url().to_string())
        };
        assert_eq!(
            build("http://x/t", false).unwrap(),
            "http://x/t?service=s%26s&scope=a%3Ab"
        );
        assert!(build("https://x/t", true).is_ok());
        assert!(build("http://x/t", true).unwrap_err().contains("without TLS"));
        assert!(build("file:///etc/passwd", false).is_err());
    }
}
