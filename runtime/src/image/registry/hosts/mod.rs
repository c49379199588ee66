//! By which hosts a registry is reached: containerd's `certs.d/<registry>/hosts.toml`, so that the files of a node serve
//! both (containerd, docs/hosts.md).
//!
//! A registry's folder is looked for under its name with the port as `_port_`, under its name as it is, and under
//! `_default`. The hosts of its file are tried in their order, and then `server`, or the registry itself. A folder without
//! a file may have certificates for the registry itself, as Docker has it.

mod duration;
mod file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::super::DEFAULT_REGISTRY;
use super::super::credentials::canonical_host;
use file::HostsFile;

/// Where Docker Hub's images are.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Where a registry is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `https://host:port/path/v2`, without a slash at the end.
    pub(super) base: String,
    /// Host and port as they stand in the URL, or in the image's name.
    pub(super) host: String,
    /// What a mirror is told of whose content is wanted: the registry that it is not itself.
    pub(super) namespace: Option<String>,
    pub(super) options: HostOptions,
}

/// What one host may be asked for, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostOptions {
    /// Whether content is taken from it by digest.
    pub(super) pull: bool,
    /// Whether it is trusted to say what a tag means.
    pub(super) resolve: bool,
    /// Files with certificates of authorities that may vouch for it, beside the host's own.
    pub(super) ca: Vec<PathBuf>,
    /// What it is shown when it wants to know who speaks.
    pub(super) client: Vec<ClientCertificate>,
    /// Whether anybody may answer in its place.
    pub(super) skip_verify: bool,
    /// What is sent with each request; may be secret.
    pub(super) headers: HeaderMap,
    /// Whether its URL has the whole path, without `/v2` at the end.
    pub(super) override_path: bool,
    /// How long a connection may take; else what the configuration says.
    pub(super) dial_timeout: Option<Duration>,
}

/// A certificate that is shown to a host, with its key in the same file or in one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    pub(super) certificate: PathBuf,
    pub(super) key: Option<PathBuf>,
}

/// A registry's folder that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}{}: {key}{}{reason}; correct it, the next pull reads it again",
    .path.display(),
    .line.map(|line| format!(", line {line}")).unwrap_or_default(),
    if .key.is_empty() { "" } else { " " }
)]
pub(super) struct HostsError {
    pub(super) path: PathBuf,
    pub(super) line: Option<usize>,
    pub(super) key: String,
    pub(super) reason: String,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            pull: true,
            resolve: true,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            headers: HeaderMap::new(),
            override_path: false,
            dial_timeout: None,
        }
    }
}

impl HostOptions {
    fn says_how_to_do_tls(&self) -> bool {
        self.skip_verify || !self.ca.is_empty() || !self.client.is_empty()
    }
}

/// The endpoints of `registry`, in the order they are to be tried; never none.
///
/// `plain_http` says whether the registry itself is spoken to without TLS where its folder does not say.
pub(super) fn endpoints(
    directory: &Path,
    registry: &str,
    plain_http: bool,
) -> Result<Vec<Endpoint>, HostsError> {
    let file = match folder(directory, registry)? {
        Some(folder) => read(&folder)?,
        None => HostsFile::default(),
    };
    let mut endpoints: Vec<_> = file
        .hosts
        .into_iter()
        .map(|(url, options)| at(&url, options, registry))
        .collect();
    endpoints.push(match file.server {
        Some(url) => at(&url, file.server_options, registry),
        None => own(registry, plain_http, file.server_options),
    });
    Ok(endpoints.into_iter().flat_map(with_tls_first).collect())
}

/// The file that settings for `registry` belong into, for messages.
pub(super) fn file_of(directory: &Path, registry: &str) -> PathBuf {
    let found = folder(directory, registry).ok().flatten();
    found
        .filter(|folder| !folder.ends_with("_default"))
        .unwrap_or_else(|| directory.join(registry))
        .join("hosts.toml")
}

/// The folder that is about `registry`.
fn folder(directory: &Path, registry: &str) -> Result<Option<PathBuf>, HostsError> {
    if directory.as_os_str().is_empty() {
        return Ok(None);
    }
    // A port's colon is the last one, behind the bracket of an IPv6 address.
    let with_port = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Some(format!("{host}_{port}_")),
        _ => None,
    };
    let names = with_port
        .into_iter()
        .chain([registry.to_owned(), "_default".to_owned()]);
    for name in names {
        let folder = directory.join(name);
        match fs::metadata(&folder) {
            Ok(_) => return Ok(Some(folder)),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(unreadable(&folder, &error)),
        }
    }
    Ok(None)
}

