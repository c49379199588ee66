//! Bringing a kernel into memory and telling it what machine it is on: ELF and PVH boot protocol, ACPI tables.

pub mod acpi;
pub mod kernel;
pub mod pvh;

use std::io;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file is not what is needed.
    #[error(
        "{file} is not a kernel that can be booted: {reason}; \
         an uncompressed x86-64 ELF image (vmlinux) built with CONFIG_PVH=y is needed"
    )]
    NoKernel {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The guest is too small.
    #[error(
        "the guest's memory of {memory_mib} MiB is too small for {what}, which needs {needed_mib} MiB; raise memory_mib"
    )]
    TooSmall {
        /// What does not fit.
        what: String,
        /// RAM that it can use, in MiB.
        memory_mib: u64,
        /// RAM that would do, in MiB.
        needed_mib: u64,
    },
    /// The initramfs cannot be read.
    #[error("the initramfs {file} cannot be read: {source}")]
    Initramfs {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The command line does not fit.
    #[error("the kernel command line {reason}; it has {length} bytes")]
    CommandLine {
        /// What is wrong with it.
        reason: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// The guest's memory refused what should fit.
    #[error("{what} could not be written to guest memory: {reason}")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
}
