//! Which device nodes the processes of a control group may open: cgroup v2 asks a BPF program
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`) at every open and mknod, so the list is compiled to one.
//!
//! Without it a container that may make device nodes, as containers may by default, could open the pod's disks.

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// A character device, or all of one major number.
#[derive(Clone, Copy, Debug)]
pub struct CharacterDevice {
    /// Major number.
    pub major: u16,
    /// Minor number; `None` for every one.
    pub minor: Option<u16>,
}

/// Lets the processes of `cgroup` (a directory of the cgroup2 file system) and of all groups below it open the
/// character devices `allowed` and nothing else. Nodes may be made of any.
///
/// # Errors
///
/// What bpf(2) gives: `EPERM` without `CAP_BPF`, `EINVAL` or `ENOSYS` where the kernel lacks cgroup BPF.
pub fn attach(cgroup: BorrowedFd<'_>, allowed: &[CharacterDevice]) -> io::Result<()> {
    let program = load(&compile(allowed))?;
    let attributes = AttachAttributes {
        target: descriptor(cgroup.as_raw_fd()),
        program: descriptor(program.as_raw_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure is as long as said and holds only numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// `BPF_DEVCG_ACC_MKNOD`, alone: neither read nor write is asked for.
const ACCESS_MKNOD: i32 = 1;
/// `BPF_DEVCG_DEV_CHAR`
const TYPE_CHARACTER: i32 = 2;

/// The members of `union bpf_attr` that `BPF_PROG_LOAD` reads here.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

/// The members of `union bpf_attr` that `BPF_PROG_ATTACH` reads here.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// `struct bpf_insn`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT_NUMBER: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers of the program: its result, the context (`struct bpf_cgroup_dev_ctx`), and what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const TYPE: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn compile(allowed: &[CharacterDevice]) -> Vec<Instruction> {
    const ALLOW: [Instruction; 2] = [
        instruction(MOVE_NUMBER, RESULT, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    const DENY: [Instruction; 2] = [
        instruction(MOVE_NUMBER, RESULT, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let mut program = vec![
        // access_type: the kind of device in the low half, the access in the high one.
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, TYPE, ACCESS, 0, 0),
        instruction(AND_NUMBER, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_NUMBER, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(JUMP_IF_NOT_EQUAL, ACCESS, 0, 2, ACCESS_MKNOD),
    ];
    program.extend(ALLOW);
    program.push(instruction(JUMP_IF_EQUAL, TYPE, 0, 2, TYPE_CHARACTER));
    program.extend(DENY);
    for device in allowed {
        let minor = match device.minor {
            Some(minor) => instruction(JUMP_IF_NOT_EQUAL, MINOR, 0, 2, minor.into()),
            None => instruction(JUMP, 0, 0, 0, 0),
        };
        program.push(instruction(JUMP_IF_NOT_EQUAL, MAJOR, 0, 3, device.major.into()));
        program.push(minor);
        program.extend(ALLOW);
    }
    program.extend(DENY);
    program
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
    };
    // SAFETY: the structure is as long as said; the program and the license that it points to outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>(),
        )
    };
    match RawFd::try_from(result) {
        // SAFETY: the call succeeded and gave a new descriptor that nothing else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would: gives the register 0 at its exit.
    fn verdict(program: &[Instruction], access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        for _ in 0..1000 {
            let step = program[at];
            let destination = usize::from(step.registers & 15);
            let source = usize::from(step.registers >> 4);
            let jumps = match step.code {
                LOAD_WORD => {
                    assert_eq!(source, usize::from(CONTEXT));
                    let word = usize::try_from(step.offset).unwrap() / 4;
                    registers[destination] = context[word].into();
                    false
                }
                MOVE_REGISTER => {
                    registers[destination] = registers[source];
                    false
                }
                MOVE_NUMBER => {
                    registers[destination] = u64::try_from(step.immediate).unwrap();
                    false
                }
                AND_NUMBER => {
                    registers[destination] &= u64::try_from(step.immediate).unwrap();
                    false
                }
                SHIFT_RIGHT_NUMBER => {
                    registers[destination] >>= step.immediate;
                    false
                }
                JUMP => true,
                JUMP_IF_EQUAL => registers[destination] == u64::try_from(step.immediate).unwrap(),
                JUMP_IF_NOT_EQUAL => registers[destination] != u64::try_from(step.immediate).unwrap(),
                EXIT => return registers[0],
                other => panic!("no such instruction: {other:#x}"),
            };
            at += 1;
            if jumps {
                at += usize::try_from(step.offset).unwrap();
            }
        }
        panic!("the program does not end");
    }

    #[test]
    fn listed_character_devices_are_allowed_and_nothing_else() {
        const READ: u32 = 2;
        const READ_WRITE: u32 = 6;
        const BLOCK: u32 = 1;
        const CHARACTER: u32 = 2;
        let program = compile(&[
            CharacterDevice {
                major: 1,
                minor: Some(3),
            },
            CharacterDevice {
                major: 136,
                minor: None,
            },
            CharacterDevice {
                major: 5,
                minor: Some(2),
            },
        ]);
        for (access, kind, major, minor, allowed) in [
            (READ_WRITE, CHARACTER, 1, 3, 1),
            (READ_WRITE, CHARACTER, 136, 77, 1),
            (READ, CHARACTER, 5, 2, 1),
            (READ, CHARACTER, 5, 1, 0),
            (READ, CHARACTER, 1, 1, 0),
            (READ, BLOCK, 1, 3, 0),
            (READ, BLOCK, 254, 0, 0),
            // mknod(2) alone, then together with an open.
            (1, BLOCK, 254, 0, 1),
            (3, BLOCK, 254, 0, 0),
        ] {
            assert_eq!(
                verdict(&program, access, kind, major, minor),
                allowed,
                "access {access} of kind {kind}, device {major}:{minor}"
            );
        }
    }

    #[test]
    fn every_jump_stays_in_the_program() {
        let program = compile(&[CharacterDevice {
            major: 1,
            minor: None,
        }]);
        for (at, step) in program.iter().enumerate() {
            if [JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL].contains(&step.code) {
                assert!(at + 1 + usize::try_from(step.offset).unwrap() < program.len());
            }
        }
    }
}
