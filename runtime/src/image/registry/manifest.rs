//! Manifests, indexes and configurations: the JSON documents an image consists of, OCI's and Docker's.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::{ContainerDefaults, Digest};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What registries are asked for.
pub(super) const MANIFEST_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Docker's first format, which has no configuration and no digest of its own.
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Media types of layers without their compression, which is found out from the bytes.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// Operating system and processor of the images that run here, in Go's terms.
pub(in super::super) const PLATFORM: (&str, &str) = ("linux", "amd64");

/// A document that a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Descriptor {
    pub(in super::super) digest: Digest,
    pub(in super::super) size: u64,
}

/// A manifest, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Manifest {
    /// One image.
    Image {
        /// Its configuration.
        config: Descriptor,
        /// Its layers, from the lowest up.
        layers: Vec<Descriptor>,
    },
    /// One manifest for several platforms: the one for ours.
    Index(Descriptor),
}

/// An image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct ParsedConfig {
    pub(in super::super) defaults: ContainerDefaults,
    /// Diff IDs of the layers, from the lowest up.
    pub(in super::super) diff_ids: Vec<Digest>,
}

/// Why a document cannot be used. What document it is, the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum DocumentError {
    Malformed(String),
    Unsupported { found: String, remedy: String },
    NoPlatform { offered: String },
}

/// Reads a manifest or an index. `content_type` is what the registry's answer says it is.
pub(in super::super) fn parse_manifest(
    json: &[u8],
    content_type: Option<&str>,
) -> Result<Manifest, DocumentError> {
    if content_type.is_some_and(|media_type| media_type.starts_with(DOCKER_SCHEMA_1)) {
        return Err(schema_1());
    }
    let wire: wire::Manifest = parse(json)?;
    if wire.schema_version == Some(1) {
        return Err(schema_1());
    }
    let media_type = wire
        .media_type
        .as_deref()
        .or(content_type.filter(|found| MANIFEST_TYPES.contains(found)));
    if let Some(found) = media_type.filter(|found| !MANIFEST_TYPES.contains(found)) {
        return Err(unsupported(found, "an image's manifest or index is needed"));
    }
    let says_index = media_type.map(|found| found == OCI_INDEX || found == DOCKER_LIST);
    // A document that can be read in both ways is an attack (CVE-2021-41190).
    match (wire.manifests, wire.config, wire.layers, says_index) {
        (Some(manifests), None, None, Some(true) | None) => choose(&manifests).map(Manifest::Index),
        (None, Some(config), layers, Some(false) | None) => image(&config, &layers.unwrap_or_default()),
        (Some(_), ..) => Err(malformed("it is an index and an image at once")),
        (None, None, ..) => Err(malformed(
            "it has neither a list of manifests nor a configuration",
        )),
        (None, Some(_), ..) => Err(malformed("it is an image but says it is an index")),
    }
}

/// Reads an image's configuration.
pub(in super::super) fn parse_config(json: &[u8]) -> Result<ParsedConfig, DocumentError> {
    let wire: wire::Config = parse(json)?;
    let offered = (wire.os.as_str(), wire.architecture.as_str());
    if offered != PLATFORM {
        return Err(DocumentError::NoPlatform {
            offered: format!("{}/{}", offered.0, offered.1),
        });
    }
    let container = wire.container.unwrap_or_default();
    let defaults = ContainerDefaults {
        user_spec: container.user.unwrap_or_default(),
        env: container.env.unwrap_or_default(),
        entrypoint: container.entrypoint.unwrap_or_default(),
        cmd: container.cmd.unwrap_or_default(),
        working_dir: container.working_dir.unwrap_or_default(),
        stop_signal: container.stop_signal.unwrap_or_default(),
        labels: container.labels.unwrap_or_default(),
        exposed_ports: container.exposed_ports.unwrap_or_default().into_keys().collect(),
        volumes: container.volumes.unwrap_or_default().into_keys().collect(),
    };
    Ok(ParsedConfig {
        defaults,
        diff_ids: wire.rootfs.diff_ids.unwrap_or_default(),
    })
}

