//! The guest's side of the socket device, for tests: a driver whose sockets keep to flow control, and programs on them.

#![allow(clippy::cast_possible_truncation, reason = "tests name small numbers")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::LazyLock,
};

use super::{
    Vsock,
    packet::{HEADER_BYTES, HOST_CID, Header, NO_RECEIVE, NO_SEND, Op, Ports, STREAM},
};
use crate::virtio::fake_driver::{Buffer, FakeDriver, PATIENCE};

pub const CID: u32 = 3;

/// Receive buffer of a guest's socket.
pub const GUEST_BUFFER: u32 = 256 * 1024;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;

/// Largest payload that this guest sends in a packet.
const CHUNK: usize = 64 * 1024;

/// Byte n of every stream of the tests: bytes that repeat only after a number no buffer is a multiple of.
pub fn pattern(start: u64, length: usize) -> Vec<u8> {
    const PERIOD: usize = 1_000_003;
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..PERIOD as u64)
            .map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8)
            .collect()
    });
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = (start as usize + bytes.len()) % PERIOD;
        let end = PERIOD.min(at + length - bytes.len());
        bytes.extend_from_slice(&BYTES[at..end]);
    }
    bytes
}

/// What runs on a socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Program {
    /// Does nothing: reads nothing, writes nothing.
    Idle,
    /// Reads and checks against the pattern.
    Check,
    /// Writes so much of the pattern, then ends its direction.
    Write { total: u64 },
    /// Writes back what it reads, and ends when it ends.
    Echo,
}

/// A socket.
#[derive(Debug)]
pub struct Socket {
    pub program: Program,
    pub established: bool,
    pub reset: bool,
    /// Shutdown flags that the host has sent.
    pub host_ended: u32,
    /// Shutdown flags that were sent to the host.
    pub ended: u32,
    pub received: u64,
    pub consumed: u64,
    pub sent: u64,
    host_buffer: u32,
    host_forwarded: u32,
    forwarded_told: u64,
    unread: VecDeque<u8>,
    to_write: VecDeque<u8>,
}

impl Socket {
    fn new(program: Program) -> Self {
        Self {
            program,
            established: false,
            reset: false,
            host_ended: 0,
            ended: 0,
            received: 0,
            consumed: 0,
            sent: 0,
            host_buffer: 0,
            host_forwarded: 0,
            forwarded_told: 0,
            unread: VecDeque::new(),
            to_write: VecDeque::new(),
        }
    }

    /// Bytes that the host takes now.
    pub fn credit(&self) -> u32 {
        self.host_buffer
            .saturating_sub((self.sent as u32).wrapping_sub(self.host_forwarded))
    }
}

/// A guest.
pub struct FakeGuest {
    pub driver: FakeDriver,
    pub device: Vsock,
    pub sockets: BTreeMap<(u32, u32), Socket>,
    /// What runs on connections that the host opens to a port.
    pub listening: HashMap<u32, Program>,
    /// Packets for no socket.
    pub strays: Vec<Header>,
    /// Whether packets to the guest are taken.
    pub takes: bool,
    buffers: HashMap<u16, (u64, u32)>,
    idle_buffers: BTreeSet<u64>,
    buffer_bytes: u32,
    slots: Vec<u64>,
    slots_in_use: HashMap<u16, u64>,
    /// Programs that have more to do when there is room.
    pub host: HostSide,
}

/// Where the host's clients connect.
pub struct HostSide {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl HostSide {
    pub fn new() -> (Self, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let host = Self {
            _directory: directory,
            path,
        };
        (host, listener)
    }

    pub fn open(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a command; its answer is to be read.
    pub fn begin(&self, command: &str) -> UnixStream {
        let mut stream = self.open();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        stream
    }

    /// Sends a command and gives its answer too.
    pub fn command(&self, command: &str) -> (UnixStream, String) {
        let stream = self.begin(command);
        let answer = answer(&stream);
        (stream, answer)
    }
}

/// Reads a line and not a byte more.
pub fn answer(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line).unwrap();
    line.trim_end_matches('\n').to_owned()
}

impl FakeGuest {
    /// A guest whose driver is ready, with receive buffers of `buffer_bytes`.
    pub fn new(buffer_bytes: u32) -> Self {
        let (host, listener) = HostSide::new();
        let device = Vsock::new(CID, listener).unwrap();
        let driver = FakeDriver::new(&device, 48 << 20);
        let mut guest = Self {
            driver,
            device,
            sockets: BTreeMap::new(),
            listening: HashMap::new(),
            strays: Vec::new(),
            takes: true,
            buffers: HashMap::new(),
            idle_buffers: BTreeSet::new(),
            buffer_bytes,
            slots: Vec::new(),
            slots_in_use: HashMap::new(),
            host,
        };
        for _ in 0..128 {
            let slot = guest.driver.allocate(HEADER_BYTES + CHUNK);
            guest.slots.push(slot);
            let buffer = guest.driver.allocate(buffer_bytes as usize);
            guest.idle_buffers.insert(buffer);
        }
        let event = guest.driver.allocate(4);
        guest.driver.queues[EVENTS].offer(&[Buffer::Writable(event, 4)]);
        guest.driver.activate(&mut guest.device);
        guest.refill();
        guest
    }

