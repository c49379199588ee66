//! A disk as a driver sees it.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

use std::os::unix::fs::{FileExt, MetadataExt};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_SECURE_ERASE,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::fake_driver::{Buffer, FakeDriver, Noise, PLAIN};

const IO_ERROR: u32 = VIRTIO_BLK_S_IOERR;
const OK: u32 = VIRTIO_BLK_S_OK;
const UNSUPPORTED: u32 = VIRTIO_BLK_S_UNSUPP;

/// A file with these bytes, which is on a file system that can make holes.
fn file(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

fn segments(files: &[&File]) -> Vec<Segment> {
    let segment = |file: &&File| Segment {
        file: file.try_clone().unwrap(),
        length: file.metadata().unwrap().len(),
    };
    files.iter().map(segment).collect()
}

/// A disk and a driver with places for a header, a status and data.
struct Bench {
    driver: FakeDriver,
    header: u64,
    status: u64,
    data: u64,
    block: Block,
}

impl Bench {
    fn new(access: DiskAccess, files: &[&File]) -> Self {
        let block = Block::new("disk-1", access, segments(files)).unwrap();
        let features = block.features();
        Self::accepting(block, features)
    }

    fn accepting(mut block: Block, features: u64) -> Self {
        let mut driver = FakeDriver::accepting(&block, 8 << 20, features);
        driver.activate(&mut block);
        Self {
            header: driver.allocate(16),
            status: driver.allocate(1),
            data: driver.allocate(4 << 20),
            driver,
            block,
        }
    }

    fn begin(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        header.extend(sector.to_le_bytes());
        self.driver.write(self.header, &header);
        self.driver.write(self.status, &[0xee]);
        let mut chain = vec![Buffer::Readable(self.header, 16)];
        chain.extend(buffers);
        chain.push(Buffer::Writable(self.status, 1));
        self.driver.queues[0].offer(&chain);
    }

    /// Makes a request and gives its status and the number of bytes written.
    fn request(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> (u32, u32) {
        self.begin(kind, sector, buffers);
        let (_, written) = self.driver.queues[0].wait_used();
        (u32::from(self.driver.read(self.status, 1)[0]), written)
    }

    fn read(&mut self, sector: u64, bytes: u32) -> Vec<u8> {
        let answer = self.request(VIRTIO_BLK_T_IN, sector, &[Buffer::Writable(self.data, bytes)]);
        assert_eq!(answer, (OK, bytes + 1));
        self.driver.read(self.data, bytes as usize)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u32 {
        self.driver.write(self.data, data);
        let buffer = Buffer::Readable(self.data, data.len() as u32);
        self.request(VIRTIO_BLK_T_OUT, sector, &[buffer]).0
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u32 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.driver.write(self.data, &bytes);
        let buffer = Buffer::Readable(self.data, bytes.len() as u32);
        self.request(kind, 0, &[buffer]).0
    }
}

#[test]
fn what_is_written_is_read_and_in_the_file() {
    let disk = file(&vec![0; 64 * 1024]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    assert_eq!(bench.write(3, &[7; 1024]), OK);
    assert_eq!(
        bench.read(2, 2048),
        [vec![0; 512], vec![7; 1024], vec![0; 512]].concat()
    );
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let mut bytes = [0; 2048];
    disk.read_exact_at(&mut bytes, 1024).unwrap();
    assert_eq!(bytes[512..1536], [7; 1024]);
}

#[test]
fn files_are_one_disk_and_a_request_may_span_them_in_pieces_of_any_size() {
    let content: Vec<u8> = (0..5 * 512u32).map(|byte| (byte / 10) as u8).collect();
    let files = [
        file(&content[..512]),
        file(&content[512..1536]),
        file(&content[1536..]),
    ];
    let mut bench = Bench::new(DiskAccess::ReadOnly, &[&files[0], &files[1], &files[2]]);
    assert_eq!(bench.block.capacity(), 2560);
    assert_eq!(bench.read(0, 2560), content);
    assert_eq!(bench.read(1, 1024), content[512..1536]);
    assert_eq!(bench.read(4, 512), content[2048..]);
    let pieces = [(0, 1), (1, 511), (512, 700), (1212, 836)];
    let buffers = pieces.map(|(at, length)| Buffer::Writable(bench.data + at, length));
    bench.driver.write(bench.data, &[0; 2560]);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, &buffers), (OK, 2049));
    assert_eq!(bench.driver.read(bench.data, 2048), content[512..]);
}

/// Any mixture of requests on several files leaves what it would leave on an array.
#[test]
fn a_disk_of_several_files_behaves_as_an_array() {
    let mut noise = Noise::new(7);
    let mut model = noise.bytes(128 * 512);
    let files = [
        file(&model[..10 * 512]),
        file(&model[10 * 512..11 * 512]),
        file(&model[11 * 512..]),
    ];
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&files[0], &files[1], &files[2]]);
    for _ in 0..3000 {
        let start = noise.below(128);
        let sectors = noise.below(129 - start);
        let range = start as usize * 512..(start + sectors) as usize * 512;
        match noise.below(5) {
            0 | 1 => {
                let data = noise.bytes(range.len());
                assert_eq!(bench.write(start, &data), OK);
                model[range].copy_from_slice(&data);
            }
            2 => assert_eq!(bench.read(start, sectors as u32 * 512), model[range]),
            3 => {
                assert_eq!(
                    bench.ranges(VIRTIO_BLK_T_DISCARD, &[(start, sectors as u32, 0)]),
                    OK
                );
                model[range].fill(0);
            }
            _ => {
                let flags = noise.below(2) as u32;
                assert_eq!(
                    bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(start, sectors as u32, flags)]),
                    OK
                );
                model[range].fill(0);
            }
        }
    }
    assert_eq!(bench.read(0, 128 * 512), model);
}

