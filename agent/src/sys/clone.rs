//! Child processes made with clone3(2), which run a closure of the agent instead of a new program.
//!
//! A child starts as a copy of the agent, as after fork(2). In a process with several threads such a child may do next
//! to nothing, because another thread may have held a lock (the allocator's, say) at the moment of the copy. The agent
//! has one thread and starts no other: no lock is held but by the caller, so the child may run ordinary code. This
//! saves the execution of a second program between the agent and every process that it starts.

#![allow(unsafe_code, reason = "clone3(2) has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::process::Pid;

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// Its id in the agent's process namespace.
    pub pid: Pid,
    /// Names the process even after its id has been given to another.
    pub pidfd: OwnedFd,
}

/// Which namespaces a child gets for itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewNamespaces {
    /// A process namespace, whose process 1 the child is.
    pub pid: bool,
    /// A copy of the agent's mount namespace.
    pub mount: bool,
}

/// Exit code of a process that panicked.
pub const PANICKED: i32 = 101;

/// Flags beyond the 32 bits of the C library's constants (linux/sched.h).
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether this process is a child made by [`spawn`], and not the agent itself.
pub fn in_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// Starts a child that runs `body` and ends with the exit code that it gives.
///
/// The child is born in the control group whose directory `cgroup` is, has every signal handler reset and inherits all
/// of the agent's descriptors: `body` begins with [`close_others`](super::fds::close_others).
///
/// # Errors
///
/// What clone3(2) gives: `ENOMEM` also where the process namespace it would be born in has lost its process 1.
pub fn spawn(
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    if new.pid {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if new.mount {
        flags |= libc::CLONE_NEWNS as u64;
    }
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // SAFETY: all fields of the structure are integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned()));

    // SAFETY: without CLONE_VM and with no stack given this is fork(2) with more flags: the child goes on here on its
    // own copy of this stack. The agent is single-threaded (see the module's comment), so the copy is consistent.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            IN_CHILD.store(true, Ordering::Relaxed);
            // SAFETY: sets a disposition and runs no handler. The Rust runtime ignores SIGPIPE, and what is ignored
            // stays so over clone3(2) and execve(2).
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            exit_now(catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED))
        }
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.expect("clone3(2) gives a positive process id to the parent");
            // SAFETY: the call succeeded, so it stored a new descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
    }
}

/// Ends this process at once, without running what was registered to run at its end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}
