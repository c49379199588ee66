//! Programs of the node that do something and end.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs a program, which must succeed, and gives what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} does not start"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
