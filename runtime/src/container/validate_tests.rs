//! Tests of what a container's configuration may say.

use bulkhead_proto::cri::{
    CdiDevice, Device, ImageSpec, LinuxContainerConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceOption, SeLinuxOption, SecurityProfile,
};

use super::*;

fn config() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "web".into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: "busybox".into(),
            ..Default::default()
        }),
        ..ContainerConfig::default()
    }
}

fn with_security(change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut security = LinuxContainerSecurityContext::default();
    change(&mut security);
    ContainerConfig {
        linux: Some(LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..config()
    }
}

fn with_mount(change: impl FnOnce(&mut Mount)) -> ContainerConfig {
    let mut mount = Mount {
        container_path: "/mnt".into(),
        host_path: "/host".into(),
        ..Mount::default()
    };
    change(&mut mount);
    ContainerConfig {
        mounts: vec![mount],
        ..config()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the fields have it")]
fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

fn check(config: &ContainerConfig) -> Result<(), Refusal> {
    container(config, &PodSandboxConfig::default()).map(drop)
}

#[test]
fn a_plain_container_is_taken() {
    check(&config()).unwrap();
    check(&with_security(|s| {
        s.seccomp = profile(ProfileType::Unconfined, "");
    }))
    .unwrap();
    check(&with_security(|s| {
        s.apparmor = profile(ProfileType::Unconfined, "");
    }))
    .unwrap();
    check(&with_security(|s| {
        s.selinux_options = Some(SeLinuxOption::default());
    }))
    .unwrap();
}

#[test]
fn what_is_missing_is_named() {
    for (config, field) in [
        (
            ContainerConfig {
                metadata: None,
                ..config()
            },
            "config.metadata",
        ),
        (
            ContainerConfig {
                metadata: Some(ContainerMetadata::default()),
                ..config()
            },
            "config.metadata.name",
        ),
        (
            ContainerConfig {
                image: None,
                ..config()
            },
            "config.image",
        ),
        (
            ContainerConfig {
                image: Some(ImageSpec::default()),
                ..config()
            },
            "config.image",
        ),
    ] {
        let message = check(&config).unwrap_err().to_string();
        assert!(message.starts_with(field), "{message}");
    }
}

#[test]
fn an_image_is_mounted_read_only_and_by_a_path_in_it() {
    let with_image = |change: fn(&mut Mount)| {
        with_mount(|mount| {
            mount.host_path.clear();
            mount.readonly = true;
            mount.image = Some(ImageSpec {
                image: "tools:1".into(),
                ..ImageSpec::default()
            });
            change(mount);
        })
    };
    check(&with_image(|_| {})).unwrap();
    check(&with_image(|m| m.image_sub_path = "usr/share/x..y".into())).unwrap();
    check(&with_image(|m| m.mount_options = vec!["noexec".into()])).unwrap();
    for (config, word) in [
        (with_image(|m| m.readonly = false), "readonly"),
        (with_image(|m| m.host_path = "/tmp".into()), "host_path"),
        (with_image(|m| m.image_sub_path = "/etc".into()), "image_sub_path"),
        (
            with_image(|m| m.image_sub_path = "a/../../b".into()),
            "image_sub_path",
        ),
        (with_image(|m| m.propagation = 1), "propagation"),
        (
            with_image(|m| m.mount_options = vec!["dev".into()]),
            "mount_options",
        ),
        (with_image(|m| m.image = Some(ImageSpec::default())), "image"),
        (with_image(|m| m.container_path = "mnt".into()), "container_path"),
    ] {
        let refused = check(&config).unwrap_err().to_string();
        let start = format!("ImageVolumeMountFailed: config.mounts.{word}: ");
        assert!(refused.starts_with(&start), "{refused}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for (config, word) in [
        (with_mount(|_| {}), "/host"),
        (
            ContainerConfig {
                devices: vec![Device {
                    host_path: "/dev/fuse".into(),
                    ..Default::default()
                }],
                ..config()
            },
            "/dev/fuse",
        ),
        (
            ContainerConfig {
                cdi_devices: vec![CdiDevice {
                    name: "v.com/gpu=0".into(),
                }],
                ..config()
            },
            "v.com/gpu=0",
        ),
        (
            with_security(|s| s.seccomp = profile(ProfileType::RuntimeDefault, "")),
            "RuntimeDefault",
        ),
        (
            with_security(|s| s.seccomp = profile(ProfileType::Localhost, "/p.json")),
            "/p.json",
        ),
    ] {
        let refusal = check(&config).unwrap_err();
        assert!(matches!(refusal, Refusal::NotYet { .. }), "{refusal:?}");
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
}

#[test]
fn what_a_virtual_machine_cannot_do_is_refused() {
    for config in [
        with_mount(|m| m.set_propagation(MountPropagation::PropagationBidirectional)),
        with_security(|s| s.apparmor = profile(ProfileType::Localhost, "p")),
        with_security(|s| s.apparmor = profile(ProfileType::RuntimeDefault, "")),
        with_security(|s| {
            s.selinux_options = Some(SeLinuxOption {
                level: "s0:c1".into(),
                ..Default::default()
            });
        }),
        with_security(|s| {
            s.namespace_options = Some(NamespaceOption {
                network: NamespaceMode::Node.into(),
                ..Default::default()
            });
        }),
    ] {
        let refusal = check(&config).unwrap_err();
        assert!(matches!(refusal, Refusal::Impossible { .. }), "{refusal:?}");
    }
}

#[test]
fn a_privileged_container_needs_a_privileged_pod_and_no_profile() {
    let config = with_security(|s| {
        s.privileged = true;
        s.seccomp = profile(ProfileType::RuntimeDefault, "");
    });
    assert!(check(&config).unwrap_err().to_string().contains("privileged"));
    let pod = PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                privileged: true,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..PodSandboxConfig::default()
    };
    container(&config, &pod).unwrap();
}

#[test]
fn what_means_nothing_is_refused() {
    for config in [
        with_security(|s| s.seccomp = profile(ProfileType::Unconfined, "/p.json")),
        with_security(|s| s.masked_paths = vec!["proc/kcore".into()]),
        with_security(|s| {
            s.namespace_options = Some(NamespaceOption {
                pid: NamespaceMode::Target.into(),
                ..Default::default()
            });
        }),
    ] {
        let refusal = check(&config).unwrap_err();
        assert!(matches!(refusal, Refusal::Invalid { .. }), "{refusal:?}");
    }
}

#[test]
fn a_log_is_below_the_pods_log_directory() {
    let path = |directory: &str, log: &str| {
        let pod = PodSandboxConfig {
            log_directory: directory.into(),
            ..PodSandboxConfig::default()
        };
        log_path(
            &ContainerConfig {
                log_path: log.into(),
                ..config()
            },
            &pod,
        )
    };
    assert_eq!(
        path("/var/log/pods/p", "c/0.log").unwrap(),
        Some("/var/log/pods/p/c/0.log".into())
    );
    assert_eq!(path("/var/log/pods/p", "").unwrap(), None);
    assert_eq!(path("", "0.log").unwrap(), None);
    for bad in ["../0.log", "/etc/passwd", "c/../../0.log", "c/"] {
        assert!(path("/var/log/pods/p", bad).is_err(), "{bad}");
    }
}
