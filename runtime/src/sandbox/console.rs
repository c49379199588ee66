//! The end of a guest's kernel log, for messages about a machine that failed.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Bytes that are looked at from the end.
const TAIL_BYTES: u64 = 8 * 1024;

/// Longest line that is shown.
const LINE_CHARS: usize = 200;

/// The last lines of the file, without what a terminal would act on: the text is the guest's.
pub(super) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let bytes = tail(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control())
                .take(LINE_CHARS)
                .collect::<String>()
        })
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .to_vec()
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; usize::try_from(TAIL_BYTES).unwrap_or(0)];
    let read = file.read_at(&mut bytes, start)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_log_is_shown_without_control_characters() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(
            &path,
            format!("{}\none\n\x1b[31mtwo\x07\r\n\nthree", "x".repeat(20_000)),
        )
        .unwrap();
        assert_eq!(last_lines(&path, 2), ["[31mtwo", "three"]);
        assert!(last_lines(&path, 10).iter().all(|line| line.len() <= LINE_CHARS));
        assert!(last_lines(&directory.path().join("none"), 2).is_empty());
    }
}
