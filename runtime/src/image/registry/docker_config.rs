//! Docker's `config.json`: credentials for hosts that a pull brings none for.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::credentials::canonical_host;
use super::super::{Credentials, Secret};

/// A file of credentials that is larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// Rights that only its owner may have to a file of secrets: to write it, and for strangers to read it.
const TOO_OPEN: u32 = 0o026;

/// What a `config.json` says about credentials.
pub(super) struct DockerConfig {
    path: PathBuf,
    content: Content,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, String> {
        let secret = Credentials::from_auth_config(
            &self.username,
            &self.password,
            &self.auth,
            "",
            &self.identitytoken,
            &self.registrytoken,
        );
        match secret {
            Ok(credentials) => Ok(credentials.map(|credentials| credentials.secret)),
            Err(_) => Err("has an auth that is not base64 of user:password".to_owned()),
        }
    }
}

impl DockerConfig {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let refuse = |reason: String| format!("images.docker_config: {} {reason}", path.display());
        let unreadable = |error| refuse(format!("cannot be read: {error}"));
        let file = fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let mode = metadata.mode() & 0o777;
        if !metadata.is_file() {
            return Err(refuse("is no file".to_owned()));
        }
        if mode & TOO_OPEN != 0 {
            let reason =
                format!("has mode {mode:04o}, so that others may read or change secrets; chmod it to 0600");
            return Err(refuse(reason));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(refuse(format!("has more than {MAX_BYTES} bytes")));
        }
        // The parser's own message could quote a secret.
        let content = serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let kind = match error.classify() {
                serde_json::error::Category::Data => "has a value of the wrong type",
                _ => "is not JSON",
            };
            refuse(format!("{kind} at line {line}, column {column}; correct it"))
        })?;
        Ok(Self {
            path: path.to_owned(),
            content,
        })
    }

    /// What may be shown to `host` for `repository`; or why there is nothing although the file speaks of the host.
    pub(super) fn credentials(
        &self,
        host: &str,
        repository: &str,
    ) -> Result<(Option<Credentials>, Option<String>), String> {
        // The entry for the most of the repository's path counts; Docker itself writes none but for whole hosts.
        let entry = self
            .content
            .auths
            .iter()
            .filter_map(|(key, entry)| Some((covers(key, host, repository)?, key, entry)))
            .max_by_key(|(covered, ..)| *covered);
        let helper = self
            .content
            .cred_helpers
            .iter()
            .find(|(key, _)| covers(key, host, "").is_some())
            .map(|(_, helper)| helper.as_str());
        let path = self.path.display();
        if let Some((_, key, entry)) = entry {
            let secret = entry.secret().map_err(|reason| {
                format!("images.docker_config: {path}: auths.{key:?} {reason}; correct it")
            })?;
            if let Some(secret) = secret {
                let server = Some(host.to_owned());
                return Ok((Some(Credentials { server, secret }), None));
            }
        }
        let store =
            Some(self.content.creds_store.as_str()).filter(|store| !store.is_empty() && entry.is_some());
        let unshown = helper.or(store).map(|helper| {
            tracing::warn!(%host, %helper, path = %path, "credential helpers are not run; write the credentials into auths");
            format!(
                "{path} leaves {host} to the credential helper {helper:?}, which is not run; write the credentials into its auths"
            )
        });
        Ok((None, unshown))
    }
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig")
            .field("path", &self.path)
            .field("auths", &self.content.auths.keys())
            .finish_non_exhaustive()
    }
}

