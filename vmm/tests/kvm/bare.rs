//! Guests of a few instructions: 32-bit machine code in an ELF file with a PVH note, as a kernel would be.

/// Where the code is loaded and entered.
const HOME: u32 = 0x10_0000;

/// A 32-bit word that the guest and the test share.
pub const SHARED: u32 = 0x20_0000;

/// Machine code, written instruction by instruction.
#[derive(Clone, Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any instructions, as bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// `out port, value`, a byte.
    pub fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `mov [address], value`, 32 bits.
    pub fn store(self, address: u32, value: u32) -> Self {
        self.raw(&[0xc7, 0x05])
            .raw(&address.to_le_bytes())
            .raw(&value.to_le_bytes())
    }

    /// `mov byte [address], value`.
    pub fn store_byte(self, address: u32, value: u8) -> Self {
        self.raw(&[0xc6, 0x05]).raw(&address.to_le_bytes()).raw(&[value])
    }

    /// The instructions as bytes.
    pub fn clone_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Powers the machine off.
    pub fn power_off(self) -> Self {
        self.out(0x600, 0x34).idle()
    }

    /// `hlt; jmp hlt`
    pub fn idle(self) -> Self {
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// Adds one to the shared word for ever.
    pub fn count(self) -> Self {
        // l: inc dword [SHARED]; jmp l
        self.raw(&[0xff, 0x05])
            .raw(&SHARED.to_le_bytes())
            .raw(&[0xeb, 0xf8])
    }

    /// The code `times` times, as a loop on EBP.
    pub fn repeated(self, times: u32) -> Self {
        let length = i32::try_from(self.bytes.len()).unwrap();
        // mov ebp, times; l: …; dec ebp; jnz l
        Self::new()
            .raw(&[0xbd])
            .raw(&times.to_le_bytes())
            .raw(&self.bytes)
            .raw(&[0x4d, 0x0f, 0x85])
            .raw(&(-(length + 7)).to_le_bytes())
    }

    /// The kernel file.
    pub fn kernel(&self) -> Vec<u8> {
        let entry = HOME.to_le_bytes();
        let note: Vec<u8> = [4u32, 4, 18]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(*b"Xen\0")
            .chain(entry)
            .collect();
        let headers = 64 + 2 * 56;
        let length = self.bytes.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(u64::from(HOME).to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        for half in [64u16, 56, 2, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for (kind, offset, size) in [(1u32, headers, length), (4, headers + length, note.len() as u64)] {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, HOME.into(), HOME.into(), size, size, 0] {
                file.extend(word.to_le_bytes());
            }
        }
        file.extend(&self.bytes);
        file.extend(note);
        file
    }
}
