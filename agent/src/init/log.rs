//! The agent's own lines, in the kernel's log: so they reach the guest's console in order with the kernel's, and are
//! bounded and rate-limited as it bounds them.
//!
//! Where there is no /dev/kmsg yet, or none that may be written, standard error takes them.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    sync::OnceLock,
};

/// How much a line matters, as syslog(3) numbers it.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Level {
    /// The agent cannot go on.
    Critical = 2,
    /// Something asked for was not done.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// What happens in every normal life of a pod.
    Info = 6,
}

/// Longest line; the kernel cuts records at about 1000 bytes.
const LINE_BYTES: usize = 900;

static KMSG: OnceLock<File> = OnceLock::new();

/// Sends the lines to the kernel's log from now on. Called when /dev is there.
pub fn open() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _already_open = KMSG.set(file);
    }
}

/// Writes one line. What cannot be written is lost: there is nowhere else to tell of it.
pub fn write(level: Level, line: fmt::Arguments<'_>) {
    let mut text = line.to_string().replace(['\n', '\r'], " ");
    if text.len() > LINE_BYTES {
        text.truncate(text.floor_char_boundary(LINE_BYTES));
        text.push('…');
    }
    let _written = match KMSG.get() {
        Some(mut file) => file.write_all(format!("<{}>bulkhead-agent: {text}\n", level as u8).as_bytes()),
        None => writeln!(io::stderr(), "bulkhead-agent: {text}"),
    };
}

macro_rules! error {
    ($($argument:tt)*) => {
        $crate::init::log::write($crate::init::log::Level::Error, format_args!($($argument)*))
    };
}

macro_rules! warning {
    ($($argument:tt)*) => {
        $crate::init::log::write($crate::init::log::Level::Warning, format_args!($($argument)*))
    };
}

macro_rules! info {
    ($($argument:tt)*) => {
        $crate::init::log::write($crate::init::log::Level::Info, format_args!($($argument)*))
    };
}

pub(crate) use {error, info, warning};
