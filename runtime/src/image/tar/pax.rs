//! PAX extension records: `length keyword=value\n`, one after the other.

use super::Entry;
use super::header::MAX_FILE_BYTES;
use super::sparse::SparseMap;

/// Extended attributes as GNU tar, star, bsdtar and Go write them.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one PAX header.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxRecords {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl PaxRecords {
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let mut records = Vec::new();
        let mut rest = content;
        while !rest.is_empty() {
            let (record, after) = split_record(rest).ok_or("a PAX record is not 'length keyword=value'")?;
            records.push(record);
            rest = after;
        }
        Ok(Self { records })
    }

    /// Puts into `entry` what the records say; an empty value means the header's own.
    pub(super) fn apply(&self, entry: &mut Entry) -> Result<(), String> {
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                entry.xattrs.push((name.to_vec(), value.clone()));
                continue;
            }
            if value.is_empty() {
                continue;
            }
            match key.as_slice() {
                b"path" => entry.path.clone_from(value),
                b"linkpath" => entry.link.clone_from(value),
                b"size" => entry.size = size(value)?,
                b"uid" => entry.uid = id(value, "owner")?,
                b"gid" => entry.gid = id(value, "group")?,
                b"mtime" => {
                    (entry.mtime_seconds, entry.mtime_nanoseconds) = time(value)
                        .ok_or_else(|| format!("the PAX time {} is not a number", shown(value)))?;
                }
                _ => {}
            }
        }
        // Sparse files have a made-up path, so that tools without sparse files do not overwrite others.
        if let Some(path) = self.get(b"GNU.sparse.name") {
            entry.path = path.to_vec();
        }
        Ok(())
    }

    /// Whether the map of a sparse file lies in front of its data (GNU sparse format 1.0).
    pub(super) fn has_map_in_data(&self) -> bool {
        self.get(b"GNU.sparse.major") == Some(b"1") && self.get(b"GNU.sparse.minor") == Some(b"0")
    }

    /// The map of a sparse file, if it is in the records (formats 0.0 and 0.1).
    pub(super) fn sparse_map(&self) -> Option<Result<SparseMap, String>> {
        let is_sparse = self.get(b"GNU.sparse.map").is_some() || self.get(b"GNU.sparse.offset").is_some();
        is_sparse.then(|| {
            let mut numbers = Vec::new();
            for (key, value) in &self.records {
                match key.as_slice() {
                    b"GNU.sparse.map" => {
                        numbers = value
                            .split(|byte| *byte == b',')
                            .map(size)
                            .collect::<Result<_, _>>()?;
                    }
                    b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => numbers.push(size(value)?),
                    _ => {}
                }
            }
            SparseMap::from_numbers(&numbers, self.sparse_size()?)
        })
    }

    /// Bytes of a sparse file with its holes.
    pub(super) fn sparse_size(&self) -> Result<u64, String> {
        let value = self
            .get(b"GNU.sparse.realsize")
            .or_else(|| self.get(b"GNU.sparse.size"));
        size(value.ok_or("a sparse file has no size")?)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records
            .iter()
            .rev()
            .find(|(found, _)| found == key)
            .map(|(_, value)| value.as_slice())
    }
}

type PaxRecord = (Vec<u8>, Vec<u8>);

/// Takes the first record off. Its length counts everything, its own digits and the line feed too.
fn split_record(rest: &[u8]) -> Option<(PaxRecord, &[u8])> {
    let space = rest.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(rest.get(..space)?)?).ok()?;
    let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    let record = (!key.is_empty()).then(|| (key.to_vec(), value.to_vec()))?;
    Some((record, rest.get(length..)?))
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn size(value: impl AsRef<[u8]>) -> Result<u64, String> {
    let value = value.as_ref();
    decimal(value)
        .filter(|size| *size <= MAX_FILE_BYTES)
        .ok_or_else(|| format!("the PAX size {} is not a size", shown(value)))
}

fn id(value: &[u8], what: &str) -> Result<u32, String> {
    decimal(value)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| format!("the PAX {what} {} is not a number of 32 bits", shown(value)))
}

/// Seconds with a fraction, perhaps negative, as whole seconds and nanoseconds added to them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let dot = digits
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(digits.len());
    let (whole, fraction) = digits.split_at(dot);
    let fraction = fraction.strip_prefix(b".").unwrap_or_default();
    if whole.is_empty() || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
        nanoseconds = nanoseconds * 10 + digit;
    }
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn shown(value: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(value).chars().take(40).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        let records = PaxRecords::parse(b"11 path=a\nb\n16 SCHILY.x=\0\xff\n");
        assert!(records.is_err(), "a length that is too long by one must not pass");
        let records = PaxRecords::parse(b"12 path=a\nb\n15 SCHILY.x=\0\xff\n")
            .unwrap()
            .records;
        let expected: [(&[u8], &[u8]); 2] = [(b"path", b"a\nb"), (b"SCHILY.x", b"\0\xff")];
        assert_eq!(
            records,
            expected.map(|(key, value)| (key.to_vec(), value.to_vec()))
        );
        for bad in [
            &b"x"[..],
            b"3 a",
            b"5 a=",
            b"5 =b\n",
            b"99 a=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"1 \n",
        ] {
            assert!(PaxRecords::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"0.0000000019"), Some((0, 1)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.1"), Some((-1, 900_000_000)));
        assert_eq!(time(b"1."), Some((1, 0)));
        for bad in [&b""[..], b"-", b".5", b"1e3", b"1.x", b"99999999999999999999"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }
}
