//! What a registry is shown to let a pull through.

use std::fmt;

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine as _};

/// The secret for one pull, and the registry it is meant for.
///
/// Its `Debug` output never shows a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The registry's host that the secret may be shown to, as the kubelet wrote it (a host, or a URL of it);
    /// nothing means the registry of the image.
    pub server: Option<String>,
    /// The secret.
    pub secret: Secret,
}

/// The forms of secret that CRI's `AuthConfig` knows.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A user and a password.
    Password {
        /// The user's name.
        username: String,
        /// The password, or an access token in its place.
        password: String,
    },
    /// An OAuth 2 refresh token, changed into an access token at the registry's token server.
    IdentityToken(String),
    /// A bearer token that is shown to the registry as it is.
    RegistryToken(String),
}

/// Why credentials cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `auth` is not base64 of `user:password`.
    #[error("the credentials' auth field is not base64 of user:password; correct the image pull secret")]
    MalformedAuth,
}

impl Credentials {
    /// Reads the fields of CRI's `AuthConfig`, each empty when not set.
    ///
    /// `auth` is base64 of `user:password` and counts when `username` is empty. All fields empty means no
    /// credentials.
    pub fn from_auth_config(
        username: &str,
        password: &str,
        auth: &str,
        server_address: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Option<Self>, CredentialsError> {
        let secret = if !registry_token.is_empty() {
            Secret::RegistryToken(registry_token.to_owned())
        } else if !identity_token.is_empty() {
            Secret::IdentityToken(identity_token.to_owned())
        } else if !username.is_empty() {
            Secret::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            }
        } else if !auth.is_empty() {
            Secret::from_auth(auth)?
        } else {
            return Ok(None);
        };
        let server = (!server_address.is_empty()).then(|| server_address.to_owned());
        Ok(Some(Self { server, secret }))
    }

    /// Whether the secret may be shown to `registry`, the host part of a reference.
    pub fn is_for(&self, registry: &str) -> bool {
        let Some(server) = &self.server else { return true };
        let server = server
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let host = server.split('/').next().unwrap_or_default();
        canonical_host(host) == canonical_host(registry)
    }
}

impl Secret {
    /// Reads base64 of `user:password`.
    pub(super) fn from_auth(auth: &str) -> Result<Self, CredentialsError> {
        let decoded = base64_decode(auth).ok_or(CredentialsError::MalformedAuth)?;
        let text = String::from_utf8(decoded).map_err(|_| CredentialsError::MalformedAuth)?;
        let (username, password) = text.split_once(':').ok_or(CredentialsError::MalformedAuth)?;
        Ok(Self::Password {
            username: username.to_owned(),
            // Docker pads the password with NULs.
            password: password.trim_matches('\0').to_owned(),
        })
    }
}

/// Docker Hub answers to three names.
pub(super) fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => super::reference::DEFAULT_REGISTRY,
        other => other,
    }
}

/// Base64 as people have it in their secrets: of either alphabet, padded or not.
fn base64_decode(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let text = text.trim();
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("server", &self.server)
            .field("secret", &self.secret)
            .finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "password of {username:?}"),
            Self::IdentityToken(_) => f.write_str("identity token"),
            Self::RegistryToken(_) => f.write_str("registry token"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Secret {
        Secret::Password {
            username: username.into(),
            password: password.into(),
        }
    }

    #[test]
    fn every_form_of_auth_config_is_understood() {
        let read = |u, p, a, i, r| {
            Credentials::from_auth_config(u, p, a, "", i, r)
                .unwrap()
                .map(|credentials| credentials.secret)
        };
        assert_eq!(read("", "", "", "", ""), None);
        assert_eq!(read("u", "p", "", "", ""), Some(password("u", "p")));
        assert_eq!(read("", "", "dTpwOnE=", "", ""), Some(password("u", "p:q")));
        assert_eq!(read("", "", "dTpwAAA=", "", ""), Some(password("u", "p")));
        assert_eq!(read("", "", "", "i", ""), Some(Secret::IdentityToken("i".into())));
        assert_eq!(read("", "", "", "", "r"), Some(Secret::RegistryToken("r".into())));
        for bad in ["!!", "dQ==", "gICA"] {
            let error = Credentials::from_auth_config("", "", bad, "", "", "");
            assert_eq!(error, Err(CredentialsError::MalformedAuth), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_for_its_server_alone_and_never_printed() {
        let credentials = |server: &str| {
            Credentials::from_auth_config("u", "hidden", "", server, "", "")
                .unwrap()
                .unwrap()
        };
        assert!(credentials("").is_for("quay.io"));
        assert!(credentials("https://quay.io/v2/").is_for("quay.io"));
        assert!(credentials("https://index.docker.io/v1/").is_for("docker.io"));
        assert!(!credentials("quay.io").is_for("quay.io.evil.org"));
        assert!(!credentials("quay.io:443").is_for("quay.io"));
        assert!(!format!("{:?}", credentials("quay.io")).contains("hidden"));
    }
}
