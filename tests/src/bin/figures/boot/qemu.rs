//! Machines of QEMU: its microvm with PCI and ACPI, for the guest's kernel finds nothing else.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::agent::DOORBELL_PORT;
use vsock::{VMADDR_CID_ANY, VsockListener};

use super::{MEMORY_MIB, Parts, hello::Vmm};

/// The guest's context id, which no other machine on the node has.
const CID: u32 = 0x42_4d_56;

/// Lets the host's kernel serve vsock.
pub(super) fn prepare() -> Result<()> {
    let status = Command::new("modprobe").arg("vhost_vsock").status()?;
    ensure!(
        status.success(),
        "QEMU's vsock device needs the host's module vhost_vsock"
    );
    Ok(())
}

/// What a machine has beside its virtio devices.
#[derive(Clone, Copy, Debug)]
pub(super) enum Legacy {
    /// What QEMU gives to a microvm by itself: interrupt controller, timer, clock and serial port of old PCs.
    AsItComes,
    /// Nothing of that.
    None,
}

impl Legacy {
    fn machine(self) -> &'static str {
        match self {
            Self::AsItComes => "microvm,pcie=on,acpi=on",
            Self::None => "microvm,pcie=on,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off",
        }
    }
}

/// How long a boot takes, from the start of the process until hello was read.
pub(super) fn boot(parts: &Parts, legacy: Legacy) -> Result<Duration> {
    let console = parts.directory.path().join("qemu-console.log");
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, DOORBELL_PORT)
        .context("the node cannot listen on vsock")?;
    let device = |name: &str, options: String| ["-device".to_owned(), format!("{name},{options}")];
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", legacy.machine()])
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m"])
        .arg(format!("{MEMORY_MIB}M"))
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&parts.kernel)
        .arg("-initrd")
        .arg(&parts.initramfs)
        .args(["-append", &parts.cmdline])
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", console.display()))
        .args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=console",
        ])
        .args(["-device", "virtio-rng-pci"])
        .args(device("vhost-vsock-pci", format!("guest-cid={CID}")))
        .arg("-drive")
        .arg(format!(
            "id=scratch,if=none,format=raw,file={}",
            parts.scratch.display()
        ))
        .args(device(
            "virtio-blk-pci",
            "drive=scratch,serial=scratch".to_owned(),
        ))
        .stdin(Stdio::null());

    let started = Instant::now();
    let vmm = Vmm::hold(command.spawn().context("qemu-system-x86_64 does not start")?)?;
    let accept = || {
        vmm.wait_for(&listener)?;
        Ok(listener.accept()?.0)
    };
    let hello = vmm.hello(accept).with_context(|| {
        let text = fs::read(&console).unwrap_or_default();
        format!("QEMU's console: {}", String::from_utf8_lossy(&text))
    });
    let whole = started.elapsed();
    hello.map(|_| whole)
}
