//! What the runtime says of itself: Version, Status and RuntimeConfig.

use std::sync::Arc;

use bulkhead_proto::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures,
    RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse, VersionResponse,
};

use super::{API_VERSION, KUBE_API_VERSION, RUNTIME_NAME, info};
use crate::{check, daemon::Daemon};

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBE_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: API_VERSION.to_owned(),
    }
}

pub(super) async fn status(daemon: &Arc<Daemon>, verbose: bool) -> StatusResponse {
    let checked = Arc::clone(daemon);
    let runtime = tokio::task::spawn_blocking(move || {
        let config = &checked.config;
        runtime_condition(
            check::first_problem(&config.vm),
            check::handler_problems(&config.handlers),
        )
    });
    let runtime = runtime.await;
    let runtime = runtime.unwrap_or_else(|panic| runtime_condition(Some(panic.to_string()), Vec::new()));
    let network = daemon.network.readiness().err();
    let handlers = std::iter::once("").chain(daemon.config.handlers.keys().map(String::as_str));
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                runtime,
                RuntimeCondition {
                    r#type: "NetworkReady".to_owned(),
                    status: network.is_none(),
                    reason: reason(network.is_some(), "NetworkPluginNotReady"),
                    message: network.unwrap_or_default(),
                },
            ],
        }),
        info: info::if_asked(verbose, || info::runtime(daemon)),
        runtime_handlers: handlers.map(handler).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    }
}

/// Whether pods can run. A node that is not ready loses its pods: it is ready while those of the default handler can run, and
/// what keeps others from it is only told.
fn runtime_condition(problem: Option<String>, of_handlers: Vec<String>) -> RuntimeCondition {
    let is_ready = problem.is_none();
    RuntimeCondition {
        r#type: "RuntimeReady".to_owned(),
        status: is_ready,
        reason: if is_ready {
            reason(!of_handlers.is_empty(), "HandlerNotReady")
        } else {
            "HostNotReady".to_owned()
        },
        message: problem
            .into_iter()
            .chain(of_handlers)
            .collect::<Vec<_>>()
            .join("; "),
    }
}

fn reason(is_so: bool, reason: &str) -> String {
    if is_so { reason.to_owned() } else { String::new() }
}

fn handler(name: &str) -> RuntimeHandler {
    RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: false,
            user_namespaces: false,
        }),
    }
}

pub(super) fn runtime_config() -> RuntimeConfigResponse {
    RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: CgroupDriver::Cgroupfs.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_is_not_ready_is_told_and_takes_the_node_from_nobody() {
        let problem = || Some("there is no /dev/kvm".to_owned());
        let handlers = || vec!["of big".to_owned(), "of small".to_owned()];
        let told = |condition: RuntimeCondition| (condition.status, condition.reason, condition.message);
        assert_eq!(
            told(runtime_condition(None, Vec::new())),
            (true, String::new(), String::new())
        );
        assert_eq!(
            told(runtime_condition(None, handlers())),
            (true, "HandlerNotReady".to_owned(), "of big; of small".to_owned())
        );
        assert_eq!(
            told(runtime_condition(problem(), handlers())),
            (
                false,
                "HostNotReady".to_owned(),
                "there is no /dev/kvm; of big; of small".to_owned()
            )
        );
    }
}
