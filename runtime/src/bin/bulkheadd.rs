//! The daemon: serves CRI and runs pods in virtual machines.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use bulkhead_runtime::{
    allocator,
    config::{Config, DEFAULT_TEXT},
    cri::server::serve,
    daemon::Daemon,
    image::{Converter, converter},
    notify,
    observe::{endpoint::MetricsEndpoint, log},
    sandbox::host::Linux,
};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Runs Kubernetes pods in virtual machines of their own.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// Configuration file; without it /etc/bulkhead/config.toml where that exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints a configuration file with every key, its default and what it is for.
    Config,
    /// Converts a layer of an image for the daemon, which starts it.
    #[command(hide = true, name = Converter::COMMAND)]
    ConvertLayer {
        /// What to do.
        request: String,
    },
}

/// Threads for requests: each waits for others nearly all the time.
const WORKERS: usize = 2;

/// Threads for what blocks: file systems and the look-up of names. Layers are converted in processes of their own.
const BLOCKING_THREADS: usize = 16;

fn main() -> ExitCode {
    allocator::give_back_early();
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Config) => {
            print!("{DEFAULT_TEXT}");
            return ExitCode::SUCCESS;
        }
        Some(Command::ConvertLayer { request }) => return converter::main(request),
        None => {}
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkheadd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(1 << 20)
        .thread_name("bulkheadd")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let traces = {
        let _entered = runtime.enter();
        log::start(&config)?
    };
    raise_file_limit();
    let served = runtime.block_on(async {
        // Before anything is found again: a signal that comes then must not be lost.
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let metrics_address = config.metrics.socket_address()?;
        let daemon = Daemon::start(config, Arc::new(Linux::default()), Converter::default()).await?;
        if let Some(address) = metrics_address {
            let endpoint = MetricsEndpoint::open(address, Arc::clone(&daemon.metrics)).await?;
            tracing::info!(%address, "telling Prometheus");
            tokio::spawn(endpoint.serve());
        }
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to end; pods go on");
        };
        let ready = || {
            if let Err(error) = notify::ready() {
                tracing::warn!(%error, "systemd cannot be told that the daemon is up");
            }
        };
        Ok(serve(daemon, ready, end).await?)
    });
    if let Some(traces) = traces {
        traces.close();
    }
    // What is under way is made again or undone by the next daemon, so nothing is waited for long.
    runtime.shutdown_timeout(Duration::from_secs(2));
    served
}

/// Each container takes some open files; the usual soft limit of 1024 is for programs that use select(2).
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
