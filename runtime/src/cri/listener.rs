//! The unix socket on which clients find the daemon.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there already.
    #[error("another process listens on {0}; stop it, or set `cri.socket` to another path")]
    Taken(PathBuf),
    /// It cannot be made.
    #[error(
        "cannot make the socket {path}: {source}; see that its directory is writable, or set `cri.socket`"
    )]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Listens at `path`, open to its owner and group. A socket that a dead daemon left is replaced. Must be called in a tokio
/// runtime.
pub(super) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let unusable = |source| ListenError::Unusable {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(unusable)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ListenError::Taken(path.to_owned()));
    }
    // Made under another name, so that nobody can open it before its rights are set.
    let unfinished = unfinished(path);
    let _ = fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(unusable)?;
    let placed = fs::set_permissions(&unfinished, Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&unfinished, path));
    placed.map_err(unusable)?;
    Ok(listener)
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_replaced_only_when_nobody_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/cri.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let message = listen(&path).unwrap_err().to_string();
        assert!(message.contains("another process listens"), "{message}");
        drop(first);
        listen(&path).unwrap();
    }
}
