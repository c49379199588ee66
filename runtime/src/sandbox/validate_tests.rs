//! Tests of what a pod's configuration may say.

use bulkhead_proto::cri::{
    DnsConfig, IdMapping, Int64Value, LinuxPodSandboxConfig, PortMapping, SecurityProfile,
};

use super::*;
use crate::config::HandlerConfig;

fn config() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            attempt: 0,
        }),
        ..PodSandboxConfig::default()
    }
}

fn with_security(change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> PodSandboxConfig {
    let mut security = LinuxSandboxSecurityContext::default();
    change(&mut security);
    PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..config()
    }
}

fn with_namespaces(change: impl FnOnce(&mut NamespaceOption)) -> PodSandboxConfig {
    with_security(|security| {
        let mut namespaces = NamespaceOption::default();
        change(&mut namespaces);
        security.namespace_options = Some(namespaces);
    })
}

fn refusal(config: &PodSandboxConfig) -> Refusal {
    pod(config, "", &Config::default()).expect_err("it should have been refused")
}

#[test]
fn a_plain_pod_is_taken() {
    assert!(pod(&config(), "", &Config::default()).is_ok());
    assert!(pod(&with_security(|_| {}), "", &Config::default()).is_ok());
    let host_pid = with_namespaces(|n| n.set_pid(NamespaceMode::Node));
    assert!(
        pod(&host_pid, "", &Config::default()).is_ok(),
        "the node of a container is its machine"
    );
    let kubelet = with_security(|security| {
        security.seccomp = Some(SecurityProfile::default());
        security.namespace_options = Some(NamespaceOption {
            pid: NamespaceMode::Container.into(),
            userns_options: Some(UserNamespace {
                mode: NamespaceMode::Node.into(),
                ..Default::default()
            }),
            ..Default::default()
        });
    });
    assert!(pod(&kubelet, "", &Config::default()).is_ok());
}

#[test]
fn a_pod_without_a_name_is_refused() {
    let message = refusal(&PodSandboxConfig::default()).to_string();
    assert!(message.contains("config.metadata"), "{message}");
    let mut nameless = config();
    nameless.metadata.as_mut().unwrap().name.clear();
    assert!(refusal(&nameless).to_string().contains("config.metadata.name"));
}

#[test]
fn an_unknown_handler_is_refused_with_the_known_ones() {
    let mut daemon = Config::default();
    daemon.handlers.insert("large".into(), HandlerConfig::default());
    assert!(pod(&config(), "large", &daemon).is_ok());
    let message = pod(&config(), "huge", &daemon).unwrap_err().to_string();
    assert!(
        message.contains("\"huge\"") && message.contains("large"),
        "{message}"
    );
}

#[test]
fn what_a_machine_cannot_share_with_its_host_is_refused() {
    for (config, field) in [
        (with_namespaces(|n| n.set_network(NamespaceMode::Node)), "network"),
        (with_namespaces(|n| n.set_ipc(NamespaceMode::Node)), "ipc"),
        (
            with_security(|s| {
                s.apparmor = Some(SecurityProfile {
                    profile_type: ProfileType::Localhost.into(),
                    localhost_ref: "p".into(),
                });
            }),
            "apparmor",
        ),
        (
            with_security(|s| {
                s.selinux_options = Some(SeLinuxOption {
                    level: "s0".into(),
                    ..Default::default()
                });
            }),
            "selinux_options",
        ),
    ] {
        let refusal = refusal(&config);
        assert!(matches!(refusal, Refusal::Impossible { .. }), "{refusal:?}");
        assert!(refusal.to_string().contains(field), "{refusal}");
    }
}

#[test]
fn what_comes_later_is_refused_as_such() {
    let users = with_namespaces(|n| {
        n.userns_options = Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![IdMapping::default()],
            gids: vec![IdMapping::default()],
        });
    });
    assert!(matches!(refusal(&users), Refusal::NotYet { .. }));
}

#[test]
fn ports_of_the_host_need_a_network() {
    let mapped = |host_port| PodSandboxConfig {
        port_mappings: vec![PortMapping {
            container_port: 80,
            host_port,
            ..Default::default()
        }],
        ..config()
    };
    let mut daemon = Config::default();
    for host_port in [0, 8080] {
        assert!(pod(&mapped(host_port), "", &daemon).is_ok());
    }
    daemon.network.enabled = false;
    assert!(pod(&mapped(0), "", &daemon).is_ok());
    let refused = pod(&mapped(8080), "", &daemon).unwrap_err();
    assert!(matches!(refused, Refusal::Impossible { .. }), "{refused:?}");
    assert!(refused.to_string().contains("network.enabled"), "{refused}");
}

#[test]
fn what_means_nothing_is_refused() {
    for config in [
        with_security(|s| s.run_as_group = Some(Int64Value { value: 1 })),
        with_namespaces(|n| n.set_network(NamespaceMode::Container)),
        with_namespaces(|n| n.set_ipc(NamespaceMode::Target)),
        with_namespaces(|n| {
            n.userns_options = Some(UserNamespace {
                mode: NamespaceMode::Target.into(),
                ..Default::default()
            });
        }),
        PodSandboxConfig {
            hostname: "x".repeat(65),
            ..config()
        },
        PodSandboxConfig {
            log_directory: "logs".into(),
            ..config()
        },
        PodSandboxConfig {
            dns_config: Some(DnsConfig {
                servers: vec!["1.1.1.1\nevil".into()],
                ..Default::default()
            }),
            ..config()
        },
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/a/../..".into(),
                ..Default::default()
            }),
            ..config()
        },
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                sysctls: [("../../etc/passwd".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            ..config()
        },
    ] {
        let refusal = refusal(&config);
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{refusal:?}");
    }
}
