//! Signals as CRI numbers them, as images name them and as Linux counts them.

use bulkhead_proto::cri::Signal;

use crate::refusal::Refusal;

/// SIGTERM.
pub const TERM: u32 = 15;
/// SIGKILL.
pub const KILL: u32 = 9;
/// SIGRTMIN as the C library has it: the kernel's first two are the library's own.
const RTMIN: u32 = 34;
/// SIGRTMAX.
const RTMAX: u32 = 64;

/// Names without SIG, and Linux's numbers (signal(7), x86-64). The first name of a number is its usual one.
const NAMES: [(&str, u32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Linux's number of the signal that a request names; `None` where it leaves the choice to the runtime.
///
/// # Errors
///
/// [`Refusal`] for a number that CRI does not have.
pub fn from_cri(signal: i32, field: &str) -> Result<Option<u32>, Refusal> {
    let signal = Signal::try_from(signal)
        .map_err(|_| Refusal::invalid(field, format!("{signal} is no signal of CRI's enumeration")))?;
    if signal == Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    // CRI writes SIGRTMINPLUS1 and SIGRTMAXMINUS1 for what everybody else calls SIGRTMIN+1 and SIGRTMAX-1.
    from_name(&name.replace("PLUS", "+").replace("MINUS", "-"))
        .map(Some)
        .ok_or_else(|| Refusal::invalid(field, format!("{name} is no signal of Linux")))
}

/// CRI's number of a Linux signal.
pub fn to_cri(number: u32) -> Signal {
    let wanted = match number {
        RTMIN => "SIGNAL_SIGRTMIN".to_owned(),
        RTMAX => "SIGNAL_SIGRTMAX".to_owned(),
        // The upper half is named from the top, as CRI does.
        35..=49 => format!("SIGNAL_SIGRTMINPLUS{}", number - RTMIN),
        50..=63 => format!("SIGNAL_SIGRTMAXMINUS{}", RTMAX - number),
        _ => match NAMES.iter().find(|(_, known)| *known == number) {
            Some((name, _)) => format!("SIGNAL_SIG{name}"),
            None => return Signal::RuntimeDefault,
        },
    };
    Signal::from_str_name(&wanted).unwrap_or(Signal::RuntimeDefault)
}

/// Linux's number of a signal in an image's configuration: "SIGTERM", "term", "15", "SIGRTMIN+3".
pub fn from_name(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return RTMIN.checked_add(offset).filter(|number| *number <= RTMAX);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('-')?.parse().ok()?
        };
        return RTMAX.checked_sub(offset).filter(|number| *number >= RTMIN);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cris_numbers_are_not_linuxs() {
        for (cri, linux) in [
            (13, 9),
            (23, 15),
            (8, 1),
            (10, 2),
            (1, 6),
            (31, 26),
            (35, 34),
            (50, 49),
            (51, 50),
            (65, 64),
        ] {
            assert_eq!(from_cri(cri, "f").unwrap(), Some(linux), "{cri}");
        }
        assert_eq!(from_cri(0, "f").unwrap(), None);
        assert!(
            from_cri(66, "stop_signal")
                .unwrap_err()
                .to_string()
                .contains("stop_signal")
        );
    }

    #[test]
    fn every_signal_of_cri_is_one_of_linux_and_comes_back() {
        for cri in 1..=65 {
            let linux = from_cri(cri, "f").unwrap().unwrap();
            assert_eq!(from_cri(to_cri(linux).into(), "f").unwrap(), Some(linux), "{cri}");
        }
    }

    #[test]
    fn images_name_signals_in_many_ways() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SIGINT", Some(2)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-31", None),
            ("SIGNOPE", None),
            ("0", None),
            ("65", None),
            ("", None),
        ] {
            assert_eq!(from_name(text), number, "{text}");
        }
    }
}
