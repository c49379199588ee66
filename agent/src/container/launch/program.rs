//! The last step of a child: finds its program and becomes it.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, accessat, stat},
    io::Errno,
    process::{chdir, umask},
};

use super::{
    ProcessPlan, credentials,
    report::{ChildFailure, Report, Reporter},
};
use crate::{
    io::streams::ChildStreams,
    sys::{exec::execve, fds},
};

/// Where a program is looked for when the environment does not say.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit codes of a process that never was its program, as shells have them.
pub const NOT_EXECUTABLE: i32 = 126;
/// See [`NOT_EXECUTABLE`].
pub const NOT_FOUND: i32 = 127;

/// The program cannot be executed. The texts are those that container runtimes have in common, since tools look for
/// them.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No directory of PATH has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// It is not there, or not to be executed.
    #[error("exec: {0:?}")]
    NotExecutable(String, #[source] io::Error),
    /// It was there, and the kernel did not take it.
    #[error("exec {path}{}", hint(*.errno))]
    Refused {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// There is no way into its directory.
    #[error("cannot change to the working directory {0}")]
    WorkingDirectory(String, #[source] Errno),
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => " (the file is there: its interpreter or loader is not)",
        Errno::NOEXEC => " (it is no program for this machine, or a script without #!)",
        _ => "",
    }
}

impl ProgramError {
    /// What a shell would give.
    fn exit_code(&self) -> i32 {
        match self {
            Self::NotInPath(_) => NOT_FOUND,
            Self::NotExecutable(_, source) if source.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            _ => NOT_EXECUTABLE,
        }
    }
}

/// Becomes the program of `plan`, in the container's root. Gives an exit code where that fails, and has reported why.
pub fn become_program(plan: &ProcessPlan, streams: &ChildStreams, mut reporter: Reporter) -> i32 {
    let prepared = prepare(plan, streams);
    if let Err(failure) = prepared {
        reporter.send(&Report::Failed(failure));
        return NOT_EXECUTABLE;
    }
    let error = execute(plan, &mut reporter);
    reporter.send(&Report::Failed(ChildFailure::of_request(&error)));
    error.exit_code()
}

fn prepare(plan: &ProcessPlan, streams: &ChildStreams) -> Result<(), ChildFailure> {
    for (number, fd) in (0..).zip(&streams.fds) {
        fds::set_standard_stream(number, fd.as_fd()).map_err(|error| ChildFailure::of_guest(&error))?;
    }
    // As root, who may pass everywhere; a program may start in a directory that it could not have entered.
    chdir(plan.cwd.as_c_str()).map_err(|errno| {
        let cwd = plan.cwd.to_string_lossy().into_owned();
        ChildFailure::of_request(&ProgramError::WorkingDirectory(cwd, errno))
    })?;
    credentials::assume(plan).map_err(|error| ChildFailure::of_guest(&error))?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn execute(plan: &ProcessPlan, reporter: &mut Reporter) -> ProgramError {
    let path = match find(plan) {
        Ok(path) => path,
        Err(error) => return error,
    };
    reporter.send(&Report::Executing);
    let Err(error) = execve(&path, &plan.args, &plan.env);
    ProgramError::Refused {
        path: path.to_string_lossy().into_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}

fn find(plan: &ProcessPlan) -> Result<CString, ProgramError> {
    let name = plan.args.first().map(|name| name.to_bytes()).unwrap_or_default();
    let path = plan
        .env
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    let text = || String::from_utf8_lossy(name).into_owned();
    let mut refused = None;
    for candidate in candidates(name, path) {
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => refused = Some(errno),
        }
    }
    match refused {
        Some(errno) => Err(ProgramError::NotExecutable(text(), errno.into())),
        None if name.contains(&b'/') => Err(ProgramError::NotExecutable(text(), Errno::NOENT.into())),
        None => Err(ProgramError::NotInPath(text())),
    }
}

/// Where a program of that name may be: itself where it has a slash, else in each directory of PATH. An empty entry of
/// PATH is the working directory.
fn candidates<'a>(name: &'a [u8], path: Option<&'a [u8]>) -> impl Iterator<Item = CString> + 'a {
    let (here, path) = if name.contains(&b'/') {
        (Some(name.to_vec()), None)
    } else {
        (None, Some(path.unwrap_or(DEFAULT_PATH)))
    };
    let in_path = path
        .into_iter()
        .flat_map(|path| path.split(|byte| *byte == b':'))
        .map(move |directory| match directory {
            b"" => [b"./", name].concat(),
            directory => [directory, b"/", name].concat(),
        });
    here.into_iter()
        .chain(in_path)
        .filter_map(|path| CString::new(path).ok())
}

/// Whether the file can be executed by whom this process is now.
fn check(path: &CString) -> Result<(), Errno> {
    let path = OsStr::from_bytes(path.to_bytes());
    if FileType::from_raw_mode(stat(path)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::user::{self, WantedUser};

    fn of(name: &str, path: Option<&str>) -> Vec<String> {
        candidates(name.as_bytes(), path.map(str::as_bytes))
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_name_is_looked_up_in_path_and_a_path_is_not() {
        assert_eq!(of("ls", Some("/bin:/usr/bin")), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(of("ls", Some("/bin::x")), ["/bin/ls", "./ls", "x/ls"]);
        assert_eq!(of("./ls", Some("/bin")), ["./ls"]);
        assert_eq!(of("/opt/ls", None), ["/opt/ls"]);
        assert_eq!(of("ls", None).len(), 6);
    }

    fn plan(name: &str, path: &std::path::Path) -> ProcessPlan {
        let spec = crate::container::spec::ProcessSpec::parse(bulkhead_proto::agent::ProcessSpec {
            args: vec![name.to_owned()],
            env: vec![format!("PATH={}", path.display()).into_bytes()],
            ..bulkhead_proto::agent::ProcessSpec::default()
        })
        .unwrap();
        let user = user::resolve(&WantedUser::default(), b"", b"").unwrap();
        ProcessPlan::new(&spec, user)
    }

    #[test]
    fn what_cannot_be_executed_is_told_apart() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let bin = tempfile::tempdir().unwrap();
        fs::create_dir(bin.path().join("directory")).unwrap();
        fs::write(bin.path().join("text"), "x").unwrap();
        fs::write(bin.path().join("program"), "x").unwrap();
        fs::set_permissions(bin.path().join("program"), fs::Permissions::from_mode(0o755)).unwrap();

        let found = find(&plan("program", bin.path())).unwrap();
        assert_eq!(
            found.to_str().unwrap(),
            bin.path().join("program").to_str().unwrap()
        );
        let error = find(&plan("foo", bin.path())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(error.exit_code(), NOT_FOUND);
        for name in ["text", "directory"] {
            let error = find(&plan(name, bin.path())).unwrap_err();
            assert!(matches!(error, ProgramError::NotExecutable(..)), "{error:?}");
            assert_eq!(error.exit_code(), NOT_EXECUTABLE);
        }
        let error = find(&plan("/no/such", bin.path())).unwrap_err();
        assert_eq!(error.exit_code(), NOT_FOUND);
    }
}
