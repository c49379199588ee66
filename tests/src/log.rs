//! CRI's log format: `<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <content>\n`.

/// One line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was written, as the file has it.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether more of the same line follows: the tag `P`.
    pub partial: bool,
    /// What the container wrote, without the newline that ended it.
    pub content: Vec<u8>,
}

/// Every line of a log file. A line that is not in the format is a failure.
#[track_caller]
pub fn parse(log: &[u8]) -> Vec<Line> {
    if log.is_empty() {
        return Vec::new();
    }
    let body = log.strip_suffix(b"\n").expect("a log ends with a newline");
    body.split(|byte| *byte == b'\n').map(line).collect()
}

#[track_caller]
fn line(text: &[u8]) -> Line {
    let mut parts = text.splitn(4, |byte| *byte == b' ');
    let mut word = |what: &str| {
        let bytes = parts
            .next()
            .unwrap_or_else(|| panic!("a log line has no {what}: {}", String::from_utf8_lossy(text)));
        String::from_utf8_lossy(bytes).into_owned()
    };
    let time = word("time");
    let stream = word("stream");
    let tag = word("tag");
    assert!(is_time(&time), "not a time: {time}");
    assert!(
        matches!(stream.as_str(), "stdout" | "stderr"),
        "not a stream: {stream}"
    );
    assert!(matches!(tag.as_str(), "P" | "F"), "not a tag: {tag}");
    let content = parts
        .next()
        .unwrap_or_else(|| panic!("a log line has no content: {}", String::from_utf8_lossy(text)));
    Line {
        time,
        stream,
        partial: tag == "P",
        content: content.to_vec(),
    }
}

/// `2026-01-31T23:59:59.000000001Z`, or with a zone such as `+01:00`.
fn is_time(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let Some(fraction) = shape.strip_prefix("0000-00-00T00:00:00.") else {
        return false;
    };
    let digits = fraction.chars().take_while(|c| *c == '0').count();
    (1..=9).contains(&digits) && matches!(&fraction[digits..], "Z" | "+00:00" | "-00:00")
}

/// What a container wrote to one stream, put together again from its lines.
pub fn bytes_of(lines: &[Line], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        bytes.extend_from_slice(&line.content);
        if !line.partial {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_again() {
        let log = b"2026-01-31T23:59:59.000000001Z stdout P one \n2026-01-31T23:59:59.1+00:00 stderr F \n\
                    2026-01-31T23:59:59.2Z stdout F two\n2026-01-31T23:59:59.2Z stdout P end\n";
        let lines = parse(log);
        assert_eq!(lines.len(), 4);
        assert_eq!(bytes_of(&lines, "stdout"), b"one two\nend");
        assert_eq!(bytes_of(&lines, "stderr"), b"\n");
    }

    #[test]
    fn a_line_in_another_format_is_told() {
        for bad in [
            "2026-01-31 stdout F x\n",
            "2026-01-31T23:59:59.1Z stdin F x\n",
            "2026-01-31T23:59:59.1Z stdout X x\n",
            "2026-01-31T23:59:59.1Z stdout F\n",
            "2026-01-31T23:59:59.1Z stdout F x",
        ] {
            let parsed = std::panic::catch_unwind(|| parse(bad.as_bytes()));
            assert!(parsed.is_err(), "taken for a log: {bad:?}");
        }
    }
}
