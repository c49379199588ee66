//! Starts processes in containers.
//!
//! The agent makes each process with one clone3(2) (see [`clone`](crate::sys::clone) for why its child may run ordinary
//! code) directly in its control group and namespaces; the child sets itself up from data that the agent prepared, and
//! executes the program. Nothing else is executed in between, so a start costs one clone and one execve.
//!
//! A container's first process is made when the container is created: it builds the root file system in its own mount
//! namespace, reports, and waits at a gate until the container is started. What goes wrong before the gate fails the
//! creation; what goes wrong behind it fails the start.

pub mod credentials;
pub mod devices;
pub mod exec;
pub mod first;
pub mod program;
pub mod report;
pub mod restrict;

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    io::Errno,
    thread::{
        LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
    },
};

use super::{
    spec::{Capabilities, ProcessSpec, ResourceLimit},
    user::ResolvedUser,
};

/// Everything a child needs to become a process: parsed, resolved, and nothing left to choose.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    /// Program and arguments; at least one.
    pub args: Vec<CString>,
    /// Environment, HOME included.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: CString,
    /// Who.
    pub user: ResolvedUser,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Whether it can never gain more.
    pub no_new_privileges: bool,
    /// Limits of setrlimit(2).
    pub limits: Vec<ResourceLimit>,
    /// How soon the kernel ends it for want of memory.
    pub oom_score_adj: i32,
    /// Whether its standard input is its controlling terminal.
    pub terminal: bool,
}

impl ProcessPlan {
    /// The plan for `spec`, whose user is `user`.
    pub fn new(spec: &ProcessSpec, user: ResolvedUser) -> Self {
        let mut env = spec.env.clone();
        if spec.variable("HOME").is_none()
            && let Ok(home) = CString::new(format!("HOME={}", user.home))
        {
            env.push(home);
        }
        Self {
            args: spec.args.clone(),
            env,
            cwd: spec.cwd.clone().unwrap_or_else(|| c"/".to_owned()),
            user,
            capabilities: spec.capabilities.unwrap_or_default(),
            no_new_privileges: spec.no_new_privileges,
            limits: spec.limits.clone(),
            oom_score_adj: spec.oom_score_adj.unwrap_or(0),
            terminal: spec.terminal,
        }
    }
}

/// Lets children be born in the process namespace of `process` until it is dropped. The agent itself stays in its own.
///
/// Nothing may be awaited meanwhile, or children of other tasks would be born there too.
#[derive(Debug)]
pub struct BirthNamespace(());

impl BirthNamespace {
    /// Enters the namespace.
    pub fn enter(process: BorrowedFd<'_>) -> Result<Self, Errno> {
        move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)?;
        Ok(Self(()))
    }
}

impl Drop for BirthNamespace {
    fn drop(&mut self) {
        let leave = || -> std::io::Result<()> {
            let own = std::fs::File::open("/proc/self/ns/pid")?;
            move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            Ok(())
        };
        if let Err(error) = leave() {
            // Every further child would be born in a container.
            panic!("cannot return to the agent's process namespace: {error}");
        }
    }
}
