//! The "processes" of the double: what each prints, and how it ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use bulkhead_proto::agent::{ExitStatus, Phase, Resources, exit_status::How};
use bulkhead_vmm::config::ExitReason;
use tokio::sync::{Notify, mpsc, watch};

use super::{Machine, Manners};

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    pub machine: Arc<Machine>,
    pub manners: Manners,
    pub containers: Arc<Mutex<HashMap<String, Container>>>,
    /// Told when a process is made, for streams that came before it.
    pub made: Arc<Notify>,
    /// How often it was asked for statistics.
    pub measured: Arc<AtomicU64>,
}

/// A container.
#[derive(Clone, Debug)]
pub struct Container {
    pub started: bool,
    pub limits: Resources,
    pub first: Process,
    pub execs: HashMap<String, Process>,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Process {
    pub args: Vec<String>,
    pub stdin: Stdin,
    /// Columns and rows of its terminal.
    pub size: Arc<watch::Sender<(u32, u32)>>,
    pub stdout: Output,
    pub stderr: Output,
    pub ended: Arc<watch::Sender<Option<ExitStatus>>>,
}

/// What a process is given to read. Nothing is its end.
#[derive(Clone, Debug)]
pub struct Stdin {
    pub typed: mpsc::Sender<Vec<u8>>,
    unread: Arc<Mutex<Option<mpsc::Receiver<Vec<u8>>>>>,
    pub closed: Arc<AtomicBool>,
}

/// What a process has printed.
#[derive(Clone, Debug)]
pub struct Output {
    pub state: Arc<watch::Sender<Printed>>,
}

/// All bytes of a stream, and how it stands.
#[derive(Debug, Default)]
pub struct Printed {
    pub bytes: Vec<u8>,
    pub closed: bool,
    pub acknowledged: usize,
}

impl Guest {
    pub fn new(machine: Arc<Machine>, manners: Manners) -> Self {
        Self {
            machine,
            manners,
            containers: Arc::default(),
            made: Arc::default(),
            measured: Arc::default(),
        }
    }

    /// A process of a container; `exec` is empty for the first.
    pub fn process(&self, container: &str, exec: &str) -> Option<Process> {
        let containers = self.containers.lock().unwrap();
        let container = containers.get(container)?;
        if exec.is_empty() {
            Some(container.first.clone())
        } else {
            container.execs.get(exec).cloned()
        }
    }
}

impl Container {
    pub fn phase(&self) -> Phase {
        match (self.started, self.first.ended.borrow().is_some()) {
            (false, _) => Phase::Created,
            (true, false) => Phase::Running,
            (true, true) => Phase::Stopped,
        }
    }
}

impl Stdin {
    fn new() -> Self {
        let (typed, unread) = mpsc::channel(1);
        Self {
            typed,
            unread: Arc::new(Mutex::new(Some(unread))),
            closed: Arc::default(),
        }
    }

    fn taken(&self) -> mpsc::Receiver<Vec<u8>> {
        self.unread.lock().unwrap().take().expect("it is read by one")
    }
}

impl Output {
    fn new() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(Printed::default())),
        }
    }

    pub fn print(&self, text: &str) {
        self.print_bytes(text.as_bytes());
    }

    pub fn print_bytes(&self, bytes: &[u8]) {
        self.state
            .send_modify(|printed| printed.bytes.extend_from_slice(bytes));
    }

    /// It is /dev/null.
    pub fn nobody_reads(&self) {
        self.state
            .send_modify(|printed| printed.acknowledged = usize::MAX);
    }

    pub fn close(&self) {
        self.state.send_modify(|printed| printed.closed = true);
    }

    /// Waits until the host has all of it.
    pub async fn drained(&self) {
        let mut state = self.state.subscribe();
        let _ = state
            .wait_for(|printed| printed.closed && printed.acknowledged >= printed.bytes.len())
            .await;
    }
}

impl Process {
    pub fn new(args: Vec<String>) -> Self {
        Self {
            args,
            stdin: Stdin::new(),
            size: Arc::new(watch::Sender::new((0, 0))),
            stdout: Output::new(),
            stderr: Output::new(),
            ended: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Does what its arguments say.
    pub fn start(&self, guest: &Guest) {
        let words: Vec<&str> = self.args.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["say", text] => {
                self.stdout.print(&format!("{text}\n"));
                self.end(How::Exited(0), false);
            }
            ["both", out, err] => {
                self.stdout.print(out);
                self.stderr.print(err);
                self.end(How::Exited(3), false);
            }
            ["exit", code] => self.end(How::Exited(code.parse().unwrap()), false),
            ["oom"] => self.end(How::Signaled(9), true),
            ["flood", bytes] => {
                let line = format!("{}\n", "x".repeat(1023));
                self.stdout
                    .print(&line.repeat(bytes.parse::<usize>().unwrap() / 1024));
                self.end(How::Exited(0), false);
            }
            ["count"] => {
                let process = self.clone();
                tokio::spawn(async move {
                    for number in 0u64.. {
                        process.stdout.print(&format!("{number}\n"));
                        if number % 7 == 0 {
                            process.stderr.print(&format!("err {number}\n"));
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        if process.ended.borrow().is_some() {
                            return;
                        }
                    }
                });
            }
            ["cat"] => {
                let (process, mut unread) = (self.clone(), self.stdin.taken());
                tokio::spawn(async move {
                    while let Some(bytes) = unread.recv().await.filter(|bytes| !bytes.is_empty()) {
                        process.stdout.print_bytes(&bytes);
                    }
                    process.end(How::Exited(0), false);
                });
            }
            ["size"] => {
                let (process, mut size) = (self.clone(), self.size.subscribe());
                tokio::spawn(async move {
                    let _ = size.wait_for(|size| *size == (100, 50)).await;
                    process.stdout.print("100x50\r\n");
                    process.end(How::Exited(5), false);
                });
            }
            // How many execs there are, itself not counted.
            ["execs"] => {
                let containers = guest.containers.lock().unwrap();
                let execs: usize = containers.values().map(|container| container.execs.len()).sum();
                self.stdout.print(&(execs - 1).to_string());
                self.end(How::Exited(0), false);
            }
            ["panic"] => guest.machine.end(
                ExitReason::Panic,
                "The guest's kernel panicked: a container asked for it.",
            ),
            ["vanish"] => std::process::exit(99),
            ["after", milliseconds, code] => {
                let (process, code) = (self.clone(), code.parse().unwrap());
                let pause = Duration::from_millis(milliseconds.parse().unwrap());
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    process.stdout.print("late\n");
                    process.end(How::Exited(code), false);
                });
            }
            // "run" and "stubborn" wait for a signal.
            _ => {}
        }
    }

    pub fn signal(&self, signal: u32) {
        let stubborn = self.args.first().is_some_and(|word| word == "stubborn");
        if signal == 9 || !stubborn {
            self.end(How::Signaled(signal), false);
        }
    }

    pub fn end(&self, how: How, oom_killed: bool) {
        self.finish(ExitStatus {
            how: Some(how),
            oom_killed,
            ..ExitStatus::default()
        });
    }

    pub fn finish(&self, status: ExitStatus) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(status);
            }
            first
        });
        self.stdout.close();
        self.stderr.close();
    }
}
