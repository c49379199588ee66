"""Unpacks the ELF kernel inside a bzImage: unpack_bzimage.py BZIMAGE VMLINUX.

The layout is the Linux x86 boot protocol's (Documentation/arch/x86/boot.rst): `setup_sects` at 0x1f1, magic "HdrS" at
0x202, and since protocol 2.08 the compressed payload's offset (from the protected-mode part) and length at 0x248.
"""

import gzip
import lzma
import shutil
import struct
import subprocess
import sys


def payload_of(image: bytes) -> bytes:
    if image[0x202:0x206] != b"HdrS":
        sys.exit("unpack_bzimage: not a bzImage (no HdrS magic)")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length]


def unpack(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ\x00"):
        # The last four bytes are the unpacked size, not part of the xz stream.
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload[:-4])
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        if not shutil.which("zstd"):
            sys.exit("unpack_bzimage: the kernel is packed with zstd: apt-get install zstd")
        return subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    sys.exit(f"unpack_bzimage: unknown compression, payload starts with {payload[:6].hex()}")


def main() -> None:
    bzimage, vmlinux = sys.argv[1:]
    with open(bzimage, "rb") as file:
        kernel = unpack(payload_of(file.read()))
    if not kernel.startswith(b"\x7fELF"):
        sys.exit("unpack_bzimage: what came out is not an ELF kernel")
    with open(vmlinux, "wb") as file:
        file.write(kernel)


main()
