//! A layer's archive to a blob, without the process around it, and what must be true of every blob.

#![no_main]

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};

use bulkhead_runtime::image::LayerLimits;
use bulkhead_runtime::image::erofs::{FileType, Reader};
use bulkhead_runtime::image::layer::{Converted, convert_archive};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use rustix::fs::{MemfdFlags, memfd_create};

const LIMITS: LayerLimits = LayerLimits {
    bytes: 64 << 20,
    entries: 1000,
};

fn convert(archive: &[u8]) -> Option<Converted> {
    let file = File::from(memfd_create("blob", MemfdFlags::empty()).expect("memory for a blob"));
    let (converted, _) = convert_archive(archive, file, LIMITS).ok()?;
    Some(converted)
}

fuzz_target!(|archive: &[u8]| -> Corpus {
    let Some(converted) = convert(archive) else {
        return Corpus::Keep;
    };
    let again = convert(archive).expect("the same archive is converted once more");
    let blob = content(&converted);
    assert!(blob == content(&again), "the same archive gave another blob");
    assert_eq!(blob.len() as u64, converted.blob_bytes);
    assert_eq!(converted.blob_bytes % 4096, 0);
    check(&converted);
    Corpus::Keep
});

// Headers must pass their checksum to get anywhere.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    let (blocks, _) = data[..size].as_chunks_mut::<512>();
    for block in blocks {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    size
});

fn content(converted: &Converted) -> Vec<u8> {
    let mut file = converted.file.try_clone().expect("another descriptor");
    file.rewind().expect("a file can be rewound");
    let mut content = Vec::new();
    file.take(1 << 30)
        .read_to_end(&mut content)
        .expect("a blob in memory can be read");
    content
}

/// Reads the blob as the kernel would: a tree of sorted names, in which every directory has one place.
fn check(converted: &Converted) {
    let reader = Reader::new(converted.file.try_clone().expect("another descriptor"));
    let root = reader.root().expect("a superblock");
    let mut directories = HashSet::from([root]);
    let mut pending = vec![root];
    let mut names: u64 = 0;
    while let Some(directory) = pending.pop() {
        let entries = reader.entries(directory).expect("a directory can be read");
        assert!(
            entries.is_sorted_by(|(before, _), (after, _)| before < after),
            "names are not in order"
        );
        for (name, found) in entries {
            names += 1;
            assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            reader.attributes(found.nid).expect("an inode can be read");
            if found.file_type == FileType::Directory {
                assert!(directories.insert(found.nid), "a directory has two places");
                pending.push(found.nid);
            }
        }
    }
    assert!(
        names <= converted.entries,
        "{names} names of {} entries",
        converted.entries
    );
}
