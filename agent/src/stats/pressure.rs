//! Pressure files (Documentation/accounting/psi.rst).

use bulkhead_proto::agent::{Pressure, PressureLine};

/// What a file says; nothing where it is empty, as where the kernel does not measure.
pub fn parse(file: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        file.lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))
            .map(figures)
    };
    let pressure = Pressure {
        some: line("some"),
        full: line("full"),
    };
    (pressure != Pressure::default()).then_some(pressure)
}

fn figures(line: &str) -> PressureLine {
    let mut figures = PressureLine::default();
    for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
        match key {
            "avg10" => figures.avg10 = value.parse().unwrap_or(0.0),
            "avg60" => figures.avg60 = value.parse().unwrap_or(0.0),
            "avg300" => figures.avg300 = value.parse().unwrap_or(0.0),
            "total" => figures.total_us = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read() {
        let pressure = parse(
            "some avg10=1.53 avg60=0.20 avg300=0.04 total=123456\n\
             full avg10=0.00 avg60=0.10 avg300=0.00 total=99\n",
        )
        .unwrap();
        let some = pressure.some.unwrap();
        assert_eq!(
            (some.total_us, some.avg10, some.avg60, some.avg300),
            (123_456, 1.53, 0.2, 0.04)
        );
        let full = pressure.full.unwrap();
        assert_eq!((full.total_us, full.avg60), (99, 0.1));
    }

    #[test]
    fn what_is_not_measured_is_absent() {
        assert_eq!(parse(""), None);
        let one = parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n").unwrap();
        assert!(one.some.is_some() && one.full.is_none());
    }
}
