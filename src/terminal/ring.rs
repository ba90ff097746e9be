//! The last bytes of an endless stream, which each reader reads from its own position.
//!
//! A fixed number of bytes is kept for later readers. More is kept for readers that are behind, up to a bound. A reader
//! that is further behind loses bytes; the writer never waits.

use std::collections::VecDeque;

/// The size of a block, in bytes. Bytes are dropped in whole blocks; each begins at a multiple of this.
const BLOCK: usize = 64 << 10;

/// The bytes. A position is a number of bytes from the beginning of the stream.
#[derive(Debug)]
pub struct Ring {
    keep: u64,
    most: u64,
    blocks: VecDeque<Vec<u8>>,
    start: u64,
    end: u64,
}

impl Ring {
    /// A ring that keeps the last `keep` bytes, or up to `most` for readers that are behind; each is rounded up to a
    /// block.
    pub fn new(keep: usize, most: usize) -> Ring {
        Ring { keep: keep as u64, most: most.max(keep) as u64, blocks: VecDeque::new(), start: 0, end: 0 }
    }

    /// Number of bytes that are held.
    pub fn held(&self) -> u64 {
        self.end - self.start
    }

    /// Changes how many bytes are kept for readers that are behind. Takes effect with the next append or trim.
    pub fn set_most(&mut self, most: usize) {
        self.most = self.keep.max(most as u64);
    }

    /// The position after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The position at which a new reader begins: `keep` bytes before the end.
    pub fn replay(&self) -> u64 {
        self.end.saturating_sub(self.keep).max(self.start)
    }

    /// Appends bytes, and drops blocks that neither a new reader nor the reader at `slowest` needs.
    pub fn append(&mut self, mut bytes: &[u8], slowest: u64) {
        while !bytes.is_empty() {
            let room = match self.blocks.back() {
                Some(last) if last.len() < BLOCK => BLOCK - last.len(),
                _ => {
                    self.blocks.push_back(Vec::new());
                    BLOCK
                }
            };
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(last) = self.blocks.back_mut() {
                last.extend_from_slice(now);
            }
            self.end += now.len() as u64;
            bytes = later;
        }
        self.trim(slowest);
    }

    /// Drops blocks that neither a new reader nor the reader at `slowest` needs.
    pub fn trim(&mut self, slowest: u64) {
        let needed = self.end.saturating_sub(self.keep).min(slowest).max(self.end.saturating_sub(self.most));
        while self.start + BLOCK as u64 <= needed && self.blocks.pop_front().is_some() {
            self.start += BLOCK as u64;
        }
    }

    /// Appends up to `most` bytes from `position` on to `into`. Returns the position after them; None if the bytes at
    /// `position` were dropped.
    pub fn read(&self, position: u64, most: usize, into: &mut Vec<u8>) -> Option<u64> {
        let skipped = usize::try_from(position.checked_sub(self.start)?).ok()?;
        let (mut left, mut within) = (most, skipped % BLOCK);
        for block in self.blocks.iter().skip(skipped / BLOCK) {
            let bytes = block.get(within..).unwrap_or_default();
            let bytes = bytes.get(..left).unwrap_or(bytes);
            into.extend_from_slice(bytes);
            (left, within) = (left - bytes.len(), 0);
            if left == 0 {
                break;
            }
        }
        Some(position + (most - left) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: usize = BLOCK;

    /// The byte at a position, different for nearby positions.
    fn byte(position: u64) -> u8 {
        (position % 251) as u8
    }

    fn bytes(from: u64, count: usize) -> Vec<u8> {
        (from..from + count as u64).map(byte).collect()
    }

    fn fill(ring: &mut Ring, count: usize, slowest: u64) {
        let more = bytes(ring.end(), count);
        ring.append(&more, slowest);
    }

    #[test]
    fn bytes_are_read_as_they_were_appended_whatever_the_sizes() {
        let mut ring = Ring::new(4 * B, 8 * B);
        let mut position = 0;
        for (round, size) in [0, 1, 2, B - 4, 1, 1, B, B + 1, 2 * B - 1, 3].into_iter().enumerate() {
            fill(&mut ring, size, position);
            let mut out = Vec::new();
            let from = position;
            while position < ring.end() {
                position = ring.read(position, 1 + round * 20_011, &mut out).unwrap();
            }
            assert_eq!(out, bytes(from, size), "{size}");
        }
        assert_eq!(ring.read(position, 10, &mut Vec::new()), Some(position), "nothing was appended there yet");
    }

    #[test]
    fn a_new_reader_begins_keep_bytes_before_the_end() {
        let mut ring = Ring::new(2 * B, 4 * B);
        assert_eq!(ring.replay(), 0);
        for size in [10, B, B, B - 7, 3 * B] {
            fill(&mut ring, size, u64::MAX);
            assert_eq!(ring.replay(), ring.end().saturating_sub(2 * B as u64));
            let mut out = Vec::new();
            assert_eq!(ring.read(ring.replay(), usize::MAX, &mut out), Some(ring.end()));
            assert_eq!(out, bytes(ring.replay(), out.len()));
            assert!(ring.blocks.len() <= 3 + 1);
        }
    }

    #[test]
    fn bytes_are_kept_for_a_reader_that_is_behind_up_to_a_bound() {
        let mut ring = Ring::new(B, 4 * B);
        fill(&mut ring, 4 * B, 0);
        let mut out = Vec::new();
        assert_eq!(ring.read(0, 5, &mut out), Some(5));
        fill(&mut ring, B, 5);
        assert_eq!(ring.read(5, 5, &mut out), None, "too far behind");
        assert_eq!(ring.blocks.len(), 4);
        assert_eq!(ring.held(), 4 * B as u64);
        ring.set_most(2 * B);
        ring.trim(0);
        assert_eq!((ring.blocks.len(), ring.held()), (2, 2 * B as u64), "a lower bound applies");
        ring.set_most(0);
        ring.trim(0);
        assert_eq!(ring.held(), B as u64, "never less than a replay");
        ring.trim(u64::MAX);
        assert_eq!(ring.blocks.len(), 1, "blocks that no reader needs are dropped");
        assert_eq!(ring.read(ring.replay(), usize::MAX, &mut out), Some(ring.end()));
    }
}
