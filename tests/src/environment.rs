//! Where everything is in the node: the variables that `hack/test` sets.

use std::{env, path::PathBuf, sync::LazyLock};

/// The node as its variables describe it.
#[derive(Debug)]
pub struct Environment {
    /// `CONTAINER_RUNTIME_ENDPOINT`: where the node's own `bulkheadd` answers, as `unix:///…`.
    pub endpoint: String,
    /// `BULKHEAD_CONFIG`: the configuration file it runs with, from which those of private daemons are derived.
    pub config: PathBuf,
    /// `BULKHEAD_BIN_DIR`: `bulkheadd`, `bulkhead` and `bulkhead-vmm`.
    pub bin: PathBuf,
    /// `BULKHEAD_GUEST_DIR`: `vmlinux` and `initramfs`.
    pub guest: PathBuf,
    /// `BULKHEAD_REGISTRY`: host and port of the registry with the test images, `localhost:5000` when unset.
    pub registry: String,
    /// `BULKHEAD_RESULTS`: where logs of failed tests go; may be unset.
    pub results: Option<PathBuf>,
}

impl Environment {
    /// The one this process was started with.
    pub fn get() -> &'static Self {
        static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| Environment {
            endpoint: required("CONTAINER_RUNTIME_ENDPOINT"),
            config: required("BULKHEAD_CONFIG").into(),
            bin: required("BULKHEAD_BIN_DIR").into(),
            guest: required("BULKHEAD_GUEST_DIR").into(),
            registry: env::var("BULKHEAD_REGISTRY").unwrap_or_else(|_| "localhost:5000".into()),
            results: env::var_os("BULKHEAD_RESULTS").map(PathBuf::from),
        });
        &ENVIRONMENT
    }

    /// Full name of a test image, such as `localhost:5000/busybox:latest` of `busybox:latest`.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }
}

fn required(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: end-to-end tests run in the node, by hack/test"))
}
