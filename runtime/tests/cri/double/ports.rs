//! The ports of the double: what listens there.

use bulkhead_proto::agent::{StreamReply, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Serves a connection to `port`.
pub async fn serve(mut stream: UnixStream, port: u32) {
    let refusal = match port {
        7 | 9 | 13 | 19 => String::new(),
        _ => format!("cannot connect to 127.0.0.1:{port}: Connection refused (os error 111)"),
    };
    let listens = refusal.is_empty();
    let reply = wire::encode(&StreamReply { refusal });
    if stream.write_all(&reply).await.is_err() || !listens {
        return;
    }
    let _ = match port {
        7 => echo(stream).await,
        9 => std::future::pending().await,
        13 => greet(stream).await,
        _ => loop {
            if let Err(error) = stream.write_all(&[b'x'; 4096]).await {
                break Err(error);
            }
        },
    };
}

/// Sends back what comes, and ends when the other side does.
async fn echo(stream: UnixStream) -> std::io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.write_all(b" and that was all").await
}

/// Says everything at once, and listens then.
async fn greet(mut stream: UnixStream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    Ok(())
}
