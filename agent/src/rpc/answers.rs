//! The agent's own types as messages of the protocol.

use bulkhead_proto::agent::{self, HelloResponse, PROTOCOL_VERSION, exit_status::How};
use rustix::system::uname;

use crate::{
    container::{
        process::ExitStatus,
        state::{Container, Phase},
        user::ResolvedUser,
    },
    init::{clock, reaper::End},
};

/// Who this is; `started_ns` is CLOCK_BOOTTIME at the start of the agent.
pub fn hello(started_ns: u64) -> HelloResponse {
    HelloResponse {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: uname().release().to_string_lossy().into_owned(),
        agent_started_ns: started_ns,
        ready_ns: clock::boottime_ns(),
    }
}

/// How a process ended.
pub fn exit_status(status: ExitStatus) -> agent::ExitStatus {
    agent::ExitStatus {
        how: Some(match status.end {
            End::Exited(code) => How::Exited(code.into()),
            End::Signaled(signal) => How::Signaled(signal.into()),
        }),
        oom_killed: status.oom_killed,
        timed_out: status.timed_out,
        exited_at_ns: status.exited_at_ns,
    }
}

/// Who a process is.
pub fn user(user: ResolvedUser) -> agent::ResolvedUser {
    agent::ResolvedUser {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    }
}

/// What a container is doing.
pub fn container(container: &Container) -> agent::ContainerState {
    let phase = container.phase();
    let first = container.first();
    agent::ContainerState {
        container_id: container.id().to_owned(),
        phase: match phase {
            Phase::Created => agent::Phase::Created,
            Phase::Running => agent::Phase::Running,
            Phase::Stopped => agent::Phase::Stopped,
        }
        .into(),
        pid: if phase == Phase::Running { first.pid() } else { 0 },
        status: first.progress().status().map(exit_status),
        started_at_ns: first.started_at_ns(),
    }
}
