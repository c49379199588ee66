//! Image references as people write them, parsed once into their full form.
//!
//! The grammar is that of the distribution project's `reference` package, which Docker, containerd and the kubelet
//! share: `busybox` means `docker.io/library/busybox:latest`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::Digest;

/// The registry that a name without a host belongs to.
pub const DEFAULT_REGISTRY: &str = "docker.io";

const DEFAULT_TAG: &str = "latest";
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// A full image reference: registry, repository and which manifest in it.
///
/// When a reference has both a tag and a digest, the digest decides and the tag is dropped, as Docker and
/// containerd do it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which manifest of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// The one the tag points to now.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

/// A text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an image reference: {reason}; write it as [registry/]name[:tag][@sha256:digest]")]
pub struct ReferenceError {
    input: String,
    reason: String,
}

impl Reference {
    /// The registry's host and port as it is part of the name, for example `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry, for example `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or the digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The tag, if the reference is not by digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, if the reference is by digest.
    pub fn digest(&self) -> Option<Digest> {
        match self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Registry and repository, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository's manifest with this digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(input: &str) -> Result<Self, ReferenceError> {
        parse(input).map_err(|reason| {
            let mut shown: String = input.chars().take(300).collect();
            if shown.len() < input.len() {
                shown.push('…');
            }
            ReferenceError { input: shown, reason }
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse(input: &str) -> Result<Reference, String> {
    if input.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match input.split_once('@') {
        None => (input, None),
        Some((rest, text)) => {
            let digest = text
                .parse::<Digest>()
                .map_err(|error| format!("of the digest {text:?}, {error}"))?;
            (rest, Some(digest))
        }
    };
    // A colon starts the tag only behind the last slash: before it, it is a port.
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].find(':') {
        None => (rest, None),
        Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    check_registry(registry)?;
    for component in repository.split('/') {
        check_path_component(component)?;
    }
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        if Digest::from_hex(repository).is_ok() {
            return Err(
                "a name of 64 hex digits is an image's ID, which no registry can be asked for".into(),
            );
        }
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    let length = registry.len() + 1 + repository.len();
    if length > MAX_NAME_BYTES {
        return Err(format!("its name has {length} bytes, more than {MAX_NAME_BYTES}"));
    }
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) => Version::Tag(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        version,
    })
}

/// The first component is a registry when it cannot be part of a repository name: it has a dot, a colon or an
/// upper-case letter, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or_else(|| format!("the registry {registry:?} lacks a closing bracket"))?;
        address
            .parse::<Ipv6Addr>()
            .map_err(|_| format!("{address:?} in the registry is not an IPv6 address"))?;
        match rest.strip_prefix(':') {
            Some(port) => ("", Some(port)),
            None if rest.is_empty() => ("", None),
            None => {
                return Err(format!(
                    "the registry {registry:?} is malformed behind its bracket"
                ));
            }
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        }
    };
    if !registry.starts_with('[') && !host.split('.').all(is_domain_component) {
        return Err(format!("its registry {registry:?} is not a host name"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || port.starts_with('+') => Err(format!(
            "its registry's port {port:?} is not a number up to 65535"
        )),
        _ => Ok(()),
    }
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Runs of `[a-z0-9]` joined by one `.`, one or two `_`, or any number of `-`.
fn check_path_component(component: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("the name's part {component:?} {why}"));
    if component.is_empty() {
        return refuse("is empty");
    }
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return refuse("has an upper-case letter");
    }
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    for separator in component.split(|c: char| c.is_ascii() && is_alphanumeric(c as u8)) {
        let allowed = matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
        if !allowed {
            return refuse("may have only a-z and 0-9, joined by '.', '_', '__' or '-'");
        }
    }
    let ends = [component.bytes().next(), component.bytes().next_back()];
    if !ends.into_iter().flatten().all(is_alphanumeric) {
        return refuse("must begin and end with a-z or 0-9");
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let well_formed = bytes.next().is_some_and(is_word)
        && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
        && tag.len() <= MAX_TAG_BYTES;
    if well_formed {
        Ok(())
    } else {
        Err(format!(
            "its tag {tag:?} is not 1 to {MAX_TAG_BYTES} of a-z, A-Z, 0-9, '_', '.', '-'"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_does() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/library/busybox:1", "docker.io/library/busybox:1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("[::1]:5000/a/b:T_1.2-x", "[::1]:5000/a/b:T_1.2-x"),
            ("[fe80::1]/a", "[fe80::1]/a:latest"),
            ("127.0.0.1:80/a", "127.0.0.1:80/a:latest"),
            (
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
            ),
            ("HOST/a", "HOST/a:latest"),
            ("a.b/c__d--e.f", "a.b/c__d--e.f:latest"),
        ];
        for (input, expected) in cases {
            assert_eq!(
                input.parse::<Reference>().unwrap().to_string(),
                expected,
                "{input}"
            );
        }
        let both: Reference = format!("a/b:tag@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/a/b@{DIGEST}"));
        assert_eq!((both.tag(), both.digest()), (None, Some(DIGEST.parse().unwrap())));
        assert_eq!(both.name(), "docker.io/a/b");
    }

    #[test]
    fn a_full_reference_is_read_back_unchanged() {
        for input in ["a", "localhost:1/x/y/z:t", "[::1]/q", &format!("a.b/c@{DIGEST}")] {
            let once: Reference = input.parse().unwrap();
            assert_eq!(once.to_string().parse::<Reference>().unwrap(), once);
        }
    }

    #[test]
    fn bad_references_are_refused_and_named() {
        let long = format!("{}/b", "a".repeat(300));
        let cases = [
            ("", "empty"),
            ("Busybox", "upper-case"),
            ("a//b", "is empty"),
            ("a/", "is empty"),
            ("/a", "is empty"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a:b:c", "tag"),
            ("a b", "may have only"),
            ("a..b", "may have only"),
            ("a___b", "may have only"),
            ("-a", "begin and end"),
            ("a.", "begin and end"),
            ("a/../b", "may have only"),
            ("a@sha256:12", "digest"),
            ("a@sha512:00", "not supported"),
            ("host:99999/a", "port"),
            ("host:+80/a", "port"),
            ("-h.x/a", "host name"),
            ("[::1/a", "bracket"),
            ("[::1]x/a", "bracket"),
            ("[zz::]:1/a", "IPv6"),
            ("é", "may have only"),
            (&long, "more than 255"),
            (&DIGEST[7..], "ID"),
        ];
        for (input, reason) in cases {
            let error = input.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{input}: {error}");
        }
        let error = "Busybox".parse::<Reference>().unwrap_err().to_string();
        assert!(
            error.starts_with("\"Busybox\" is not an image reference"),
            "{error}"
        );
    }
}
