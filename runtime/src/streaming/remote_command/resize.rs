//! The sizes of a client's window: JSON objects, one after the other.

use bytes::BytesMut;
use serde::Deserialize;
use tokio::sync::watch;

use crate::streaming::flow::Inlet;

/// Longest object, in bytes.
const OBJECT_BYTES: usize = 1024;

/// The size of a window, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct WindowSize {
    /// Columns.
    #[serde(alias = "Width", default)]
    pub width: u16,
    /// Rows.
    #[serde(alias = "Height", default)]
    pub height: u16,
}

/// Tells the latest size until the stream ends or says something else. A size of nothing is no size.
pub async fn watch_sizes(mut stream: Inlet, sizes: watch::Sender<Option<WindowSize>>) {
    let mut bytes = BytesMut::new();
    while let Ok(Some(part)) = stream.next().await {
        bytes.extend_from_slice(&part);
        loop {
            let mut objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<WindowSize>();
            match objects.next() {
                Some(Ok(size)) => {
                    let length = objects.byte_offset();
                    let _ = bytes.split_to(length.min(bytes.len()));
                    if size.width > 0 && size.height > 0 {
                        sizes.send_replace(Some(size));
                    }
                }
                Some(Err(error)) if error.is_eof() && bytes.len() <= OBJECT_BYTES => break,
                Some(Err(_)) => return,
                None => {
                    bytes.clear();
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::flow::{Budget, inward};

    async fn latest(parts: &[&str]) -> Option<(u16, u16)> {
        let (feed, inlet) = inward(&Budget::new());
        for part in parts {
            feed.send(part.as_bytes().to_vec().into()).await.unwrap();
        }
        feed.end();
        let (sender, sizes) = watch::channel(None);
        watch_sizes(inlet, sender).await;
        let size: Option<WindowSize> = *sizes.borrow();
        size.map(|size| (size.width, size.height))
    }

    #[tokio::test]
    async fn the_latest_size_counts_however_the_objects_are_cut() {
        assert_eq!(
            latest(&[r#"{"Width":80,"Height":24}"#, "\n"]).await,
            Some((80, 24))
        );
        assert_eq!(
            latest(&[r#"{"Width":80,"Height":24}{"Wid"#, r#"th":100,"Height":50}"#]).await,
            Some((100, 50))
        );
        assert_eq!(
            latest(&["\n", "{", r#""Width":1"#, r#","Height":2}"#]).await,
            Some((1, 2))
        );
    }

    #[tokio::test]
    async fn what_is_no_size_is_none() {
        assert_eq!(latest(&[r#"{"Width":0,"Height":24}"#]).await, None);
        assert_eq!(latest(&[r#"{"Width":70000,"Height":24}"#]).await, None);
        assert_eq!(latest(&["[", r#"{"Width":80,"Height":24}"#]).await, None);
        let long = format!(r#"{{"Width":{}"#, " ".repeat(OBJECT_BYTES));
        assert_eq!(latest(&[&long, r#"5,"Height":7}"#]).await, None);
    }
}
