//! Runs the plugins of a network for a pod (CNI specification 1.1, section 3).

use std::{ffi::OsString, fs, os::linux::fs::MetadataExt, path::Path};

use serde_json::{Map, Value, json};

use super::{
    cache::Entry,
    config::{NetworkList, PluginConfig, SpecVersion},
    error::{PluginError, PluginFault, PluginMessage},
    plugin::{Command, Runner, excerpt, message},
};

/// An attachment that is still valid, as GC is told.
pub(crate) struct ValidAttachment<'a> {
    /// The pod's id.
    pub(crate) container_id: &'a str,
    /// The interface in the pod.
    pub(crate) interface: &'a str,
}

/// Attaches a pod: runs ADD of every plugin in order, each with the result of the one before. Gives the last one's result.
///
/// # Errors
///
/// That of the first plugin that fails. Then the caller must run [`del`].
pub(crate) async fn add(runner: &Runner, list: &NetworkList, entry: &Entry) -> Result<Value, PluginError> {
    let mut result = None;
    for plugin in &list.plugins {
        let config = request(list, plugin, &entry.capabilities, result.as_ref());
        let fail = |fault| error(list, plugin, Command::Add, fault);
        let output = runner
            .run(&plugin.kind, Command::Add, &variables(entry), &config)
            .await
            .map_err(fail)?;
        result = Some(parse_result(&output).map_err(fail)?);
    }
    Ok(result.unwrap_or_default())
}

/// Detaches a pod: runs DEL of every plugin in reverse order, each with what ADD gave in the end. A plugin that does not know
/// the pod has nothing to do.
///
/// # Errors
///
/// That of the first plugin that fails; it may be run again.
pub(crate) async fn del(runner: &Runner, list: &NetworkList, entry: &Entry) -> Result<(), PluginError> {
    // Earlier plugins do not know what to do with it.
    let result = entry
        .result
        .as_ref()
        .filter(|_| list.version >= SpecVersion::V0_4_0);
    for plugin in list.plugins.iter().rev() {
        let config = request(list, plugin, &entry.capabilities, result);
        match runner
            .run(&plugin.kind, Command::Del, &variables(entry), &config)
            .await
        {
            Err(PluginFault::Refused(PluginMessage {
                code: PluginMessage::UNKNOWN_CONTAINER,
                ..
            }))
            | Ok(_) => {}
            Err(fault) => return Err(error(list, plugin, Command::Del, fault)),
        }
    }
    Ok(())
}

/// Asks every plugin whether a pod is attached as it was, where the version has that and the configuration allows it.
///
/// # Errors
///
/// That of the first plugin that finds it is not.
pub(crate) async fn check(runner: &Runner, list: &NetworkList, entry: &Entry) -> Result<(), PluginError> {
    if list.version < SpecVersion::V0_4_0 || list.disable_check {
        return Ok(());
    }
    for plugin in &list.plugins {
        let config = request(list, plugin, &entry.capabilities, entry.result.as_ref());
        runner
            .run(&plugin.kind, Command::Check, &variables(entry), &config)
            .await
            .map_err(|fault| error(list, plugin, Command::Check, fault))?;
    }
    Ok(())
}

