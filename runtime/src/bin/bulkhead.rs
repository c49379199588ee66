//! The command for whoever runs a node: can it run pods, and which does it run?

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bulkhead_runtime::{
    admin::{images::Images, pods},
    check::{self, Outcome},
    config::{Config, DEFAULT_TEXT},
};
use clap::{Parser, Subcommand};

/// Looks after a node that runs pods in virtual machines.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// Configuration file of the daemon; without it /etc/bulkhead/config.toml where that exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says whether this host can run pods, and what to do where it cannot.
    Check,
    /// Lists pods with the processes and the memory of their machines.
    Pods,
    /// Lists images, and how far pulls have come.
    Images {
        /// Shows them anew every second, until it is interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Prints a configuration file with every key, its default and what it is for.
    Config,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Check => check(arguments.config.as_deref()),
        Command::Pods => list(arguments.config.as_deref()),
        Command::Images { watch } => images(arguments.config.as_deref(), watch),
        Command::Config => print(DEFAULT_TEXT).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let checks = check::all(&Config::load(config)?);
    let mut text = String::new();
    for check in &checks {
        let _ = writeln!(text, "{check}");
    }
    let bad = checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Bad { .. }))
        .count();
    let verdict = match bad {
        0 => "This host can run pods.\n".to_owned(),
        count => format!(
            "This host cannot run pods: {count} of {} checks failed.\n",
            checks.len()
        ),
    };
    text.push_str(&verdict);
    print(&text)?;
    Ok(if bad == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn list(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let table = runtime.block_on(pods::table(&config.cri.socket))?;
    print(&table)?;
    Ok(ExitCode::SUCCESS)
}

fn images(config: Option<&Path>, watch: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut images = Images::of(&config.cri.socket).await?;
        if !watch {
            print(&images.table().await?)?;
            return Ok(ExitCode::SUCCESS);
        }
        // A terminal is written over, from its upper left corner; anything else gets one table after the other.
        let (before, after) = if io::stdout().is_terminal() {
            ("\x1b[H\x1b[2J", "")
        } else {
            ("", "\n")
        };
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let table = images.table().await?;
            if !written(&format!("{before}{table}{after}"))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    })
}

fn print(text: &str) -> anyhow::Result<()> {
    written(text).map(|_| ())
}

/// Writes `text`, unless the reader has gone away, such as `head`: that is no error.
fn written(text: &str) -> anyhow::Result<bool> {
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
