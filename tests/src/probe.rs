//! The node's own GNU tools as a layer that can be put on top of any image, so that the same tools look at a tree inside a
//! container and outside of it.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use crate::registry::Archive;

/// Where the tools are in the image.
const DIRECTORY: &str = ".probe";

/// What looks at trees: see [`crate::Tree`].
const TOOLS: [&str; 4] = ["find", "getfattr", "sha256sum", "stat"];

/// How to call the tools.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Name of the dynamic loader in the layer.
    loader: Option<String>,
}

impl Probe {
    /// The tools of the node, as they are.
    pub fn on_the_node() -> Self {
        Self { loader: None }
    }

    /// A layer with the tools and every library they need, below `/.probe`, and how to call them in there.
    pub fn layer() -> (Archive, Self) {
        let mut archive = Archive::new().directory(DIRECTORY, 0o755);
        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            let path = which(tool);
            libraries.extend(libraries_of(&path));
            archive = archive.file(&format!("{DIRECTORY}/{tool}"), 0o755, &contents(&path));
        }
        let mut loader = None;
        for library in libraries {
            let name = library
                .file_name()
                .expect("a library has a name")
                .to_string_lossy()
                .into_owned();
            archive = archive.file(&format!("{DIRECTORY}/{name}"), 0o755, &contents(&library));
            if name.starts_with("ld-") {
                loader = Some(name);
            }
        }
        assert!(loader.is_some(), "the node's tools name no dynamic loader");
        (archive, Self { loader })
    }

    /// The words with which `tool` is called; its arguments follow.
    pub fn tool(&self, tool: &str) -> Vec<String> {
        assert!(TOOLS.contains(&tool), "{tool} is not in the probe");
        match &self.loader {
            None => vec![tool.to_owned()],
            Some(loader) => vec![
                format!("/{DIRECTORY}/{loader}"),
                "--library-path".to_owned(),
                format!("/{DIRECTORY}"),
                format!("/{DIRECTORY}/{tool}"),
            ],
        }
    }

    /// Path of the probe itself, which is no part of the image that is looked at.
    pub fn directory() -> &'static str {
        DIRECTORY
    }
}

fn which(tool: &str) -> PathBuf {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|directory| PathBuf::from(directory).join(tool))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{tool} is not installed on the node"))
}

/// Every absolute path that `ldd` names.
fn libraries_of(program: &PathBuf) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd starts");
    assert!(output.status.success(), "ldd {}: {output:?}", program.display());
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn contents(path: &PathBuf) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