fn read(folder: &Path) -> Result<HostsFile, HostsError> {
    let path = folder.join("hosts.toml");
    match fs::read_to_string(&path) {
        // An empty file is as good as none.
        Ok(text) if !text.is_empty() => file::parse(&text, &path),
        Err(error) if !is_absent(&error) => Err(unreadable(&path, &error)),
        _ => certificates(folder),
    }
}

/// What Docker reads from such a folder: `*.crt` for authorities, `*.cert` with `*.key` for ourselves.
fn certificates(folder: &Path) -> Result<HostsFile, HostsError> {
    let list = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    let mut paths = list().map_err(|error| unreadable(folder, &error))?;
    paths.sort();
    let mut options = HostOptions::default();
    for path in paths.iter().filter(|path| !path.is_dir()) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => options.ca.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                options.client.push(ClientCertificate {
                    certificate: path.clone(),
                    key: paths.contains(&key).then_some(key),
                });
            }
            Some("key") if !paths.contains(&path.with_extension("cert")) => {
                return Err(HostsError {
                    path: path.clone(),
                    line: None,
                    key: String::new(),
                    reason: "this key has no certificate of the same name that ends in .cert".to_owned(),
                });
            }
            _ => {}
        }
    }
    Ok(HostsFile {
        server_options: options,
        ..HostsFile::default()
    })
}

/// The registry itself.
fn own(registry: &str, plain_http: bool, options: HostOptions) -> Endpoint {
    let (scheme, host) = match registry {
        DEFAULT_REGISTRY => ("https", DOCKER_HUB),
        _ if plain_http => ("http", registry),
        _ => ("https", registry),
    };
    Endpoint {
        base: format!("{scheme}://{host}/v2"),
        host: registry.to_owned(),
        namespace: None,
        // The file's words about what a server may do are about a server that it names.
        options: HostOptions {
            pull: true,
            resolve: true,
            ..options
        },
    }
}

/// The host at `url`, asked for what belongs to `registry`.
fn at(url: &Url, options: HostOptions, registry: &str) -> Endpoint {
    let name = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = format!("{name}{port}");
    // Nobody answers for registries at Docker Hub's shorter name.
    let address = if canonical_host(&host) == DEFAULT_REGISTRY {
        DOCKER_HUB
    } else {
        &host
    };
    let path = url.path().trim_end_matches('/');
    let end = if options.override_path || path.ends_with("/v2") {
        ""
    } else {
        "/v2"
    };
    Endpoint {
        base: format!("{}://{address}{path}{end}", url.scheme()),
        namespace: (!is_same_host(&host, registry, url)).then(|| registry.to_owned()),
        host,
        options,
    }
}

/// Whether `host`, as it stands in `url`, is `registry`, as it stands in an image's name.
fn is_same_host(host: &str, registry: &str, url: &Url) -> bool {
    let default_port = match url.scheme() {
        "http" => ":80",
        _ => ":443",
    };
    let registry = registry.strip_suffix(default_port).unwrap_or(registry);
    canonical_host(host).eq_ignore_ascii_case(canonical_host(registry))
}

/// Settings for TLS at an `http` address mean that TLS is tried first, unless the port says otherwise.
fn with_tls_first(endpoint: Endpoint) -> Vec<Endpoint> {
    let has_port = endpoint
        .base
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .is_some_and(|authority| {
            authority
                .rsplit_once(':')
                .is_some_and(|(_, port)| !port.contains(']') && port != "80")
        });
    if !has_port || !endpoint.options.says_how_to_do_tls() {
        return vec![endpoint];
    }
    let secure = Endpoint {
        base: endpoint.base.replacen("http://", "https://", 1),
        ..endpoint.clone()
    };
    vec![secure, endpoint]
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unreadable(path: &Path, error: &io::Error) -> HostsError {
    HostsError {
        path: path.to_owned(),
        line: None,
        key: String::new(),
        reason: format!("it cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests;
