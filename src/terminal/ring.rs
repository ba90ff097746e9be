//! The last bytes of an endless stream, with a place for each reader in it.
//!
//! So many bytes are kept for whoever comes later. Readers that are behind make it keep more, up to a bound: one that
//! is further behind has lost its place, and the writer never waits.

use std::collections::VecDeque;

/// Bytes are dropped in blocks of this size, each of which begins at a multiple of it.
const BLOCK: usize = 64 << 10;

/// The bytes. Places in it count from the beginning of the stream.
#[derive(Debug)]
pub struct Ring {
    keep: u64,
    most: u64,
    blocks: VecDeque<Vec<u8>>,
    start: u64,
    end: u64,
}

impl Ring {
    /// Keeps the last `keep` bytes, and for readers that are behind up to `most`, give or take a block.
    pub fn new(keep: usize, most: usize) -> Ring {
        Ring { keep: keep as u64, most: most.max(keep) as u64, blocks: VecDeque::new(), start: 0, end: 0 }
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.end - self.start
    }

    /// Changes how much is kept for readers that are behind; from the next byte or trim on.
    pub fn set_most(&mut self, most: usize) {
        self.most = self.keep.max(most as u64);
    }

    /// The place after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where somebody begins who has seen nothing: as many bytes before the end as are kept for that.
    pub fn replay(&self) -> u64 {
        self.end.saturating_sub(self.keep).max(self.start)
    }

    /// Appends, and drops what neither a replay nor the reader at `slowest` needs.
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

    /// Drops what is not needed any more.
    pub fn trim(&mut self, slowest: u64) {
        let needed = self.end.saturating_sub(self.keep).min(slowest).max(self.end.saturating_sub(self.most));
        while self.start + BLOCK as u64 <= needed && self.blocks.pop_front().is_some() {
            self.start += BLOCK as u64;
        }
    }

    /// Appends up to `most` bytes from `place` on to `into`, and gives the place after them; none when the bytes at
    /// `place` have been dropped.
    pub fn read(&self, place: u64, most: usize, into: &mut Vec<u8>) -> Option<u64> {
        let skipped = usize::try_from(place.checked_sub(self.start)?).ok()?;
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
        Some(place + (most - left) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: usize = BLOCK;

    /// The byte at each place tells which one it is.
    fn byte(place: u64) -> u8 {
        (place % 251) as u8
    }

    fn bytes(from: u64, count: usize) -> Vec<u8> {
        (from..from + count as u64).map(byte).collect()
    }

    fn fill(ring: &mut Ring, count: usize, slowest: u64) {
        let more = bytes(ring.end(), count);
        ring.append(&more, slowest);
    }

    #[test]
    fn pieces_of_every_size_come_out_as_they_went_in() {
        let mut ring = Ring::new(4 * B, 8 * B);
        let mut place = 0;
        for (round, size) in [0, 1, 2, B - 4, 1, 1, B, B + 1, 2 * B - 1, 3].into_iter().enumerate() {
            fill(&mut ring, size, place);
            let mut out = Vec::new();
            let from = place;
            while place < ring.end() {
                place = ring.read(place, 1 + round * 20_011, &mut out).unwrap();
            }
            assert_eq!(out, bytes(from, size), "{size}");
        }
        assert_eq!(ring.read(place, 10, &mut Vec::new()), Some(place), "nothing is there yet");
    }

    #[test]
    fn a_replay_is_the_last_bytes() {
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
    fn a_reader_that_is_behind_is_waited_for_up_to_a_bound() {
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
        assert_eq!((ring.blocks.len(), ring.held()), (2, 2 * B as u64), "a lower bound");
        ring.set_most(0);
        ring.trim(0);
        assert_eq!(ring.held(), B as u64, "never less than a replay");
        ring.trim(u64::MAX);
        assert_eq!(ring.blocks.len(), 1, "given back when nobody needs it");
        assert_eq!(ring.read(ring.replay(), usize::MAX, &mut out), Some(ring.end()));
    }
}
