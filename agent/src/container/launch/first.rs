//! The first process of a container: makes the container's root file system around itself and waits for the start.

use std::{
    error::Error,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{
        DumpableBehavior, chdir, fchdir, ioctl_tiocsctty, pivot_root, set_dumpable_behavior, setsid, umask,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    BirthNamespace, ProcessPlan, credentials, devices, program,
    report::{Blame, ChildFailure, Report, Reporter, Reports},
    restrict,
};
use crate::{
    container::{
        cgroup::Cgroup,
        mount::{attach, standard::Mount},
        root_path::RootDirectory,
    },
    io::{pipe, streams::ChildStreams},
    sys::{
        clone::{self, Child, NewNamespaces},
        fds,
        mount_attributes::{self, MountChange, Reach},
        namespaces,
    },
};

/// What the first process makes of itself.
#[derive(Debug)]
pub struct FirstPlan<'a> {
    /// The process.
    pub process: ProcessPlan,
    /// The overlay, in the agent's tree.
    pub rootfs: &'a Path,
    /// All mounts, in order.
    pub mounts: Vec<Mount>,
    /// Paths made unreadable.
    pub masked_paths: &'a [String],
    /// Paths made read-only.
    pub readonly_paths: &'a [String],
    /// Whether the root is read-only in the end.
    pub readonly_rootfs: bool,
    /// Whether it gets every device.
    pub privileged: bool,
    /// The pod's host name namespace.
    pub uts: BorrowedFd<'a>,
    /// The pod's System V IPC namespace.
    pub ipc: BorrowedFd<'a>,
    /// The container's devpts, not yet mounted.
    pub devpts: BorrowedFd<'a>,
    /// Name of its terminal in that.
    pub terminal: Option<String>,
    /// Its standard streams.
    pub streams: ChildStreams,
}

/// Which process namespace it is born in.
#[derive(Clone, Copy, Debug)]
pub enum Birthplace<'a> {
    /// A new one.
    New,
    /// That of this process.
    Of(BorrowedFd<'a>),
}

/// A made first process that has yet to report.
#[derive(Debug)]
pub struct Made {
    /// The process.
    pub child: Child,
    /// What it tells.
    pub reports: Reports,
    /// A byte into it starts the program; its end ends the process.
    pub gate: OwnedFd,
}

/// Makes the process.
pub fn make(plan: FirstPlan<'_>, cgroup: &Cgroup, birthplace: Birthplace<'_>) -> io::Result<Made> {
    let (reports, reporter) = super::report::channel()?;
    let (gate_of_child, gate) = pipe::new()?;
    let (new_pid, _birth) = match birthplace {
        Birthplace::New => (true, None),
        Birthplace::Of(process) => (false, Some(BirthNamespace::enter(process)?)),
    };
    let new = NewNamespaces {
        pid: new_pid,
        mount: true,
    };
    let child = clone::spawn(new, Some(cgroup.fd()), move || {
        run(&plan, reporter, gate_of_child)
    })?;
    Ok(Made { child, reports, gate })
}

/// The life of the child.
fn run(plan: &FirstPlan<'_>, mut reporter: Reporter, gate: OwnedFd) -> i32 {
    if let Err(failure) = set_up(plan, &reporter, &gate) {
        reporter.send(&Report::Failed(failure));
        return program::NOT_EXECUTABLE;
    }
    reporter.send(&Report::Prepared);
    match File::from(gate).read(&mut [0]) {
        Ok(1) => program::become_program(&plan.process, &plan.streams, reporter),
        // The container is removed without having been started.
        _ => 0,
    }
}

fn set_up(plan: &FirstPlan<'_>, reporter: &Reporter, gate: &OwnedFd) -> Result<(), ChildFailure> {
    let [stdin, stdout, stderr] = &plan.streams.fds;
    fds::close_others(&[
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        plan.uts,
        plan.ipc,
        plan.devpts,
        reporter.as_fd(),
        gate.as_fd(),
    ])
    .map_err(guest("close the agent's descriptors"))?;
    // What is in this process's memory and hands until the execve is the agent's.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(guest("hide itself"))?;
    umask(Mode::empty());
    setsid().map_err(guest("begin a session"))?;
    credentials::set_oom_score(&plan.process).map_err(|error| ChildFailure::of_guest(&error))?;
    move_into_link_name_space(plan.uts, Some(LinkNameSpaceType::HostNameAndNISDomainName))
        .map_err(guest("join the pod's host name"))?;
    move_into_link_name_space(plan.ipc, Some(LinkNameSpaceType::InterProcessCommunication))
        .map_err(guest("join the pod's IPC namespace"))?;
    namespaces::unshare_cgroup().map_err(guest("make a control group namespace"))?;

    // What the agent shares reaches the container where a mount asks for it, and nothing ever goes back.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(guest("detach its mounts from the agent's"))?;
    let root = RootDirectory::open(plan.rootfs).map_err(guest("open the root file system"))?;
    make_tree(plan, &root)?;
    enter(&root).map_err(guest("enter the root file system"))?;
    if plan.process.terminal {
        ioctl_tiocsctty(stdin).map_err(guest("take its terminal"))?;
    }
    Ok(())
}

/// Mounts everything and makes what the mounts and the program need.
fn make_tree(plan: &FirstPlan<'_>, root: &RootDirectory) -> Result<(), ChildFailure> {
    let of_request = |error: &dyn Error| ChildFailure::of_request(error);
    for mount in &plan.mounts {
        attach::attach(mount, root, plan.devpts).map_err(|error| of_request(&error))?;
        if mount.destination == "/dev" && !mount.follow_links {
            let dev = root
                .open_without_links(b"/dev", OFlags::PATH)
                .map_err(guest("open /dev"))?;
            devices::fill(dev.as_fd(), plan.privileged).map_err(|error| ChildFailure::of_guest(&error))?;
        }
    }
    let has_own_dev = plan
        .mounts
        .iter()
        .any(|mount| mount.destination == "/dev/pts" && !mount.follow_links);
    if let (Some(terminal), true) = (&plan.terminal, has_own_dev) {
        devices::bind_console(root, terminal).map_err(|error| ChildFailure::of_guest(&error))?;
    }
    root.make_directory(plan.process.cwd.to_bytes())
        .map_err(|errno| {
            let cwd = plan.process.cwd.to_string_lossy().into_owned();
            of_request(&program::ProgramError::WorkingDirectory(cwd, errno))
        })?;
    for path in plan.masked_paths {
        restrict::mask(root, path).map_err(|error| of_request(&error))?;
    }
    for path in plan.readonly_paths {
        restrict::make_read_only(root, path).map_err(|error| of_request(&error))?;
    }
    if plan.readonly_rootfs {
        let read_only = MountChange {
            set: MountAttrFlags::MOUNT_ATTR_RDONLY,
            ..MountChange::default()
        };
        mount_attributes::change(root.fd(), &read_only, Reach::Mount)
            .map_err(guest("make the root file system read-only"))?;
    }
    Ok(())
}

/// Makes `root` the root of this process, and lets go of the agent's.
fn enter(root: &RootDirectory) -> io::Result<()> {
    fchdir(root.fd())?;
    // The old root comes to lie upon the new one (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}

fn guest<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ChildFailure {
    move |error| ChildFailure {
        blame: Blame::Guest,
        message: format!("the container's first process cannot {what}: {}", error.into()),
    }
}
