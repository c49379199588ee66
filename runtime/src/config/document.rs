//! docs/configuration.md, made of the commented defaults so that the two cannot differ.

use std::fmt::Write as _;

const HEAD: &str = "# Configuration\n\n\
    `bulkheadd` reads one TOML file: the one named with `--config`, else `/etc/bulkhead/config.toml` if it exists. Every \
    key has a\ndefault, so an empty file and no file are the same. A key that is not known is refused, with the one that \
    was probably\nmeant. `bulkheadd config` prints the file below, ready to be edited; `bulkhead check` says whether a \
    host can run pods with\nit.\n\n\
    This page is made from the file that `bulkheadd config` prints; a test compares them.\n";

/// The page for a file of commented keys: a section for each table, an entry for each key.
pub fn page(defaults: &str) -> String {
    let mut page = HEAD.to_owned();
    let mut comment: Vec<&str> = Vec::new();
    let mut keys: Vec<&str> = Vec::new();
    let mut introduced = false;
    page.push_str("\n## Top level\n");
    for line in defaults.lines().chain(std::iter::once("")) {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
        } else if line.starts_with('[') {
            let _ = write!(page, "\n## `{line}`\n");
        } else if line.contains('=') {
            keys.push(line);
        } else {
            // The first paragraph speaks of the file itself.
            if introduced {
                entry(&mut page, &comment, &keys);
            }
            introduced = true;
            comment.clear();
            keys.clear();
        }
    }
    page
}

fn entry(page: &mut String, comment: &[&str], keys: &[&str]) {
    let (text, example): (Vec<&str>, Vec<&str>) = comment
        .iter()
        .partition(|line| !line.starts_with('[') && !line.contains(" = "));
    if keys.is_empty() && text.is_empty() {
        return;
    }
    for key in keys {
        let _ = write!(page, "\n- `{key}`");
    }
    if keys.is_empty() {
        page.push_str("\n## `[handlers.NAME]`\n\n");
    } else {
        page.push_str("  \n  ");
    }
    let indent = if keys.is_empty() { "\n" } else { "\n  " };
    page.push_str(text.join("\n").trim().replace('\n', indent).as_str());
    page.push('\n');
    if !example.is_empty() {
        let _ = write!(page, "\n```toml\n{}\n```\n", example.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_TEXT;

    #[test]
    fn the_page_is_that_of_the_printed_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let made = page(DEFAULT_TEXT);
        if std::env::var_os("BULKHEAD_WRITE_DOCS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(
            kept == made,
            "docs/configuration.md is out of date; run this test with BULKHEAD_WRITE_DOCS=1"
        );
    }

    #[test]
    fn every_key_is_on_the_page() {
        let page = page(DEFAULT_TEXT);
        for line in DEFAULT_TEXT.lines().filter(|line| line.contains(" = ")) {
            let key = line.trim_start_matches("# ");
            assert!(page.contains(key), "{key} is not on the page");
        }
    }
}
