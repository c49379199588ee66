//! Pseudo-terminals, taken from the devpts of the container whose process gets one, so that the process finds its
//! terminal under the name that ttyname(3) gives.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, Uid, fchmod, fchown, openat},
    pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// One terminal.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
}

impl Terminal {
    /// Takes a new one from `devpts`, the root of a devpts file system, for user `uid`.
    pub fn new(devpts: BorrowedFd<'_>, uid: u32) -> io::Result<Self> {
        let master = openat(
            devpts,
            "ptmx",
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        unlockpt(&master)?;
        let terminal = Self { master };
        let process_side = terminal.open()?;
        fchown(&process_side, Some(Uid::from_raw(uid)), None)?;
        fchmod(&process_side, Mode::from_raw_mode(0o620))?;
        Ok(terminal)
    }

    /// Opens the process's side.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(ioctl_tiocgptpeer(
            &self.master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?)
    }

    /// Its file name in the devpts, such as "0".
    pub fn name(&self) -> io::Result<String> {
        let path = ptsname(&self.master, Vec::new())?;
        let name = path.to_bytes().rsplit(|byte| *byte == b'/').next();
        Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
    }

    /// The agent's side.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Sets the size of its window; the processes in it get SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }
}
