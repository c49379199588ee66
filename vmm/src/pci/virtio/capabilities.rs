//! The vendor capabilities by which a driver finds the structures of a virtio device in its BAR (virtio 1.2, 4.1.4), and
//! where they lie.

use std::ops::Range;

use super::common_config;
use crate::pci::ConfigSpace;

/// Size of the BAR. Each structure has a page of its own.
pub(super) const MEMORY_SIZE: u64 = 0x8000;

const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
/// Doorbells: one word for each queue.
pub(super) const NOTIFY: u64 = 3 * PAGE;
const MSIX_TABLE: u64 = 4 * PAGE;
const MSIX_PENDING: u64 = 5 * PAGE;

/// Distance between the doorbells of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// A structure in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

const STRUCTURES: &[(Range<u64>, Structure)] = &[
    (COMMON..COMMON + common_config::SIZE, Structure::Common),
    (ISR..ISR + 1, Structure::Isr),
    (DEVICE..DEVICE + PAGE, Structure::Device),
    (NOTIFY..NOTIFY + PAGE, Structure::Notify),
    (MSIX_TABLE..MSIX_TABLE + PAGE, Structure::MsixTable),
    (MSIX_PENDING..MSIX_PENDING + PAGE, Structure::MsixPending),
];

/// The structure that an access to the BAR lies in as a whole, and where in it.
pub(super) fn structure(offset: u64, length: usize) -> Option<(Structure, u64)> {
    let last = offset.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
    STRUCTURES
        .iter()
        .find(|(range, _)| range.contains(&offset) && range.contains(&last))
        .map(|(range, structure)| (*structure, offset - range.start))
}

/// Ids of capabilities.
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;

/// Kinds of vendor capability.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Offsets of the capabilities that the guest works with after it has read them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    /// MSI-X: its message control follows 2 bytes later.
    pub(super) msix: u16,
    /// Access to the BAR through configuration space.
    pub(super) window: u16,
}

/// What the driver writes of the window, after the first two bytes: which BAR, offset, length and data.
const WINDOW_WRITABLE: [u8; 18] = [
    0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

/// Adds all capabilities of a device with `vectors` vectors.
pub(super) fn add(config: &mut ConfigSpace, vectors: u16) -> Offsets {
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let page = PAGE.try_into().unwrap_or(u32::MAX);
    for (kind, offset, length, more) in [
        (COMMON_CFG, COMMON, SIZE_OF_COMMON, &[][..]),
        (ISR_CFG, ISR, 1, &[]),
        (DEVICE_CFG, DEVICE, page, &[]),
        (NOTIFY_CFG, NOTIFY, page, &multiplier),
    ] {
        config.add_capability(VENDOR, &vendor_body(kind, offset, length, more), &[]);
    }
    let window = vendor_body(PCI_CFG, 0, 0, &[0; 4]);
    let window = config.add_capability(VENDOR, &window, &WINDOW_WRITABLE);
    Offsets {
        msix: config.add_capability(MSIX, &msix_body(vectors), &crate::pci::msix_control_writable()),
        window,
    }
}

const SIZE_OF_COMMON: u32 = 0x38;
const _: () = assert!(SIZE_OF_COMMON as u64 == common_config::SIZE);

/// `struct virtio_pci_cap` from `cap_len` on; all structures are in BAR 0.
fn vendor_body(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    let header = 16;
    let offset = u32::try_from(offset).expect("structures lie in the BAR");
    let mut body = vec![header + u8::try_from(more.len()).unwrap_or(0), kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

/// Message control with the size of the table less one, and where table and pending bits are in BAR 0.
fn msix_body(vectors: u16) -> Vec<u8> {
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    for offset in [MSIX_TABLE, MSIX_PENDING] {
        let offset = u32::try_from(offset).expect("structures lie in the BAR");
        body.extend(offset.to_le_bytes());
    }
    body
}

/// What a driver asks for through the window in configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) offset: u64,
    pub(super) length: usize,
}

impl Window {
    /// Offset of the data within the capability.
    pub(super) const DATA: u16 = 16;

    /// Reads the capability at `at`; `None` unless it names a valid access to BAR 0.
    pub(super) fn of(config: &ConfigSpace, at: u16) -> Option<Self> {
        let [bar] = config.bytes(at + 4);
        let offset = u64::from(u32::from_le_bytes(config.bytes(at + 8)));
        let length = usize::try_from(u32::from_le_bytes(config.bytes(at + 12))).ok()?;
        let fits = matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length as u64)
            && offset + (length as u64) <= MEMORY_SIZE;
        (bar == 0 && fits).then_some(Self { offset, length })
    }
}
