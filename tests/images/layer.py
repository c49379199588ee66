"""Image layers: file entries in a fixed order, and the tar archive that they make, byte for byte the same every time."""

import dataclasses
import io
import pathlib
import stat
import tarfile

# Every file of a test image was last changed then (2024-01-02 03:04:05 UTC), unless it says otherwise.
MTIME = 1704164645

WHITEOUT_PREFIX = ".wh."
OPAQUE_WHITEOUT = ".wh..wh..opq"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tar entry. `path` is relative to the image's root; `xattrs` maps a name to raw bytes."""

    path: str
    kind: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    content: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = dataclasses.field(default_factory=dict)


def directory(path: str, mode: int = 0o755, **attributes) -> Entry:
    return Entry(path, tarfile.DIRTYPE, mode, **attributes)


def file(path: str, content: bytes | str, mode: int = 0o644, **attributes) -> Entry:
    return Entry(path, tarfile.REGTYPE, mode, content=content.encode() if isinstance(content, str) else content, **attributes)


def program(path: str, content: bytes | str, mode: int = 0o755, **attributes) -> Entry:
    return file(path, content, mode, **attributes)


def symlink(path: str, target: str, **attributes) -> Entry:
    return Entry(path, tarfile.SYMTYPE, 0o777, target=target, **attributes)


def hard_link(path: str, target: str) -> Entry:
    """Another name of `target`, which stands earlier in the same layer."""
    return Entry(path, tarfile.LNKTYPE, target=target)


def character_device(path: str, major: int, minor: int, mode: int = 0o666, **attributes) -> Entry:
    return Entry(path, tarfile.CHRTYPE, mode, device=(major, minor), **attributes)


def block_device(path: str, major: int, minor: int, mode: int = 0o660, **attributes) -> Entry:
    return Entry(path, tarfile.BLKTYPE, mode, device=(major, minor), **attributes)


def fifo(path: str, mode: int = 0o644, **attributes) -> Entry:
    return Entry(path, tarfile.FIFOTYPE, mode, **attributes)


def whiteout(path: str) -> Entry:
    """`path` of a lower layer is gone."""
    parent, _, name = path.rpartition("/")
    return file(f"{parent}/{WHITEOUT_PREFIX}{name}" if parent else WHITEOUT_PREFIX + name, b"", 0o600)


def opaque(path: str) -> Entry:
    """What lower layers have in the directory `path` is gone."""
    return file(f"{path}/{OPAQUE_WHITEOUT}", b"", 0o600)


def tree(root: pathlib.Path, within: list[str]) -> list[Entry]:
    """The files, links and directories below `within` (relative to `root`) as they are there, sorted by path."""
    entries = []
    for start in within:
        for path in sorted([root / start, *(root / start).rglob("*")]):
            name = str(path.relative_to(root))
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                entries.append(symlink(name, str(path.readlink())))
            elif path.is_dir():
                entries.append(directory(name, mode))
            else:
                entries.append(file(name, path.read_bytes(), mode))
    return entries


def tar(entries: list[Entry]) -> bytes:
    """A tar archive in the POSIX (pax) format, extended attributes as SCHILY.xattr records."""
    buffer = io.BytesIO()
    by_path: dict[str, Entry] = {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for entry in entries:
            if entry.kind == tarfile.LNKTYPE:
                # As tar writes it: a link's header repeats owner, mode and time of the file, and some unpackers apply them.
                entry = dataclasses.replace(by_path[entry.target], path=entry.path, kind=entry.kind, target=entry.target,
                                            content=b"", xattrs={}, device=(0, 0))
            by_path[entry.path] = entry
            info = tarfile.TarInfo(entry.path)
            info.type, info.mode = entry.kind, entry.mode
            info.uid, info.gid, info.mtime = entry.uid, entry.gid, entry.mtime
            info.linkname, info.size = entry.target, len(entry.content)
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.xattrs.items()
            }
            archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()
