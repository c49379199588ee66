//! The protocol's bounds (`bulkhead_proto::agent::limits`), applied to requests before anything else looks at them.

use bulkhead_proto::agent::{
    self,
    limits::{self, is_id},
};

/// A request beyond a bound.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// It cannot name a container or a process.
    #[error(
        "{field} {value:?} is no id: 1 to {} of [a-zA-Z0-9_.-], and not only dots",
        limits::ID_BYTES
    )]
    BadId {
        /// Which field.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// Longer than it may be.
    #[error("{field} has {length} bytes, and {most} are the most")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Bytes.
        length: usize,
        /// Bytes.
        most: usize,
    },
    /// More than there may be.
    #[error("{field} has {count} entries, and {most} are the most")]
    TooMany {
        /// Which field.
        field: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

/// A request that can be checked.
pub trait Bounded {
    /// Refuses what is beyond a bound.
    fn check(&self) -> Result<(), BoundError>;
}

fn id(field: &'static str, value: &str) -> Result<(), BoundError> {
    if is_id(value) {
        return Ok(());
    }
    Err(BoundError::BadId {
        field,
        value: value.chars().take(64).collect(),
    })
}

/// An id that may be left out.
fn optional_id(field: &'static str, value: &str) -> Result<(), BoundError> {
    if value.is_empty() {
        Ok(())
    } else {
        id(field, value)
    }
}

fn bytes(field: &'static str, length: usize, most: usize) -> Result<(), BoundError> {
    if length <= most {
        return Ok(());
    }
    Err(BoundError::TooLong { field, length, most })
}

fn string(field: &'static str, value: &str) -> Result<(), BoundError> {
    bytes(field, value.len(), limits::STRING_BYTES)
}

fn count(field: &'static str, count: usize, most: usize) -> Result<(), BoundError> {
    if count <= most {
        return Ok(());
    }
    Err(BoundError::TooMany { field, count, most })
}

fn list(field: &'static str, length: usize) -> Result<(), BoundError> {
    count(field, length, limits::LIST_ENTRIES)
}

fn strings<'a>(
    field: &'static str,
    values: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), BoundError> {
    list(field, values.len())?;
    for value in values {
        string(field, value)?;
    }
    Ok(())
}

fn map(field: &'static str, values: &std::collections::HashMap<String, String>) -> Result<(), BoundError> {
    strings(field, values.keys())?;
    strings(field, values.values())
}

impl Bounded for agent::ConfigureSandboxRequest {
    fn check(&self) -> Result<(), BoundError> {
        string("hostname", &self.hostname)?;
        string("scratch_disk", &self.scratch_disk)?;
        for (field, file) in [
            ("resolv_conf", &self.resolv_conf),
            ("hosts", &self.hosts),
            ("etc_hostname", &self.etc_hostname),
        ] {
            bytes(field, file.as_ref().map_or(0, String::len), limits::FILE_BYTES)?;
        }
        map("sysctls", &self.sysctls)
    }
}

impl Bounded for agent::ConfigureNetworkRequest {
    fn check(&self) -> Result<(), BoundError> {
        list("interfaces", self.interfaces.len())?;
        list("routes", self.routes.len())?;
        list("neighbors", self.neighbors.len())?;
        for interface in &self.interfaces {
            string("interfaces.device_mac", &interface.device_mac)?;
            string("interfaces.name", &interface.name)?;
            string("interfaces.mac", &interface.mac)?;
            strings("interfaces.addresses", interface.addresses.iter())?;
        }
        for route in &self.routes {
            string("routes.destination", &route.destination)?;
            string("routes.gateway", &route.gateway)?;
            string("routes.interface", &route.interface)?;
            string("routes.source", &route.source)?;
        }
        for neighbor in &self.neighbors {
            string("neighbors.address", &neighbor.address)?;
            string("neighbors.mac", &neighbor.mac)?;
            string("neighbors.interface", &neighbor.interface)?;
        }
        Ok(())
    }
}

impl Bounded for agent::Resources {
    fn check(&self) -> Result<(), BoundError> {
        map("resources.unified", &self.unified)
    }
}

impl Bounded for agent::UpdateContainerRequest {
    fn check(&self) -> Result<(), BoundError> {
        id("container_id", &self.container_id)?;
        self.resources.as_ref().map_or(Ok(()), Bounded::check)
    }
}

