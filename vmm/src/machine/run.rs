//! The main thread while the guest runs: control requests, signals, and the end.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Attachments, EndSignals, Machine, MachineError, ending::PANIC_MESSAGE, system};
use crate::{
    config::{ExitReason, ExitReport},
    control::{
        protocol::{ControlFailure, Request, Response},
        server::{Server, Watch},
    },
};

/// How long a guest that has panicked may still write its last words before it is ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Tokens of what is watched; those from [`CONTROL`] on are the control server's.
const SIGNALS: u64 = 0;
const ENDINGS: u64 = 1;
const CONTROL: u64 = 2;

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// Runs `machine` to its end and tells how that came. Afterwards nothing of it runs, and all that the guest has written to
/// its console and disks has been handed to the files.
///
/// # Errors
///
/// [`MachineError`] when it cannot even start.
pub fn run(mut machine: Machine, signals: &EndSignals) -> Result<ExitReport, MachineError> {
    let epoll = Watcher::new().map_err(system("an epoll descriptor"))?;
    let mut server = machine
        .hardware
        .control
        .take()
        .map(|socket| Server::new(socket, CONTROL));
    epoll
        .watch(signals.as_raw_fd(), SIGNALS)
        .and_then(|()| epoll.watch(machine.endings.event().as_raw_fd(), ENDINGS))
        .and_then(|()| server.as_ref().map_or(Ok(()), |server| server.start(&epoll)))
        .map_err(system("to watch a descriptor"))?;
    machine.resume()?;

    let mut panic_deadline = None;
    let report = loop {
        if let Some(report) = machine.ended() {
            break report;
        }
        if machine.endings.has_panicked() {
            let deadline = *panic_deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            if Instant::now() >= deadline {
                machine.endings.end(ExitReason::Panic, PANIC_MESSAGE);
                continue;
            }
        }
        for token in epoll.wait(panic_deadline).map_err(system("to wait for events"))? {
            match token {
                SIGNALS => machine.endings.end(ExitReason::Quit, "ended by a signal"),
                ENDINGS => {
                    let _ = machine.endings.event().read();
                }
                token => {
                    if let Some(server) = &mut server {
                        server.ready(token, &epoll, &mut |request, attachments| {
                            serve(&mut machine, request, attachments)
                        });
                    }
                }
            }
        }
    };
    machine.pause();
    Ok(report)
}

/// Answers a request.
fn serve(machine: &mut Machine, request: Request, attachments: Attachments) -> Response {
    let done = match request {
        Request::AddDisk(disk) => machine.add_disk(&disk, attachments),
        Request::AddNet(net) => machine.add_net(&net, attachments),
        Request::Pause => {
            machine.pause();
            Ok(())
        }
        Request::Resume => machine.resume(),
        Request::State => return Response::State(machine.state()),
        Request::Quit => {
            machine.endings.end(ExitReason::Quit, "ended by its owner");
            Ok(())
        }
    };
    match done {
        Ok(()) => Response::Done,
        Err(error) => Response::Error(ControlFailure {
            message: error.to_string(),
        }),
    }
}

/// Watches descriptors for input.
struct Watcher {
    epoll: Epoll,
}

impl Watcher {
    fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// The tokens of what is ready; none when `deadline` has passed.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<u64>> {
        let timeout = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); BATCH];
        match self.epoll.wait(timeout, &mut events) {
            Ok(count) => Ok(events.iter().take(count).map(EpollEvent::data).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl Watch for Watcher {
    fn watch(&self, descriptor: RawFd, token: u64) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            descriptor,
            EpollEvent::new(EventSet::IN, token),
        )
    }
}
