//! execve(2).

#![allow(unsafe_code, reason = "execve(2) has no safe wrapper")]

use std::{convert::Infallible, ffi::CStr, ffi::CString, io, ptr};

/// Replaces this process by the program at `path`.
///
/// # Errors
///
/// What execve(2) gives; it does not return otherwise.
pub fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Result<Infallible> {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: both arrays end with a null pointer, and the strings in them live until the call returns.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}
