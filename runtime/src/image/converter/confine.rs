//! Gives up everything that a conversion does not need.
//!
//! In two steps, because threads cannot be started any more after the second: [`Confinement::enter`] while the process has
//! one thread, and [`Confinement::seal`] when it has all it will ever have. Nothing hostile is read before the seal.
#![allow(
    unsafe_code,
    reason = "close_range(2), mallopt(3), signal(2) and unshare(2) have no safe wrappers"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, chroot, geteuid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::super::layer::LayerLimits;

/// The most memory of its own (heap, thread stacks, buffers) that a converter may have, in bytes.
///
/// As `RLIMIT_DATA` and not `RLIMIT_AS`: an allocator reserves more address space than it uses, and the program's text is no
/// danger. The largest honest need is that of a layer with as many and as long names as are allowed, see
/// `MAX_HELD_BYTES` in [`super::super::layer`], in a zstd frame with the largest window (128 MiB).
pub const MEMORY_BYTES: u64 = 1 << 30;

/// The user and group `nobody`, who own nothing.
const NOBODY: u32 = 65_534;

/// A file system's block: the most that an entry of a layer takes in its blob beside its own data.
const BLOCK_BYTES: u64 = 4096;

/// A process on its way into confinement.
#[derive(Debug)]
pub struct Confinement {
    filter: BpfProgram,
}

/// A step that could not be taken.
fn step(name: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{name}: {error}"))
}

impl Confinement {
    /// The first step: other descriptors than 0, 1 and 2 are closed, privileges and namespaces given up, limits set.
    ///
    /// To be called before anything else is opened and before a second thread is started. A process of root becomes one of
    /// nobody, in namespaces of its own, in which there is no network. Another process cannot have namespaces: it is kept
    /// from the network by the filter alone.
    ///
    /// # Errors
    ///
    /// Which step failed. The process must then end.
    pub fn enter(limits: LayerLimits) -> io::Result<Self> {
        close_others()?;
        share_one_heap();
        let filter = filter()?;
        // The daemon may be protected from the kernel's OOM killer. Who may not change this is not protected either.
        let _ = fs::write("/proc/self/oom_score_adj", "0");
        if geteuid().is_root() {
            let namespaces = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
            // SAFETY: none of these flags stops sharing memory or descriptors, which other threads might count on.
            unsafe { unshare_unsafe(namespaces) }
                .map_err(io::Error::from)
                .map_err(step("unshare"))?;
            // A directory with nothing in it but the numbers of this process's descriptors, and gone with it. A mount
            // namespace with a file system of its own would keep a copy of every volume mounted on the host.
            chroot("/proc/self/fdinfo")
                .and_then(|()| rustix::process::chdir("/"))
                .map_err(io::Error::from)
                .map_err(step("chroot"))?;
            become_nobody().map_err(step("change of user"))?;
        }
        let privileges = || -> rustix::io::Result<()> {
            clear_ambient_capability_set()?;
            let none = CapabilitySet::empty();
            let sets = CapabilitySets {
                effective: none,
                permitted: none,
                inheritable: none,
            };
            set_capabilities(None, sets)?;
            set_no_new_privs(true)?;
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
            // After the change of user, which clears it. Where the daemon has died before, the input has ended.
            set_parent_process_death_signal(Some(Signal::KILL))
        };
        privileges()
            .map_err(io::Error::from)
            .map_err(step("giving up privileges"))?;
        ignore_file_size_signal()?;
        let blob_bytes = limits
            .entries
            .saturating_mul(BLOCK_BYTES)
            .saturating_add(limits.bytes);
        let limits = [
            (Resource::Core, 0),
            (Resource::Memlock, 0),
            (Resource::Msgqueue, 0),
            (Resource::Fsize, blob_bytes),
            (Resource::Data, MEMORY_BYTES),
        ];
        for (resource, most) in limits {
            limit(resource, most)?;
        }
        Ok(Self { filter })
    }

    /// The second step, when all threads are there and all files open: no new ones of either, and no system call but those
    /// that a conversion needs. Any other ends the process (`SIGSYS`).
    ///
    /// # Errors
    ///
    /// Which step failed. The process must then end.
    pub fn seal(self) -> io::Result<()> {
        limit(Resource::Nproc, 0)?;
        limit(Resource::Nofile, 0)?;
        seccompiler::apply_filter_all_threads(&self.filter).map_err(io::Error::other)
    }
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = Some(
        rustix::process::getrlimit(resource)
            .maximum
            .map_or(most, |now| now.min(most)),
    );
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(resource, limit)
        .map_err(io::Error::from)
        .map_err(step("setrlimit"))
}

fn become_nobody() -> io::Result<()> {
    for number in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << number) else {
            break;
        };
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel is older than the capability.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    Ok(())
}

fn close_others() -> io::Result<()> {
    const FIRST: RawFd = 3;
    // SAFETY: called at the process's beginning, before it opened a file, so nothing owns any of these descriptors.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, RawFd::MAX, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(step("close_range")(io::Error::last_os_error()))
    }
}

/// glibc opens a file in /proc before it cuts any heap but the first (`check_may_shrink_heap`).
fn share_one_heap() {
    // SAFETY: it takes two numbers and changes nothing but the allocator's settings.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// A file over its limit is then an error of the write.
fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler, so no code runs on the signal.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        Err(step("signal")(io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// Calls of which every form is allowed.
const ALLOWED: &[libc::c_long] = &[
    // The input, the blob and the outcome, which are open already.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    // Memory. What maps and protects it is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads that are there already, and their end.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    // A panic tells its thread, and abort(3) raises a signal in its own process.
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    // The seeds of hash tables, and time where the vDSO has none.
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
];

/// Which system calls a sealed process may make.
fn filter() -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let mut allow_if = |call, argument, operator, value| {
        let rule = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(io::Error::other)?;
        rules.insert(call, vec![rule]);
        Ok::<(), io::Error>(())
    };
    // Memory may be had, but none that code can be run from.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow_if(call, 2, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?;
    }
    // Rust's library looks whether what it closes is open, where it is compiled with assertions.
    allow_if(libc::SYS_fcntl, 1, SeccompCmpOp::Eq, F_GETFD)?;
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        architecture,
    )
    .and_then(BpfProgram::try_from)
    .map_err(|error| step("seccomp")(io::Error::other(error)))
}

const PROT_EXEC: u64 = 4;
const F_GETFD: u64 = 1;
