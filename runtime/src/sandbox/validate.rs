//! What a pod's configuration may say: checked whole before anything is made.

use bulkhead_proto::cri::{
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SeLinuxOption, UserNamespace, security_profile::ProfileType,
};

use super::network;
use crate::{config::Config, refusal::Refusal};

/// Longest host name that Linux takes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES: usize = 64;

/// Longest name, namespace or uid, in bytes: more than Kubernetes ever gives, and bounded in every answer.
const NAME_BYTES: usize = 253 + 1 + 253;

/// Checks a request for a pod and gives who it is.
///
/// # Errors
///
/// [`Refusal`] with the field.
pub(super) fn pod<'a>(
    config: &'a PodSandboxConfig,
    handler: &str,
    daemon: &Config,
) -> Result<&'a PodSandboxMetadata, Refusal> {
    let metadata = config.metadata.as_ref().ok_or_else(|| {
        Refusal::invalid(
            "config.metadata",
            "it is missing; a pod has a name, a namespace and a uid",
        )
    })?;
    for (field, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return Err(Refusal::invalid(
                format!("config.metadata.{field}"),
                "it is empty",
            ));
        }
        if value.len() > NAME_BYTES || value.contains(['\0', '\n']) {
            return Err(Refusal::invalid(
                format!("config.metadata.{field}"),
                format!("it must have at most {NAME_BYTES} bytes and neither NUL nor newline"),
            ));
        }
    }
    if !handler.is_empty() && !daemon.handlers.contains_key(handler) {
        let known: Vec<&str> = daemon.handlers.keys().map(String::as_str).collect();
        return Err(Refusal::invalid(
            "runtime_handler",
            format!(
                "{handler:?} is not known; known are the empty one and {known:?}: add a table [handlers.{handler}] to the \
                 configuration of bulkheadd, or correct the RuntimeClass"
            ),
        ));
    }
    if config.hostname.len() > HOSTNAME_BYTES || config.hostname.contains(['\0', '\n', '/']) {
        return Err(Refusal::invalid(
            "config.hostname",
            format!(
                "{:?} is no host name of at most {HOSTNAME_BYTES} bytes",
                config.hostname
            ),
        ));
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return Err(Refusal::invalid(
            "config.log_directory",
            format!("{:?} is not an absolute path", config.log_directory),
        ));
    }
    let ports = network::port_mappings(config)?;
    if let Some(port) = ports.first().filter(|_| !daemon.network.enabled) {
        return Err(Refusal::impossible(
            "config.port_mappings",
            format!(
                "port {} of the host leads nowhere: pods have no network but loopback; set network.enabled = true in the \
                 configuration of bulkheadd",
                port.host_port
            ),
        ));
    }
    if let Some(dns) = &config.dns_config {
        let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
        if let Some(bad) = words.into_iter().find(|word| word.contains(['\0', '\n'])) {
            return Err(Refusal::invalid(
                "config.dns_config",
                format!("{bad:?} contains a newline or NUL"),
            ));
        }
    }
    if let Some(linux) = &config.linux {
        if linux.cgroup_parent.split('/').any(|part| part == "..") {
            return Err(Refusal::invalid(
                "config.linux.cgroup_parent",
                format!(
                    "{:?} is not a path from the root of the hierarchy",
                    linux.cgroup_parent
                ),
            ));
        }
        for name in linux.sysctls.keys() {
            sysctl(name)?;
        }
        if let Some(security) = &linux.security_context {
            security_context(security)?;
        }
    }
    Ok(metadata)
}

fn sysctl(name: &str) -> Result<(), Refusal> {
    let good = name.split(['.', '/']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-:@".contains(&byte))
    });
    if good {
        return Ok(());
    }
    Err(Refusal::invalid(
        "config.linux.sysctls",
        format!("{name:?} is no name of a kernel setting"),
    ))
}

fn security_context(security: &LinuxSandboxSecurityContext) -> Result<(), Refusal> {
    const FIELD: &str = "config.linux.security_context";
    if let Some(namespaces) = &security.namespace_options {
        namespace_options(namespaces, FIELD)?;
    }
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Refusal::invalid(
            format!("{FIELD}.run_as_group"),
            "it needs run_as_user beside it",
        ));
    }
    // Seccomp's RuntimeDefault concerns the process of a sandbox, and a machine has none: nothing runs unconfined.
    if let Some(seccomp) = &security.seccomp
        && seccomp.profile_type() == ProfileType::Localhost
    {
        return Err(Refusal::not_yet(
            format!("{FIELD}.seccomp"),
            format!("profile {:?} cannot be applied", seccomp.localhost_ref),
        ));
    }
    if let Some(apparmor) = &security.apparmor
        && apparmor.profile_type() == ProfileType::Localhost
    {
        return Err(Refusal::impossible(
            format!("{FIELD}.apparmor"),
            format!(
                "profile {:?} is loaded in the host's kernel, not in the pod's; leave it out, the pod has a kernel of \
                 its own",
                apparmor.localhost_ref
            ),
        ));
    }
    selinux(security.selinux_options.as_ref(), FIELD)
}

/// Checks the namespaces of a pod or container.
pub(crate) fn namespace_options(namespaces: &NamespaceOption, field: &str) -> Result<(), Refusal> {
    match namespaces.network() {
        NamespaceMode::Pod => {}
        NamespaceMode::Node => {
            return Err(Refusal::impossible(
                format!("{field}.namespace_options.network"),
                "the host's network cannot be had in a virtual machine; set hostNetwork to false, or run this pod with \
                 another RuntimeClass",
            ));
        }
        mode => {
            return Err(Refusal::invalid(
                format!("{field}.namespace_options.network"),
                format!("{} means nothing for a network", mode.as_str_name()),
            ));
        }
    }
    match namespaces.ipc() {
        NamespaceMode::Pod => {}
        NamespaceMode::Node => {
            return Err(Refusal::impossible(
                format!("{field}.namespace_options.ipc"),
                "the host's IPC cannot be had in a virtual machine; set hostIPC to false, or run this pod with another \
                 RuntimeClass",
            ));
        }
        mode => {
            return Err(Refusal::invalid(
                format!("{field}.namespace_options.ipc"),
                format!("{} means nothing for IPC", mode.as_str_name()),
            ));
        }
    }
    if let Some(userns) = &namespaces.userns_options {
        user_namespace(userns, field)?;
    }
    Ok(())
}

fn user_namespace(userns: &UserNamespace, field: &str) -> Result<(), Refusal> {
    let field = format!("{field}.namespace_options.userns_options");
    match userns.mode() {
        NamespaceMode::Node if userns.uids.is_empty() && userns.gids.is_empty() => Ok(()),
        NamespaceMode::Node => Err(Refusal::invalid(field, "mode NODE has no mappings")),
        NamespaceMode::Pod => Err(Refusal::not_yet(
            field,
            "a user namespace was asked for; set hostUsers to true: the pod's users are those of its own kernel anyway",
        )),
        mode => Err(Refusal::invalid(
            field,
            format!("mode {} means nothing for users", mode.as_str_name()),
        )),
    }
}

/// Refuses a label that would be ignored.
pub(crate) fn selinux(options: Option<&SeLinuxOption>, field: &str) -> Result<(), Refusal> {
    let Some(options) = options else { return Ok(()) };
    if [&options.user, &options.role, &options.r#type, &options.level]
        .iter()
        .all(|part| part.is_empty())
    {
        return Ok(());
    }
    Err(Refusal::impossible(
        format!("{field}.selinux_options"),
        "the guest's kernel has no SELinux; leave seLinuxOptions out",
    ))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
