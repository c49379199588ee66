//! The command for whoever runs a node: can it run pods, and which does it run?

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bulkhead_runtime::{
    admin::{debug, events::Events, guest_log::GuestLog, images::Images, pods, top::Top},
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
    /// Shows what pods and their containers use, anew every second, until it is interrupted.
    Top {
        /// Shows it once, over one second.
        #[arg(long)]
        once: bool,
    },
    /// Prints what happens to pods and containers, as it happens.
    Events,
    /// Prints the log of the kernel in a pod's machine. What containers print is with `crictl logs`.
    Logs {
        /// The kernel of the guest.
        #[arg(long, required = true)]
        guest: bool,
        /// Goes on with what comes, until the pod is gone.
        #[arg(long, short)]
        follow: bool,
        /// Beginning of the id of a pod, or of a container in it.
        id: String,
    },
    /// Writes an archive with what a bug report needs: checks, configuration, logs and states, without what containers print.
    Debug {
        /// Where to; a file that does not exist.
        #[arg(long, value_name = "FILE", default_value = "bulkhead-debug.tar.gz")]
        output: PathBuf,
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
        Command::Top { once } => top(arguments.config.as_deref(), once),
        Command::Events => events(arguments.config.as_deref()),
        Command::Logs { guest: _, follow, id } => guest_log(arguments.config.as_deref(), &id, follow),
        Command::Debug { output } => bundle(arguments.config.as_deref(), &output),
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

/// How often what goes on is looked at.
const LOOK: Duration = Duration::from_secs(1);

fn list(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        print(&pods::table(&config.cri.socket).await?)?;
        Ok(())
    })
}

fn images(config: Option<&Path>, watch: bool) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        let mut images = Images::of(&config.cri.socket).await?;
        if !watch {
            return print(&images.table().await?);
        }
        let screen = Screen::new();
        while screen.show(&images.table().await?)? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    })
}

fn top(config: Option<&Path>, once: bool) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        let mut top = Top::of(&config.cri.socket).await?;
        let first = top.table().await?;
        let screen = Screen::new();
        if !once && !screen.show(&first)? {
            return Ok(());
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let table = top.table().await?;
            if once {
                return print(&table);
            }
            if !screen.show(&table)? {
                return Ok(());
            }
        }
    })
}

fn events(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        let mut events = Events::of(&config.cri.socket).await?;
        while let Some(line) = events.line().await? {
            if !written(&line)? {
                break;
            }
        }
        Ok(())
    })
}

fn guest_log(config: Option<&Path>, id: &str, follow: bool) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        let mut log = GuestLog::of(&config.cri.socket, id).await?;
        if !written(&log.news()?)? || !follow {
            return Ok(());
        }
        loop {
            tokio::time::sleep(LOOK).await;
            match log.news() {
                Ok(news) if !written(&news)? => return Ok(()),
                Ok(_) => {}
                // The pod is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    })
}

fn bundle(config: Option<&Path>, output: &Path) -> anyhow::Result<ExitCode> {
    on_a_thread(config, async |config| {
        let missing = debug::write(&config, output).await?;
        let mut text = format!(
            "{} is written; look at it before you send it.\n",
            output.display()
        );
        for line in missing {
            let _ = writeln!(text, "not in it: {line}");
        }
        print(&text)
    })
}

/// Does work that waits for the daemon of this configuration.
fn on_a_thread(
    config: Option<&Path>,
    work: impl AsyncFnOnce(Config) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Text that is shown anew again and again: a terminal is written over, from its upper left corner, anything else gets one text
/// after the other.
struct Screen {
    before: &'static str,
    after: &'static str,
}

impl Screen {
    fn new() -> Self {
        let (before, after) = if io::stdout().is_terminal() {
            ("\x1b[H\x1b[2J", "")
        } else {
            ("", "\n")
        };
        Self { before, after }
    }

    /// Shows `text`, unless the reader has gone away.
    fn show(&self, text: &str) -> anyhow::Result<bool> {
        written(&format!("{}{text}{}", self.before, self.after))
    }
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
