//! What a client of the streaming server sends: frames of SPDY/3.1 and their compressed headers.

#![no_main]

use bulkhead_runtime::streaming::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::serve_spdy(bytes);
});
