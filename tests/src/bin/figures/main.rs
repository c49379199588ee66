//! What `hack/bench` measures: `figures NAME` measures one thing in the node and prints its figures, one JSON object a line.
//!
//! Each benchmark says in its module what is measured against what, and where the comparison is not quite even.

mod boot;
mod containerd;
mod critest;
mod figure;
mod images;
mod life;
mod many;
mod memory;
mod network;
mod pod;
mod process;
mod pull;
mod run;
mod start;
mod streams;

use std::{env, process::ExitCode};

const USAGE: &str = "Usage: figures boot | critest | images | many | memory | network | pod | pull | start | streams (in the node, by hack/bench)";

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let measured = match name.as_str() {
        "boot" => boot::measure(),
        "critest" => critest::measure(),
        "images" => images::measure(),
        "many" => many::measure(),
        "memory" => memory::measure(),
        "network" => network::measure(),
        "pod" => pod::measure(),
        "pull" => pull::measure(),
        "start" => start::measure(),
        "streams" => streams::measure(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
