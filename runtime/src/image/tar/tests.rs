use ::tar::{Builder, EntryType, Header as Written};

use super::*;

fn entry(kind: EntryType, path: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Written::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path).unwrap();
    header.set_size(data.len() as u64);
    header.set_mode(0o100_644);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Paths and contents, from a reader that gives seven bytes at a time.
fn read(bytes: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(io::BufReader::with_capacity(7, bytes));
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut content = Vec::new();
        // Every other file is skipped, as a caller may do.
        while entries.len() % 2 == 0 {
            let piece = archive.data()?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(piece);
            let bytes = piece.len();
            archive.consume(bytes);
        }
        entries.push((String::from_utf8(entry.path).unwrap(), entry.kind, content));
    }
    Ok(entries)
}

#[test]
fn an_archive_may_end_with_zeros_or_without() {
    let files = [
        entry(EntryType::Regular, "a", &[1; 600]),
        entry(EntryType::Regular, "b", b"2"),
    ]
    .concat();
    let expected = [
        ("a".to_owned(), Kind::Regular, vec![1; 600]),
        ("b".to_owned(), Kind::Regular, Vec::new()),
    ];
    for end in [&[][..], &[0; 512], &[0; 1024], &[0; 5000]] {
        assert_eq!(
            read(&[&files, end].concat()).unwrap(),
            expected,
            "{} zeros",
            end.len()
        );
    }
    let garbage_behind_the_end = [&files, &[0; 1024][..], b"anything"].concat();
    assert_eq!(read(&garbage_behind_the_end).unwrap(), expected);
    let lone_block = [&[0; 512][..], &files].concat();
    assert!(matches!(
        read(&lone_block),
        Err(TarError::Malformed { offset: 1024, .. })
    ));
    for cut in [100, 512 + 599, 512 + 1023] {
        assert!(
            matches!(read(&files[..cut]), Err(TarError::Truncated { .. })),
            "{cut}"
        );
    }
}

#[test]
fn a_wrong_checksum_is_an_error() {
    let mut bytes = entry(EntryType::Regular, "a", b"");
    bytes[0] = b'b';
    let error = read(&bytes).unwrap_err().to_string();
    assert!(
        error.contains("byte 512") && error.contains("checksum"),
        "{error}"
    );
}

#[test]
fn long_names_come_from_wherever_they_are() {
    let long = format!("{}/{}", "p".repeat(150), "n".repeat(90));
    assert_eq!(
        read(&entry(EntryType::Regular, &long, b"x")).unwrap()[0].0,
        long,
        "the prefix of ustar"
    );

    let longer = "n/".repeat(200) + "f";
    let mut gnu = Builder::new(Vec::new());
    let mut header = Written::new_gnu();
    header.set_size(1);
    gnu.append_data(&mut header, &longer, &b"x"[..]).unwrap();
    assert_eq!(
        read(&gnu.into_inner().unwrap()).unwrap()[0].0,
        longer,
        "GNU's long name"
    );

    let mut pax = Builder::new(Vec::new());
    pax.append_pax_extensions([("path", longer.as_bytes()), ("size", b"3")])
        .unwrap();
    let mut bytes = pax.get_ref().clone();
    let global = entry(EntryType::XGlobalHeader, "g", b"19 path=everything\n");
    bytes.extend([global, entry(EntryType::Regular, "short", b"xyz")].concat());
    assert_eq!(read(&bytes).unwrap(), [(longer, Kind::Regular, b"xyz".to_vec())]);
}

#[test]
fn a_size_over_8_gib_is_taken_from_pax() {
    let mut pax = Builder::new(Vec::new());
    pax.append_pax_extensions([("size", &b"10000000000"[..])])
        .unwrap();
    let bytes = [pax.get_ref().clone(), entry(EntryType::Regular, "large", b"")].concat();
    let mut archive = Archive::new(bytes.as_slice());
    assert_eq!(archive.next_entry().unwrap().unwrap().size, 10_000_000_000);
    assert!(matches!(archive.next_entry(), Err(TarError::Truncated { .. })));
}

#[test]
fn old_archives_mark_directories_by_their_slash() {
    let mut header = Written::new_old();
    header.set_path("d/").unwrap();
    header.set_entry_type(EntryType::new(0));
    header.set_cksum();
    assert_eq!(
        read(header.as_bytes()).unwrap(),
        [("d/".to_owned(), Kind::Directory, vec![])]
    );
}

#[test]
fn a_gnu_sparse_map_continues_behind_its_header() {
    let mut header = Written::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(25);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1_000_000);
    gnu.set_is_extended(true);
    for (index, part) in gnu.sparse.iter_mut().enumerate() {
        part.set_offset(index as u64 * 1000);
        part.set_length(5);
    }
    header.set_cksum();
    let mut more = ::tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(900_000);
    more.sparse_mut()[0].set_length(5);
    let bytes = [header.as_bytes(), &more.as_bytes()[..], &[b'x'; 25], &[0; 487]].concat();
    let mut archive = Archive::new(bytes.as_slice());
    let entry = archive.next_entry().unwrap().unwrap();
    assert_eq!(entry.size, 1_000_000);
    let expected = [(0, 5), (1000, 5), (2000, 5), (3000, 5), (900_000, 5)];
    assert_eq!(entry.sparse.unwrap().parts(), expected);
    assert_eq!(archive.data().unwrap().len(), 25);
    archive.consume(25);
    assert!(archive.next_entry().unwrap().is_none());
}
