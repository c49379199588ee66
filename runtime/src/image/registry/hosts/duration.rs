//! Times as Go writes them, which is how `hosts.toml` has them: `300ms`, `1.5s`, `2m30s`.

use std::time::Duration;

/// Longer than any connection takes; above it, arithmetic could overflow.
const LONGEST: f64 = 86_400.0 * 365.0;

/// The time that `text` stands for, if it is one and longer than nothing.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(number_end);
        let unit_end = behind
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = next;
    }
    let whole = Duration::try_from_secs_f64(seconds).ok()?;
    (seconds <= LONGEST && !whole.is_zero()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, milliseconds) in [
            ("1s", 1000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1000µs", 1),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in [
            "", "5", "s", "-1s", "1x", "1s2", "0s", "1e9s", "9999999h", "1..2s",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
