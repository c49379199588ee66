//! Whether the files that machines are made of are what they should be.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use super::Outcome;

const HACK_BUILD: &str = "make it with hack/build";

/// Most of a file's headers and notes that is read.
const HEADERS_BYTES: usize = 1 << 20;

pub(super) fn vmm(path: &Path) -> Outcome {
    let remedy = format!("{HACK_BUILD}, or set `vm.vmm`");
    match path.metadata() {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Outcome::Good(path.display().to_string())
        }
        Ok(_) => Outcome::bad(format!("{} is no program", path.display()), remedy),
        Err(error) => Outcome::bad(format!("{}: {error}", path.display()), remedy),
    }
}

pub(super) fn kernel(path: &Path) -> Outcome {
    let remedy =
        format!("{HACK_BUILD}, or set `vm.kernel` to an uncompressed x86-64 kernel with a PVH entry");
    match File::open(path).map(|file| kernel_problem(&file)) {
        Ok(None) => Outcome::Good(format!("{} has a PVH entry", path.display())),
        Ok(Some(problem)) => Outcome::bad(format!("{} {problem}", path.display()), remedy),
        Err(error) => Outcome::bad(format!("{}: {error}", path.display()), remedy),
    }
}

/// What keeps the file from being a kernel that a machine boots: an ELF file of 64 bits for x86-64 with the note
/// XEN_ELFNOTE_PHYS32_ENTRY (ELF-64 object file format; xen/include/public/elfnote.h).
fn kernel_problem(file: &File) -> Option<&'static str> {
    let mut header = [0; 64];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Some("is too short for a kernel");
    }
    if header.get(..4) != Some(b"\x7fELF".as_slice()) {
        let compressed = header.get(..2) == Some(b"MZ".as_slice());
        return Some(if compressed {
            "is a compressed kernel (bzImage)"
        } else {
            "is no ELF file"
        });
    }
    // EI_CLASS 64-bit, EI_DATA little-endian, e_machine x86-64.
    if header.get(4..6) != Some([2, 1].as_slice()) || number(&header, 18, 2) != Some(62) {
        return Some("is no ELF file for x86-64");
    }
    let (Some(start), Some(size), Some(count)) = (
        number(&header, 32, 8),
        number(&header, 54, 2),
        number(&header, 56, 2),
    ) else {
        return Some("has no ELF header");
    };
    for index in 0..count {
        let mut program = [0; 56];
        let Some(offset) = index.checked_mul(size).and_then(|at| at.checked_add(start)) else {
            break;
        };
        if file.read_exact_at(&mut program, offset).is_err() {
            return Some("is cut off");
        }
        // PT_NOTE: p_offset at 8, p_filesz at 32.
        if number(&program, 0, 4) != Some(4) {
            continue;
        }
        let offset = number(&program, 8, 8).unwrap_or(0);
        let length = number(&program, 32, 8)
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(0);
        let mut notes = vec![0; length.min(HEADERS_BYTES)];
        if file.read_exact_at(&mut notes, offset).is_err() {
            return Some("is cut off");
        }
        if has_pvh_note(&notes) {
            return None;
        }
    }
    Some("has no PVH entry (CONFIG_PVH)")
}

