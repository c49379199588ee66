//! The host's side: streams to and from a far end, and round trips.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// Bytes of one stream.
const STREAM: u64 = 16 << 20;

/// Bytes that are written or read at once.
const PIECE: usize = 128 << 10;

/// Round trips of which the mean is one sample.
const TRIPS: u32 = 100;

/// How long a machine may take to come up, and one call to be answered.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until there is somebody.
pub(super) fn wait_for(address: SocketAddr) -> Result<()> {
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(started.elapsed() < PATIENCE, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Mebibytes a second of a stream to the far end, until it has all of it.
pub(super) fn write(address: SocketAddr) -> Result<f64> {
    let mut connection = ask(address, b'w', STREAM)?;
    let piece = vec![b'x'; PIECE];
    let started = Instant::now();
    for _ in 0..STREAM / PIECE as u64 {
        connection.write_all(&piece)?;
    }
    connection.read_exact(&mut [0])?;
    Ok(rate(started.elapsed()))
}

/// Mebibytes a second of a stream from the far end.
pub(super) fn read(address: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    let mut connection = ask(address, b'r', STREAM)?;
    let mut piece = vec![0; PIECE];
    let mut left = STREAM;
    while left > 0 {
        let count = connection.read(&mut piece)?;
        ensure!(count > 0, "the stream ended {left} bytes early");
        left -= count as u64;
    }
    Ok(rate(started.elapsed()))
}

/// How long one byte takes there and back.
pub(super) fn round_trip(address: SocketAddr) -> Result<Duration> {
    let mut connection = ask(address, b'e', u64::from(TRIPS))?;
    let started = Instant::now();
    let mut byte = [0];
    for _ in 0..TRIPS {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
    }
    Ok(started.elapsed() / TRIPS)
}

fn ask(address: SocketAddr, what: u8, count: u64) -> Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut request = vec![what];
    request.extend(count.to_le_bytes());
    connection.write_all(&request)?;
    Ok(connection)
}

fn rate(time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a power of two")]
    let mebibytes = (STREAM >> 20) as f64;
    mebibytes / time.as_secs_f64()
}
