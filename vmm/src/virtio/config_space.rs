//! Reading a device's configuration space.

/// Copies from `space` at `offset` into the whole of `data`; bytes beyond its end read as zero.
pub fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..))
    else {
        return;
    };
    let count = rest.len().min(data.len());
    if let (Some(from), Some(to)) = (rest.get(..count), data.get_mut(..count)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_end_reads_as_zero() {
        let space = [1, 2, 3, 4];
        for (offset, expected) in [
            (0, [1, 2, 3, 4, 0]),
            (3, [4, 0, 0, 0, 0]),
            (4, [0; 5]),
            (u64::MAX, [0; 5]),
        ] {
            let mut data = [9; 5];
            read(&space, offset, &mut data);
            assert_eq!(data, expected, "at {offset}");
        }
    }
}
