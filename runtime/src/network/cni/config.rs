//! Network configurations: the files of a directory, in the order of their names (CNI specification 1.1, section 1).

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// Most bytes of a configuration file.
const MOST_BYTES: u64 = 1 << 20;

/// Most plugins of a network.
const MOST_PLUGINS: usize = 64;

/// A version of the specification. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecVersion {
    /// The first with lists of plugins.
    V0_3_0,
    /// A misprint corrected.
    V0_3_1,
    /// CHECK, and the result at DEL.
    V0_4_0,
    /// Lists only.
    V1_0_0,
    /// GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All that are spoken.
    pub(crate) const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// As it stands in a configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// A network that pods can be attached to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkList {
    /// Its name.
    pub(crate) name: String,
    /// The version that its plugins are spoken to in.
    pub(crate) version: SpecVersion,
    /// CHECK must not be run.
    pub(crate) disable_check: bool,
    /// GC must not be run.
    pub(crate) disable_gc: bool,
    /// In the order of ADD; at least one.
    pub(crate) plugins: Vec<PluginConfig>,
    /// Where it stands; for messages.
    pub(crate) file: PathBuf,
}

/// A plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PluginConfig {
    /// The name of its executable.
    pub(crate) kind: String,
    /// What it asks to be told of a pod.
    pub(crate) capabilities: BTreeSet<String>,
    /// All that its configuration says, `type` included.
    pub(crate) fields: Map<String, Value>,
}

/// The network of a directory: the one of the first file, by name, that is valid.
///
/// # Errors
///
/// Why there is none: a sentence that names the directory, and the files with what is wrong in each, and says what to do.
pub(crate) fn load(directory: &Path) -> Result<NetworkList, String> {
    let files = match files(directory, &["conf", "conflist", "json"]) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!(
                "the directory of CNI configurations {} does not exist; install the cluster's network, or set \
                 `network.conf_dir` to where it puts its configuration",
                directory.display()
            ));
        }
        Err(error) => {
            return Err(format!(
                "the directory of CNI configurations {} cannot be read: {error}",
                directory.display()
            ));
        }
    };
    if files.is_empty() {
        return Err(format!(
            "there is no CNI configuration (*.conflist, *.conf or *.json) in {}; install the cluster's network, or set \
             `network.conf_dir` to where it puts its configuration",
            directory.display()
        ));
    }
    let mut faults = Vec::new();
    for file in files {
        match read(&file) {
            Ok(list) => {
                for fault in faults {
                    tracing::warn!("{fault}; {} is used instead", file.display());
                }
                return Ok(list);
            }
            Err(fault) => faults.push(format!("CNI configuration {}: {fault}", file.display())),
        }
    }
    Err(faults.join("; "))
}

/// The files with these extensions, in the order of their names.
fn files(directory: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let known = path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|known| extension == *known));
        if known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<NetworkList, String> {
    let source = read_json(file)?;
    NetworkList::parse(source, file)
}

fn read_json(file: &Path) -> Result<Map<String, Value>, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

