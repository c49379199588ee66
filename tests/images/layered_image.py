"""An image with everything that layers can hold, to be compared with what another tool unpacks from it.

Three layers to go on top of busybox: files of every kind; changes to them; changes to the changes.
"""

import random
import struct

import layer
from layer import directory, file, hard_link, opaque, symlink, whiteout

# VFS_CAP_REVISION_2 with the effective bit, permitted CAP_NET_RAW (bit 13): linux/capability.h, struct vfs_cap_data.
CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

MIB = 1024 * 1024


def layers() -> list[list[layer.Entry]]:
    return [every_kind(), changes(), changes_to_changes()]


def every_kind() -> list[layer.Entry]:
    return [
        directory("data"),
        *plain_files(),
        *links(),
        *special_files(),
        *owners_and_modes(),
        *extended_attributes(),
        *names(),
        *what_later_layers_change(),
        # A directory whose own entry comes after its contents, with a mode that would have forbidden writing them.
        directory("data/late"),
        file("data/late/file", "written before its directory was closed\n"),
        directory("data/late", 0o555, mtime=1600000000),
    ]


def plain_files() -> list[layer.Entry]:
    noise = random.Random(1).randbytes(3 * MIB + 17)
    holes = bytearray(16 * MIB)
    holes[0:5] = b"start"
    holes[8 * MIB : 8 * MIB + 6] = b"middle"
    holes[-3:] = b"end"
    return [
        directory("data/files"),
        file("data/files/empty", b""),
        file("data/files/one-byte", b"x"),
        *(file(f"data/files/size-{size}", noise[:size]) for size in (511, 512, 513, 4095, 4096, 4097, 65536)),
        file("data/files/large", noise),
        file("data/files/mostly-holes", bytes(holes)),
        file("data/files/only-zeros", bytes(MIB)),
        file("data/files/epoch", "last changed at the epoch\n", mtime=0),
        file("data/files/before-2001", "last changed with nine digits\n", mtime=999999999),
        file("data/files/after-2038", "last changed past 32 bits\n", mtime=2**32 + 5),
        file("data/files/nanoseconds", "last changed at a fraction of a second\n", mtime=1700000000.25),
    ]


def links() -> list[layer.Entry]:
    return [
        directory("data/links"),
        directory("data/links/other"),
        file("data/links/first", "three names\n", uid=7, gid=8),
        hard_link("data/links/second", "data/links/first"),
        hard_link("data/links/other/third", "data/links/first"),
        symlink("data/links/relative", "first"),
        symlink("data/links/upwards", "../files/large"),
        symlink("data/links/absolute", "/data/files/one-byte"),
        symlink("data/links/dangling", "nowhere/at/all"),
        symlink("data/links/out", "../../../../../../etc/passwd"),
        symlink("data/links/long", "/".join(["a-long-way"] * 30)),
        symlink("data/links/owned", "first", uid=1000, gid=1001),
        hard_link("data/links/same-symlink", "data/links/relative"),
    ]


def special_files() -> list[layer.Entry]:
    return [
        directory("data/special"),
        layer.character_device("data/special/null", 1, 3),
        layer.character_device("data/special/large-minor", 240, 70000, 0o600),
        layer.block_device("data/special/loop", 7, 3, gid=6),
        layer.fifo("data/special/fifo", 0o622, uid=3),
        hard_link("data/special/null-again", "data/special/null"),
    ]


def owners_and_modes() -> list[layer.Entry]:
    return [
        directory("data/owners"),
        *(
            file(f"data/owners/{uid}-{gid}", f"{uid}:{gid}\n", uid=uid, gid=gid)
            for uid, gid in ((1000, 1000), (33, 0), (65534, 65534), (200000, 300000), (2**31 - 1, 2**31 - 1))
        ),
        directory("data/owners/home", 0o700, uid=1000, gid=1000),
        file("data/owners/home/private", "mine\n", 0o600, uid=1000, gid=1000),
        directory("data/modes"),
        *(file(f"data/modes/{mode:04o}", f"{mode:o}\n", mode) for mode in (0o000, 0o400, 0o644, 0o777, 0o1644)),
        layer.program("data/modes/setuid", "#!/bin/sh\n", 0o4755, uid=1000),
        layer.program("data/modes/setgid", "#!/bin/sh\n", 0o2755, gid=1000),
        directory("data/modes/sticky", 0o1777),
        directory("data/modes/setgid-directory", 0o2775, gid=1000),
    ]


def extended_attributes() -> list[layer.Entry]:
    return [
        directory("data/xattrs", xattrs={"user.of-directory": b"yes"}),
        file("data/xattrs/text", "has attributes\n", xattrs={"user.one": b"1", "user.two": b"zwei \xc3\xa4"}),
        file("data/xattrs/large-value", "", xattrs={"user.large": bytes(range(1, 128)) * 16}),
        layer.program("data/xattrs/capable", "#!/bin/sh\n", xattrs={"security.capability": CAP_NET_RAW}),
    ]


