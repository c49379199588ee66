//! How threads of this process are made.

use std::thread::Builder;

/// Bytes of stack, far more than any thread here uses. The default of 2 MiB can lie in one huge page, and then costs the
/// host all of it as soon as the first byte is touched.
const STACK_BYTES: usize = 512 * 1024;

/// A thread named `name`, of which the kernel shows at most 15 bytes.
pub(crate) fn named(name: impl Into<String>) -> Builder {
    Builder::new().name(name.into()).stack_size(STACK_BYTES)
}