impl NetworkList {
    /// What `source` says: a list of plugins, or one plugin, which becomes a list.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn parse(source: Map<String, Value>, file: &Path) -> Result<Self, String> {
        let name = text(&source, "name")?.unwrap_or_default().to_owned();
        if !is_identifier(&name) {
            return Err(format!(
                "its name {name:?} is not one: it must begin with a letter or digit and go on with letters, digits, \
                 underscores, dots and hyphens"
            ));
        }
        let version = version(&source)?;
        let disable_check = flag(&source, "disableCheck")?;
        let disable_gc = flag(&source, "disableGC")?;
        let inlined_only = flag(&source, "loadOnlyInlinedPlugins")?;
        let plugins = match source.get("plugins") {
            Some(Value::Array(plugins)) => plugins
                .iter()
                .map(|plugin| match plugin {
                    Value::Object(fields) => PluginConfig::parse(fields.clone()),
                    _ => Err("one of its plugins is not an object".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => return Err("its `plugins` is not a list".to_owned()),
            None if source.contains_key("type") => vec![PluginConfig::parse(source)?],
            None if inlined_only => {
                return Err("it has `loadOnlyInlinedPlugins`, but no `plugins`".to_owned());
            }
            None => Vec::new(),
        };
        let mut list = Self {
            name,
            version,
            disable_check,
            disable_gc,
            plugins,
            file: file.to_owned(),
        };
        if !inlined_only {
            list.add_plugins_of_folder()?;
        }
        if list.plugins.is_empty() {
            return Err("it has neither `plugins` nor a `type`".to_owned());
        }
        if list.plugins.len() > MOST_PLUGINS {
            return Err(format!("it has more than {MOST_PLUGINS} plugins"));
        }
        Ok(list)
    }

    /// Appends the plugins that stand in the folder beside the file which has the network's name.
    fn add_plugins_of_folder(&mut self) -> Result<(), String> {
        let Some(folder) = self.folder() else {
            return Ok(());
        };
        let files = match files(&folder, &["conf"]) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
            Err(error) => return Err(format!("{} cannot be read: {error}", folder.display())),
        };
        for file in files {
            let plugin = read_json(&file)
                .and_then(PluginConfig::parse)
                .map_err(|fault| format!("plugin {}: {fault}", file.display()))?;
            self.plugins.push(plugin);
        }
        Ok(())
    }

    /// Where further plugins of it may stand.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let directory = self.file.parent()?;
        (!directory.as_os_str().is_empty()).then(|| directory.join(&self.name))
    }

    /// All of it in one object, as [`NetworkList::parse`] reads it, whatever becomes of its files.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let plugins = self
            .plugins
            .iter()
            .map(|plugin| Value::Object(plugin.fields.clone()))
            .collect();
        let fields: [(&str, Value); 6] = [
            ("name", self.name.clone().into()),
            ("cniVersion", self.version.as_str().into()),
            ("disableCheck", self.disable_check.into()),
            ("disableGC", self.disable_gc.into()),
            ("loadOnlyInlinedPlugins", true.into()),
            ("plugins", Value::Array(plugins)),
        ];
        fields
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

impl PluginConfig {
    fn parse(fields: Map<String, Value>) -> Result<Self, String> {
        let kind = text(&fields, "type")?.unwrap_or_default().to_owned();
        if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\\', '\0']) {
            return Err(format!(
                "the type {kind:?} of a plugin is not the name of an executable"
            ));
        }
        let capabilities = match fields.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(asked)) => asked
                .iter()
                .filter(|(_, asked)| asked.as_bool() == Some(true))
                .map(|(name, _)| name.clone())
                .collect(),
            Some(_) => return Err(format!("the `capabilities` of plugin {kind} are not an object")),
        };
        Ok(Self {
            kind,
            capabilities,
            fields,
        })
    }

    /// The executable that it leaves the addresses to, if any.
    pub(crate) fn ipam(&self) -> Option<&str> {
        self.fields.get("ipam")?.get("type")?.as_str()
    }
}

/// The highest version that both the configuration and this runtime have.
fn version(source: &Map<String, Value>) -> Result<SpecVersion, String> {
    // Before there was such a key there was version 0.1.0.
    let one = text(source, "cniVersion")?.unwrap_or("0.1.0");
    let mut offered = vec![one.to_owned()];
    match source.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(versions)) => {
            offered.extend(versions.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        Some(_) => return Err("its `cniVersions` is not a list".to_owned()),
    }
    offered
        .iter()
        .filter_map(|version| SpecVersion::parse(version))
        .max()
        .ok_or_else(|| {
            format!(
                "it is for version {} of the CNI specification; versions {} to {} are supported",
                offered.join(", "),
                SpecVersion::V0_3_0.as_str(),
                SpecVersion::V1_1_0.as_str()
            )
        })
}

/// As the specification has names of networks and identifiers of containers.
fn is_identifier(name: &str) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphanumeric();
    name.as_bytes().first().is_some_and(letter)
        && name
            .bytes()
            .all(|byte| letter(&byte) || matches!(byte, b'_' | b'.' | b'-'))
}

fn text<'a>(source: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match source.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("its `{key}` is not a string")),
    }
}

/// A flag, which older configurations write as a string.
fn flag(source: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match source.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(_) => Err(format!("its `{key}` is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
