//! What a process of this host uses, from /proc.

use std::{fs, io};

use super::Figures;

/// Clock ticks of a second in /proc (USER_HZ): 100 on every architecture that has KVM for us.
const TICKS: u64 = 100;

/// The processor time and the memory of a process. Of a virtual machine's, the memory is what was touched of the guest's, and
/// what the monitor needs itself.
///
/// # Errors
///
/// `NotFound` when it has ended.
pub(crate) fn figures(pid: u32) -> io::Result<Figures> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    of(&stat, &status).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Of /proc/PID/stat and /proc/PID/status (proc(5)).
fn of(stat: &str, status: &str) -> Option<Figures> {
    // The name in parentheses may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| -> Option<u64> {
        // The first behind the name is number 3.
        fields
            .split_ascii_whitespace()
            .nth(number.checked_sub(3)?)?
            .parse()
            .ok()
    };
    let kib = |key: &str| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0).saturating_mul(1024)
    };
    let us = |ticks: u64| ticks.saturating_mul(1_000_000 / TICKS);
    let (user, system) = (us(field(14)?), us(field(15)?));
    let resident = kib("VmRSS");
    Some(Figures {
        cpu_usage_us: user.saturating_add(system),
        cpu_user_us: user,
        cpu_system_us: system,
        memory_usage_bytes: resident,
        memory_working_set_bytes: resident,
        memory_rss_bytes: resident,
        memory_swap_bytes: kib("VmSwap"),
        memory_page_faults: field(10)?,
        memory_major_page_faults: field(12)?,
        ..Figures::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1234 (a) (b) 1) S {}", fields.join(" "));
        let figures = of(&stat, "Name:\tx\nVmRSS:\t  2048 kB\nVmSwap:\t 4 kB\n").unwrap();
        assert_eq!((figures.cpu_user_us, figures.cpu_system_us), (140_000, 150_000));
        assert_eq!(figures.cpu_usage_us, 290_000);
        assert_eq!(
            (figures.memory_page_faults, figures.memory_major_page_faults),
            (10, 12)
        );
        assert_eq!(
            (figures.memory_working_set_bytes, figures.memory_swap_bytes),
            (2 << 20, 4096)
        );
        assert_eq!(of("", ""), None);
        let own = super::figures(std::process::id()).unwrap();
        assert!(own.memory_rss_bytes > 100_000);
    }
}
