//! The converter's side: what the new process does.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use super::super::layer::{self, LayerError};
use super::confine::Confinement;
use super::descriptors;
use super::wire::{Outcome, Request};

/// Runs a conversion, as [`Converter`](super::Converter) has asked for it: the request on the command line, the input on
/// standard input, the blob on standard output, the outcome on standard error.
///
/// The very first thing a process does: it must have one thread.
pub fn main(request: &str) -> ExitCode {
    let outcome = match serde_json::from_str(request) {
        Ok(request) => run(request).unwrap_or_else(Outcome::Failed),
        Err(error) => Outcome::Failed(LayerError::converter(format!(
            "cannot read its request ({error}): it is not to be started by hand"
        ))),
    };
    let told = serde_json::to_vec(&outcome)
        .map_err(io::Error::from)
        .and_then(|text| io::stderr().write_all(&text));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(request: Request) -> Result<Outcome, LayerError> {
    let fail = |error: io::Error| LayerError::converter(format!("cannot be confined: {error}"));
    let confinement = Confinement::enter(request.limits()).map_err(fail)?;
    let input = own(io::stdin()).map_err(fail)?;
    let blob = File::from(own(io::stdout()).map_err(fail)?);
    let seal = || confinement.seal().map_err(fail);
    match request {
        Request::Layer { diff_id, limits, .. } => {
            let converted = layer::convert(File::from(input), blob, diff_id, limits, seal)?;
            Ok(Outcome::Layer {
                blob_bytes: converted.blob_bytes,
                hides_lower: converted.hides_lower,
                implies_directories: converted.implies_directories,
                entries: converted.entries,
            })
        }
        Request::Directories { implied, .. } => {
            let layers = descriptors::receive(&input).map_err(fail)?;
            if layers.len() != implied.len() {
                return Err(LayerError::converter("was not given all layers".to_owned()));
            }
            seal()?;
            let layers = layers.into_iter().map(File::from).zip(implied).collect();
            let settled = layer::settle_directories(layers, blob).map_err(LayerError::write)?;
            Ok(Outcome::Directories {
                blob_bytes: settled.map(|(_, blob_bytes)| blob_bytes),
            })
        }
    }
}

fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}
