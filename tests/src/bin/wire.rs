//! The far end of what `hack/bench network` measures: `wire PORT` serves TCP with streams and echoes.
//!
//! It runs in a pod's container, in a namespace and in a bare guest, so it is linked statically and needs nothing there. On
//! each connection the other side first says what it wants, one byte and a count of eight, the lowest first:
//!
//! - `w`: it will write so many bytes. When they are here, one byte is sent back.
//! - `r`: it wants to read so many bytes.
//! - `e`: it wants so many single bytes back, one after the other.

use std::{
    env,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
};

/// Bytes that are written or read at once.
const PIECE: usize = 128 << 10;

fn main() -> ExitCode {
    let Some(port) = env::args().nth(1).and_then(|word| word.parse().ok()) else {
        eprintln!("Usage: wire PORT");
        return ExitCode::from(2);
    };
    match listen(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wire: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    loop {
        let (connection, _) = listener.accept()?;
        // Whoever hangs up early has what they want.
        thread::spawn(move || drop(serve(connection)));
    }
}

fn serve(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut what = [0];
    let mut count = [0; 8];
    connection.read_exact(&mut what)?;
    connection.read_exact(&mut count)?;
    let count = u64::from_le_bytes(count);
    match &what {
        b"w" => {
            take(&mut connection, count)?;
            connection.write_all(&[0])
        }
        b"r" => give(&mut connection, count),
        b"e" => echo(&mut connection, count),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn take(connection: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let count = connection.read(&mut piece)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

fn give(connection: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let piece = vec![b'x'; PIECE];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        connection.write_all(piece.get(..count).unwrap_or(&piece))?;
        left -= count as u64;
    }
    Ok(())
}

fn echo(connection: &mut TcpStream, count: u64) -> io::Result<()> {
    let mut byte = [0];
    for _ in 0..count {
        connection.read_exact(&mut byte)?;
        connection.write_all(&byte)?;
    }
    Ok(())
}