    /// Buffers that the device has and may put packets into.
    pub fn buffers_given(&self) -> usize {
        self.buffers.len()
    }

    fn refill(&mut self) {
        while self.takes && self.driver.queues[TO_GUEST].room() >= 2 {
            let Some(address) = self.idle_buffers.pop_first() else {
                break;
            };
            // The header and the payload as one descriptor, or as two that split the header.
            let buffers = if self.buffers.len().is_multiple_of(2) {
                vec![Buffer::Writable(address, self.buffer_bytes)]
            } else {
                vec![
                    Buffer::Writable(address, 40),
                    Buffer::Writable(address + 40, self.buffer_bytes - 40),
                ]
            };
            let head = self.driver.queues[TO_GUEST].offer(&buffers);
            self.buffers.insert(head, (address, self.buffer_bytes));
        }
    }

    /// The next id of an event, if there is one.
    pub fn take_event(&mut self) -> Option<u32> {
        let address = self.driver.queues[EVENTS].take_used()?;
        assert_eq!(address.1, 4);
        Some(0)
    }

    /// Asks the host for a connection.
    pub fn connect(&mut self, ports: Ports, program: Program) {
        self.sockets
            .insert((ports.host, ports.guest), Socket::new(program));
        self.send(ports, Op::Request, 0, &[]);
    }

    /// The only socket there is.
    pub fn only(&mut self) -> (Ports, &mut Socket) {
        assert_eq!(self.sockets.len(), 1);
        let (ports, socket) = self.sockets.iter_mut().next().unwrap();
        (
            Ports {
                host: ports.0,
                guest: ports.1,
            },
            socket,
        )
    }

    pub fn header(&self, ports: Ports, op: Op, flags: u32, len: usize) -> Header {
        let socket = self.sockets.get(&(ports.host, ports.guest));
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            len: len as u32,
            kind: STREAM,
            op: op as u16,
            flags,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: socket.map_or(0, |socket| socket.consumed as u32),
        }
    }

    /// Sends a packet of a socket.
    pub fn send(&mut self, ports: Ports, op: Op, flags: u32, payload: &[u8]) {
        let header = self.header(ports, op, flags, payload.len());
        if let Some(socket) = self.sockets.get_mut(&(ports.host, ports.guest)) {
            socket.forwarded_told = socket.consumed;
            socket.sent += payload.len() as u64;
            if op == Op::Shutdown {
                socket.ended |= flags;
            }
        }
        self.send_raw(&header, payload);
    }

