//! The node's own tools as a layer that can be put on top of any image, so that the same tools look at a tree inside a
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
    tools: &'static [&'static str],
    /// Name of the dynamic loader in the layer.
    loader: Option<String>,
}

impl Probe {
    /// What looks at trees, as it is on the node.
    pub fn on_the_node() -> Self {
        Self {
            tools: &TOOLS,
            loader: None,
        }
    }

    /// A layer with what looks at trees, below `/.probe`, and how to call it in there.
    pub fn layer() -> (Archive, Self) {
        Self::layer_with(&TOOLS)
    }

    /// A layer with these tools of the node and every library they need, below `/.probe`, and how to call them in there.
    pub fn layer_with(tools: &'static [&'static str]) -> (Archive, Self) {
        let mut archive = Archive::new().directory(DIRECTORY, 0o755);
        let mut libraries = BTreeSet::new();
        for tool in tools {
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
        (archive, Self { tools, loader })
    }

    /// The words with which `tool` is called; its arguments follow.
    pub fn tool(&self, tool: &str) -> Vec<String> {
        assert!(self.tools.contains(&tool), "{tool} is not in the probe");
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