#[test]
fn discarded_space_is_free_on_the_host_and_written_zeros_are_not() {
    let disk = file(&vec![1; 4 << 20]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    let blocks = || disk.metadata().unwrap().blocks();
    let full = blocks();
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 2048, 0)]), OK);
    assert_eq!(blocks(), full);
    assert_eq!(
        bench.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 2048, 0), (4096, 1024, 0)]),
        OK
    );
    assert_eq!(blocks(), full - 2048 - 1024);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(2048, 2048, 1)]), OK);
    assert_eq!(blocks(), full - 5120);
    assert_eq!(bench.read(0, 512), [0; 512]);
    assert_eq!(bench.read(5119, 1024), [vec![0; 512], vec![1; 512]].concat());
    assert_eq!(disk.metadata().unwrap().len(), 4 << 20);
}

#[test]
fn a_file_system_that_cannot_make_zeros_gets_them_written() {
    // A memfd makes holes, but no ranges of zeros.
    let disk = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::empty()).unwrap());
    disk.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    let full = disk.metadata().unwrap().blocks();
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(1, 1024, 0)]), OK);
    assert_eq!(disk.metadata().unwrap().blocks(), full);
    assert_eq!(bench.read(0, 1024), [vec![1; 512], vec![0; 512]].concat());
    assert_eq!(bench.read(1024, 1024), [vec![0; 512], vec![1; 512]].concat());
}

#[test]
fn a_read_only_disk_is_never_written() {
    let disk = file(&[1; 4096]);
    let mut bench = Bench::new(DiskAccess::ReadOnly, &[&disk]);
    assert_eq!(bench.write(0, &[2; 512]), IO_ERROR);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 1)]), IO_ERROR);
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(bench.read(0, 4096), [1; 4096]);
    assert_eq!(
        bench.block.features() & 0b110_0000_0010_0000,
        1 << 5,
        "it says that it is read-only"
    );
}

#[test]
fn the_guest_reads_size_limits_and_serial() {
    let disk = file(&[1; 4096]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    let mut space = [0xee; 64];
    bench.block.read_config(0, &mut space);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4)), (8, 0), "capacity in sectors");
    assert_eq!((word(12), word(20)), (254, 512), "most segments, block size");
    assert_eq!((space[24], space[25]), (3, 0), "topology");
    assert_eq!(
        [36, 40, 44, 48, 52, 56].map(word),
        [config::DISCARD_SECTORS, 64, 8, config::ZERO_SECTORS, 64, 1]
    );
    assert_eq!(word(60), 0);
    let id = |room| Buffer::Writable(bench.data, room);
    let (long, short) = (id(20), id(3));
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[long]), (OK, 21));
    assert_eq!(
        bench.driver.read(bench.data, 20),
        *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[short]), (OK, 4));
}

