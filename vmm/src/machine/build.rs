//! How a machine is put together, step by step.

use std::{os::fd::OwnedFd, panic::resume_unwind, sync::Arc, thread};

use super::{
    Accesses, Endings, Hardware, Machine, MachineError, ProcessStart, Sources,
    files::{BootFiles, DeviceFiles, OpenDisk},
    system,
};
use crate::{
    boot::{acpi, kernel, pvh},
    config::{ExitReason, NetConfig, VmConfig},
    control::protocol::MachinePhase,
    kvm::{GuestAccess, Host, OnStop, Stop, Vcpu, VcpuThreads, Vm},
    memory::{self, ConfigPages, GuestRam, layout::RamRanges},
    pci::{PciBus, PciHost, PvPanic, virtio::VirtioFunction},
    threads,
    virtio::{
        console::{Console, ConsoleLog},
        device::VirtioDevice,
        net::Net,
        rng::Rng,
        vsock::Vsock,
    },
};

/// Builds the machine that `config` describes. It stands still, ready for its first instruction, and has opened all that it
/// will ever open.
///
/// # Errors
///
/// [`MachineError`] saying what is missing and what to do.
pub fn build(config: VmConfig, mut sources: Sources, started: ProcessStart) -> Result<Machine, MachineError> {
    config.check()?;
    let boot_files = sources.boot_files(&config)?;
    let ram = memory::allocate(config.memory_mib)?;
    let endings = Arc::new(Endings::new().map_err(system("an eventfd"))?);

    // The two longest steps do not need each other, so they go side by side.
    let (hardware, start) = thread::scope(|scope| {
        let assembly = threads::named("assembly")
            .spawn_scoped(scope, || assemble(&config, sources, &ram, &endings))
            .map_err(system("a thread"))?;
        let start = load(&config, boot_files, &ram);
        let hardware = assembly.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok::<_, MachineError>((hardware?, start?))
    })?;
    hardware.vcpus.prepare_boot(start.entry, start.info)?;

    let addresses = config.nets.iter().map(NetConfig::hardware_address);
    Ok(Machine {
        nets: addresses.collect::<Result<_, _>>()?,
        disks: config.disks.iter().map(|disk| disk.serial.clone()).collect(),
        config,
        hardware,
        endings,
        ram,
        phase: MachinePhase::Paused,
        started,
    })
}

/// Makes all but the contents of the memory.
fn assemble(
    config: &VmConfig,
    sources: Sources,
    ram: &GuestRam,
    endings: &Arc<Endings>,
) -> Result<Hardware, MachineError> {
    let host = Host::open()?;
    host.check_vcpus(config.vcpus)?;
    let config_pages = Arc::new(ConfigPages::new()?);
    let vm = Arc::new(Vm::create(&host, ram, &config_pages)?);

    let mut files = sources.device_files(config)?;
    let control = files.control.take();
    let console = console(config, &mut files)?;
    let bus = PciBus::shown_on(config_pages);
    let bus = populate(bus, config, files, console.clone(), &vm, ram, endings)?;
    let early = config.console.as_ref().is_some_and(|console| console.early);
    let accesses = Arc::new(Accesses::new(bus, Arc::clone(endings), console.filter(|_| early)));

    let vcpus: Result<Vec<Vcpu>, MachineError> = (0..config.vcpus)
        .map(|index| {
            let vcpu = vm.create_vcpu(index, config.vcpus)?;
            vcpu.prepare_registers()?;
            Ok(vcpu)
        })
        .collect();
    let guest = Arc::clone(&accesses) as Arc<dyn GuestAccess>;
    let vcpus = VcpuThreads::start(vcpus?, &guest, &report_stops(endings))?;
    Ok(Hardware {
        vcpus,
        accesses,
        vm,
        host,
        control,
    })
}

/// Where the first vCPU starts, and what it is told.
struct Start {
    entry: u64,
    info: u64,
}

