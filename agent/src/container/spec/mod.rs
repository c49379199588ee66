//! What the host asks for, parsed once into what cannot be wrong any more.

mod container;
mod error;
mod process;
mod resources;

pub use container::{ContainerSpec, PidNamespace};
pub use error::SpecError;
pub use process::{Capabilities, ProcessSpec, ResourceLimit};
pub use resources::Resources;

use std::ffi::CString;

fn absolute_paths(what: &'static str, paths: Vec<String>) -> Result<Vec<String>, SpecError> {
    paths.into_iter().map(|path| absolute_path(what, path)).collect()
}

fn absolute_path(what: &'static str, path: String) -> Result<String, SpecError> {
    if !path.starts_with('/') {
        return Err(SpecError::NotAbsolute { what, path });
    }
    without_zero(what, path)
}

fn without_zero(what: &'static str, text: String) -> Result<String, SpecError> {
    if text.contains('\0') {
        return Err(SpecError::ZeroByte(what));
    }
    Ok(text)
}

fn c_string(what: &'static str, text: String) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_| SpecError::ZeroByte(what))
}