/// Lets every plugin forget what belongs to none of these attachments, where the version has that and the configuration allows
/// it. No ADD or DEL may run meanwhile. Gives the errors of those that failed.
pub(crate) async fn gc(
    runner: &Runner,
    list: &NetworkList,
    valid: &[ValidAttachment<'_>],
) -> Vec<PluginError> {
    let mut errors = Vec::new();
    if list.version < SpecVersion::V1_1_0 || list.disable_gc {
        return errors;
    }
    let attachments: Vec<Value> = valid
        .iter()
        .map(|valid| json!({"containerID": valid.container_id, "ifname": valid.interface}))
        .collect();
    for plugin in &list.plugins {
        let mut config = request(list, plugin, &Map::new(), None);
        if let Some(fields) = config.as_object_mut() {
            fields.insert("cni.dev/valid-attachments".to_owned(), attachments.clone().into());
        }
        if let Err(fault) = runner.run(&plugin.kind, Command::Gc, &[], &config).await {
            errors.push(error(list, plugin, Command::Gc, fault));
        }
    }
    errors
}

/// Whether pods can be attached: every executable is there, and every plugin says so where the version has that.
///
/// # Errors
///
/// That of the first that is not ready.
pub(crate) async fn status(runner: &Runner, list: &NetworkList) -> Result<(), PluginError> {
    present(runner, list, Command::Status)?;
    if list.version < SpecVersion::V1_1_0 {
        return Ok(());
    }
    for plugin in &list.plugins {
        let config = request(list, plugin, &Map::new(), None);
        runner
            .run(&plugin.kind, Command::Status, &[], &config)
            .await
            .map_err(|fault| error(list, plugin, Command::Status, fault))?;
    }
    Ok(())
}

/// Whether every executable is there that `command` will need, those that plugins leave the addresses to included.
///
/// # Errors
///
/// The first that is not.
pub(crate) fn present(runner: &Runner, list: &NetworkList, command: Command) -> Result<(), PluginError> {
    for plugin in &list.plugins {
        for name in [Some(plugin.kind.as_str()), plugin.ipam()]
            .into_iter()
            .flatten()
            .filter(|name| !name.is_empty())
        {
            runner.find(name).map_err(|fault| PluginError {
                network: list.name.clone(),
                plugin: name.to_owned(),
                command,
                fault,
            })?;
        }
    }
    Ok(())
}

/// What a plugin reads: its configuration, with what the specification has the runtime add and leave out.
fn request(
    list: &NetworkList,
    plugin: &PluginConfig,
    known: &Map<String, Value>,
    previous: Option<&Value>,
) -> Value {
    let mut fields = plugin.fields.clone();
    fields.retain(|key, _| key != "capabilities" && key != "prevResult" && !key.starts_with("cni.dev/"));
    fields.insert("cniVersion".to_owned(), list.version.as_str().into());
    fields.insert("name".to_owned(), list.name.clone().into());
    let asked: Map<String, Value> = known
        .iter()
        .filter(|(capability, _)| plugin.capabilities.contains(*capability))
        .map(|(capability, value)| (capability.clone(), value.clone()))
        .collect();
    if !asked.is_empty() {
        fields.insert("runtimeConfig".to_owned(), asked.into());
    }
    if let Some(previous) = previous {
        fields.insert("prevResult".to_owned(), previous.clone());
    }
    fields.into()
}

fn variables(entry: &Entry) -> Vec<(&'static str, OsString)> {
    let namespace = if is_namespace(&entry.namespace_path) {
        entry.namespace_path.clone().into_os_string()
    } else {
        // Gone, as after a reboot. Plugins free what they can without it when they are told none.
        OsString::new()
    };
    vec![
        ("CNI_CONTAINERID", entry.pod_id.clone().into()),
        ("CNI_NETNS", namespace),
        ("CNI_IFNAME", entry.interface.clone().into()),
        ("CNI_ARGS", entry.arguments.clone().into()),
    ]
}

/// Whether a namespace is kept there: a file of another file system than that of its directory.
fn is_namespace(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.st_dev()).ok();
    let parent = path.parent().and_then(device);
    device(path).is_some_and(|device| parent.is_some_and(|parent| parent != device))
}

fn parse_result(output: &[u8]) -> Result<Value, PluginFault> {
    let garbage = |reason: String| PluginFault::Garbage {
        reason,
        output: excerpt(output),
    };
    if output.trim_ascii().is_empty() {
        return Err(garbage("there is none".to_owned()));
    }
    match serde_json::from_slice(output) {
        Ok(Value::Object(_)) if message(output).is_some() => Err(garbage(
            "it is an error, although the plugin ended with success".to_owned(),
        )),
        Ok(value @ Value::Object(_)) => super::result::AddResult::parse(&value)
            .map_err(garbage)
            .map(|_| value),
        Ok(_) => Err(garbage("it is not an object".to_owned())),
        Err(error) => Err(garbage(error.to_string())),
    }
}

fn error(list: &NetworkList, plugin: &PluginConfig, command: Command, fault: PluginFault) -> PluginError {
    PluginError {
        network: list.name.clone(),
        plugin: plugin.kind.clone(),
        command,
        fault,
    }
}

#[cfg(test)]
mod tests;