/// Fills the guest's memory.
fn load(config: &VmConfig, mut files: BootFiles, ram: &GuestRam) -> Result<Start, MachineError> {
    let ranges = RamRanges::of(config.memory_mib);
    let kernel = kernel::load_kernel(&mut files.kernel, ram, ranges)?;
    let initramfs = files
        .initramfs
        .map(|mut initramfs| kernel::load_initramfs(&mut initramfs, kernel, ram, ranges))
        .transpose()?;
    acpi::write_tables(ram, config.vcpus, new_generation()?)?;
    let info = pvh::write_start_info(ram, ranges, &config.cmdline, initramfs)?;
    Ok(Start {
        entry: kernel.entry,
        info,
    })
}

/// A machine like no other.
fn new_generation() -> Result<acpi::GenerationId, MachineError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| system("random bytes")(error.into()))?;
    Ok(acpi::GenerationId(id))
}

fn console(config: &VmConfig, files: &mut DeviceFiles) -> Result<Option<ConsoleLog>, MachineError> {
    let Some((console, file)) = config.console.as_ref().zip(files.console.take()) else {
        return Ok(None);
    };
    Ok(Some(ConsoleLog::new(file, console.max_bytes)?))
}

/// Places all functions on the bus, in the order in which guests number them.
fn populate(
    mut bus: PciBus,
    config: &VmConfig,
    files: DeviceFiles,
    console: Option<ConsoleLog>,
    vm: &Arc<Vm>,
    ram: &GuestRam,
    endings: &Arc<Endings>,
) -> Result<PciBus, MachineError> {
    let endings = Arc::clone(endings);
    let panic = PvPanic::new(bus.next_address()?, Arc::new(move || endings.panic()));
    bus.place(Box::new(panic))?;
    if let Some(console) = console {
        place(
            &mut bus,
            "console".to_owned(),
            Box::new(Console::new(console)),
            vm,
            ram,
        )?;
    }
    place(&mut bus, "rng".to_owned(), Box::new(Rng::new()), vm, ram)?;
    if let Some((vsock, socket)) = config.vsock.as_ref().zip(files.vsock) {
        let device = Vsock::new(vsock.cid, socket)?;
        place(&mut bus, "vsock".to_owned(), Box::new(device), vm, ram)?;
    }
    for (index, (net, taps)) in config.nets.iter().zip(files.taps).enumerate() {
        place_net(&mut bus, index, net, taps, vm, ram)?;
    }
    for disk in files.disks {
        place_disk(&mut bus, disk, vm, ram)?;
    }
    Ok(bus)
}

/// Places a disk on the bus.
pub(super) fn place_disk(
    bus: &mut PciBus,
    disk: OpenDisk,
    vm: &Arc<Vm>,
    ram: &GuestRam,
) -> Result<(), MachineError> {
    place(
        bus,
        format!("disk {}", disk.serial),
        Box::new(disk.block),
        vm,
        ram,
    )
}

/// Places the machine's `index`-th network interface on the bus.
pub(super) fn place_net(
    bus: &mut PciBus,
    index: usize,
    net: &NetConfig,
    taps: Vec<OwnedFd>,
    vm: &Arc<Vm>,
    ram: &GuestRam,
) -> Result<(), MachineError> {
    let device = Net::new(taps, net.hardware_address()?, net.mtu)?;
    place(bus, format!("net {index}"), Box::new(device), vm, ram)
}

/// Places a virtio device on the bus.
fn place(
    bus: &mut PciBus,
    name: String,
    device: Box<dyn VirtioDevice>,
    vm: &Arc<Vm>,
    ram: &GuestRam,
) -> Result<(), MachineError> {
    let host = Arc::clone(vm) as Arc<dyn PciHost>;
    let function = VirtioFunction::new(name, device, bus.next_address()?, host, GuestRam::clone(ram))?;
    Ok(bus.place(Box::new(function))?)
}

/// Tells of vCPUs that cannot go on.
fn report_stops(endings: &Arc<Endings>) -> OnStop {
    let endings = Arc::clone(endings);
    Arc::new(move |index, stop| match stop {
        Stop::Kicked => {}
        Stop::TripleFault => endings.end(
            ExitReason::TripleFault,
            format!("vCPU {index} met a triple fault"),
        ),
        Stop::Failed(reason) => endings.end(
            ExitReason::VmmError,
            format!("vCPU {index} cannot go on: {reason}"),
        ),
    })
}