impl Bounded for agent::CreateContainerRequest {
    fn check(&self) -> Result<(), BoundError> {
        id("container_id", &self.container_id)?;
        count("layers", self.layers.len(), limits::LAYERS)?;
        for layer in &self.layers {
            string("layers.disk", &layer.disk)?;
        }
        if let Some(process) = &self.process {
            process.check()?;
        }
        list("mounts", self.mounts.len())?;
        for mount in &self.mounts {
            string("mounts.type", &mount.r#type)?;
            string("mounts.source", &mount.source)?;
            count("mounts.layers", mount.layers.len(), limits::LAYERS)?;
            string("mounts.destination", &mount.destination)?;
            strings("mounts.options", mount.options.iter())?;
        }
        strings("masked_paths", self.masked_paths.iter())?;
        strings("readonly_paths", self.readonly_paths.iter())?;
        optional_id("pid_target", &self.pid_target)?;
        self.resources.as_ref().map_or(Ok(()), Bounded::check)
    }
}

impl Bounded for agent::ProcessSpec {
    fn check(&self) -> Result<(), BoundError> {
        list("process.args", self.args.len())?;
        for argument in &self.args {
            bytes("process.args", argument.len(), limits::ARGUMENT_BYTES)?;
        }
        list("process.env", self.env.len())?;
        for entry in &self.env {
            bytes("process.env", entry.len(), limits::ARGUMENT_BYTES)?;
        }
        string("process.cwd", &self.cwd)?;
        if let Some(user) = &self.user {
            string("process.user.username", &user.username)?;
            string("process.user.groupname", &user.groupname)?;
            list("process.user.supplemental_groups", user.supplemental_groups.len())?;
        }
        if let Some(sets) = &self.capabilities {
            for set in [
                &sets.bounding,
                &sets.permitted,
                &sets.effective,
                &sets.inheritable,
                &sets.ambient,
            ] {
                strings("process.capabilities", set.iter())?;
            }
        }
        list("process.rlimits", self.rlimits.len())?;
        for limit in &self.rlimits {
            string("process.rlimits.name", &limit.name)?;
        }
        Ok(())
    }
}

impl Bounded for agent::ExecProcessRequest {
    fn check(&self) -> Result<(), BoundError> {
        id("container_id", &self.container_id)?;
        id("exec_id", &self.exec_id)?;
        match &self.process {
            Some(process) => process.check(),
            None => Ok(()),
        }
    }
}

impl Bounded for agent::StatsRequest {
    fn check(&self) -> Result<(), BoundError> {
        list("container_ids", self.container_ids.len())?;
        for value in &self.container_ids {
            id("container_ids", value)?;
        }
        Ok(())
    }
}

/// Requests that only name a container.
macro_rules! names_a_container {
    ($($request:ident),*) => {
        $(impl Bounded for agent::$request {
            fn check(&self) -> Result<(), BoundError> {
                id("container_id", &self.container_id)
            }
        })*
    };
}

/// Requests that only name a process.
macro_rules! names_a_process {
    ($($request:ident),*) => {
        $(impl Bounded for agent::$request {
            fn check(&self) -> Result<(), BoundError> {
                id("container_id", &self.container_id)?;
                optional_id("exec_id", &self.exec_id)
            }
        })*
    };
}

names_a_container!(StartContainerRequest, RemoveContainerRequest);
names_a_process!(
    SignalProcessRequest,
    WaitProcessRequest,
    AcknowledgeExitRequest,
    ResizeTerminalRequest
);

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> agent::CreateContainerRequest {
        agent::CreateContainerRequest {
            container_id: "c1".to_owned(),
            process: Some(agent::ProcessSpec::default()),
            ..agent::CreateContainerRequest::default()
        }
    }

    #[test]
    fn what_fits_passes() {
        let mut request = request();
        request.layers = vec![agent::Layer::default(); limits::LAYERS];
        request.masked_paths = vec!["x".repeat(limits::STRING_BYTES)];
        request.process.as_mut().unwrap().args = vec!["x".repeat(limits::ARGUMENT_BYTES)];
        assert_eq!(request.check(), Ok(()));
    }

    #[test]
    fn every_bound_is_told_by_its_field() {
        let error = |change: &dyn Fn(&mut agent::CreateContainerRequest)| {
            let mut request = request();
            change(&mut request);
            request.check().unwrap_err()
        };
        assert!(matches!(
            error(&|request| request.container_id = "../x".to_owned()),
            BoundError::BadId {
                field: "container_id",
                ..
            }
        ));
        assert!(matches!(
            error(&|request| request.layers = vec![agent::Layer::default(); limits::LAYERS + 1]),
            BoundError::TooMany { field: "layers", .. }
        ));
        assert!(matches!(
            error(&|request| request.masked_paths = vec!["x".repeat(limits::STRING_BYTES + 1)]),
            BoundError::TooLong {
                field: "masked_paths",
                ..
            }
        ));
        assert!(matches!(
            error(&|request| request.masked_paths = vec![String::new(); limits::LIST_ENTRIES + 1]),
            BoundError::TooMany {
                field: "masked_paths",
                ..
            }
        ));
        assert!(matches!(
            error(
                &|request| request.process.as_mut().unwrap().env = vec![vec![0; limits::ARGUMENT_BYTES + 1]]
            ),
            BoundError::TooLong {
                field: "process.env",
                ..
            }
        ));
        assert!(matches!(
            error(&|request| request.pid_target = "a/b".to_owned()),
            BoundError::BadId {
                field: "pid_target",
                ..
            }
        ));
    }

    #[test]
    fn files_and_names_of_the_pod_are_bounded() {
        let too_long = agent::ConfigureSandboxRequest {
            hosts: Some("x".repeat(limits::FILE_BYTES + 1)),
            ..agent::ConfigureSandboxRequest::default()
        };
        assert!(matches!(
            too_long.check(),
            Err(BoundError::TooLong { field: "hosts", .. })
        ));
        let process = agent::WaitProcessRequest {
            container_id: "c1".to_owned(),
            exec_id: String::new(),
        };
        assert_eq!(process.check(), Ok(()));
        let exec = agent::ExecProcessRequest {
            container_id: "c1".to_owned(),
            ..agent::ExecProcessRequest::default()
        };
        assert!(matches!(
            exec.check(),
            Err(BoundError::BadId { field: "exec_id", .. })
        ));
    }
}
