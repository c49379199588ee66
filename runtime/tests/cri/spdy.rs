//! A small client of SPDY/3.1 for tests: it compresses its headers as others do, and checks what it gets.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream is taken up.
    Opened(u32),
    /// Bytes of a stream, and whether they are its last.
    Data(u32, Vec<u8>, bool),
    /// A stream is broken off, and why.
    Reset(u32, u32),
    /// An echo.
    Ping(u32),
    /// It will say no more.
    GoAway,
}

/// The half that writes.
pub struct Writer<T> {
    to: WriteHalf<T>,
    compress: Compress,
    next: u32,
}

/// The half that reads.
pub struct Reader<T> {
    from: ReadHalf<T>,
    inflate: Decompress,
    dictionary: Vec<u8>,
}

/// A client on a connection that is upgraded already.
pub fn client<T: AsyncRead + AsyncWrite>(connection: T, dictionary: Vec<u8>) -> (Writer<T>, Reader<T>) {
    let (from, to) = tokio::io::split(connection);
    let mut compress = Compress::new(Compression::default(), true);
    compress.set_dictionary(&dictionary).unwrap();
    let writer = Writer {
        to,
        compress,
        next: 1,
    };
    let reader = Reader {
        from,
        inflate: Decompress::new(true),
        dictionary,
    };
    (writer, reader)
}

/// The bytes of a header block before compression.
pub fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
    let mut block = number(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend(number(text.len()));
        block.extend(text.as_bytes());
    }
    block
}

/// A control frame.
pub fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.push(flags);
    frame.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    frame.extend(body);
    frame
}

impl<T: AsyncRead + AsyncWrite> Writer<T> {
    /// Opens a stream and gives its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let frame = self.opening(stream, &header_block(headers));
        self.raw(&frame).await;
        stream
    }

    /// The frame that opens a stream with these bytes as its headers.
    pub fn opening(&mut self, stream: u32, block: &[u8]) -> Vec<u8> {
        let mut compressed = Vec::with_capacity(block.len() + 4096);
        self.compress
            .compress_vec(block, &mut compressed, FlushCompress::Sync)
            .unwrap();
        let body = [&stream.to_be_bytes()[..], &[0; 6], &compressed].concat();
        control(1, 0, &body)
    }

    /// Sends bytes of a stream.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.push(fin.into());
        frame.extend(&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..]);
        frame.extend(bytes);
        self.raw(&frame).await;
    }

    /// Breaks a stream off.
    pub async fn reset(&mut self, stream: u32) {
        let body = [stream.to_be_bytes(), 5u32.to_be_bytes()].concat();
        self.raw(&control(3, 0, &body)).await;
    }

    /// Asks for an echo.
    pub async fn ping(&mut self, id: u32) {
        self.raw(&control(6, 0, &id.to_be_bytes())).await;
    }

    /// Sends anything. A server that is gone is for the reader to see.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.to.write_all(bytes).await;
    }
}

impl<T: AsyncRead + AsyncWrite> Reader<T> {
    /// What comes next; `None` when the server has closed the connection.
    pub async fn next(&mut self) -> Option<Event> {
        let mut head = [0; 8];
        self.from.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let mut body = vec![0; length];
        self.from.read_exact(&mut body).await.ok()?;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            return Some(Event::Data(number(&head), body, head[4] & 1 != 0));
        }
        assert_eq!((head[0], head[1]), (0x80, 3), "another version");
        Some(match head[3] {
            2 => {
                self.check_headers(&body[4..]);
                Event::Opened(number(&body))
            }
            3 => Event::Reset(number(&body), number(&body[4..])),
            6 => Event::Ping(number(&body)),
            7 => Event::GoAway,
            other => panic!("a server sends no frame of type {other}"),
        })
    }

    /// A strict client wants the whole block to be needed, and nothing behind it.
    fn check_headers(&mut self, block: &[u8]) {
        let mut inflated = Vec::with_capacity(1000);
        let mut rest = block;
        while !rest.is_empty() {
            let before = self.inflate.total_in();
            let flush = FlushDecompress::Sync;
            if let Err(error) = self.inflate.decompress_vec(rest, &mut inflated, flush) {
                assert!(error.needs_dictionary().is_some(), "{error}");
                self.inflate.set_dictionary(&self.dictionary).unwrap();
            }
            rest = &rest[usize::try_from(self.inflate.total_in() - before).unwrap()..];
        }
        assert_eq!(inflated, [0, 0, 0, 0], "no headers");
    }
}
