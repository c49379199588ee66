//! The control socket: disks and network interfaces are taken and listed, nothing is done with them.

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    thread,
};

use bulkhead_vmm::{
    config::{ExitReason, VmConfig},
    control::protocol::{
        ControlFailure, MachinePhase, MachineState, PACKET_BYTES, PACKET_FDS, Request, Response,
    },
};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags, accept, recvmsg, send};

use super::Machine;

/// Answers on a thread of its own until the process ends.
pub fn serve(listener: OwnedFd, config: &VmConfig, machine: Arc<Machine>) {
    let state = MachineState {
        name: config.name.clone(),
        phase: MachinePhase::Running,
        pid: std::process::id(),
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        disks: config.disks.iter().map(|disk| disk.serial.clone()).collect(),
        nets: config.nets.iter().map(|net| net.mac.clone()).collect(),
        setup_us: 1,
    };
    let state = Arc::new(Mutex::new(state));
    thread::spawn(move || {
        loop {
            let client = accept(&listener).unwrap();
            let (state, machine) = (Arc::clone(&state), Arc::clone(&machine));
            thread::spawn(move || while answer(&client, &state, &machine).is_some() {});
        }
    });
}

fn answer(client: &OwnedFd, state: &Mutex<MachineState>, machine: &Machine) -> Option<()> {
    let mut packet = vec![0; PACKET_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        client,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    if received.bytes == 0 {
        return None;
    }
    let response = match serde_json::from_slice(&packet[..received.bytes]).unwrap() {
        Request::AddDisk(disk) => {
            let mut state = state.lock().unwrap();
            if state.disks.contains(&disk.serial) {
                let message = format!("there is a disk {} already", disk.serial);
                Response::Error(ControlFailure { message })
            } else {
                state.disks.push(disk.serial);
                Response::Done
            }
        }
        Request::AddNet(net) => {
            state.lock().unwrap().nets.push(net.mac);
            Response::Done
        }
        Request::State => Response::State(state.lock().unwrap().clone()),
        Request::Quit => machine.end(ExitReason::Quit, "The owner asked for it."),
        Request::Pause | Request::Resume => Response::Done,
    };
    send(
        client,
        &serde_json::to_vec(&response).unwrap(),
        SendFlags::NOSIGNAL,
    )
    .ok()
    .map(drop)
}