/// How many bytes of `repository` the file's `key` is about, if it is about it at `host`.
///
/// Keys are hosts, or URLs of them as Docker once wrote them (`https://index.docker.io/v1/`), or, as other tools have
/// it, hosts with the beginning of a repository.
fn covers(key: &str, host: &str, repository: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (found, path) = key.split_once('/').unwrap_or((key, ""));
    if !canonical_host(found).eq_ignore_ascii_case(canonical_host(host)) {
        return None;
    }
    match path.trim_matches('/') {
        "" | "v1" | "v2" => Some(0),
        path => {
            let rest = repository.strip_prefix(path)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn config(text: &str) -> DockerConfig {
        let (_directory, path) = file(text, 0o600);
        DockerConfig::read(&path).unwrap()
    }

    fn refusal(text: &str, mode: u32) -> String {
        let (_directory, path) = file(text, mode);
        DockerConfig::read(&path).unwrap_err()
    }

    #[test]
    fn every_form_of_entry_is_understood() {
        let config = config(
            r#"{"HttpHeaders": {}, "auths": {
                "https://index.docker.io/v1/": {"auth": "dTpw"},
                "quay.io": {"username": "v", "password": "q", "email": "x"},
                "quay.io/team": {"username": "team", "password": "t"},
                "http://r.example:5000/v2/": {"identitytoken": "i", "auth": "MDA6"},
                "s.example": {"registrytoken": "r"},
                "empty.example": {}}}"#,
        );
        let secret = |host: &str, repository: &str| {
            let (credentials, unshown) = config.credentials(host, repository).unwrap();
            assert_eq!(unshown, None);
            if let Some(credentials) = &credentials {
                assert!(credentials.is_for(host));
            }
            credentials.map(|credentials| credentials.secret)
        };
        let password = |username: &str, password: &str| {
            Some(Secret::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        };
        for hub in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!(secret(hub, "library/a"), password("u", "p"), "{hub}");
        }
        assert_eq!(secret("quay.io", "a"), password("v", "q"));
        assert_eq!(secret("quay.io", "team/a"), password("team", "t"));
        assert_eq!(secret("quay.io", "teams/a"), password("v", "q"));
        assert_eq!(
            secret("r.example:5000", "a"),
            Some(Secret::IdentityToken("i".into()))
        );
        assert_eq!(secret("s.example", "a"), Some(Secret::RegistryToken("r".into())));
        for none in ["r.example", "empty.example", "io", "evil-quay.io"] {
            assert_eq!(secret(none, "a"), None, "{none}");
        }
    }

    #[test]
    fn credential_helpers_are_named() {
        let config = config(
            r#"{"auths": {"quay.io": {}, "own.example": {"auth": "dTpw"}},
                "credHelpers": {"gcr.io": "gcloud"}, "credsStore": "desktop"}"#,
        );
        let unshown = |host: &str| config.credentials(host, "a").unwrap().1.unwrap_or_default();
        assert!(unshown("gcr.io").contains("\"gcloud\""), "{}", unshown("gcr.io"));
        assert!(
            unshown("quay.io").contains("\"desktop\""),
            "{}",
            unshown("quay.io")
        );
        assert_eq!(unshown("own.example"), "");
        assert_eq!(unshown("unknown.example"), "");
    }

    #[test]
    fn what_is_wrong_is_told_without_a_secret() {
        for (text, mode, words) in [
            ("{}", 0o644, &["mode 0644", "chmod it to 0600"][..]),
            ("{}", 0o620, &["mode 0620"]),
            ("{\n\"auths\": secret}", 0o600, &["not JSON", "line 2"]),
            (
                r#"{"auths": {"x": {"password": ["secret"]}}}"#,
                0o600,
                &["wrong type", "line 1"],
            ),
            (r#"{"auths": "secret"}"#, 0o600, &["wrong type"]),
        ] {
            let message = refusal(text, mode);
            for word in words.iter().chain(&["config.json", "images.docker_config"]) {
                assert!(message.contains(word), "{word:?} is not in: {message}");
            }
            assert!(
                !message.contains("secret}") && !message.contains("\"secret\""),
                "{message}"
            );
        }
        let (_directory, path) = file("{}", 0o640);
        DockerConfig::read(&path).unwrap();
        let error = DockerConfig::read(Path::new("/nonexistent/config.json")).unwrap_err();
        assert!(
            error.contains("cannot be read") && error.contains("No such file"),
            "{error}"
        );
        let bad = config(r#"{"auths": {"x": {"auth": "!"}}}"#);
        let error = bad.credentials("x", "a").unwrap_err();
        assert!(
            error.contains("auths.\"x\"") && error.contains("base64"),
            "{error}"
        );
    }
}
