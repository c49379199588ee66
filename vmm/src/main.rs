//! `bulkhead-vmm`: one virtual machine, described on standard input.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use bulkhead_vmm::{
    config::{ExitReason, ExitReport, VmConfig},
    kvm::Host,
    machine::{self, EndSignals, ProcessStart, Sources},
};
use rustix::{fs::Mode, process::umask, thread::set_no_new_privs};

/// Two words are not worth a parser, whose set-up every machine would pay for before it starts.
const USAGE: &str = "\
Runs one virtual machine, which a JSON document on standard input describes.

Usage: bulkhead-vmm [check | --help | --version]

  check  says whether this host has the KVM that a machine needs

The exit status is 0 when the guest powered off or its owner ended it, 1 when the machine could not be run, 2 for wrong
arguments, 10 after a reset, 11 after a panic of the guest's kernel, 12 after a triple fault.";

/// Exit status for arguments that are none.
const WRONG_ARGUMENTS: u8 = 2;

/// Longest configuration in bytes.
const CONFIG_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    let started = ProcessStart::now();
    let mut arguments = env::args_os().skip(1);
    let first = arguments.next();
    match (first.as_deref().map(OsStr::to_str), arguments.next()) {
        (None, None) => run(started),
        (Some(Some("check")), None) => check(),
        (Some(Some("--help" | "-h")), None) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        (Some(Some("--version" | "-V")), None) => {
            println!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(WRONG_ARGUMENTS)
        }
    }
}

fn check() -> ExitCode {
    match Host::open() {
        Ok(_) => {
            println!("KVM of this host has all that a machine needs");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(started: ProcessStart) -> ExitCode {
    let mut report_file = None;
    let report = run_machine(started, &mut report_file).unwrap_or_else(|error| ExitReport {
        reason: ExitReason::VmmError,
        message: format!("{error:#}"),
    });
    if report.reason != ExitReason::Quit && report.reason != ExitReason::PowerOff {
        eprintln!("bulkhead-vmm: {}", report.message);
    }
    if let Some(file) = report_file
        && let Err(error) = write_report(file, &report)
    {
        eprintln!("bulkhead-vmm: the exit report could not be written: {error}");
    }
    ExitCode::from(report.reason.exit_code())
}

fn run_machine(started: ProcessStart, report_file: &mut Option<File>) -> anyhow::Result<ExitReport> {
    // What this process makes is its owner's only, and nothing it may ever execute gets more rights than it.
    umask(Mode::RWXG | Mode::RWXO);
    set_no_new_privs(true).context("privileges cannot be given up for good")?;
    machine::block_end_signals().context("signals cannot be held back")?;
    let config = read_config()?;
    let mut sources = Sources::claim(&config)?;
    *report_file = sources.exit_report(&config)?;
    let signals = EndSignals::new().context("signals cannot be watched")?;
    let machine = machine::build(config, sources, started)?;
    Ok(machine::run(machine, &signals)?)
}

fn read_config() -> anyhow::Result<VmConfig> {
    let mut text = Vec::new();
    io::stdin()
        .take(CONFIG_MAX + 1)
        .read_to_end(&mut text)
        .context("the configuration cannot be read from standard input")?;
    if text.len() as u64 > CONFIG_MAX {
        bail!("the configuration on standard input is longer than {CONFIG_MAX} bytes");
    }
    serde_json::from_slice(&text).context("the configuration on standard input is not one")
}

fn write_report(mut file: File, report: &ExitReport) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(report)?)?;
    file.write_all(b"\n")
}
