//! A way in for the fuzz target, to what is nobody else's business outside of this module.

use flate2::{Compress, Compression, FlushCompress};

use super::{
    activity::Activity,
    flow::Broken,
    spdy::{self, Incoming, Streams, dictionary, frame::Head},
};

/// Serves a connection on which a client sends `bytes` and reads nothing, with streams that are echoed. The first byte says
/// whether header blocks are what they are, or stand there uncompressed: then they are compressed first, which no mutation
/// would ever do rightly.
///
/// # Panics
///
/// When the server does.
pub fn serve_spdy(bytes: &[u8]) {
    let Some((mode, frames)) = bytes.split_first() else {
        return;
    };
    let sent = if mode % 2 == 0 {
        frames.to_vec()
    } else {
        compressed(frames)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without threads starts");
    runtime.block_on(async {
        let transport = tokio::io::join(sent.as_slice(), tokio::io::sink());
        let echo = async |mut streams: Streams| {
            while let Some(stream) = streams.next().await {
                let Incoming {
                    mut inlet, outlet, ..
                } = stream;
                tokio::spawn(async move {
                    while let Some(bytes) = inlet.next().await? {
                        outlet.send(bytes).await?;
                    }
                    outlet.finish().await;
                    Ok::<_, Broken>(())
                });
            }
        };
        let _left_or_thrown_out = spdy::serve(transport, Activity::new(), echo).await;
    });
}

/// Compresses the header blocks in a row of frames.
fn compressed(mut frames: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::fast(), true);
    compress
        .set_dictionary(&dictionary())
        .expect("a new stream takes a dictionary");
    let mut sent = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk() {
        let (before_block, length) = match Head::read(*head) {
            Ok(Head::Control { kind: 1, length, .. }) => (10, length),
            Ok(Head::Control {
                kind: 2 | 8, length, ..
            }) => (4, length),
            Ok(Head::Control { length, .. } | Head::Data { length, .. }) => (usize::MAX, length),
            Err(_) => break,
        };
        let (body, rest) = rest.split_at(length.min(rest.len()));
        frames = rest;
        if let Some((before, block)) = body.split_at_checked(before_block) {
            let mut body = before.to_vec();
            body.reserve(2 * block.len() + 1024);
            compress
                .compress_vec(block, &mut body, FlushCompress::Sync)
                .expect("there is room for it");
            let [_, length @ ..] = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
            sent.extend_from_slice(head.first_chunk::<5>().unwrap_or(&[0; 5]));
            sent.extend_from_slice(&length);
            sent.extend_from_slice(&body);
        } else {
            sent.extend_from_slice(head);
            sent.extend_from_slice(body);
        }
    }
    sent.extend_from_slice(frames);
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_served() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/spdy");
        let mut seeds = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            serve_spdy(&std::fs::read(entry.unwrap().path()).unwrap());
            seeds += 1;
        }
        assert!(seeds > 5);
    }
}
