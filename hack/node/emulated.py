"""Runs one command on an emulated node: emulated.py SESSION IMAGE TIMEOUT_SECONDS.

SESSION is a directory made by hack/kvm-host (shares, command, environment, directory, payload.ext4 if there is one);
IMAGE is what hack/node/image/build made. The node is QEMU with its software CPU, which emulates AMD-V, so that kvm_amd
works inside. The command's output is passed on live, and its exit status becomes this program's. Other statuses:

    124  the command did not end within TIMEOUT_SECONDS (0: no limit)
    125  the node failed: it did not boot, crashed, or stopped giving signs of life
    128+N  ended by signal N
"""

import os
import pathlib
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time

BOOT_LIMIT_SECONDS = 240
SILENCE_LIMIT_SECONDS = 180
EXIT_TIMEOUT = 124
EXIT_NODE_FAILED = 125
CONSOLE_LINES_SHOWN = 60


class NodeFailed(Exception):
    """The node itself, not the command in it, went wrong."""


class Interrupted(Exception):
    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    session, image = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    limit_seconds = float(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    node = Node(session, image)
    try:
        return node.run(limit_seconds)
    except NodeFailed as failure:
        report(f"the node failed: {failure}")
        report_console(session / "console.log")
        return EXIT_NODE_FAILED
    except TimeoutError:
        report(f"the command was still running after {limit_seconds:.0f} s and was ended (--timeout)")
        report_console(session / "console.log")
        return EXIT_TIMEOUT
    except Interrupted as interrupted:
        return 128 + interrupted.number
    finally:
        node.stop()


def interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


class Node:
    """One QEMU process and the pipes that its virtio-serial ports write to."""

    def __init__(self, session: pathlib.Path, image: pathlib.Path) -> None:
        self.session = session
        mark = b"\0end of output " + secrets.token_hex(16).encode() + b"\0"
        (session / "end-mark").write_bytes(mark)
        self.control = Lines(open_fifo(session / "control"))
        self.outputs = [
            Output(open_fifo(session / "stdout"), sys.stdout.fileno(), mark),
            Output(open_fifo(session / "stderr"), sys.stderr.fileno(), mark),
        ]
        self.started = time.monotonic()
        # A SIGKILL of this supervisor must not leave a machine behind, hence the parent-death signal.
        self.qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *qemu_command(session, image)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(session / "qemu.log").open("wb"),
            env={**os.environ, "TMPDIR": str(session)},
            start_new_session=True,
        )

    def run(self, limit_seconds: float) -> int:
        """Passes output on until the command has ended and every byte of its output is written; its exit status."""
        status = None
        ready = False
        last_sign = self.started
        while status is None or not all(output.ended for output in self.outputs):
            now = time.monotonic()
            if limit_seconds and now - self.started > limit_seconds:
                raise TimeoutError
            if not ready and now - self.started > BOOT_LIMIT_SECONDS:
                raise NodeFailed(f"not up after {BOOT_LIMIT_SECONDS} s")
            if now - last_sign > SILENCE_LIMIT_SECONDS and ready:
                raise NodeFailed(f"no sign of life for {SILENCE_LIMIT_SECONDS} s")
            sources = [self.control, *(output for output in self.outputs if not output.ended)]
            readable, _, _ = select.select(sources, [], [], 1.0)
            if not readable and self.qemu.poll() is not None:
                raise NodeFailed(f"QEMU ended with status {self.qemu.returncode}: {self.qemu_messages()}")
            for source in readable:
                last_sign = now
                if isinstance(source, Output):
                    source.pass_on()
                    continue
                for line in source.read_lines():
                    if line == "ready":
                        ready = True
                        report(f"node up after {time.monotonic() - self.started:.1f} s (emulated)")
                    elif line.startswith("exit "):
                        status = int(line.removeprefix("exit "))
        return status

    def qemu_messages(self) -> str:
        return (self.session / "qemu.log").read_text(errors="replace").strip() or "it said nothing"

    def stop(self) -> None:
        """The node's disk is thrown away, so there is nothing to shut down in order."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.qemu.kill()
        self.qemu.wait()


class Output:
    """One output stream of the command: a pipe from QEMU, passed on to a descriptor of ours up to the end mark."""

    def __init__(self, source: int, target: int, mark: bytes) -> None:
        self.source, self.target, self.mark = source, target, mark
        self.held = b""
        self.ended = False

    def fileno(self) -> int:
        return self.source

    def pass_on(self) -> None:
        self.held += os.read(self.source, 65536)
        end = self.held.find(self.mark)
        if end >= 0:
            self.ended = True
            write_all(self.target, self.held[:end])
            return
        # The mark's beginning may be the last thing read; no output other than that is held back.
        keep = longest_suffix_that_starts(self.held, self.mark)
        write_all(self.target, self.held[: len(self.held) - keep])
        self.held = self.held[len(self.held) - keep :]


class Lines:
    """The control port: whole lines as they arrive."""

    def __init__(self, source: int) -> None:
        self.source = source
        self.partial = b""

    def fileno(self) -> int:
        return self.source

    def read_lines(self) -> list[str]:
        *lines, self.partial = (self.partial + os.read(self.source, 65536)).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def longest_suffix_that_starts(data: bytes, mark: bytes) -> int:
    for length in range(min(len(mark) - 1, len(data)), 0, -1):
        if mark.startswith(data[-length:]):
            return length
    return 0


def write_all(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def open_fifo(path: pathlib.Path) -> int:
    """Open for reading and writing, so that opening does not wait for QEMU and its end is no end of file."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def qemu_command(session: pathlib.Path, image: pathlib.Path) -> list[str]:
    command = [
        "qemu-system-x86_64",
        *("-machine", "q35,usb=off,vmport=off,hpet=off", "-accel", "tcg,thread=multi,tb-size=1024"),
        *("-cpu", "EPYC-Rome,+svm,+npt", "-smp", cpus(), "-m", f"{memory_mib()}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
        *("-serial", f"file:{session / 'console.log'}"),
        *("-kernel", str(image / "vmlinux"), "-initrd", str(image / "initrd")),
        *("-append", "console=ttyS0 loglevel=5 mitigations=off apparmor=0 selinux=0 audit=0 panic=-1 no_timer_check tsc=reliable "
          "net.ifnames=0 random.trust_cpu=on "
          "modprobe.blacklist=ahci,i2c_i801,iTCO_wdt,lpc_ich,psmouse,pcspkr,intel_rapl_msr,intel_rapl_common "
          "systemd.show_status=no systemd.default_timeout_start_sec=600"),
        *disk("root", image / "root.ext4"),
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci,max_ports=4"),
    ]
    command += shlex.split(os.environ.get("BULKHEAD_NODE_QEMU_OPTIONS", ""))
    for port in ("control", "stdout", "stderr"):
        command += ["-chardev", f"file,id={port},path={session / port},append=on"]
        command += ["-device", f"virtserialport,chardev={port},name={port}"]
    payload = session / "payload.ext4"
    if payload.exists():
        command += disk("payload", payload)
    command += share("session", "ro", session)
    for line in (session / "shares").read_text().splitlines():
        tag, mode, path = line.split(" ", 2)
        command += share(tag, mode, pathlib.Path(path))
    return command


def disk(serial: str, path: pathlib.Path) -> list[str]:
    """A disk whose writes go to an unlinked temporary file: the image stays as it is and may be used by several nodes."""
    drive = f"file={option_value(path)},format=raw,if=none,id={serial},snapshot=on,cache=unsafe,aio=threads,discard=unmap"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]


