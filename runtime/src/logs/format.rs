//! Lines of a CRI log: `<RFC 3339 time> <stdout|stderr> <P|F> <content>\n`.
//!
//! A line of output that is longer than [`PIECE_BYTES`] is written in pieces, each but the last tagged `P`; what comes
//! before the end of a stream without a newline is tagged `P` too.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Most bytes of content in one record.
pub const PIECE_BYTES: usize = 16 * 1024;

/// An output stream of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, and all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As it stands in a record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Makes records of one stream.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    /// The beginning of a piece whose end has not come yet.
    pending: Vec<u8>,
}

impl Splitter {
    /// For a stream that is at the start of a record.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Appends the records that `bytes` complete to `records`, and gives how many bytes of the stream are in them.
    pub fn push(&mut self, bytes: &[u8], now: SystemTime, records: &mut Vec<u8>) -> u64 {
        let time = rfc3339(now);
        let mut taken = 0u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PIECE_BYTES - self.pending.len();
            // One byte further than fits: a newline right there ends the line without a piece.
            let window = rest.get(..room + 1).unwrap_or(rest);
            if let Some(newline) = window.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(newline);
                taken += self.record(&time, 'F', line, records) + 1;
                rest = after.get(1..).unwrap_or_default();
            } else if window.len() > room {
                let (piece, after) = rest.split_at(room);
                taken += self.record(&time, 'P', piece, records);
                rest = after;
            } else {
                self.pending.extend_from_slice(rest);
                rest = &[];
            }
        }
        taken
    }

    /// Appends what is left at the end of the stream, and gives how many bytes of the stream that is.
    pub fn finish(&mut self, now: SystemTime, records: &mut Vec<u8>) -> u64 {
        if self.pending.is_empty() {
            return 0;
        }
        self.record(&rfc3339(now), 'P', &[], records)
    }

    fn record(&mut self, time: &str, tag: char, end: &[u8], records: &mut Vec<u8>) -> u64 {
        records.extend_from_slice(format!("{time} {} {tag} ", self.stream.name()).as_bytes());
        records.extend_from_slice(&self.pending);
        records.extend_from_slice(end);
        records.push(b'\n');
        let length = self.pending.len() + end.len();
        self.pending.clear();
        length as u64
    }
}

/// How many bytes of each stream are in whole records of a log, and how long these records are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
    /// Bytes of the log. What follows is the beginning of a record that was not finished.
    pub log: u64,
}

/// Counts what the records in `log` hold of each stream. `None` where it is not such a log.
pub fn count(log: &[u8]) -> Option<Counted> {
    let mut counted = Counted::default();
    for record in log.split_inclusive(|byte| *byte == b'\n') {
        let Some(record) = record.strip_suffix(b"\n") else {
            break;
        };
        let mut fields = record.splitn(4, |byte| *byte == b' ');
        let (_time, stream, tag, content) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let newline = match tag {
            b"F" => 1,
            b"P" => 0,
            _ => return None,
        };
        let length = content.len() as u64 + newline;
        match stream {
            b"stdout" => counted.stdout += length,
            b"stderr" => counted.stderr += length,
            _ => return None,
        }
        counted.log += record.len() as u64 + 1;
    }
    Some(counted)
}

/// A time in UTC with nine digits of a second.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = String::with_capacity(30);
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    );
    text
}

/// `nanoseconds` since the epoch in the format of RFC 3339, in UTC. Before it, the epoch.
pub fn rfc3339_ns(nanoseconds: i64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that
/// the leap day is the last of its year, and 400 of them are 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Tag and content length of each record.
    fn shape(records: &[u8]) -> Vec<(char, usize)> {
        String::from_utf8_lossy(records)
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.splitn(4, ' ').collect();
                (fields[2].chars().next().unwrap(), fields[3].len())
            })
            .collect()
    }

    fn split(chunks: &[&[u8]]) -> (Vec<u8>, u64) {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut records = Vec::new();
        let mut taken = 0;
        for chunk in chunks {
            taken += splitter.push(chunk, UNIX_EPOCH, &mut records);
        }
        taken += splitter.finish(UNIX_EPOCH, &mut records);
        (records, taken)
    }

    #[test]
    fn a_record_has_time_stream_tag_and_content() {
        let time = UNIX_EPOCH + Duration::new(951_782_400, 5);
        let mut records = Vec::new();
        Splitter::new(Stream::Stderr).push(b"hello World\n", time, &mut records);
        assert_eq!(records, b"2000-02-29T00:00:00.000000005Z stderr F hello World\n");
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let whole = split(&[b"one\n\ntwo\n"]);
        assert_eq!(shape(&whole.0), [('F', 3), ('F', 0), ('F', 3)]);
        assert_eq!(split(&[b"o", b"ne", b"\n\nt", b"wo\n"]), whole);
        assert_eq!(whole.1, 9);
    }

    #[test]
    fn a_long_line_is_cut_into_pieces() {
        for (length, expected) in [
            (PIECE_BYTES - 1, vec![('F', PIECE_BYTES - 1)]),
            (PIECE_BYTES, vec![('F', PIECE_BYTES)]),
            (PIECE_BYTES + 1, vec![('P', PIECE_BYTES), ('F', 1)]),
            (
                3 * PIECE_BYTES,
                vec![('P', PIECE_BYTES), ('P', PIECE_BYTES), ('F', PIECE_BYTES)],
            ),
        ] {
            let mut line = vec![b'x'; length];
            line.push(b'\n');
            let (records, taken) = split(&[&line]);
            assert_eq!(shape(&records), expected, "{length}");
            assert_eq!(taken, line.len() as u64);
            let bytes: Vec<&[u8]> = line.chunks(7).collect();
            assert_eq!(split(&bytes).0, records, "{length} in small chunks");
        }
    }

    #[test]
    fn output_without_a_last_newline_is_partial() {
        let (records, taken) = split(&[b"one\ntwo"]);
        assert_eq!(shape(&records), [('F', 3), ('P', 3)]);
        assert_eq!(taken, 7);
        assert_eq!(split(&[b""]).0, b"");
    }

    #[test]
    fn a_log_tells_how_much_of_each_stream_it_holds() {
        let mut log = Vec::new();
        let (mut out, mut err) = (Splitter::new(Stream::Stdout), Splitter::new(Stream::Stderr));
        let mut expected = Counted::default();
        let long = vec![b'y'; 2 * PIECE_BYTES + 9];
        expected.stdout += out.push(b"a b c\nrest", UNIX_EPOCH, &mut log);
        expected.stderr += err.push(&long, UNIX_EPOCH, &mut log);
        expected.stdout += out.push(b"\n \n", UNIX_EPOCH, &mut log);
        expected.stderr += err.finish(UNIX_EPOCH, &mut log);
        expected.log = log.len() as u64;
        assert_eq!(count(&log), Some(expected));
        assert_eq!(expected.stderr, long.len() as u64);
        log.extend_from_slice(b"1970-01-01T00:00:00.000000000Z stdout F torn");
        assert_eq!(count(&log), Some(expected));
        assert_eq!(count(b"something else\n"), None);
        assert_eq!(count(b""), Some(Counted::default()));
    }

    #[test]
    fn the_calendar_is_right() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (1_798_761_599, "2026-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let text = rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(text, format!("{date}.000000000Z"));
        }
    }
}
