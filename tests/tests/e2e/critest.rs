//! critest, the conformance suite of CRI, as far as it asks for what Bulkhead has.
//!
//! Its images have their names from registries of the world, which lead to the node's own.

use bulkhead_tests::{Daemon, DaemonOptions, critest};

/// The image with the digest that is compiled into critest cannot be made, only be fetched from its registry. What it asks for is
/// in `images::an_image_has_one_id_and_all_its_names`, for a digest that is computed there.
const DIGEST_OF_THE_WORLD: &str = "public image with digest should be pulled and removed";

/// No machine of a pod can have the host's network: it has another kernel.
const NETWORK_OF_THE_HOST: &str = "HostNetwork is true";

/// As above.
const PORTS_OF_THE_HOST: &str = "portforward in host network";

#[test]
#[ignore = "runs in the node: hack/test"]
fn images() {
    // It counts images and removes some.
    let daemon = Daemon::private(DaemonOptions::new());
    critest(
        &daemon,
        &[
            "Image Manager",
            "Image Consistency",
            "Image Identifier Consistency",
            "Idempotence RemoveImage",
        ],
        &[DIGEST_OF_THE_WORLD],
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn networking() {
    let daemon = Daemon::private(DaemonOptions::new());
    critest(
        &daemon,
        &["Networking", "HostNetwork", "should support network"],
        &[NETWORK_OF_THE_HOST],
    );
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn streaming() {
    let daemon = Daemon::private(DaemonOptions::new());
    critest(&daemon, &["Streaming"], &[PORTS_OF_THE_HOST]);
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn basics() {
    let daemon = Daemon::private(DaemonOptions::new());
    critest(
        &daemon,
        &[
            "Runtime info",
            "basic operations on PodSandbox",
            "should support sysctls",
            "basic operations on container",
            "runtime should support log",
            "Idempotence",
            "should support container log",
            "should support container exec",
            "should output OOMKilled reason",
        ],
        &[],
    );
}
