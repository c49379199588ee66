//! A further process of a running container: born in its process namespace and control group, it joins the rest.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, ioctl_tiocsctty, set_dumpable_behavior, setsid, umask},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::{
    BirthNamespace, ProcessPlan, credentials, program,
    report::{Blame, ChildFailure, Report, Reporter, Reports},
};
use crate::{
    container::{cgroup::Cgroup, root_path::RootDirectory},
    io::streams::ChildStreams,
    sys::{
        clone::{self, Child, NewNamespaces},
        fds,
    },
};

/// What the process makes of itself.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    /// The process.
    pub process: ProcessPlan,
    /// The container's first process, whose namespaces it joins.
    pub first: BorrowedFd<'a>,
    /// Its standard streams.
    pub streams: ChildStreams,
}

/// Makes the process.
///
/// # Errors
///
/// `ESRCH` or `ENOMEM` also where the container's first process has just ended.
pub fn make(plan: ExecPlan<'_>, cgroup: &Cgroup) -> io::Result<(Child, Reports)> {
    let (reports, reporter) = super::report::channel()?;
    let _birth = BirthNamespace::enter(plan.first)?;
    let child = clone::spawn(NewNamespaces::default(), Some(cgroup.fd()), move || {
        run(&plan, reporter)
    })?;
    Ok((child, reports))
}

fn run(plan: &ExecPlan<'_>, mut reporter: Reporter) -> i32 {
    match set_up(plan, &reporter) {
        Ok(()) => program::become_program(&plan.process, &plan.streams, reporter),
        Err(failure) => {
            reporter.send(&Report::Failed(failure));
            program::NOT_EXECUTABLE
        }
    }
}

fn set_up(plan: &ExecPlan<'_>, reporter: &Reporter) -> Result<(), ChildFailure> {
    let [stdin, stdout, stderr] = &plan.streams.fds;
    fds::close_others(&[
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        plan.first,
        reporter.as_fd(),
    ])
    .map_err(guest("close the agent's descriptors"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(guest("hide itself"))?;
    umask(Mode::empty());
    setsid().map_err(guest("begin a session"))?;
    credentials::set_oom_score(&plan.process).map_err(|error| ChildFailure::of_guest(&error))?;
    // The mount namespace brings the container's root with it.
    move_into_thread_name_spaces(
        plan.first,
        ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::CONTROL_GROUP,
    )
    .map_err(guest("join the container's namespaces"))?;
    let cwd = || -> Result<(), rustix::io::Errno> {
        let root = RootDirectory::open(Path::new("/")).map_err(|_| rustix::io::Errno::NOENT)?;
        root.make_directory(plan.process.cwd.to_bytes())?;
        Ok(())
    };
    cwd().map_err(|errno| {
        let cwd = plan.process.cwd.to_string_lossy().into_owned();
        ChildFailure::of_request(&program::ProgramError::WorkingDirectory(cwd, errno))
    })?;
    if plan.process.terminal {
        ioctl_tiocsctty(stdin).map_err(guest("take its terminal"))?;
    }
    Ok(())
}

fn guest<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ChildFailure {
    move |error| ChildFailure {
        blame: Blame::Guest,
        message: format!("the process cannot {what}: {}", error.into()),
    }
}
