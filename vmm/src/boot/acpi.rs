//! The ACPI tables: as few as a guest without legacy hardware needs.
//!
//! RSDP and XSDT lead to a MADT (local APICs only), an MCFG (the configuration space of bus 0), a hardware-reduced FADT
//! (power off and reset are two I/O ports) and a DSDT with the PCI host bridge, the S5 state and the generation ID device.

use acpi_tables::{
    Aml, aml,
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::{
    GuestRam,
    layout::{ACPI_START, BAR_WINDOW_LAST, BAR_WINDOW_START, ECAM_START, GENERATION_ID, LOCAL_APIC},
};

/// Port of the sleep control register (ACPI 6.5, 4.8.3.7). Writing `SLP_EN | SLP_TYP = 5` powers the machine off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port of the sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Port of the reset register (ACPI 6.5, 4.8.3.6).
pub const RESET_PORT: u16 = 0x602;
/// What has to be written there.
pub const RESET_VALUE: u8 = 1;
/// `SLP_EN` in the sleep control register.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYP` of the S5 state, which stands in bits 2 to 4.
pub const SLEEP_TYPE_S5: u8 = 5;

const OEM_ID: [u8; 6] = *b"BLKHD ";
const OEM_TABLE_ID: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;

/// A virtual machine generation ID: 16 random bytes, new in every clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationId(pub [u8; 16]);

/// Writes the tables for a machine of `vcpus` vCPUs; the RSDP is at [`ACPI_START`].
///
/// # Errors
///
/// [`BootError::Write`].
pub fn write_tables(ram: &GuestRam, vcpus: u8, generation: GenerationId) -> Result<(), BootError> {
    let mut area = Area {
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = area.append(dsdt().as_slice());
    let tables = [
        area.append_table(&fadt(dsdt)),
        area.append_table(&madt(vcpus)),
        area.append_table(&mcfg()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(table);
    }
    let xsdt = area.append_table(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    let mut bytes = rsdp;
    bytes.extend(area.bytes.get(Rsdp::len()..).unwrap_or_default());
    if ACPI_START + bytes.len() as u64 > GENERATION_ID {
        return Err(BootError::Write {
            what: "the ACPI tables",
            reason: format!("their {} bytes reach the generation ID", bytes.len()),
        });
    }
    write(ram, "the ACPI tables", ACPI_START, &bytes)?;
    write_generation_id(ram, generation)
}

/// Gives the guest's machine a new identity.
///
/// # Errors
///
/// [`BootError::Write`].
pub fn write_generation_id(ram: &GuestRam, generation: GenerationId) -> Result<(), BootError> {
    write(ram, "the generation ID", GENERATION_ID, &generation.0)
}

fn write(ram: &GuestRam, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(address))
        .map_err(|error| BootError::Write {
            what,
            reason: error.to_string(),
        })
}

/// Tables one after the other, from [`ACPI_START`] on, with the RSDP's place kept free.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    fn append_table(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.append(&bytes)
    }

    /// Appends at the next multiple of 8 bytes and gives the address.
    fn append(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let address = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address
    }
}

/// `IAPC_BOOT_ARCH` flags (ACPI 6.5, 5.2.9.3): hardware that a guest need not look for.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    mcfg
}

fn dsdt() -> Sdt {
    let mut code = Vec::new();
    host_bridge(&mut code);
    generation_id(&mut code);
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    let mut table = Sdt::new(*b"DSDT", HEADER_SIZE, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// Size of every table's header.
const HEADER_SIZE: u32 = 36;

/// Bus 0 of segment 0, with one window for the memory of its functions.
fn host_bridge(code: &mut Vec<u8>) {
    let bus = aml::AddressSpace::new_bus_number(0u16, 0u16);
    let window = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        BAR_WINDOW_START,
        BAR_WINDOW_LAST,
        None,
    );
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&bus, &window])),
        ],
    )
    .to_aml_bytes(code);
}

/// The device that tells where the generation ID is ("Virtual Machine Generation ID", Microsoft 2012). A change is
/// not announced: that would take an interrupt of another kind than MSI. The guest's agent reseeds after a restore.
fn generation_id(code: &mut Vec<u8>) {
    let [low, high] = [GENERATION_ID & u64::from(u32::MAX), GENERATION_ID >> 32]
        .map(|half| u32::try_from(half).expect("half of 64 bits fits 32"));
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"VMGENCTR"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    fn read(ram: &GuestRam, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let length = u32::from_le_bytes(read(ram, address + 4, 4).try_into().unwrap());
        let table = read(ram, address, length as usize);
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn address(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_the_root_with_a_right_checksum() {
        let ram = allocate(32).unwrap();
        write_tables(&ram, 3, GenerationId([7; 16])).unwrap();
        let rsdp = read(&ram, ACPI_START, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&ram, address(&rsdp[24..32]));
        let signatures: Vec<Vec<u8>> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(&ram, address(entry))[..4].to_vec())
            .collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        let fadt = table(&ram, address(&xsdt[36..44]));
        assert_eq!(&table(&ram, address(&fadt[140..148]))[..4], b"DSDT");
        let madt = table(&ram, address(&xsdt[44..52]));
        assert_eq!(madt.len(), 44 + 3 * 8, "one local APIC for each of three vCPUs");
        assert_eq!(read(&ram, GENERATION_ID, 16), [7; 16]);
    }
}
