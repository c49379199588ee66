//! The header of a packet (virtio 1.2, section 5.10.6). It is copied out of guest memory once and judged from the copy.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// Most bytes of payload in a packet to the guest. Linux sends no more either.
pub const PAYLOAD_BYTES: usize = 64 * 1024;

/// VIRTIO_VSOCK_TYPE_STREAM, the only type of socket there is here.
pub const STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender of the packet receives no more.
pub const NO_RECEIVE: u32 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender of the packet sends no more.
pub const NO_SEND: u32 = 2;

/// A header, as it is on the wire. Of the length only that many bytes of payload are there is promised, see
/// [`super::queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub src_cid: u64,
    /// Receiver.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Type of socket.
    pub kind: u16,
    /// Operation, see [`Op`].
    pub op: u16,
    /// Of a shutdown: [`NO_RECEIVE`] and [`NO_SEND`].
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender's receive buffer has passed on.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header. Any bytes are one.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes the header.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer that ends whatever the sender takes for a connection.
    pub fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Reset as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// Takes the first `N` bytes; a header is exactly as long as its fields.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((chunk, others)) => {
            *rest = others;
            *chunk
        }
        None => [0; N],
    }
}

/// What a packet does (section 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Refuses it, or ends it at once.
    Reset = 3,
    /// Ends one or both directions.
    Shutdown = 4,
    /// Carries bytes.
    Data = 5,
    /// Says what there is room for.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::Noise;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: STREAM,
            op: Op::CreditUpdate as u16,
            flags: 0x4142_4344,
            buf_alloc: 0x5152_5354,
            fwd_cnt: 0x6162_6364,
        };
        let bytes = header.bytes();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[8..16], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21]);
        assert_eq!(bytes[24..32], [0x34, 0x33, 0x32, 0x31, 1, 0, 6, 0]);
        assert_eq!(bytes[32..40], [0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51]);
        assert_eq!(bytes[40..], [0x64, 0x63, 0x62, 0x61]);
    }

    #[test]
    fn any_bytes_are_a_header_and_come_back_the_same() {
        let mut noise = Noise::new(11);
        for _ in 0..1000 {
            let bytes = noise.bytes(HEADER_BYTES);
            assert_eq!(Header::parse(bytes.as_slice().try_into().unwrap()).bytes(), bytes);
        }
        let known = (0..=u16::MAX).filter_map(Op::from_number).count();
        assert_eq!(known, 7);
    }
}
