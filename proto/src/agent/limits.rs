//! Bounds of the agent's protocol, kept by both ends.
//!
//! The largest legitimate request is a container with a full environment: the kernel itself takes no more than 128 KiB
//! for one string and some 2 MiB for all of them, so a message of 4 MiB holds every container that could start.

/// Largest encoded message of the control service, in bytes.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Longest single string that is not an argument or environment entry (names, paths, options), in bytes.
pub const STRING_BYTES: usize = 4096;

/// Longest argument or environment entry, in bytes: Linux's MAX_ARG_STRLEN.
pub const ARGUMENT_BYTES: usize = 128 * 1024;

/// Longest id of a container or an exec, in bytes.
pub const ID_BYTES: usize = 128;

/// Longest text of a file handed over as a string (`/etc/hosts`, `/etc/resolv.conf`), in bytes.
pub const FILE_BYTES: usize = 256 * 1024;

/// Most elements in any repeated field or map, arguments and environment included.
pub const LIST_ENTRIES: usize = 16 * 1024;

/// Most layers of one root file system: what overlayfs stacks.
pub const LAYERS: usize = 500;

/// Most containers of one pod, and most processes of one container that were started by exec and not acknowledged.
pub const CONTAINERS: usize = 256;

/// Most disks of one container's statistics, and most network interfaces of a guest's.
pub const DEVICES: usize = 64;

/// Most resource limits of one process's statistics: Linux has sixteen.
pub const SOFT_LIMITS: usize = 32;

/// Largest [`StreamHeader`](super::StreamHeader), [`StreamReply`](super::StreamReply) or doorbell message, in bytes.
pub const FRAME_BYTES: usize = 8 * 1024;

/// Bytes of output that the agent holds for a stream until the host has acknowledged them.
pub const STREAM_WINDOW_BYTES: usize = 256 * 1024;

/// Whether `id` may name a container or an exec: 1 to [`ID_BYTES`] of `[a-zA-Z0-9_.-]`, not `.` or `..`, since it
/// also names directories and control groups.
pub fn is_id(id: &str) -> bool {
    (1..=ID_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && id.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_file_name() {
        assert!(is_id("c1"));
        assert!(is_id(&"a".repeat(ID_BYTES)));
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"a".repeat(ID_BYTES + 1)] {
            assert!(!is_id(bad), "{bad:?} was taken for an id");
        }
    }
}