    /// Sends any header with any payload; waits for a place in the queue.
    pub fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        while self.slots.is_empty() || self.driver.queues[FROM_GUEST].room() < 2 {
            let seen = self.driver.interrupt.total();
            if !self.reclaim() {
                self.driver.interrupt.wait_beyond(seen);
            }
        }
        let slot = self.slots.pop().unwrap();
        self.driver.write(slot, &header.bytes());
        self.driver.write(slot + HEADER_BYTES as u64, payload);
        let mut buffers = vec![Buffer::Readable(slot, HEADER_BYTES as u32)];
        if !payload.is_empty() {
            buffers.push(Buffer::Readable(slot + HEADER_BYTES as u64, payload.len() as u32));
        }
        let head = self.driver.queues[FROM_GUEST].offer(&buffers);
        self.slots_in_use.insert(head, slot);
    }

    /// Takes back what the device has sent; whether there was something.
    pub fn reclaim(&mut self) -> bool {
        let mut some = false;
        while let Some((head, written)) = self.driver.queues[FROM_GUEST].take_used() {
            assert_eq!(written, 0);
            self.slots.push(self.slots_in_use.remove(&head).unwrap());
            some = true;
        }
        some
    }

    /// How many packets to the host wait in the queue.
    pub fn unsent(&self) -> usize {
        self.slots_in_use.len()
    }

    /// Runs the guest until `done`. Only interrupts wake it.
    pub fn run_until(&mut self, done: impl Fn(&mut Self) -> bool) {
        loop {
            let seen = self.driver.interrupt.total();
            let moved = self.step();
            if let Some(reason) = self.driver.interrupt.reset_reason() {
                panic!("the device is broken: {reason}");
            }
            if done(self) {
                return;
            }
            if !moved {
                self.driver.interrupt.wait_beyond(seen);
            }
        }
    }

    /// Takes what has come and lets the programs run; whether anything was done.
    pub fn step(&mut self) -> bool {
        let mut moved = self.reclaim();
        if self.takes {
            while let Some((head, written)) = self.driver.queues[TO_GUEST].take_used() {
                let (address, _) = self.buffers.remove(&head).unwrap();
                let bytes = self.driver.read(address, written as usize);
                self.idle_buffers.insert(address);
                let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
                assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
                assert_eq!((header.src_cid != 0, header.dst_cid), (true, u64::from(CID)));
                self.take(&header, &bytes[HEADER_BYTES..]);
                moved = true;
            }
            self.refill();
        }
        let all: Vec<(u32, u32)> = self.sockets.keys().copied().collect();
        for (host, guest) in all {
            moved |= self.run_program(Ports { host, guest });
        }
        moved
    }

    fn take(&mut self, header: &Header, payload: &[u8]) {
        let ports = Ports {
            host: header.src_port,
            guest: header.dst_port,
        };
        let op = Op::from_number(header.op).unwrap();
        if op == Op::Request {
            let Some(program) = self.listening.get(&ports.guest).copied() else {
                self.send(ports, Op::Reset, 0, &[]);
                return;
            };
            let mut socket = Socket::new(program);
            socket.established = true;
            socket.host_buffer = header.buf_alloc;
            self.sockets.insert((ports.host, ports.guest), socket);
            self.send(ports, Op::Response, 0, &[]);
            return;
        }
        let Some(socket) = self.sockets.get_mut(&(ports.host, ports.guest)) else {
            self.strays.push(*header);
            if op != Op::Reset {
                self.send(ports, Op::Reset, 0, &[]);
            }
            return;
        };
        if op != Op::Reset {
            socket.host_buffer = header.buf_alloc;
            socket.host_forwarded = header.fwd_cnt;
            let under_way = (socket.sent as u32).wrapping_sub(header.fwd_cnt);
            assert!(
                under_way <= header.buf_alloc,
                "the host has forwarded what was not sent"
            );
        }
        match op {
            Op::Response => socket.established = true,
            Op::Reset => socket.reset = true,
            Op::Shutdown => socket.host_ended |= header.flags,
            Op::Data => {
                assert_eq!(socket.host_ended & NO_SEND, 0, "bytes after the end");
                socket.received += payload.len() as u64;
                socket.unread.extend(payload);
                assert!(
                    socket.received - socket.consumed <= u64::from(GUEST_BUFFER),
                    "the host has sent more than there is room for"
                );
            }
            Op::CreditRequest => self.send(ports, Op::CreditUpdate, 0, &[]),
            Op::CreditUpdate | Op::Request => {}
        }
    }

    fn run_program(&mut self, ports: Ports) -> bool {
        let Some(socket) = self.sockets.get_mut(&(ports.host, ports.guest)) else {
            return false;
        };
        if socket.reset || !socket.established {
            return false;
        }
        let mut moved = false;
        match socket.program {
            Program::Idle => return false,
            Program::Check | Program::Echo => {
                let bytes: Vec<u8> = socket.unread.drain(..).collect();
                moved |= !bytes.is_empty();
                let expected = pattern(socket.consumed, bytes.len());
                assert!(
                    bytes == expected,
                    "bytes from {} on are not those sent",
                    socket.consumed
                );
                socket.consumed += bytes.len() as u64;
                if socket.program == Program::Echo {
                    socket.to_write.extend(bytes);
                }
            }
            Program::Write { total } => {
                let room = CHUNK.saturating_sub(socket.to_write.len());
                let begun = socket.sent + socket.to_write.len() as u64;
                let more = (total - begun).min(room as u64) as usize;
                socket.to_write.extend(pattern(begun, more));
            }
        }
        let may_write = self.slots.len() > 8 && socket.host_ended & NO_RECEIVE == 0;
        let count = socket.to_write.len().min(socket.credit() as usize).min(CHUNK);
        if may_write && count > 0 {
            let bytes: Vec<u8> = socket.to_write.drain(..count).collect();
            self.send(ports, Op::Data, 0, &bytes);
            return true;
        }
        let written = match socket.program {
            Program::Write { total } => socket.sent == total,
            Program::Echo => {
                let nothing_left = socket.to_write.is_empty() || socket.host_ended & NO_RECEIVE != 0;
                socket.host_ended & NO_SEND != 0 && nothing_left
            }
            Program::Check | Program::Idle => false,
        };
        if written && socket.ended & NO_SEND == 0 {
            self.send(ports, Op::Shutdown, NO_SEND, &[]);
            return true;
        }
        if socket.consumed - socket.forwarded_told > u64::from(GUEST_BUFFER / 4) {
            self.send(ports, Op::CreditUpdate, 0, &[]);
            return true;
        }
        moved
    }
}
