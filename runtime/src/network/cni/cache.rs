//! What has been added for pods, on disk before it is added: DEL needs it, after a crash and when the configuration has
//! changed or vanished (CNI specification 1.1, section 3).

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::NetworkList;

/// How a file ends.
const SUFFIX: &str = ".json";

/// An attachment: a pod's interface in a network, from before ADD until after DEL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The pod.
    pub(crate) pod_id: String,
    /// Its name, with its Kubernetes namespace; for messages.
    pub(crate) pod_name: String,
    /// The interface in the pod.
    pub(crate) interface: String,
    /// The pod's network namespace.
    pub(crate) namespace_path: PathBuf,
    /// `CNI_ARGS`.
    pub(crate) arguments: String,
    /// What plugins may ask to be told, by capability.
    pub(crate) capabilities: Map<String, Value>,
    /// The file that the configuration was in; for messages.
    pub(crate) file: PathBuf,
    /// The configuration as it was, whole.
    pub(crate) config: Map<String, Value>,
    /// What ADD gave. Nothing: it has not ended, or not well.
    pub(crate) result: Option<Value>,
}

impl Entry {
    /// The configuration.
    ///
    /// # Errors
    ///
    /// That it is not one, as when another version of the daemon wrote it.
    pub(crate) fn network(&self) -> Result<NetworkList, String> {
        NetworkList::parse(self.config.clone(), &self.file)
    }
}

/// A directory with a file for each attachment.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens the one in `directory`, which is made if need be.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // What a crash left of a file that was being written.
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Where attachments are kept.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `entry`, in the place of what was known of the attachment. When this returns it survives a crash.
    pub(crate) fn put(&self, entry: &Entry) -> io::Result<()> {
        let path = self.path(&entry.pod_id, &entry.interface);
        let text = serde_json::to_vec(entry)?;
        write_durably(&path, &text)
    }

    /// Forgets an attachment. One that is not known is not an error.
    pub(crate) fn remove(&self, pod_id: &str, interface: &str) -> io::Result<()> {
        match fs::remove_file(self.path(pod_id, interface)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            // A file that comes back with a crash only lets DEL be run once more.
            Ok(()) => Ok(()),
        }
    }

    /// All attachments; of one pod where `pod_id` is given. Files that are none are skipped, and said in the log.
    pub(crate) fn list(&self, pod_id: Option<&str>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.directory)? {
            let path = file?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let other = pod_id.is_some_and(|pod_id| {
                name.strip_prefix(pod_id)
                    .is_none_or(|rest| !rest.starts_with('@'))
            });
            if !name.ends_with(SUFFIX) || other {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => match serde_json::from_slice::<Entry>(&text) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => tracing::warn!(
                        "{} is no record of a pod's network: {error}; what it stands for is not deleted",
                        path.display()
                    ),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        entries.sort_by(|a, b| (&a.pod_id, &a.interface).cmp(&(&b.pod_id, &b.interface)));
        Ok(entries)
    }

    fn path(&self, pod_id: &str, interface: &str) -> PathBuf {
        // Neither a pod's id nor an interface's name has an @ in it.
        self.directory.join(format!("{pod_id}@{interface}{SUFFIX}"))
    }
}

/// Writes a file as a whole or not at all, so that it is there after a crash.
pub(crate) fn write_durably(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let unfinished = tempfile::Builder::new()
        .prefix(".writing-")
        .suffix(".tmp")
        .tempfile_in(directory)?;
    unfinished.as_file().write_all(text)?;
    unfinished.as_file().sync_all()?;
    unfinished.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(pod_id: &str) -> Entry {
        let Value::Object(config) = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]})
        else {
            panic!("not an object");
        };
        Entry {
            pod_id: pod_id.to_owned(),
            pod_name: "default/web".to_owned(),
            interface: "eth0".to_owned(),
            namespace_path: "/run/ns".into(),
            arguments: "IgnoreUnknown=1".to_owned(),
            capabilities: Map::new(),
            file: "/etc/cni/net.d/10.conflist".into(),
            config,
            result: None,
        }
    }

    #[test]
    fn what_was_put_is_found_again_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let cache = Cache::open(&path).unwrap();
        let (mut one, two) = (entry("p1"), entry("p12"));
        cache.put(&one).unwrap();
        cache.put(&two).unwrap();
        one.result = Some(json!({"ips": []}));
        cache.put(&one).unwrap();
        fs::write(path.join("broken@eth0.json"), "{").unwrap();
        fs::write(path.join(".writing-x.tmp"), "half").unwrap();
        let cache = Cache::open(&path).unwrap();
        assert!(!path.join(".writing-x.tmp").exists());
        assert_eq!(cache.list(None).unwrap(), [one.clone(), two.clone()]);
        assert_eq!(cache.list(Some("p1")).unwrap(), [one.clone()]);
        assert_eq!(one.network().unwrap().plugins[0].kind, "a");
        cache.remove("p1", "eth0").unwrap();
        cache.remove("p1", "eth0").unwrap();
        assert_eq!(cache.list(None).unwrap(), [two]);
    }
}