/// The manifest for our platform: the first without a variant of the processor, or else the first with one.
fn choose(manifests: &[wire::Descriptor]) -> Result<Descriptor, DocumentError> {
    let variant = |entry: &wire::Descriptor| {
        let platform = entry.platform.as_ref()?;
        let matches = (platform.os.as_str(), platform.architecture.as_str()) == PLATFORM;
        matches.then(|| platform.variant.clone().unwrap_or_default())
    };
    let chosen = manifests
        .iter()
        .find(|entry| variant(entry).is_some_and(|variant| variant.is_empty() || variant == "v1"))
        .or_else(|| manifests.iter().find(|entry| variant(entry).is_some()));
    if let Some(entry) = chosen {
        return Ok(Descriptor {
            digest: entry.digest,
            size: entry.size,
        });
    }
    let mut offered: Vec<_> = manifests
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        // Attestations are listed under a platform of this name.
        .filter(|platform| platform != "unknown/unknown")
        .collect();
    offered.sort();
    offered.dedup();
    offered.truncate(20);
    let offered = if offered.is_empty() {
        "no platform at all".into()
    } else {
        offered.join(", ")
    };
    Err(DocumentError::NoPlatform { offered })
}

fn image(config: &wire::Descriptor, layers: &[wire::Descriptor]) -> Result<Manifest, DocumentError> {
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        let remedy = "it is an artifact that is no container image";
        return Err(unsupported(&config.media_type, remedy));
    }
    let layers = layers.iter().map(|layer| {
        let media_type = layer.media_type.as_str();
        let plain = ["+gzip", "+zstd", ".gzip", ".zstd"]
            .iter()
            .find_map(|end| media_type.strip_suffix(end));
        if !LAYER_TYPES.contains(&plain.unwrap_or(media_type)) {
            return Err(unsupported(
                media_type,
                "layers must be tar archives, plain or compressed by gzip or zstd",
            ));
        }
        Ok(Descriptor {
            digest: layer.digest,
            size: layer.size,
        })
    });
    let config = Descriptor {
        digest: config.digest,
        size: config.size,
    };
    Ok(Manifest::Image {
        config,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(json).map_err(|error| malformed(&error.to_string()))
}

fn malformed(reason: &str) -> DocumentError {
    DocumentError::Malformed(reason.to_owned())
}

fn unsupported(found: &str, remedy: &str) -> DocumentError {
    let found = found
        .chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c });
    DocumentError::Unsupported {
        found: format!("of type {:?}", found.collect::<String>()),
        remedy: remedy.to_owned(),
    }
}

fn schema_1() -> DocumentError {
    DocumentError::Unsupported {
        found: "of Docker's image format schema 1".into(),
        remedy: "push it again with a Docker of 2016 or newer".into(),
    }
}

/// The documents as they are written, with everything that may be missing missing.
mod wire {
    use super::{BTreeMap, Deserialize, Digest};

    /// How JSON writes a set: an object whose values say nothing.
    pub(super) type Empty = serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Manifest {
        pub(super) schema_version: Option<u32>,
        pub(super) media_type: Option<String>,
        pub(super) config: Option<Descriptor>,
        pub(super) layers: Option<Vec<Descriptor>>,
        pub(super) manifests: Option<Vec<Descriptor>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Descriptor {
        #[serde(default)]
        pub(super) media_type: String,
        pub(super) digest: Digest,
        pub(super) size: u64,
        pub(super) platform: Option<Platform>,
    }

    #[derive(Debug, Deserialize)]
    pub(super) struct Platform {
        #[serde(default)]
        pub(super) architecture: String,
        #[serde(default)]
        pub(super) os: String,
        pub(super) variant: Option<String>,
    }

    #[derive(Debug, Deserialize)]
    pub(super) struct Config {
        #[serde(default)]
        pub(super) architecture: String,
        #[serde(default)]
        pub(super) os: String,
        #[serde(rename = "config")]
        pub(super) container: Option<Container>,
        pub(super) rootfs: RootFs,
    }

    #[derive(Debug, Deserialize)]
    pub(super) struct RootFs {
        pub(super) diff_ids: Option<Vec<Digest>>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    pub(super) struct Container {
        pub(super) user: Option<String>,
        pub(super) env: Option<Vec<String>>,
        pub(super) entrypoint: Option<Vec<String>>,
        pub(super) cmd: Option<Vec<String>>,
        pub(super) working_dir: Option<String>,
        pub(super) stop_signal: Option<String>,
        pub(super) labels: Option<BTreeMap<String, String>>,
        pub(super) exposed_ports: Option<BTreeMap<String, Empty>>,
        pub(super) volumes: Option<BTreeMap<String, Empty>>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parsed(json: &str) -> Result<Manifest, DocumentError> {
        parse_manifest(json.replace("$A", A).replace("$B", B).as_bytes(), None)
    }

    fn reason(json: &str) -> String {
        format!("{:?}", parsed(json).unwrap_err())
    }

    #[test]
    fn both_formats_of_manifests_are_read() {
        for (config, layer) in [
            (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
            (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        ] {
            let manifest = parsed(&format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"$A","size":2}},
                    "layers":[{{"mediaType":"{layer}","digest":"$B","size":3}}],"annotations":null}}"#
            ));
            let descriptor = |digest: &str, size| Descriptor {
                digest: digest.parse().unwrap(),
                size,
            };
            let expected = Manifest::Image {
                config: descriptor(A, 2),
                layers: vec![descriptor(B, 3)],
            };
            assert_eq!(manifest, Ok(expected));
        }
    }

