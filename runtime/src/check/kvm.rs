//! The processor's virtualisation and the kernel's KVM.
#![allow(unsafe_code, reason = "KVM is spoken to by ioctl(2)")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use super::Outcome;

/// `KVM_GET_API_VERSION` and `KVM_CREATE_VM` (linux/kvm.h).
const GET_API_VERSION: Opcode = 0xAE00;
const CREATE_VM: Opcode = 0xAE01;

/// The only version there has been since 2007.
const API_VERSION: i32 = 12;

/// Whether the processor has what KVM needs. That /dev/kvm exists proves nothing: some clouds show one that runs only guests
/// made for it.
pub(super) fn processor() -> Outcome {
    match fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => flags(&text),
        Err(error) => Outcome::bad(format!("/proc/cpuinfo cannot be read: {error}"), "mount /proc"),
    }
}

fn flags(cpuinfo: &str) -> Outcome {
    let flags = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .unwrap_or_default();
    match flags
        .split_ascii_whitespace()
        .find(|flag| matches!(*flag, "vmx" | "svm"))
    {
        Some("vmx") => Outcome::Good("Intel VT-x (vmx)".to_owned()),
        Some(_) => Outcome::Good("AMD-V (svm)".to_owned()),
        None => Outcome::bad(
            "neither vmx nor svm among the flags in /proc/cpuinfo",
            "turn virtualisation on in the firmware, or nested virtualisation in the hypervisor of this machine; to try \
             Bulkhead without it, use hack/kvm-host",
        ),
    }
}

/// Whether KVM is there, without trying it.
pub(super) fn present() -> Outcome {
    open().map_or_else(
        |problem| problem,
        |_device| Outcome::Good("/dev/kvm is there".to_owned()),
    )
}

/// Whether KVM makes a virtual machine.
pub(super) fn device() -> Outcome {
    let device = match open() {
        Ok(device) => device,
        Err(problem) => return problem,
    };
    match create(&device) {
        Ok(_machine) => Outcome::Good("/dev/kvm makes virtual machines".to_owned()),
        Err(error) => Outcome::bad(
            format!("/dev/kvm makes no virtual machine: {error}"),
            "another hypervisor may hold the processor's virtualisation; see the kernel's log",
        ),
    }
}

/// /dev/kvm, of a version that is spoken here; otherwise what is wrong with it.
fn open() -> Result<File, Outcome> {
    let remedy = "load its module: modprobe kvm_intel or modprobe kvm_amd";
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Outcome::bad("there is no /dev/kvm", remedy)
            } else {
                Outcome::bad(format!("/dev/kvm cannot be opened: {error}"), "run as root")
            }
        })?;
    match version(&device) {
        Ok(API_VERSION) => Ok(device),
        Ok(other) => Err(Outcome::bad(
            format!("/dev/kvm is of version {other}, not {API_VERSION}"),
            "use a Linux kernel of today",
        )),
        Err(error) => Err(Outcome::bad(format!("/dev/kvm is no KVM: {error}"), remedy)),
    }
}

fn version(device: &File) -> io::Result<i32> {
    // SAFETY: KVM_GET_API_VERSION takes no argument and gives a number.
    Ok(unsafe { ioctl(device, Number(GET_API_VERSION)) }?)
}

fn create(device: &File) -> io::Result<OwnedFd> {
    // SAFETY: KVM_CREATE_VM with argument 0, the usual type, gives a new descriptor.
    let descriptor: RawFd = unsafe { ioctl(device, Number(CREATE_VM)) }?;
    // SAFETY: the kernel has just made it and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// An operation with the argument 0 that gives a number.
struct Number(Opcode);

// SAFETY: there is no argument that could be read or written, and the output is the system call's own value.
unsafe impl Ioctl for Number {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut rustix::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_judged_by_its_flags() {
        assert!(
            matches!(flags("processor : 0\nflags\t\t: fpu vmx sse\n"), Outcome::Good(text) if text.contains("vmx"))
        );
        assert!(matches!(flags("flags\t\t: fpu svm\n"), Outcome::Good(text) if text.contains("svm")));
        assert!(matches!(
            flags("flags\t\t: fpu svmx\nbugs : vmx\n"),
            Outcome::Bad { .. }
        ));
        assert!(matches!(flags(""), Outcome::Bad { .. }));
    }
}
