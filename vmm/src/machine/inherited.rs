//! File descriptors that the parent left open for this process.
#![expect(
    unsafe_code,
    reason = "numbers of descriptors become their owners here, and only here"
)]

use std::{
    collections::HashMap,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::io::{FdFlags, fcntl_setfd};

use super::MachineError;

/// The first descriptor that is not one of the standard streams.
const FIRST: RawFd = 3;

/// The descriptors that the configuration names, each of which can be taken once.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    descriptors: HashMap<RawFd, OwnedFd>,
}

impl Inherited {
    /// Takes over descriptors by their `numbers`. To be called before this process has opened anything: only then is an
    /// open number one that the parent left.
    pub(super) fn claim(numbers: impl IntoIterator<Item = RawFd>) -> Result<Self, MachineError> {
        let mut descriptors = HashMap::new();
        for number in numbers {
            let bad = |reason| MachineError::Inherited { number, reason };
            if number < FIRST {
                return Err(bad("the numbers up to 2 are the standard streams"));
            }
            if descriptors.contains_key(&number) {
                return Err(bad("it is named twice in the configuration"));
            }
            // SAFETY: The borrow ends with the call, which only asks whether the number is an open descriptor.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl_setfd(borrowed, FdFlags::CLOEXEC)
                .map_err(|_| bad("the parent left no such descriptor open"))?;
            // SAFETY: The descriptor is open, as the call above has shown; nothing in this process owns it, since it was
            // there before anything was opened; and the check for duplicates leaves it one owner.
            descriptors.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
        }
        Ok(Self { descriptors })
    }

    /// Gives a descriptor to its user.
    pub(super) fn take(&mut self, number: RawFd) -> Result<OwnedFd, MachineError> {
        self.descriptors.remove(&number).ok_or(MachineError::Inherited {
            number,
            reason: "it is named twice in the configuration",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        os::fd::IntoRawFd,
    };

    use super::*;

    #[test]
    fn a_descriptor_is_taken_over_once_and_only_if_it_is_open() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        let number = file.into_raw_fd();
        let mut inherited = Inherited::claim([number]).unwrap();
        let mut file = File::from(inherited.take(number).unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(inherited.take(number).is_err());
        assert!(Inherited::claim([1]).is_err());
        assert!(Inherited::claim([1_000_000]).is_err());
    }
}
