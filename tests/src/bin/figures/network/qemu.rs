//! QEMU's microvm machine with the guest's kernel of ours, a network device, and an initramfs that does nothing but listen.

use std::{fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::Environment;

use super::{
    MEMORY_MIB, PORT, WIRE,
    link::{Namespace, PREFIX, Running, TAP},
};

/// Who moves QEMU's packets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backend {
    /// QEMU's process.
    Itself,
    /// The host's kernel.
    Kernel,
}

/// A guest that listens, gone when this is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    _process: Running,
    namespace: Namespace,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// Starts one in a namespace of its own; it listens when it is up.
    pub(super) fn boot(name: &'static str, address: [u8; 4], backend: Backend) -> Result<Self> {
        let vhost = match backend {
            Backend::Itself => "off",
            Backend::Kernel => {
                let status = Command::new("modprobe").arg("vhost_net").status()?;
                ensure!(status.success(), "the node has no module vhost_net");
                "on"
            }
        };
        let namespace = Namespace::with_tap(name, address)?;
        let directory = tempfile::tempdir().context("a directory for a machine")?;
        let initramfs = directory.path().join("initramfs");
        fs::write(&initramfs, self::initramfs(namespace.address())?)?;
        let kernel = Environment::get().guest.join("vmlinux");
        let memory = format!("{MEMORY_MIB}M");
        let netdev = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
        let [.., last] = address;
        let device = format!("virtio-net-pci,netdev=net,mac=02:00:00:00:00:{last:02x},romfile=");
        let console = directory.path().join("console.log");
        let console = format!("file,id=console,path={}", console.display());
        let process = namespace.run(&[
            "qemu-system-x86_64",
            "-machine",
            "microvm,pcie=on,acpi=on",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &memory,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            shown(&kernel)?,
            "-initrd",
            shown(&initramfs)?,
            "-append",
            "console=hvc0 quiet noreplace-smp panic=-1 reboot=t",
            "-chardev",
            &console,
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=console",
            "-netdev",
            &netdev,
            "-device",
            &device,
        ])?;
        Ok(Self {
            _process: process,
            namespace,
            _directory: directory,
        })
    }

    /// Where the guest is reached.
    pub(super) fn address(&self) -> IpAddr {
        self.namespace.address()
    }
}

/// Busybox, which sets the interface up, and what listens.
fn initramfs(address: IpAddr) -> Result<Vec<u8>> {
    let init = format!(
        "#!/busybox sh\n\
         /busybox ip link set lo up\n\
         /busybox ip address add {address}/{PREFIX} dev eth0\n\
         /busybox ip link set eth0 up\n\
         exec /wire {PORT}\n"
    );
    let read = |path: &str| fs::read(path).with_context(|| format!("there is no {path}"));
    let mut archive = Vec::new();
    for (name, content) in [
        ("busybox", read("/bin/busybox")?),
        ("wire", read(WIRE)?),
        ("init", init.into_bytes()),
    ] {
        append(&mut archive, name, 0o100_755, &content);
    }
    append(&mut archive, "TRAILER!!!", 0, &[]);
    Ok(archive)
}

/// Adds a file in the format of initramfs ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [
        0,
        mode as usize,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn shown(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