    #[test]
    fn our_platform_is_chosen_and_the_baseline_before_variants() {
        let entry = |digest, platform| {
            format!(r#"{{"mediaType":"m","digest":"{digest}","size":1,"platform":{platform}}}"#)
        };
        let arm = entry("$A", r#"{"os":"linux","architecture":"arm64"}"#);
        let v3 = entry("$A", r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#);
        let plain = entry("$B", r#"{"os":"linux","architecture":"amd64"}"#);
        let attestation = entry("$A", r#"{"os":"unknown","architecture":"unknown"}"#);
        let index = |entries: &[&str]| {
            parsed(&format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                entries.join(",")
            ))
        };
        let chosen = |digest: &str| {
            Ok(Manifest::Index(Descriptor {
                digest: digest.parse().unwrap(),
                size: 1,
            }))
        };
        assert_eq!(index(&[&arm, &v3, &plain, &attestation]), chosen(B));
        assert_eq!(index(&[&v3]), chosen(A));
        let none = index(&[&arm, &attestation]).unwrap_err();
        assert_eq!(
            none,
            DocumentError::NoPlatform {
                offered: "linux/arm64".into()
            }
        );
    }

    #[test]
    fn what_is_no_image_is_told_apart() {
        let config =
            r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$A","size":2}"#;
        assert!(reason(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
        assert!(reason(&format!(r#"{{{config},"layers":[],"manifests":[]}}"#)).contains("at once"));
        assert!(reason("{}").contains("neither"));
        assert!(reason("[").contains("Malformed"));
        assert!(reason(r#"{"config":{"mediaType":"x","digest":"../../x","size":2}}"#).contains("digest"));
        assert!(reason(r#"{"config":{"mediaType":"x","digest":"$A","size":-2}}"#).contains("Malformed"));
        let helm =
            r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"$A","size":2}}"#;
        assert!(reason(helm).contains("artifact"));
        let foreign = r#"{"mediaType":"application/x","manifests":[]}"#;
        assert!(reason(foreign).contains("application/x"));
        let layer =
            format!(r#"{{{config},"layers":[{{"mediaType":"application/x+gzip","digest":"$A","size":2}}]}}"#);
        assert!(reason(&layer).contains("tar archives"));
        let liar = format!(r#"{{"mediaType":"{OCI_INDEX}",{config}}}"#);
        assert!(reason(&liar).contains("Malformed"));
    }

    #[test]
    fn a_configuration_may_leave_everything_out() {
        let minimal = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{A}"]}}}}"#
        );
        let config = parse_config(minimal.as_bytes()).unwrap();
        assert_eq!(config.defaults, ContainerDefaults::default());
        assert_eq!(config.diff_ids, [A.parse().unwrap()]);
        let full = r#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":null},"config":{
            "User":"1:2","Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"/w","StopSignal":"SIGINT",
            "Labels":{"l":"v"},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"ArgsEscaped":true}}"#;
        let defaults = parse_config(full.as_bytes()).unwrap().defaults;
        assert_eq!(
            (defaults.user_spec.as_str(), defaults.working_dir.as_str()),
            ("1:2", "/w")
        );
        assert_eq!(
            (defaults.cmd, defaults.entrypoint),
            (vec!["sh".to_owned()], vec![])
        );
        assert_eq!(
            (defaults.exposed_ports, defaults.volumes),
            (vec!["80/tcp".to_owned()], vec!["/data".to_owned()])
        );
        let arm = r#"{"os":"linux","architecture":"arm64","rootfs":{}}"#;
        let error = parse_config(arm.as_bytes()).unwrap_err();
        assert_eq!(
            error,
            DocumentError::NoPlatform {
                offered: "linux/arm64".into()
            }
        );
    }
}
