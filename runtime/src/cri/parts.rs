//! Long lists in messages that clients take: the Stream* calls.

use futures_util::stream::{self, Iter};
use prost::Message;
use tonic::{Response, Status};

/// Most entries of one message of a stream, and most bytes of them: clients take 4 MiB by default.
const PART_ENTRIES: usize = 200;
const PART_BYTES: usize = 1 << 20;

/// The messages of a list, which is at hand when the stream begins.
pub(super) type Parts<M> = Iter<std::vec::IntoIter<Result<M, Status>>>;

/// Each of `entries` once, in messages that `message` makes of as many as one takes. No entries are no message.
pub(super) fn stream<T: Message, M>(entries: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Response<Parts<M>> {
    let messages: Vec<_> = parts(entries).into_iter().map(|part| Ok(message(part))).collect();
    Response::new(stream::iter(messages))
}

/// `entries` in parts that fit a message each. An entry that is larger alone has a part of its own.
fn parts<T: Message>(entries: Vec<T>) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let size = entry.encoded_len();
        match parts.last_mut() {
            Some(part) if part.len() < PART_ENTRIES && bytes + size <= PART_BYTES => {
                part.push(entry);
                bytes += size;
            }
            _ => {
                parts.push(vec![entry]);
                bytes = size;
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::Image;

    use super::*;

    #[test]
    fn a_list_comes_in_parts_that_fit() {
        let image = |name: usize, tags: usize| Image {
            id: name.to_string(),
            repo_tags: vec!["x".repeat(1000); tags],
            ..Image::default()
        };
        assert!(parts::<Image>(Vec::new()).is_empty());
        let many: Vec<_> = (0..1001).map(|index| image(index, 1)).collect();
        let large: Vec<_> = (0..10).map(|index| image(index, 400)).collect();
        let huge = vec![image(0, 1), image(1, 5000), image(2, 1)];
        for (images, expected) in [(many, 6), (large, 5), (huge, 3)] {
            let parts = parts(images.clone());
            assert_eq!(parts.len(), expected);
            for part in &parts {
                let bytes: usize = part.iter().map(Message::encoded_len).sum();
                assert!(part.len() <= PART_ENTRIES && (bytes <= PART_BYTES || part.len() == 1));
            }
            assert_eq!(parts.concat(), images);
        }
    }
}
