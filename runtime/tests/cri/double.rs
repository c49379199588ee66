//! A stand-in for `bulkhead-vmm` with a stand-in for the agent in it: one process that speaks the virtual socket's and the
//! control socket's protocols and the agent's gRPC, and runs "processes" that are a few lines of behaviour each.
//!
//! It is this test's own executable, started again. How it misbehaves is told in the kernel command line.

mod agent;
mod control;
mod ports;
mod processes;
mod stats;
mod streams;
mod vsock;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    process::exit,
    sync::Arc,
    thread,
};

use bulkhead_vmm::config::{ExitReason, ExitReport, FileSource, VmConfig};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use processes::Guest;

/// What the double does wrong, by words of the kernel command line.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// The agent never says hello.
    pub silent: bool,
    /// The guest panics before its agent answers.
    pub panics: bool,
    /// The agent is of another protocol.
    pub stranger: bool,
    /// The agent refuses to be configured.
    pub refuses: bool,
    /// The agent does not answer StartContainer.
    pub slow_start: bool,
    /// The agent takes a while to start an exec.
    pub slow_exec: bool,
}

impl Manners {
    fn of(cmdline: &str) -> Self {
        let says = |word: &str| cmdline.split(' ').any(|told| told == word);
        Self {
            silent: says("silent"),
            panics: says("panics"),
            stranger: says("stranger"),
            refuses: says("refuses"),
            slow_start: says("slow_start"),
            slow_exec: says("slow_exec"),
        }
    }
}

/// The whole life of a machine. It outlives its daemon, as machines do, but not `tests`, the process that runs the tests.
pub fn run(tests: i32) -> ! {
    end_with(tests);
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    let config: VmConfig = serde_json::from_str(&input).unwrap();
    let manners = Manners::of(&config.cmdline);
    let report = taken(config.exit_report.as_ref().unwrap());
    let console = taken(&config.console.as_ref().unwrap().file);
    writeln!(File::from(console), "the double boots {}", config.name).unwrap();
    let machine = Arc::new(Machine {
        report: File::from(report),
    });
    if manners.panics {
        machine.end(
            ExitReason::Panic,
            "The guest's kernel panicked: as it was told to.",
        );
    }

    control::serve(
        taken(config.control.as_ref().unwrap()),
        &config,
        Arc::clone(&machine),
    );
    let listener = taken(&config.vsock.as_ref().unwrap().socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(vsock::serve(listener, Guest::new(machine, manners)));
    exit(0)
}

/// Ends this process when another one does.
fn end_with(process: i32) {
    let other = pidfd_open(Pid::from_raw(process).unwrap(), PidfdFlags::empty());
    thread::spawn(move || {
        // Without a descriptor it has ended already.
        if let Ok(other) = other {
            poll(&mut [PollFd::new(&other, PollFlags::IN)], None).unwrap();
        }
        exit(0);
    });
}

/// What ends with the process.
#[derive(Debug)]
pub struct Machine {
    report: File,
}

impl Machine {
    /// Reports and ends.
    pub fn end(&self, reason: ExitReason, message: &str) -> ! {
        let report = ExitReport {
            reason,
            message: message.to_owned(),
        };
        (&self.report)
            .write_all(&serde_json::to_vec(&report).unwrap())
            .unwrap();
        exit(reason.exit_code().into())
    }
}

fn taken(source: &FileSource) -> OwnedFd {
    let FileSource::Fd(number) = source else {
        panic!("the daemon hands every file over open: {source:?}")
    };
    let number: RawFd = *number;
    // SAFETY: the daemon left this descriptor open for this process, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
