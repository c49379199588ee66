//! The first process of a container: what the request says over what the image says.

use bulkhead_proto::{
    agent::{ProcessSpec, User, limits},
    cri::{ContainerConfig, LinuxContainerSecurityContext, SupplementalGroupsPolicy},
};

use super::capabilities::capabilities;
use crate::{image::ContainerDefaults, refusal::Refusal};

const DEFAULT_PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process that `config` asks for, in an image with these defaults and a pod with this host name.
///
/// # Errors
///
/// [`Refusal`] with the field.
pub(super) fn process(
    config: &ContainerConfig,
    image: &ContainerDefaults,
    hostname: &str,
) -> Result<ProcessSpec, Refusal> {
    let none = LinuxContainerSecurityContext::default();
    let linux = config.linux.as_ref();
    let security = linux
        .and_then(|linux| linux.security_context.as_ref())
        .unwrap_or(&none);
    let oom_score_adj = linux
        .and_then(|linux| linux.resources.as_ref())
        .map(|resources| resources.oom_score_adj);
    Ok(ProcessSpec {
        args: args(config, image)?,
        env: env(config, image, hostname)?,
        cwd: cwd(config, image)?,
        user: Some(user(security, image)?),
        terminal: config.tty,
        stdin: config.stdin,
        stdout: true,
        stderr: !config.tty,
        capabilities: Some(capabilities(security.capabilities.as_ref(), security.privileged)?),
        no_new_privileges: security.no_new_privs,
        rlimits: Vec::new(),
        oom_score_adj: oom_score_adj.and_then(|score| i32::try_from(score).ok()),
    })
}

/// `command` takes the place of the image's entrypoint and of its default arguments, `args` of the latter alone.
fn args(config: &ContainerConfig, image: &ContainerDefaults) -> Result<Vec<String>, Refusal> {
    let (program, arguments) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = program.iter().chain(arguments).cloned().collect();
    if args.is_empty() {
        return Err(Refusal::invalid(
            "config.command",
            "there is nothing to start: neither the request nor the image has a command",
        ));
    }
    bounded("config.command and config.args", args.len())?;
    match args
        .iter()
        .find(|arg| arg.contains('\0') || arg.len() >= limits::ARGUMENT_BYTES)
    {
        Some(arg) => Err(Refusal::invalid(
            "config.command and config.args",
            format!(
                "an argument of {} bytes contains NUL or is longer than Linux takes",
                arg.len()
            ),
        )),
        None => Ok(args),
    }
}

/// The image's variables, over them the request's, and a few that every container has.
fn env(config: &ContainerConfig, image: &ContainerDefaults, hostname: &str) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut env: Vec<Vec<u8>> = Vec::new();
    let mut set = |variable: Vec<u8>| {
        let name = variable
            .split(|byte| *byte == b'=')
            .next()
            .unwrap_or_default()
            .to_vec();
        env.retain(|known| known.split(|byte| *byte == b'=').next() != Some(name.as_slice()));
        env.push(variable);
    };
    set(DEFAULT_PATH.to_vec());
    set(format!("HOSTNAME={hostname}").into_bytes());
    if config.tty {
        set(b"TERM=xterm".to_vec());
    }
    for variable in &image.env {
        set(variable.clone().into_bytes());
    }
    for variable in &config.envs {
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) || variable.value.contains(&0) {
            return Err(Refusal::invalid(
                "config.envs",
                format!(
                    "{:?} is no name of a variable, or its value contains NUL",
                    variable.key
                ),
            ));
        }
        let mut text = variable.key.clone().into_bytes();
        text.push(b'=');
        text.extend_from_slice(&variable.value);
        set(text);
    }
    bounded("config.envs", env.len())?;
    match env
        .iter()
        .find(|variable| variable.len() >= limits::ARGUMENT_BYTES)
    {
        Some(variable) => {
            let name =
                String::from_utf8_lossy(variable.split(|byte| *byte == b'=').next().unwrap_or_default());
            Err(Refusal::invalid(
                "config.envs",
                format!("the variable {name:?} is longer than Linux takes"),
            ))
        }
        None => Ok(env),
    }
}

fn cwd(config: &ContainerConfig, image: &ContainerDefaults) -> Result<String, Refusal> {
    let cwd = [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|cwd| !cwd.is_empty());
    let cwd = cwd.map_or("/", String::as_str);
    if !cwd.starts_with('/') || cwd.contains('\0') || cwd.len() > limits::STRING_BYTES {
        return Err(Refusal::invalid(
            "config.working_dir",
            format!(
                "{cwd:?} is no absolute path of at most {} bytes",
                limits::STRING_BYTES
            ),
        ));
    }
    Ok(cwd.to_owned())
}

/// Who the process is. Names are those of the image and are looked up by the agent, in the image's own files.
fn user(security: &LinuxContainerSecurityContext, image: &ContainerDefaults) -> Result<User, Refusal> {
    const FIELD: &str = "config.linux.security_context";
    let uid = security
        .run_as_user
        .as_ref()
        .map(|uid| id(uid.value, &format!("{FIELD}.run_as_user")))
        .transpose()?;
    let gid = security
        .run_as_group
        .as_ref()
        .map(|gid| id(gid.value, &format!("{FIELD}.run_as_group")))
        .transpose()?;
    if gid.is_some() && uid.is_none() && security.run_as_username.is_empty() {
        return Err(Refusal::invalid(
            format!("{FIELD}.run_as_group"),
            "it needs run_as_user or run_as_username beside it",
        ));
    }
    if security.run_as_username.contains(['\0', '\n', ':']) {
        return Err(Refusal::invalid(
            format!("{FIELD}.run_as_username"),
            format!("{:?} is no user name", security.run_as_username),
        ));
    }
    let mut user = User {
        uid,
        gid,
        merge_image_groups: match SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy) {
            Ok(SupplementalGroupsPolicy::Merge) => true,
            Ok(SupplementalGroupsPolicy::Strict) => false,
            Err(_) => {
                return Err(Refusal::invalid(
                    format!("{FIELD}.supplemental_groups_policy"),
                    format!("{} is no policy of CRI", security.supplemental_groups_policy),
                ));
            }
        },
        ..User::default()
    };
    bounded(
        &format!("{FIELD}.supplemental_groups"),
        security.supplemental_groups.len(),
    )?;
    for group in &security.supplemental_groups {
        user.supplemental_groups
            .push(id(*group, &format!("{FIELD}.supplemental_groups"))?);
    }
    if user.uid.is_none() {
        if !security.run_as_username.is_empty() {
            user.username.clone_from(&security.run_as_username);
        } else if let Some((name, group)) = image.user_spec.split_once(':') {
            // The image's group belongs to the image's user.
            name.clone_into(&mut user.username);
            if user.gid.is_none() {
                group.clone_into(&mut user.groupname);
            }
        } else {
            user.username.clone_from(&image.user_spec);
        }
    }
    Ok(user)
}

fn id(value: i64, field: &str) -> Result<u32, Refusal> {
    // The last one is the kernel's "nobody in particular" ((uid_t) -1).
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Refusal::invalid(field, format!("{value} is no id; those go from 0 to 4294967294")))
}

fn bounded(field: &str, count: usize) -> Result<(), Refusal> {
    if count > limits::LIST_ENTRIES {
        return Err(Refusal::invalid(
            field,
            format!("{count} entries are more than {}", limits::LIST_ENTRIES),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