def share(tag: str, mode: str, path: pathlib.Path) -> list[str]:
    readonly = "on" if mode == "ro" else "off"
    return [
        "-fsdev", f"local,id={tag},path={option_value(path)},security_model=passthrough,readonly={readonly},multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]


def option_value(path: pathlib.Path) -> str:
    """QEMU separates options with commas; one inside a value is doubled."""
    return str(path).replace(",", ",,")


def cpus() -> str:
    """One, unless BULKHEAD_NODE_CPUS says otherwise: use two cores with two nodes.

    With two, QEMU's CPU (7.2 and 10.0) mixes up worlds once in some fifty virtual machines: a guest was seen to run with its
    host's own instruction pointer and page tables, and hosts to crash with the time of their guest. With one, guests that
    make system calls as fast as they can were twice seen to get an interrupt with interrupts off, at the first instruction
    of the kernel's entry, which is a double fault: helper_vmrun() leaves the vector of an interrupt that it has injected in
    exception_index, where the main loop may find it again.
    """
    return os.environ.get("BULKHEAD_NODE_CPUS", "1")


def memory_mib() -> int:
    """8 GiB, or half of what is free where that is less (two nodes may run at once), but never under 2 GiB."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        fields = dict(line.split(":", 1) for line in meminfo)
    available = int(fields["MemAvailable"].split()[0]) // 1024
    return max(2048, min(8192, available // 2))


def report(message: str) -> None:
    print(f"kvm-host: {message}", file=sys.stderr, flush=True)


def report_console(path: pathlib.Path) -> None:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    report(f"last lines of the node's console ({len(lines)} in all):")
    for line in lines[-CONSOLE_LINES_SHOWN:]:
        print(f"    | {line}", file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
