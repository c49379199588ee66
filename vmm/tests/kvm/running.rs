//! A `bulkhead-vmm` process under test.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_vmm::{
    config::{ExitReport, VmConfig},
    control::client::Client,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest that anything may take: an emulated host is slow and may be busy.
const PATIENCE: Duration = Duration::from_mins(2);

/// The directory and the configuration of a machine.
pub struct Machine {
    pub directory: TempDir,
    pub config: Value,
}

impl Machine {
    /// A machine with `kernel`, one vCPU and 64 MiB.
    pub fn new(kernel: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| json!({"path": directory.path().join(name)});
        let config = json!({
            "name": "test",
            "vcpus": 1,
            "memory_mib": 64,
            "kernel": {"path": kernel},
            "control": at("control"),
            "console": {"file": at("console"), "max_bytes": 1 << 20, "early": true},
            "exit_report": at("exit"),
            "vsock": {"cid": 3, "socket": at("vsock")},
        });
        Self { directory, config }
    }

    /// A machine that runs `code`.
    pub fn bare(code: &super::bare::Code) -> Self {
        let mut machine = Self::new(Path::new(""));
        let kernel = machine.directory.path().join("kernel");
        fs::write(&kernel, code.kernel()).unwrap();
        machine.config["kernel"] = json!({"path": kernel});
        machine
    }

    /// The configuration as the library has it.
    pub fn parsed(&self) -> VmConfig {
        serde_json::from_value(self.config.clone()).unwrap()
    }

    /// Starts the process.
    pub fn start(self) -> Running {
        let mut child = Command::new(vmm())
            .stdin(Stdio::piped())
            .stderr(fs::File::create(self.directory.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let input = serde_json::to_vec(&self.config).unwrap();
        child.stdin.take().unwrap().write_all(&input).unwrap();
        Running { machine: self, child }
    }
}

/// The program: `BULKHEAD_BIN_DIR` names its directory where tests run away from where they were built.
fn vmm() -> PathBuf {
    std::env::var_os("BULKHEAD_BIN_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_bulkhead-vmm")),
        |directory| PathBuf::from(directory).join("bulkhead-vmm"),
    )
}

/// The process.
pub struct Running {
    pub machine: Machine,
    child: Child,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection to the control socket, as soon as it is there.
    pub fn client(&mut self) -> Client {
        let socket = self.machine.directory.path().join("control");
        self.wait_for("the control socket", |_| Client::connect(&socket, PATIENCE).ok())
    }

    /// All that the guest has said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.machine.directory.path().join("console")).unwrap_or_default())
            .into_owned()
    }

    /// What the process has said.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.machine.directory.path().join("stderr")).unwrap_or_default()
    }

    /// Waits until the console has `text`.
    pub fn wait_for_console(&mut self, text: &str) {
        self.wait_for(text, |running| running.console().contains(text).then_some(()));
    }

    /// Waits until `probe` has something, while the process lives.
    pub fn wait_for<T>(&mut self, what: &str, mut probe: impl FnMut(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = probe(self) {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "no {what} ({ended:?}); errors: {}; console:\n{}",
                self.errors(),
                self.console()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of the process; gives its exit status and report.
    pub fn end(&mut self) -> (Option<i32>, ExitReport) {
        let status = self.wait();
        let report = fs::read(self.machine.directory.path().join("exit")).unwrap();
        let report = serde_json::from_slice(&report)
            .unwrap_or_else(|error| panic!("{error} in the exit report; errors: {}", self.errors()));
        (status.code(), report)
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the machine does not end; errors: {}; console:\n{}",
                self.errors(),
                self.console()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