fn has_pvh_note(mut notes: &[u8]) -> bool {
    const PHYS32_ENTRY: u64 = 18;
    while let (Some(name), Some(value), Some(kind)) =
        (number(notes, 0, 4), number(notes, 4, 4), number(notes, 8, 4))
    {
        if kind == PHYS32_ENTRY && notes.get(12..16) == Some(b"Xen\0".as_slice()) {
            return true;
        }
        let padded = |length: u64| usize::try_from(length.next_multiple_of(4)).unwrap_or(usize::MAX);
        let next = 12usize.saturating_add(padded(name)).saturating_add(padded(value));
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

/// A little-endian number of `length` bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}

pub(super) fn initramfs(path: &Path) -> Outcome {
    let remedy = format!("{HACK_BUILD}, or set `vm.initramfs` to an uncompressed cpio archive with /init");
    match File::open(path).and_then(|file| initramfs_problem(io::BufReader::new(file))) {
        Ok(None) => Outcome::Good(format!("{} has /init", path.display())),
        Ok(Some(problem)) => Outcome::bad(format!("{} {problem}", path.display()), remedy),
        Err(error) => Outcome::bad(format!("{}: {error}", path.display()), remedy),
    }
}

/// What keeps the file from being an initial file system: a cpio archive in the format "newc" with the program /init
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn initramfs_problem(mut archive: impl Read) -> io::Result<Option<&'static str>> {
    const HEADER_BYTES: usize = 110;
    let mut first = true;
    loop {
        let mut header = [0; HEADER_BYTES];
        if archive.read_exact(&mut header).is_err() {
            return Ok(Some(if first {
                "is no cpio archive"
            } else {
                "has no /init"
            }));
        }
        if !matches!(header.get(..6), Some(b"070701" | b"070702")) {
            return Ok(Some(if first {
                "is no uncompressed cpio archive"
            } else {
                "has no /init"
            }));
        }
        first = false;
        let field = |index: usize| {
            let text = header
                .get(6 + 8 * index..14 + 8 * index)
                .and_then(|text| str::from_utf8(text).ok());
            text.and_then(|text| u64::from_str_radix(text, 16).ok())
        };
        let (Some(mode), Some(size), Some(name_size)) = (field(1), field(6), field(11)) else {
            return Ok(Some("is a damaged cpio archive"));
        };
        let name_bytes = usize::try_from(name_size).unwrap_or(usize::MAX);
        if name_bytes > 4096 {
            return Ok(Some("is a damaged cpio archive"));
        }
        // Name and content are each followed by zeros up to a multiple of four, counted from the header.
        let mut name = vec![0; (HEADER_BYTES + name_bytes).next_multiple_of(4) - HEADER_BYTES];
        if archive.read_exact(&mut name).is_err() {
            return Ok(Some("is cut off"));
        }
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if matches!(name, b"init" | b"/init" | b"./init") {
            let program = mode & 0o170_000 == 0o100_000 && mode & 0o111 != 0 && size > 0;
            return Ok(if program {
                None
            } else {
                Some("has an /init that is no program")
            });
        }
        if name == b"TRAILER!!!" {
            return Ok(Some("has no /init"));
        }
        let padded = size.next_multiple_of(4);
        if io::copy(&mut archive.by_ref().take(padded), &mut io::sink())? < padded {
            return Ok(Some("is cut off"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_file(bytes: &[u8]) -> Option<&'static str> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        kernel_problem(&file)
    }

    /// An ELF file with one segment of notes.
    fn elf(notes: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64 + 56, 0);
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&4u32.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend_from_slice(notes);
        file
    }

    fn note(name: &[u8], kind: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for field in [u32::try_from(name.len()).unwrap(), 4, kind] {
            note.extend_from_slice(&field.to_le_bytes());
        }
        note.extend_from_slice(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend_from_slice(&[0; 4]);
        note
    }

    #[test]
    fn a_kernel_is_known_by_its_note() {
        let mut notes = note(b"GNU\0", 3);
        assert_eq!(kernel_file(&elf(&notes)), Some("has no PVH entry (CONFIG_PVH)"));
        notes.extend(note(b"Xen\0", 18));
        assert_eq!(kernel_file(&elf(&notes)), None);
        assert_eq!(kernel_file(&elf(&notes)[..130]), Some("is cut off"));
    }

    #[test]
    fn what_is_no_kernel_is_told_apart() {
        assert_eq!(kernel_file(b""), Some("is too short for a kernel"));
        assert_eq!(kernel_file(&[b'x'; 100]), Some("is no ELF file"));
        let mut compressed = [0; 100];
        compressed[..2].copy_from_slice(b"MZ");
        assert_eq!(kernel_file(&compressed), Some("is a compressed kernel (bzImage)"));
        let mut other = elf(&[]);
        other[18] = 183;
        assert_eq!(kernel_file(&other), Some("is no ELF file for x86-64"));
    }

    fn entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
        let mut entry = b"070701".to_vec();
        for (index, value) in [
            0,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap(),
            0,
            0,
            0,
            0,
            u32::try_from(name.len()).unwrap() + 1,
            0,
        ]
        .into_iter()
        .enumerate()
        {
            assert!(index < 13);
            entry.extend_from_slice(format!("{value:08x}").as_bytes());
        }
        entry.extend_from_slice(name.as_bytes());
        entry.push(0);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend_from_slice(content);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    }

    #[test]
    fn an_initramfs_is_known_by_its_init() {
        let directory = entry("dev", 0o40755, b"");
        let file = entry("a-file", 0o100_644, b"12345");
        let init = entry("init", 0o100_755, b"\x7fELF");
        let trailer = entry("TRAILER!!!", 0, b"");
        let whole = [directory.clone(), file.clone(), init.clone(), trailer.clone()].concat();
        assert_eq!(initramfs_problem(&whole[..]).unwrap(), None);
        let without = [directory, file.clone(), trailer].concat();
        assert_eq!(initramfs_problem(&without[..]).unwrap(), Some("has no /init"));
        assert_eq!(
            initramfs_problem(&entry("init", 0o100_644, b"x")[..]).unwrap(),
            Some("has an /init that is no program")
        );
        assert_eq!(
            initramfs_problem(&b"\x1f\x8bcompressed"[..]).unwrap(),
            Some("is no cpio archive")
        );
        assert_eq!(
            initramfs_problem(&[0x1f; 200][..]).unwrap(),
            Some("is no uncompressed cpio archive")
        );
        assert_eq!(
            initramfs_problem(&file[..file.len() - 4]).unwrap(),
            Some("is cut off")
        );
    }
}
