//! The real `crictl`.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// `crictl` as it speaks to one daemon.
#[derive(Clone, Debug)]
pub struct Crictl {
    /// Empty: as the node configured it for a person.
    flags: Vec<String>,
}

impl Crictl {
    /// `crictl` without any flag, as a person on the node calls it.
    pub fn configured() -> Self {
        Self { flags: Vec::new() }
    }

    /// `crictl` for the daemon on `endpoint`.
    pub fn at(endpoint: &str) -> Self {
        let flags = [
            "--runtime-endpoint",
            endpoint,
            "--image-endpoint",
            endpoint,
            "--timeout",
            "600s",
        ];
        Self {
            flags: flags.map(String::from).to_vec(),
        }
    }

    /// Runs a command to its end, whatever that is.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let mut command = Command::new("crictl");
        command.args(&self.flags).args(args).stdin(Stdio::null());
        let shown = format!("{command:?}");
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("crictl does not start: {error}; is it on the PATH?"));
        Output {
            command: shown,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a command that goes on until it is killed, and writes its standard output to `stdout`.
    pub fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, stdout: File) -> Child {
        let mut command = Command::new("crictl");
        command.args(&self.flags).args(args).stdin(Stdio::null());
        let started = command.stdout(stdout).spawn();
        started.unwrap_or_else(|error| panic!("crictl does not start: {error}; is it on the PATH?"))
    }

    /// Runs a command that must succeed, and gives its standard output without surrounding white space.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.run(args);
        assert!(output.code == Some(0), "{output}");
        output.stdout.trim().to_owned()
    }

    /// Runs a command that must succeed and print JSON.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let output = self.run(args);
        assert!(output.code == Some(0), "{output}");
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {output}"))
    }

    /// Runs a command that must fail, and gives what it says.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.run(args);
        assert!(
            output.code.is_some_and(|code| code != 0),
            "should have failed: {output}"
        );
        output.stderr
    }
}

/// How a command ended. Its `Display` tells the whole story.
#[derive(Debug)]
pub struct Output {
    command: String,
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{command}\n  ended with {code:?}\n  stdout: {stdout}\n  stderr: {stderr}"
        )
    }
}
