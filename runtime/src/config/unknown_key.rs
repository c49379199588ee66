//! Finds the first key of a TOML text that nobody knows, and the known one that was probably meant.

use toml::de::{DeTable, DeValue};

/// Stands in the known keys for any name, such as that of a handler.
pub(super) const ANY: &str = "*";

/// A key that is not known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownKey {
    /// Line on which it stands, from 1.
    pub line: usize,
    /// Its name with those of its tables.
    pub key: String,
    /// "; did you mean …?", or where it would belong.
    pub advice: String,
}

/// The first key of `text` that `known` does not have.
///
/// # Errors
///
/// The parser's error where `text` is no TOML.
pub(super) fn first(text: &str, known: &toml::Table) -> Result<Option<UnknownKey>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let mut found: Option<(usize, UnknownKey)> = None;
    visit(table.get_ref(), known, "", &mut |offset, key, siblings| {
        if found.as_ref().is_none_or(|(earlier, _)| offset < *earlier) {
            let line = text
                .as_bytes()
                .iter()
                .take(offset)
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            let advice = advice(&key, siblings, known);
            found = Some((offset, UnknownKey { line, key, advice }));
        }
    });
    Ok(found.map(|(_, unknown)| unknown))
}

fn visit(
    table: &DeTable<'_>,
    known: &toml::Table,
    prefix: &str,
    report: &mut dyn FnMut(usize, String, &toml::Table),
) {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let path = format!("{prefix}{name}");
        match (known.get(name).or_else(|| known.get(ANY)), value.get_ref()) {
            (None, _) => report(key.span().start, path, known),
            (Some(toml::Value::Table(inner)), DeValue::Table(table)) => {
                visit(table, inner, &format!("{path}."), report);
            }
            _ => {}
        }
    }
}

fn advice(key: &str, siblings: &toml::Table, known: &toml::Table) -> String {
    let (table, name) = key
        .rsplit_once('.')
        .map_or(("", key), |(table, name)| (table, name));
    let nearest = siblings
        .keys()
        .filter(|candidate| *candidate != ANY)
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()) / 3)
        .min();
    if let Some((_, candidate)) = nearest {
        let dot = if table.is_empty() { "" } else { "." };
        return format!("; did you mean `{table}{dot}{candidate}`?");
    }
    let elsewhere = known.iter().find_map(|(table, value)| {
        let inner = value.as_table()?;
        inner
            .contains_key(name)
            .then(|| format!("; `{name}` belongs into the table [{table}]"))
    });
    elsewhere.unwrap_or_else(|| "; `bulkheadd config` prints every key there is".to_owned())
}

/// How many single-letter changes make `a` out of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_letters_that_differ() {
        assert_eq!(distance("memroy_mib", "memory_mib"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kernel", "kernel"), 0);
        assert_eq!(distance("kernal", "kernel"), 1);
        assert_eq!(distance("kernels", "kernel"), 1);
    }
}
