//! The unit of the log: a header of fixed size, then the bytes as they were read.

use crate::model::{Millis, Stream};

/// Bytes of a header: magic 3, kind 1, payload length 4, time 8; little-endian.
pub(super) const HEADER: usize = 16;

const MAGIC: [u8; 3] = *b"tlr";

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of this stream follow.
    Output(Stream),
    /// The unfinished lines of both streams end here.
    Cut,
}

/// What stands before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Bytes of payload.
    pub(super) len: u32,
    pub(super) time: Millis,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let kind = match self.kind {
            Kind::Output(Stream::Stdout) => 1,
            Kind::Output(Stream::Stderr) => 2,
            Kind::Cut => 3,
        };
        let [a, b, c] = MAGIC;
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.time.to_le_bytes();
        [a, b, c, kind, l0, l1, l2, l3, t0, t1, t2, t3, t4, t5, t6, t7]
    }

    /// None for what is no header of ours.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Header> {
        let [a, b, c, kind, l0, l1, l2, l3, t0, t1, t2, t3, t4, t5, t6, t7] = *bytes;
        if [a, b, c] != MAGIC {
            return None;
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = match kind {
            1 => Kind::Output(Stream::Stdout),
            2 => Kind::Output(Stream::Stderr),
            3 if len == 0 => Kind::Cut,
            _ => return None,
        };
        Some(Header { kind, len, time: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]) })
    }
}

/// One of something for each stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PerStream<T> {
    pub(super) out: T,
    pub(super) err: T,
}

impl<T> PerStream<T> {
    pub(super) fn get(&self, stream: Stream) -> &T {
        match stream {
            Stream::Stdout => &self.out,
            Stream::Stderr => &self.err,
        }
    }

    pub(super) fn get_mut(&mut self, stream: Stream) -> &mut T {
        match stream {
            Stream::Stdout => &mut self.out,
            Stream::Stderr => &mut self.err,
        }
    }
}

/// Where a log goes on after a part that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The first record that is kept.
    pub(super) place: Place,
    /// Bytes of each stream before its first line from there on: the rest of a line that lost its beginning was dropped
    /// with it. Only where no line begins any more (one is longer than all that is kept) it is what is left of that one.
    pub(super) lines: PerStream<u64>,
}

/// A place between two records, with what stands before it in all of the log, dropped parts included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes of records, headers included.
    pub(super) at: u64,
    /// Bytes of output.
    pub(super) counts: PerStream<u64>,
    /// Cut records.
    pub(super) cuts: u64,
}

impl Place {
    /// The place after the record with this header.
    pub(super) fn after(mut self, header: Header) -> Place {
        let len = u64::from(header.len);
        self.at += HEADER as u64 + len;
        match header.kind {
            Kind::Output(stream) => *self.counts.get_mut(stream) += len,
            Kind::Cut => self.cuts += 1,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_trip_and_nothing_else_does() {
        for kind in [Kind::Output(Stream::Stdout), Kind::Output(Stream::Stderr), Kind::Cut] {
            let len = if kind == Kind::Cut { 0 } else { 0xDEAD_BEEF };
            let header = Header { kind, len, time: 0x0123_4567_89AB_CDEF };
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Some(header));
            for i in 0..4 {
                let mut wrong = bytes;
                wrong[i] ^= 0x55;
                assert_eq!(Header::decode(&wrong), None);
            }
        }
        assert_eq!(Header::decode(&[0; HEADER]), None);
    }
}
