//! A node in a process of its own: what that process holds in memory is the daemon's.
//!
//! It is this test's own executable, started again. It is told what to do by lines on its standard input and answers each with
//! a line; at the end of the input it looks at what is left and ends.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use bulkhead_proto::cri::{ContainerState, CreateContainerRequest, PodSandboxState, RunPodSandboxRequest};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::node::{Node, until};

/// What tells this executable that it is to be the node.
pub const VARIABLE: &str = "BULKHEAD_NODE_APART";

/// What answers begin with; a test's process also prints other lines.
const MARK: &str = "node apart: ";

/// What it is told to do.
const VICTIM: &str = "victim";
const CLEAN: &str = "clean";

/// What the node is at its start.
#[derive(Debug, Deserialize, Serialize)]
pub struct Start {
    pub socket: std::path::PathBuf,
    /// Texts that mean something to it.
    pub texts: Vec<String>,
    run: Vec<u8>,
    create: Vec<u8>,
}

impl Start {
    /// A request that is answered with a pod.
    pub fn run(&self) -> RunPodSandboxRequest {
        RunPodSandboxRequest::decode(&self.run[..]).unwrap()
    }

    /// A request that is answered with a container, once it names a pod.
    pub fn create(&self) -> CreateContainerRequest {
        CreateContainerRequest::decode(&self.create[..]).unwrap()
    }
}

/// A pod with a container that runs.
#[derive(Debug, Deserialize, Serialize)]
pub struct Victim {
    pub pod: String,
    pub container: String,
}

/// What the process holds when all pods but the first are gone.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Held {
    /// Bytes that it asked the allocator for and has not given back.
    pub allocated: u64,
    /// Resident memory that is of no file, in bytes.
    pub resident: u64,
    /// Panics until now.
    pub panics: usize,
}

/// The process, as its starter sees it.
pub struct Apart {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Apart {
    pub fn start() -> (Self, Start) {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_apart", "--ignored", "--nocapture"])
            .env(VARIABLE, "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut apart = Self {
            input: process.stdin.take(),
            output: BufReader::new(process.stdout.take().unwrap()),
            process,
        };
        let start = serde_json::from_str(&apart.answer()).unwrap();
        (apart, start)
    }

    /// Runs a pod with a container for requests to be about.
    pub fn victim(&mut self) -> Victim {
        self.ask(VICTIM)
    }

    /// Removes all but the first pod and says what is held then.
    pub fn clean(&mut self) -> Held {
        self.ask(CLEAN)
    }

    /// Ends it, having seen that the first pod is as it was and that nothing else is left.
    pub fn end(mut self) {
        drop(self.input.take());
        let status = self.process.wait().unwrap();
        assert!(status.success(), "the node ended with {status}");
    }

    fn ask<T: for<'a> Deserialize<'a>>(&mut self, what: &str) -> T {
        writeln!(self.input.as_mut().unwrap(), "{what}").unwrap();
        serde_json::from_str(&self.answer()).unwrap()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).unwrap();
            assert_ne!(length, 0, "the node ended");
            // What the test's frame prints has no end of its own.
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.to_owned();
            }
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process itself.
pub fn run() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);

    // As the daemon does.
    bulkhead_runtime::allocator::give_back_early();
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        told(panic);
    }));
    let node = Node::changed(|config| {
        config.images.request_attempts = 1;
        config.images.connect_timeout_seconds = 1;
        config.timeouts.agent_seconds = 5;
    });
    let witness = node.run_pod("witness");
    let watched = node.run(&witness, "watched", &["run"]);
    let create = CreateContainerRequest {
        pod_sandbox_id: String::new(),
        config: Some(node.container_config("fuzzed", &["run"])),
        sandbox_config: None,
    };
    let run = RunPodSandboxRequest {
        config: Some(node.pod_config("fuzzed")),
        runtime_handler: String::new(),
    };
    answer(&Start {
        socket: node.config.cri.socket.clone(),
        texts: vec![
            node.directory.path().join("fuzzed").display().to_string(),
            node.image.clone(),
        ],
        run: run.encode_to_vec(),
        create: create.encode_to_vec(),
    });

    let mut victims = 0;
    for order in std::io::stdin().lines() {
        if order.unwrap() == VICTIM {
            victims += 1;
            let pod = node.run_pod(&format!("victim-{victims}"));
            let container = until("a victim", || {
                // Requests may remove the image.
                node.pull();
                node.try_create(&pod, node.container_config("c", &["run"])).ok()
            });
            node.start_container(&container).unwrap();
            answer(&Victim { pod, container });
        } else {
            for pod in node.pods() {
                if pod.id != witness {
                    node.remove_pod(&pod.id).unwrap();
                }
            }
            answer(&Held {
                allocated: allocated(),
                resident: resident(),
                panics: PANICS.load(Ordering::Relaxed),
            });
        }
    }

    assert_eq!(node.pod_state(&witness), PodSandboxState::SandboxReady);
    assert_eq!(node.status(&watched).state(), ContainerState::ContainerRunning);
    let said = node.exec(&watched, &["say", "here"], 10).unwrap();
    assert_eq!(said.stdout, b"here\n");
    assert_eq!(node.containers().len(), 1);
    let left = node.left();
    assert!(left.iter().all(|object| object.contains(&witness)), "{left:?}");
}

fn answer(value: &impl Serialize) {
    println!("\n{MARK}{}", serde_json::to_string(value).unwrap());
}

fn allocated() -> u64 {
    // SAFETY: it takes nothing and returns numbers.
    let counted = unsafe { libc::mallinfo2() };
    // In pieces of heaps, and in mappings of their own.
    u64::try_from(counted.uordblks + counted.hblkhd).unwrap()
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}