#[test]
fn requests_that_do_not_fit_fail_alone() {
    let disk = file(&[1; 4096]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    let data = bench.data;
    let into = |bytes| [Buffer::Writable(data, bytes)];
    for (what, sector, bytes) in [
        ("at the end", 8, 512),
        ("over the end", 7, 1024),
        ("far beyond", u64::MAX / 512, 512),
        ("beyond all numbers", u64::MAX, 512),
        ("of a part of a sector", 0, 511),
    ] {
        assert_eq!(
            bench.request(VIRTIO_BLK_T_IN, sector, &into(bytes)),
            (IO_ERROR, 1),
            "a read {what}"
        );
        assert_eq!(
            bench.write(sector, &vec![2; bytes as usize]),
            IO_ERROR,
            "a write {what}"
        );
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_SECURE_ERASE, 0, &[]).0, UNSUPPORTED);
    assert_eq!(bench.request(0xffff_ffff, 0, &[]).0, UNSUPPORTED);
    for (what, ranges, status) in [
        ("none", vec![], IO_ERROR),
        ("over the end", vec![(7, 2, 0)], IO_ERROR),
        ("beyond all numbers", vec![(u64::MAX, 1, 0)], IO_ERROR),
        ("too long", vec![(0, config::DISCARD_SECTORS + 1, 0)], IO_ERROR),
        ("too many", vec![(0, 1, 0); 65], IO_ERROR),
        ("with a flag", vec![(0, 1, 1)], UNSUPPORTED),
    ] {
        assert_eq!(
            bench.ranges(VIRTIO_BLK_T_DISCARD, &ranges),
            status,
            "ranges: {what}"
        );
    }
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 2)]), UNSUPPORTED);
    // The first is in order and the second is not: the failure is told.
    assert_eq!(
        bench.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 0, 0), (9, 1, 0)]),
        IO_ERROR
    );
    assert_eq!(bench.read(0, 4096), [1; 4096]);

    // No room for a status; half a header.
    bench.driver.queues[0].offer(&[Buffer::Readable(bench.header, 16)]);
    assert_eq!(bench.driver.queues[0].wait_used().1, 0);
    bench.driver.queues[0].offer(&[
        Buffer::Readable(bench.header, 15),
        Buffer::Writable(bench.status, 1),
    ]);
    assert_eq!(bench.driver.queues[0].wait_used().1, 1);
    assert_eq!(bench.driver.read(bench.status, 1), [IO_ERROR as u8]);
    assert_eq!(bench.driver.interrupt.reset_reason(), None);
    assert_eq!(bench.read(0, 4096), [1; 4096]);
}

#[test]
fn a_file_that_shrinks_is_an_error_in_the_guest_only() {
    let disk = file(&[1; 8192]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    disk.set_len(4096).unwrap();
    let buffer = [Buffer::Writable(bench.data, 8192)];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &buffer).0, IO_ERROR);
    assert_eq!(bench.read(0, 4096), [1; 4096]);
}

#[test]
fn a_queue_full_of_requests_is_served_with_and_without_event_indexes() {
    for mask in [u64::MAX, PLAIN | 1 << VIRTIO_BLK_F_FLUSH] {
        let disk = file(&vec![5; 1 << 20]);
        let block = Block::new("disk-1", DiskAccess::ReadWrite, segments(&[&disk])).unwrap();
        let features = block.features() & mask;
        let mut bench = Bench::accepting(block, features);
        let (mut begun, mut done) = (0, 0);
        while done < 5000 {
            while begun < 5000 && bench.driver.queues[0].room() >= 3 {
                bench.begin(VIRTIO_BLK_T_IN, 1, &[Buffer::Writable(bench.data, 512)]);
                begun += 1;
            }
            assert_eq!(bench.driver.queues[0].wait_used().1, 513);
            done += 1;
        }
    }
}

