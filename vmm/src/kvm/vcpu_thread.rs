//! The threads that run vCPUs: started standing still, run, parked and ended together.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{
    GuestAccess, Host, KvmError, Stop, Vcpu, VcpuState,
    gate::{Gate, Order},
    run_page::ImmediateExit,
};
use crate::threads;

/// Told when a vCPU cannot go on: its index and why. [`Stop::Kicked`] is never told.
pub type OnStop = Arc<dyn Fn(u8, &Stop) + Send + Sync>;

/// All vCPUs of a machine. Dropping it ends their threads.
pub struct VcpuThreads {
    gate: Arc<Gate>,
    threads: Vec<VcpuThread>,
    first_entry: Arc<OnceLock<Instant>>,
}

struct VcpuThread {
    vcpu: Arc<Mutex<Vcpu>>,
    /// Points into `vcpu`, which is kept beside it.
    kick: Arc<ImmediateExit>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts a thread for each of `vcpus`; they stand still until [`VcpuThreads::resume`].
    ///
    /// # Errors
    ///
    /// [`KvmError::Thread`].
    pub fn start(vcpus: Vec<Vcpu>, guest: &Arc<dyn GuestAccess>, on_stop: &OnStop) -> Result<Self, KvmError> {
        install_kick_handler()?;
        let mut all = Self {
            gate: Arc::new(Gate::new()),
            threads: Vec::with_capacity(vcpus.len()),
            first_entry: Arc::default(),
        };
        for (index, mut vcpu) in vcpus.into_iter().enumerate() {
            let kick = Arc::new(ImmediateExit::of(vcpu.fd.get_kvm_run()));
            let vcpu = Arc::new(Mutex::new(vcpu));
            let runner = Runner {
                vcpu: Arc::clone(&vcpu),
                kick: Arc::clone(&kick),
                gate: Arc::clone(&all.gate),
                guest: Arc::clone(guest),
                on_stop: Arc::clone(on_stop),
                first_entry: Arc::clone(&all.first_entry),
            };
            let thread = threads::named(format!("vcpu{index}"))
                .spawn(move || runner.work())
                .map_err(|source| KvmError::Thread {
                    index,
                    what: "started",
                    source,
                })?;
            all.threads.push(VcpuThread {
                vcpu,
                kick,
                thread: Some(thread),
            });
        }
        Ok(all)
    }

    /// Brings the first vCPU to its start, see [`Vcpu::prepare_boot`].
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn prepare_boot(&self, entry: u64, start_info: u64) -> Result<(), KvmError> {
        self.threads
            .first()
            .map_or(Ok(()), |first| first.vcpu().prepare_boot(entry, start_info))
    }

    /// How many vCPUs there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// When a vCPU entered the guest for the first time.
    pub fn first_entry(&self) -> Option<Instant> {
        self.first_entry.get().copied()
    }

    /// Lets all vCPUs enter the guest.
    pub fn resume(&self) {
        self.gate.give(Order::Run);
    }

    /// Brings all vCPUs out of the guest and returns when they stand still.
    pub fn pause(&self) {
        self.gate.give(Order::Park);
        self.kick();
        self.gate.wait_until_empty();
    }

    /// Tells all vCPUs that they were stopped, before they are resumed.
    pub fn excuse_pause(&self) {
        for thread in &self.threads {
            thread.vcpu().excuse_pause();
        }
    }

    /// Saves every vCPU. They must stand still.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`].
    pub fn save(&self, host: &Host) -> Result<Vec<VcpuState>, KvmError> {
        let msr_indices = host.msr_indices()?;
        self.threads
            .iter()
            .map(|thread| thread.vcpu().save(&msr_indices))
            .collect()
    }

    /// Gives every vCPU the state with its index. They must stand still.
    ///
    /// # Errors
    ///
    /// [`KvmError::BadState`] or [`KvmError::Refused`].
    pub fn restore(&self, states: &[VcpuState]) -> Result<(), KvmError> {
        for (index, thread) in self.threads.iter().enumerate() {
            let mut vcpu = thread.vcpu();
            let state = states.get(index).ok_or_else(|| KvmError::BadState {
                index: vcpu.index,
                reason: format!("only {} vCPUs were saved", states.len()),
            })?;
            vcpu.restore(state)?;
        }
        Ok(())
    }

    fn kick(&self) {
        for thread in &self.threads {
            thread.kick.set();
            if let Some(handle) = &thread.thread {
                // A thread that has ended needs no kick.
                let _ = handle.kill(SIGRTMIN());
            }
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.gate.give(Order::End);
        self.kick();
        for thread in &mut self.threads {
            if let Some(handle) = thread.thread.take() {
                let _ = handle.join();
            }
        }
    }
}

impl fmt::Debug for VcpuThreads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VcpuThreads")
            .field("gate", &self.gate)
            .field("count", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl VcpuThread {
    fn vcpu(&self) -> MutexGuard<'_, Vcpu> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a vCPU's thread holds.
struct Runner {
    vcpu: Arc<Mutex<Vcpu>>,
    kick: Arc<ImmediateExit>,
    gate: Arc<Gate>,
    guest: Arc<dyn GuestAccess>,
    on_stop: OnStop,
    first_entry: Arc<OnceLock<Instant>>,
}

impl Runner {
    fn work(&self) {
        while self.gate.wait(|| self.kick.clear()) == Order::Run {
            let stop = self.run();
            self.gate.leave();
            if let Some((index, stop)) = stop {
                (self.on_stop)(index, &stop);
                return;
            }
        }
    }

    /// Runs the guest while the gate is open. Gives why the vCPU cannot go on, if it cannot.
    fn run(&self) -> Option<(u8, Stop)> {
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        self.first_entry.get_or_init(Instant::now);
        while self.gate.stays_open() {
            match vcpu.run(&*self.guest) {
                Stop::Kicked => {}
                stop => return Some((vcpu.index, stop)),
            }
        }
        None
    }
}

/// The kick only has to interrupt `KVM_RUN`; nothing is done in it.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn install_kick_handler() -> Result<(), KvmError> {
    static INSTALLED: Once = Once::new();
    let mut outcome = Ok(());
    INSTALLED.call_once(|| outcome = register_signal_handler(SIGRTMIN(), on_kick));
    outcome.map_err(|error| KvmError::Thread {
        index: 0,
        what: "prepared for signals",
        source: io::Error::from(error),
    })
}
