//! What a registry says of an image: a manifest, an index, a configuration, and the reference that leads there.

#![no_main]

use bulkhead_runtime::image::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::read_document(bytes);
});
