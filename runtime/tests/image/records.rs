//! Extension records and sparse maps that lie, or are none.

use tar::EntryType;

use crate::build::Archive;
use crate::hostile::{convert, refusal, refusal_of};

/// A header that says so many bytes of an extension record follow, and then what follows.
fn extension(kind: u8, stated: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    header.set_size(stated);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(Archive::new().file("f", "x").finish());
    archive
}

#[test]
fn extension_records_of_absurd_length_are_refused_before_they_are_read() {
    for (kind, name) in [
        (b'x', "PAX header"),
        (b'g', "global PAX header"),
        (b'L', "long name"),
        (b'K', "long link name"),
    ] {
        let message = refusal_of(&extension(kind, 4 << 30, b""));
        let expected = format!("a {name} of 4294967296 bytes is over 1048576");
        assert!(message.contains(&expected), "{message}");
    }
    // As many as are allowed, one after the other, are read and forgotten.
    let long = extension(b'L', 1 << 20, &vec![b'n'; 1 << 20]);
    let (record, rest) = long.split_at(512 + (1 << 20));
    let again = [
        record.repeat(20).as_slice(),
        &extension(b'L', 5, b"short")[..],
        rest,
    ]
    .concat();
    let directory = tempfile::tempdir().unwrap();
    convert(&again, &directory.path().join("blob")).unwrap();
    assert!(refusal_of(&long).contains("has a path of 1048576 bytes, more than 4095"));
}

#[test]
fn pax_records_that_are_none_are_refused() {
    for content in [
        &b"garbage"[..],
        b"5 a\n",
        b"0 a=b\n",
        b"1 a=b\n",
        b"99 a=b\n",
        b"6 a=b\nx",
        b"6 a=bx",
        b"-6 a=b\n",
        b" 6 a=b\n",
        b"5 =b\n",
        b"18446744073709551616 a=b\n",
        b"99999999999999999999999999 path=x\n",
        b"\0\0\0\0",
        b"6 a=b\n6 a",
    ] {
        let message = refusal_of(&extension(b'x', content.len() as u64, content));
        assert!(
            message.contains("PAX record is not 'length keyword=value'"),
            "{}: {message}",
            content.escape_ascii()
        );
    }
    // Unknown keywords, binary ones too, concern others.
    let directory = tempfile::tempdir().unwrap();
    let unknown = extension(b'x', 21, b"6 a=b\n7 \0\xff=\0\n8 path=\n");
    convert(&unknown, &directory.path().join("blob")).unwrap();
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let map = |map: &[u8], size: &[u8]| {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.map", map), ("GNU.sparse.size", size)];
        refusal(Archive::new().pax(records).file("f", "12345"))
    };
    for (parts, size, reason) in [
        (&b"0,5,3,2"[..], &b"100"[..], "out of order"),
        (b"50,5,0,0", b"100", "out of order"),
        (b"99,5", b"100", "out of order or of the file"),
        (b"18446744073709551615,5", b"100", "not a size"),
        (b"9223372036854775806,5", b"100", "not a size"),
        (b"0,4", b"100", "lists 4 bytes of data but 5 follow"),
        (b"0,6", b"100", "lists 6 bytes of data but 5 follow"),
        (b"0,5", b"9223372036854775807", "not a size"),
        (b"0,5", b"", "size"),
        (b"0,,5", b"100", "not a size"),
        (b"x", b"100", "not a size"),
    ] {
        let message = map(parts, size);
        assert!(message.contains(reason), "{}: {message}", parts.escape_ascii());
    }
    let header = |count: &str| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"100"),
        ];
        let mut text = count.as_bytes().to_vec();
        text.resize(1024, b'\n');
        refusal(Archive::new().pax(records).file("f", text))
    };
    for count in ["99999999999999999999\n", "4294967295\n", "-1\n", "x\n", "\n"] {
        assert!(header(count).contains("sparse"), "{count:?}: {}", header(count));
    }
}
