//! Starts a VMM's process: the one place that runs code between fork and exec.
#![allow(
    unsafe_code,
    reason = "CommandExt::pre_exec is unsafe: what runs there must be async-signal-safe"
)]

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::{FdFlags, fcntl_setfd, write},
    process::setsid,
};

/// What a process gets from its parent.
#[derive(Debug)]
pub struct Inheritance {
    /// Open files it finds under the same numbers.
    pub descriptors: Vec<OwnedFd>,
    /// `cgroup.procs` of the control group it runs in, open for writing.
    pub cgroup: Option<File>,
    /// Where its standard error goes.
    pub log: File,
    /// What it reads from its standard input.
    pub input: Vec<u8>,
}

/// Starts `program` without arguments, environment or controlling terminal, in a session of its own, so that it outlives the
/// daemon. Blocking.
///
/// # Errors
///
/// When the program cannot be started, or does not read its input.
pub fn spawn(program: &Path, inheritance: Inheritance) -> io::Result<Child> {
    let Inheritance {
        descriptors,
        cgroup,
        log,
        input,
    } = inheritance;
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(program);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log);
    let prepare = move || {
        // The daemon may be protected from the kernel's OOM killer; a pod is not. Where the daemon has been made a likelier
        // victim without the right to undo that, its pods stay so too.
        let score = open(
            c"/proc/self/oom_score_adj",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let _ = score.and_then(|score| write(&score, b"0"));
        if let Some(cgroup) = &cgroup {
            write(cgroup, b"0")?;
        }
        setsid()?;
        for descriptor in &descriptors {
            fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor takes a lock. What it
    // owns is dropped in the parent, after the call.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn()?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(&input));
    if let Err(error) = written {
        // It ended before it read: its own message says why, so the error is only told where it still runs.
        if child.try_wait()?.is_none() && error.kind() != io::ErrorKind::BrokenPipe {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    }
    tracing::debug!(pid = child.id(), ?numbers, "started {}", program.display());
    Ok(child)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_process_gets_its_descriptors_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (_other_reader, other) = io::pipe().unwrap();
        let script = directory.path().join("vmm");
        // By its path: not every shell takes a number of two digits behind >&.
        let text = format!(
            "#!/bin/sh\nout=/proc/$$/fd/{0}\ncat >$out; echo \"${{HOME-none}}\" >$out; ls -l /proc/$$/fd >$out; \
             echo told >&2\n",
            writer.as_raw_fd()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let number = writer.as_raw_fd();
        let inheritance = Inheritance {
            descriptors: vec![writer.into()],
            cgroup: None,
            log: File::create(directory.path().join("log")).unwrap(),
            input: b"input\n".to_vec(),
        };
        let mut child = spawn(&script, inheritance).unwrap();
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(told.starts_with("input\nnone\n"), "{told}");
        assert!(told.contains(&format!(" {number} -> ")), "{told}");
        assert!(
            !told.contains(&format!(" {} -> pipe", other.as_raw_fd())),
            "{told}"
        );
        assert_eq!(
            fs::read_to_string(directory.path().join("log")).unwrap(),
            "told\n"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let inheritance = Inheritance {
            descriptors: Vec::new(),
            cgroup: None,
            log: tempfile::tempfile().unwrap(),
            input: Vec::new(),
        };
        let error = spawn(Path::new("/nonexistent/vmm"), inheritance).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
