//! Daemons: the node's own, which tests share, and private ones with directories of their own that a test may break.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::Instant,
};

use bulkhead_proto::cri::VersionRequest;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::{Cri, Crictl, DEADLINE, Environment, until};

/// Tests share the node; one that counts what is on it has it alone.
static NODE: RwLock<()> = RwLock::new(());

/// A `bulkheadd` to be tested.
#[derive(Debug)]
pub struct Daemon {
    endpoint: String,
    crictl: Crictl,
    cri: Cri,
    root: PathBuf,
    state: PathBuf,
    pulled: Mutex<HashSet<String>>,
    private: Option<Mutex<Private>>,
    /// Last, so that others are let in when all else is gone.
    _turn: Turn,
}

#[derive(Debug)]
enum Turn {
    WithOthers { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Turn {
    fn with_others() -> Self {
        Self::WithOthers {
            _guard: NODE.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn alone() -> Self {
        Self::Alone {
            _guard: NODE.write().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// How a private daemon differs from the node's.
#[derive(Debug, Default)]
pub struct DaemonOptions {
    config: Vec<(String, Value)>,
    root: Option<PathBuf>,
    wrapper: Vec<String>,
}

impl DaemonOptions {
    /// As the node's, but for its directories, socket and control group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a configuration key, such as `vm.kernel`.
    #[must_use]
    pub fn config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// Puts `root` there; by default it is a directory of the daemon's own.
    #[must_use]
    pub fn root(mut self, root: &Path) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Starts the daemon as the arguments of another program, which must end in `exec`.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }
}

/// What only a private daemon has.
#[derive(Debug)]
struct Private {
    directory: TempDir,
    wrapper: Vec<String>,
    cgroup: PathBuf,
    process: Child,
}

impl Daemon {
    /// The node's own, shared with the tests that run at the same time.
    pub fn shared() -> Self {
        Self::of_the_node(Turn::with_others())
    }

    /// The node's own, while no other test runs.
    pub fn alone() -> Self {
        Self::of_the_node(Turn::alone())
    }

    fn of_the_node(turn: Turn) -> Self {
        let environment = Environment::get();
        let config = node_config();
        Self {
            endpoint: environment.endpoint.clone(),
            crictl: Crictl::configured(),
            cri: Cri::new(&environment.endpoint),
            root: path_in(&config, "root", "/var/lib/bulkhead"),
            state: path_in(&config, "state", "/run/bulkhead"),
            pulled: Mutex::default(),
            private: None,
            _turn: turn,
        }
    }

    /// A daemon of the test's own, which has answered when this returns.
    #[track_caller]
    pub fn private(options: DaemonOptions) -> Self {
        let daemon = Self::launch(options);
        daemon.wait_for_answer();
        daemon
    }

    /// A daemon that must not come up: how it ended, and what it said.
    #[track_caller]
    pub fn refuses_to_start(options: DaemonOptions) -> (ExitStatus, String) {
        let daemon = Self::launch(options);
        let status = until("a daemon to refuse to start", || {
            daemon
                .ended()
                .ok_or_else(|| format!("it runs, and said {}", daemon.log()))
        });
        (status, daemon.log())
    }

    fn launch(options: DaemonOptions) -> Self {
        let turn = Turn::with_others();
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-")
            .tempdir_in("/var/tmp")
            .expect("a directory for a private daemon");
        let name = directory
            .path()
            .file_name()
            .expect("a directory has a name")
            .to_string_lossy()
            .into_owned();
        let root = options.root.unwrap_or_else(|| directory.path().join("root"));
        let state = directory.path().join("state");
        let socket = directory.path().join("cri.sock");
        let mut config = node_config();
        put(&mut config, "root", shown(&root).into());
        put(&mut config, "state", shown(&state).into());
        put(&mut config, "cri.socket", shown(&socket).into());
        put(&mut config, "vm.cgroup_parent", format!("/{name}").into());
        for (key, value) in options.config {
            put(&mut config, &key, value);
        }
        fs::write(directory.path().join("config.toml"), config.to_string())
            .expect("the configuration is written");
        let process = start(directory.path(), &options.wrapper);
        let endpoint = format!("unix://{}", shown(&socket));
        let private = Private {
            cgroup: Path::new("/sys/fs/cgroup").join(name),
            wrapper: options.wrapper,
            directory,
            process,
        };
        Self {
            crictl: Crictl::at(&endpoint),
            cri: Cri::new(&endpoint),
            endpoint,
            root,
            state,
            pulled: Mutex::default(),
            private: Some(Mutex::new(private)),
            _turn: turn,
        }
    }

    /// A person's `crictl`, speaking to this daemon.
    pub fn crictl(&self) -> &Crictl {
        &self.crictl
    }

    /// gRPC to this daemon.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Its CRI endpoint, as `unix:///…`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The directory of what it keeps.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of what a reboot may take.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Process id of a private daemon.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.private_mut().process.id()).expect("a process id")
    }

    /// The configuration file of a private daemon.
    pub fn config_file(&self) -> PathBuf {
        self.private_mut().directory.path().join("config.toml")
    }

    /// What a private daemon has said.
    pub fn log(&self) -> String {
        let private = self.private_mut();
        fs::read_to_string(private.directory.path().join("log")).expect("a private daemon has a log")
    }

    /// Sends a private daemon a signal and waits for its end.
    #[track_caller]
    pub fn end_with(&self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.pid()).expect("a process id");
        kill_process(pid, signal).expect("a child can be signalled");
        until("a private daemon to end", || {
            self.ended().ok_or_else(|| "it runs".to_owned())
        })
    }

    /// Starts a private daemon again, on the same directories, and waits until it answers.
    #[track_caller]
    pub fn start_again(&self) {
        {
            let mut private = self.private_mut();
            let process = start(private.directory.path(), &private.wrapper);
            private.process = process;
        }
        self.wait_for_answer();
    }

    /// Changes a configuration key of a private daemon, from its next start on.
    pub fn reconfigure(&self, key: &str, value: impl Into<Value>) {
        let path = self.config_file();
        let text = fs::read_to_string(&path).expect("a private daemon has a configuration");
        let mut config: Table = text.parse().expect("the configuration is TOML");
        put(&mut config, key, value.into());
        fs::write(path, config.to_string()).expect("the configuration is written");
    }

    /// Kills every machine of a private daemon, and waits until none is left.
    #[track_caller]
    pub fn kill_machines(&self) {
        let cgroup = self.private_mut().cgroup.clone();
        fs::write(cgroup.join("cgroup.kill"), "1").expect("a private daemon has a control group");
        until("the machines to be gone", || {
            let events =
                fs::read_to_string(cgroup.join("cgroup.events")).expect("the control group's events");
            if events.contains("populated 0") {
                Ok(())
            } else {
                Err(events)
            }
        });
    }

    #[track_caller]
    fn wait_for_answer(&self) {
        until("a private daemon to answer", || {
            if let Some(status) = self.ended() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            let answer = self
                .cri
                .runtime(async |c| c.version(VersionRequest::default()).await);
            answer.map(drop).map_err(|status| status.to_string())
        });
    }

    /// How a private daemon has ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.private_mut()
            .process
            .try_wait()
            .expect("a child can be waited for")
    }

    /// Pulls an image unless this test has pulled it already.
    #[track_caller]
    pub fn pull_once(&self, image: &str) {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        if image.starts_with("sha256:") || pulled.contains(image) {
            return;
        }
        if self.image(image).is_none() {
            self.crictl.ok(["pull", image]);
        }
        pulled.insert(image.to_owned());
    }

    fn private_mut(&self) -> MutexGuard<'_, Private> {
        let private = self
            .private
            .as_ref()
            .expect("only a private daemon can be handled so");
        private.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints what is known of a pod whose test has failed: its status, the end of its guest's kernel log, and the end of
    /// a private daemon's log.
    pub(crate) fn tell_about(&self, pod: &str) {
        eprintln!("{}", self.crictl.run(["inspectp", "-q", pod]));
        for directory in [&self.root, &self.state] {
            tell_consoles(directory, pod);
        }
        if self.private.is_some() {
            eprintln!("daemon's log ends with:\n{}", last_lines(&self.log(), 60));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(private) = &mut self.private else { return };
        let private = private.get_mut().unwrap_or_else(PoisonError::into_inner);
        if thread::panicking()
            && let Some(results) = &Environment::get().results
        {
            let name = private
                .directory
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let _ = fs::copy(
                private.directory.path().join("log"),
                results.join(format!("{name}.log")),
            );
        }
        if let Ok(None) = private.process.try_wait() {
            if let Some(pid) = i32::try_from(private.process.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let asked = Instant::now();
            while let Ok(None) = private.process.try_wait() {
                if asked.elapsed() > DEADLINE {
                    let _ = private.process.kill();
                    assert!(thread::panicking(), "the daemon does not end on SIGTERM");
                }
                thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        // Machines outlive the daemon; those of a failed test are not to outlive the test.
        let _ = fs::write(private.cgroup.join("cgroup.kill"), "1");
        let _ = remove_groups(&private.cgroup);
    }
}

/// The configuration of the node's daemon.
fn node_config() -> Table {
    let path = &Environment::get().config;
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Sets a key with its tables, such as `vm.kernel`.
fn put(config: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            config.insert(key.into(), value);
        }
        Some((table, rest)) => {
            let table = config.entry(table).or_insert_with(|| Table::new().into());
            put(
                table.as_table_mut().expect("a table of the configuration"),
                rest,
                value,
            );
        }
    }
}

fn path_in(config: &Table, key: &str, default: &str) -> PathBuf {
    config.get(key).and_then(Value::as_str).unwrap_or(default).into()
}

fn start(directory: &Path, wrapper: &[String]) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("a log for a private daemon");
    let daemon = Environment::get().bin.join("bulkheadd");
    let mut words = wrapper.to_vec();
    words.extend([
        shown(&daemon),
        "--config".into(),
        shown(&directory.join("config.toml")),
    ]);
    let (program, arguments) = words.split_first().expect("a command has a program");
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor is free"))
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}"))
}

fn shown(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Prints the end of every console file of a pod.
fn tell_consoles(directory: &Path, pod: &str) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            tell_consoles(&path, pod);
        } else if path.to_string_lossy().contains(pod) && path.to_string_lossy().contains("console") {
            let text = fs::read(&path).unwrap_or_default();
            eprintln!(
                "{} ends with:
{}",
                path.display(),
                last_lines(&String::from_utf8_lossy(&text), 40)
            );
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}

/// Removes a control group with those in it, once their processes have ended.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
