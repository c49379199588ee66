//! What layers tell about their directories, in extended attributes.
//!
//! All begin with `trusted.overlay.`, which overlayfs keeps for itself and shows in no container.

use super::super::erofs::Xattrs;

/// What archives may not bring themselves.
pub(super) const RESERVED_PREFIX: &[u8] = b"trusted.overlay.";

/// For overlayfs: the directory hides what lower layers have under its name
/// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// For ourselves: the archive has no entry for the directory, so its attributes are not the image's will.
pub(super) const IMPLIED: &[u8] = b"trusted.overlay.bulkhead.implied";

/// The value of a mark that is set.
pub(super) const SET: &[u8] = b"y";

/// Takes the marks out of `xattrs`, and says which there were: opaque, implied.
pub(super) fn take(xattrs: &mut Xattrs) -> (bool, bool) {
    (xattrs.remove(OPAQUE), xattrs.remove(IMPLIED))
}