def names() -> list[layer.Entry]:
    deep = "data/names"
    entries = [directory(deep)]
    for level in range(12):
        deep += f"/level-{level:02}-{'x' * 40}"
        entries.append(directory(deep))
    return [
        *entries,
        file(f"{deep}/bottom", "a path of more than 600 bytes\n"),
        file("data/names/" + "n" * 255, "a name of 255 bytes\n"),
        file("data/names/" + "h" * 100, "a name of 100 bytes\n"),
        hard_link("data/names/link-to-" + "h" * 100, "data/names/" + "h" * 100),
        file("data/names/with space", ""),
        file("data/names/ünï-cödé-☃", ""),
        file("data/names/-dash", ""),
        file("data/names/.hidden", ""),
        file("data/names/...", ""),
        file("data/names/back\\slash", ""),
        file("data/names/.wharf", "no whiteout: the prefix is .wh. with a dot\n"),
    ]


def what_later_layers_change() -> list[layer.Entry]:
    return [
        directory("data/changed"),
        file("data/changed/kept", "never touched\n"),
        file("data/changed/rewritten", "old\n"),
        file("data/changed/removed", "to be removed\n"),
        file("data/changed/removed-and-back", "to be removed and written again\n"),
        file("data/changed/file-to-directory", "old\n"),
        file("data/changed/file-to-symlink", "old\n"),
        symlink("data/changed/symlink-to-file", "kept"),
        symlink("data/changed/symlink-to-directory", "/data/files"),
        directory("data/changed/directory-to-file"),
        file("data/changed/directory-to-file/inside", ""),
        directory("data/changed/directory-to-symlink"),
        file("data/changed/directory-to-symlink/inside", ""),
        directory("data/changed/removed-directory"),
        directory("data/changed/removed-directory/deeper"),
        file("data/changed/removed-directory/deeper/inside", ""),
        directory("data/changed/opaque", 0o750, uid=5),
        file("data/changed/opaque/old", "hidden by the opaque whiteout\n"),
        directory("data/changed/opaque/old-directory"),
        file("data/changed/opaque/old-directory/inside", ""),
        directory("data/changed/opaque/both"),
        file("data/changed/opaque/both/old", ""),
        directory("data/changed/emptied"),
        file("data/changed/emptied/inside", ""),
        file("data/changed/mode-only", "content stays\n"),
        directory("data/changed/merged"),
        file("data/changed/merged/below", "of the lower layer\n"),
        file("data/changed/linked", "two names, one of them to be removed\n"),
        hard_link("data/changed/linked-too", "data/changed/linked"),
        file("data/changed/attribute", "", xattrs={"user.old": b"old"}),
    ]


def changes() -> list[layer.Entry]:
    return [
        file("data/changed/rewritten", "new, and longer than before\n", 0o600, uid=9),
        whiteout("data/changed/removed"),
        whiteout("data/changed/removed-and-back"),
        directory("data/changed/file-to-directory"),
        file("data/changed/file-to-directory/inside", "new\n"),
        symlink("data/changed/file-to-symlink", "kept"),
        file("data/changed/symlink-to-file", "a file now; what the link pointed to stays\n"),
        directory("data/changed/symlink-to-directory"),
        file("data/changed/symlink-to-directory/inside", "not in /data/files\n"),
        file("data/changed/directory-to-file", "a file now\n"),
        symlink("data/changed/directory-to-symlink", "/data/links"),
        whiteout("data/changed/removed-directory"),
        directory("data/changed/opaque", 0o700, uid=6),
        opaque("data/changed/opaque"),
        file("data/changed/opaque/new", "beside the opaque whiteout\n"),
        directory("data/changed/opaque/both"),
        file("data/changed/opaque/both/new", "the old file here is hidden\n"),
        directory("data/changed/emptied"),
        opaque("data/changed/emptied"),
        file("data/changed/mode-only", "content stays\n", 0o4711),
        directory("data/changed/merged", 0o711),
        file("data/changed/merged/above", "of the upper layer\n"),
        whiteout("data/changed/linked-too"),
        file("data/changed/attribute", "", xattrs={"user.new": b"new"}),
        directory("data/only-here"),
        file("data/only-here/removed-next", ""),
    ]


def changes_to_changes() -> list[layer.Entry]:
    return [
        file("data/changed/removed-and-back", "written again\n", uid=11),
        directory("data/changed/removed-directory", 0o711),
        file("data/changed/removed-directory/new", "nothing of the old directory comes back\n"),
        directory("data/changed/opaque", 0o755, uid=6),
        file("data/changed/opaque/newer", "above the opaque directory\n"),
        whiteout("data/only-here/removed-next"),
        directory("data/changed/directory-to-symlink"),
        file("data/changed/directory-to-symlink/inside", "a directory again, not what the link pointed to\n"),
    ]
