"""The layers that most test images stand on: Debian's busybox with its libraries, and the static programs."""

import pathlib
import subprocess

import layer

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = """\
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""

# Debian's busybox has neither of these two.
PGREP = """\
#!/bin/sh
# pgrep NAME: pids of the processes whose name matches NAME.
status=1
for directory in /proc/[0-9]*; do
    name=$(cat "$directory/comm" 2>/dev/null) || continue
    if echo "$name" | grep -q -e "$1"; then
        echo "${directory#/proc/}"
        status=0
    fi
done
exit $status
"""
IPCS = """\
#!/bin/sh
# ipcs -m: shared memory segments.
echo
echo '------ Shared Memory Segments --------'
echo 'key        shmid      owner      perms      bytes      nattch     status'
tail -n +2 /proc/sysvipc/shm | while read -r key shmid perms size cpid lpid nattch uid rest; do
    printf '0x%08x %-10s %-10s %-10s %-10s %-10s\\n' "$key" "$shmid" "$uid" "$perms" "$size" "$nattch"
done
echo
"""

LIBRARIES = "lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"


def busybox(packages: pathlib.Path) -> list[layer.Entry]:
    """A small but whole userland. `packages` has the contents of Debian's busybox and libc6.

    The busybox is the dynamically linked one, whose shell starts applets as programs, so that masking /bin/ls is felt.
    Applets are hard links: masking one name must not mask the others.
    """
    libraries = find(packages, "libc.so.6").parent
    binary = find(packages, "busybox")
    applets = subprocess.run(
        [libraries / LOADER, "--library-path", libraries, binary, "--list-full"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    return [
        *(layer.directory(path) for path in ("bin", "dev", "etc", "lib", LIBRARIES, "lib64", "proc", "run", "sbin", "sys")),
        layer.directory("root", 0o700),
        layer.directory("tmp", 0o1777),
        *(layer.directory(path) for path in ("usr", "usr/bin", "usr/sbin", "var", "var/www")),
        layer.symlink("var/run", "/run"),
        layer.file("etc/passwd", PASSWD),
        layer.file("etc/group", GROUP),
        layer.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        *(
            layer.program(f"{LIBRARIES}/{name}", (libraries / name).read_bytes())
            for name in (LOADER, "libc.so.6", "libresolv.so.2")
        ),
        layer.symlink(f"lib64/{LOADER}", f"/{LIBRARIES}/{LOADER}"),
        layer.program("bin/busybox", binary.read_bytes()),
        *(layer.hard_link(path, "bin/busybox") for path in sorted(applets) if "/" in path and path != "bin/busybox"),
        layer.program("usr/bin/pgrep", PGREP),
        layer.program("usr/bin/ipcs", IPCS),
    ]


def find(packages: pathlib.Path, name: str) -> pathlib.Path:
    """The regular file of that name, wherever this Debian release has it."""
    found = [path for path in packages.rglob(name) if path.is_file() and not path.is_symlink()]
    if not found:
        raise FileNotFoundError(f"Debian's busybox and libc6 packages have no {name}")
    return min(found, key=lambda path: len(path.parts))