#[test]
fn a_driver_that_has_not_looked_yet_is_interrupted_once() {
    let disk = file(&[5; 512]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    bench.block.pause();
    for _ in 0..60 {
        bench.begin(VIRTIO_BLK_T_IN, 0, &[Buffer::Writable(bench.data, 512)]);
    }
    bench.block.resume().unwrap();
    let queue = &bench.driver.queues[0];
    while queue.load(queue.used_ring() + 2) < 60 {
        std::thread::yield_now();
    }
    bench.block.pause();
    assert_eq!(bench.driver.interrupt.count(0), 1);
}

#[test]
fn noise_for_requests_is_answered_and_changes_no_size() {
    let disk = file(&vec![1; 64 * 512]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    let mut noise = Noise::new(3);
    let mut answers = [0; 3];
    for _ in 0..20_000 {
        let kind = if noise.below(10) == 0 {
            noise.number() as u32
        } else {
            noise.below(15) as u32
        };
        let sector = if noise.below(10) == 0 {
            noise.number()
        } else {
            noise.below(70)
        };
        let length = if noise.below(2) == 0 {
            noise.below(20) * 512
        } else {
            noise.below(2000)
        } as u32;
        let buffer = match noise.below(2) {
            0 => Buffer::Readable(bench.data, length),
            _ => Buffer::Writable(bench.data, length),
        };
        if noise.below(2) == 0 {
            let mut range = vec![];
            range.extend(noise.below(70).to_le_bytes());
            range.extend((noise.below(70) as u32).to_le_bytes());
            range.extend((noise.below(3) as u32).to_le_bytes());
            bench.driver.write(bench.data, &range.repeat(4));
        } else {
            let bytes = noise.bytes(64);
            bench.driver.write(bench.data, &bytes);
        }
        let (status, _) = bench.request(kind, sector, &[buffer]);
        answers[status as usize] += 1;
    }
    assert!(
        answers.iter().all(|count| *count > 500),
        "{answers:?} are too few of a kind to be a test"
    );
    assert_eq!(disk.metadata().unwrap().len(), 64 * 512);
    assert_eq!(bench.driver.interrupt.reset_reason(), None);
}

#[test]
fn a_saved_disk_goes_on_in_another_process_and_only_as_itself() {
    let disk = file(&[1; 4096]);
    let mut bench = Bench::new(DiskAccess::ReadWrite, &[&disk]);
    bench.read(0, 512);
    bench.block.pause();
    let saved = bench.block.save().unwrap();
    bench.begin(VIRTIO_BLK_T_IN, 1, &[Buffer::Writable(bench.data, 512)]);

    let new = |serial, access, files: &[&File]| Block::new(serial, access, segments(files)).unwrap();
    for mut other in [
        new("disk-2", DiskAccess::ReadWrite, &[&disk]),
        new("disk-1", DiskAccess::ReadOnly, &[&disk]),
        new("disk-1", DiskAccess::ReadWrite, &[&disk, &disk]),
    ] {
        let error = other
            .restore(&saved, Some(bench.driver.activation()))
            .unwrap_err();
        assert!(matches!(error, DeviceError::BadState { .. }), "{error}");
    }
    let mut block = new("disk-1", DiskAccess::ReadWrite, &[&disk]);
    block.restore(&saved, Some(bench.driver.activation())).unwrap();
    assert_eq!(block.save().unwrap(), saved);
    block.resume().unwrap();
    bench.block = block;
    assert_eq!(bench.driver.queues[0].wait_used().1, 513);
    assert_eq!(bench.read(0, 4096), [1; 4096]);
}

#[test]
fn what_cannot_be_a_disk_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let try_with = |serial: &str, access, file: File, length| {
        Block::new(serial, access, vec![Segment { file, length }])
            .unwrap_err()
            .to_string()
    };
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let (ro, rw) = (DiskAccess::ReadOnly, DiskAccess::ReadWrite);
    for serial in ["", "a-serial-of-21-bytes!", "two words", "zw\u{f6}lf"] {
        assert!(try_with(serial, ro, open(), 512).contains("serial"), "{serial:?}");
    }
    for length in [0, 511, 513, u64::MAX - 511] {
        assert!(
            try_with("d", ro, open(), length).contains("multiple of 512"),
            "{length}"
        );
    }
    assert!(try_with("d", ro, open(), 8192).contains("its file has 4096"));
    assert!(try_with("d", rw, File::open(&path).unwrap(), 512).contains("not open for reading and writing"));
    let appending = File::options().read(true).append(true).open(&path).unwrap();
    assert!(try_with("d", rw, appending, 512).contains("not open for reading and writing"));
    let writing = File::options().write(true).open(&path).unwrap();
    assert!(try_with("d", ro, writing, 512).contains("not open for reading"));
    assert!(
        try_with(
            "d",
            ro,
            File::from(std::os::fd::OwnedFd::from(std::io::pipe().unwrap().0)),
            512
        )
        .contains("cannot be used")
    );
    assert!(
        Block::new("d", ro, vec![])
            .unwrap_err()
            .to_string()
            .contains("no segments")
    );
}
