//! Where a guest's accesses outside its RAM go: a handful of I/O ports, and the PCI bus.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::ending::Endings;
use crate::{
    boot::acpi::{
        RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_ENABLE, SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
    },
    config::ExitReason,
    kvm::GuestAccess,
    pci::PciBus,
    virtio::console::ConsoleLog,
};

/// Registers of a UART of which only the output exists (`earlyprintk=serial,0x3f8`).
const UART_DATA: u16 = 0x3f8;
const UART_LINE_CONTROL: u16 = 0x3fb;
/// While this bit of the line control is set, the data register is the divisor's.
const UART_DIVISOR_ACCESS: u8 = 1 << 7;

/// The ports there are; all others read as ones and write nowhere.
const PORTS: &[(u16, Port)] = &[
    (UART_DATA, Port::UartData),
    (UART_LINE_CONTROL, Port::UartLineControl),
    (SLEEP_CONTROL_PORT, Port::SleepControl),
    (SLEEP_STATUS_PORT, Port::SleepStatus),
    (RESET_PORT, Port::Reset),
];

/// What is written to enter the S5 state. No other state is offered.
const POWER_OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_S5 << 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    UartData,
    UartLineControl,
    SleepControl,
    SleepStatus,
    Reset,
}

/// Ports and bus, as the vCPUs reach them.
pub struct Accesses {
    bus: Mutex<PciBus>,
    endings: Arc<Endings>,
    early_console: Option<ConsoleLog>,
    uart_divisor: AtomicBool,
}

impl Accesses {
    /// Accesses to `bus`; the guest's early output goes to `early_console`, if there is one.
    pub fn new(bus: PciBus, endings: Arc<Endings>, early_console: Option<ConsoleLog>) -> Self {
        Self {
            bus: Mutex::new(bus),
            endings,
            early_console,
            uart_divisor: AtomicBool::new(false),
        }
    }

    /// The bus, for as long as no vCPU may reach it.
    pub fn bus(&self) -> MutexGuard<'_, PciBus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestAccess for Accesses {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(match find(port) {
            Some(Port::SleepStatus) => 0,
            _ => 0xff,
        });
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        let Some(port) = find(port) else { return };
        match (port, data) {
            (Port::UartData, output) => {
                if let Some(console) = &self.early_console
                    && !self.uart_divisor.load(Ordering::Relaxed)
                {
                    console.append(output);
                }
            }
            (Port::UartLineControl, [control]) => {
                let divisor = control & UART_DIVISOR_ACCESS != 0;
                self.uart_divisor.store(divisor, Ordering::Relaxed);
            }
            (Port::SleepControl, [POWER_OFF]) => {
                self.endings.end(ExitReason::PowerOff, "the guest powered off");
            }
            (Port::Reset, [RESET_VALUE]) => {
                self.endings.end(ExitReason::Reset, "the guest asked for a reset");
            }
            _ => {}
        }
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        self.bus().read(address, data);
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        self.bus().write(address, data);
    }
}

impl fmt::Debug for Accesses {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Accesses").finish_non_exhaustive()
    }
}

fn find(port: u16) -> Option<Port> {
    PORTS
        .iter()
        .find(|(number, _)| *number == port)
        .map(|(_, port)| *port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accesses() -> (Arc<Endings>, Accesses) {
        let endings = Arc::new(Endings::new().unwrap());
        let accesses = Accesses::new(PciBus::new(), Arc::clone(&endings), None);
        (endings, accesses)
    }

    #[test]
    fn only_the_value_of_the_s5_state_powers_off() {
        let (endings, accesses) = accesses();
        for value in [0x14, 0x20, 0x2c, 0x30] {
            accesses.write_port(SLEEP_CONTROL_PORT, &[value]);
            assert_eq!(endings.report(), None, "{value:#x}");
        }
        accesses.write_port(SLEEP_CONTROL_PORT, &[0x34]);
        assert_eq!(endings.report().unwrap().reason, ExitReason::PowerOff);
    }

    #[test]
    fn a_reset_is_told_and_what_is_not_there_reads_as_ones() {
        let (endings, accesses) = accesses();
        let mut data = [0; 4];
        accesses.read_port(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        accesses.read_memory(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
        accesses.write_port(RESET_PORT, &[0]);
        assert_eq!(endings.report(), None);
        accesses.write_port(RESET_PORT, &[RESET_VALUE]);
        assert_eq!(endings.report().unwrap().reason, ExitReason::Reset);
    }

    #[test]
    fn early_output_reaches_the_console_but_the_divisor_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = ConsoleLog::new(file.reopen().unwrap(), 4096).unwrap();
        let (endings, _) = accesses();
        let accesses = Accesses::new(PciBus::new(), endings, Some(log));
        accesses.write_port(UART_LINE_CONTROL, &[0x83]);
        accesses.write_port(UART_DATA, &[0x0c]);
        accesses.write_port(UART_LINE_CONTROL, &[0x03]);
        accesses.write_port(UART_DATA, b"h");
        accesses.write_port(UART_DATA, b"i");
        assert_eq!(std::fs::read(file.path()).unwrap(), b"hi");
    }
}
