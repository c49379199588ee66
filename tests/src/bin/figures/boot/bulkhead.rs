//! A machine of `bulkhead-vmm`, started as the daemon starts one: every socket is bound by its owner and inherited.

use std::{
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::agent::DOORBELL_PORT;
use bulkhead_tests::Environment;
use bulkhead_vmm::{
    config::{ConsoleConfig, DiskAccess, DiskConfig, FileSource, SegmentConfig, VmConfig, VsockConfig},
    control::client::Client,
};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

use super::{MEMORY_MIB, Parts, hello::Vmm};

/// Where the time of a boot went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boot {
    /// From the start of the process until hello was read.
    pub(super) whole: Duration,
    /// From the start of the process to the first entry into the guest, as the VMM says.
    pub(super) setup: Duration,
    /// From the start of the guest's clock to the start of the agent, as the guest says.
    pub(super) kernel: Duration,
    /// From the start of the agent to its hello, as the guest says.
    pub(super) agent: Duration,
}

pub(super) fn boot(parts: &Parts) -> Result<Boot> {
    let directory = tempfile::tempdir_in(&parts.directory)?;
    let socket = directory.path().join("vsock");
    let control = directory.path().join("control");
    let listener = UnixListener::bind(&socket)?;
    fcntl_setfd(&listener, FdFlags::empty())?;
    let config = config(parts, directory.path(), &listener, &control);
    let input = serde_json::to_vec(&config)?;

    let started = Instant::now();
    let mut child = Command::new(Environment::get().bin.join("bulkhead-vmm"))
        .stdin(Stdio::piped())
        .spawn()
        .context("bulkhead-vmm does not start")?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    let vmm = Vmm::hold(child)?;
    stdin.write_all(&input)?;
    drop(stdin);
    drop(listener);

    let mut doorbell = UnixStream::connect(&socket)?;
    writeln!(doorbell, "LISTEN {DOORBELL_PORT}")?;
    expect_ok(&vmm, &mut doorbell)?;
    let hello = vmm.hello(|| {
        vmm.wait_for(&doorbell)?;
        Ok(UnixStream::from(receive_descriptor(&doorbell)?))
    })?;
    let whole = started.elapsed();

    let state = Client::connect(&control, Duration::from_mins(1))?.state()?;
    Ok(Boot {
        whole,
        setup: Duration::from_micros(state.setup_us),
        kernel: Duration::from_nanos(hello.agent_started_ns),
        agent: Duration::from_nanos(hello.ready_ns.saturating_sub(hello.agent_started_ns)),
    })
}

fn config(parts: &Parts, directory: &Path, vsock: &UnixListener, control: &Path) -> VmConfig {
    VmConfig {
        name: "boot".to_owned(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kernel: FileSource::Path(parts.kernel.clone()),
        initramfs: Some(FileSource::Path(parts.initramfs.clone())),
        cmdline: parts.cmdline.clone(),
        control: Some(FileSource::Path(control.to_owned())),
        disks: vec![DiskConfig {
            serial: "scratch".to_owned(),
            access: DiskAccess::ReadWrite,
            segments: vec![SegmentConfig {
                file: FileSource::Path(parts.scratch.clone()),
                length: None,
            }],
        }],
        nets: Vec::new(),
        vsock: Some(VsockConfig {
            cid: 3,
            socket: FileSource::Fd(vsock.as_raw_fd()),
        }),
        console: Some(ConsoleConfig {
            file: FileSource::Path(directory.join("console.log")),
            max_bytes: 65536,
            early: false,
        }),
        exit_report: None,
    }
}

/// Reads the answer to a request on the vsock device's socket, and not a byte more.
fn expect_ok(vmm: &Vmm, stream: &mut UnixStream) -> Result<()> {
    let mut line = String::new();
    while !line.ends_with('\n') {
        vmm.wait_for(&*stream)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte.map(char::from));
    }
    ensure!(line.starts_with("OK"), "the VMM answered {line:?}");
    Ok(())
}

/// The connection that the guest has opened.
fn receive_descriptor(socket: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.context("the VMM sent no connection")
}
