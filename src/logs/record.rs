//! One record of a log: a header of fixed size, then the bytes as they were read.

use crate::model::{Millis, Stream};

/// Size of a header in bytes: magic 3, kind 1, payload length 4, time 8; little-endian.
pub(super) const HEADER: usize = 16;

const MAGIC: [u8; 3] = *b"tlr";

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// The payload is output of this stream.
    Output(Stream),
    /// No payload. The unfinished lines of both streams end here.
    Cut,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: RecordKind,
    /// Length of the payload in bytes.
    pub(super) len: u32,
    /// Time at which the payload was read or the lines were cut.
    pub(super) time: Millis,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let kind = match self.kind {
            RecordKind::Output(Stream::Stdout) => 1,
            RecordKind::Output(Stream::Stderr) => 2,
            RecordKind::Cut => 3,
        };
        let [a, b, c] = MAGIC;
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.time.to_le_bytes();
        [a, b, c, kind, l0, l1, l2, l3, t0, t1, t2, t3, t4, t5, t6, t7]
    }

    /// None for bytes that are not a header.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Header> {
        let [a, b, c, kind, l0, l1, l2, l3, t0, t1, t2, t3, t4, t5, t6, t7] = *bytes;
        if [a, b, c] != MAGIC {
            return None;
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = match kind {
            1 => RecordKind::Output(Stream::Stdout),
            2 => RecordKind::Output(Stream::Stderr),
            3 if len == 0 => RecordKind::Cut,
            _ => return None,
        };
        Some(Header { kind, len, time: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]) })
    }
}

/// One value for each stream.
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

/// Where a log continues after a dropped part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The start of the first record that is kept.
    pub(super) record: LogPosition,
    /// Number of bytes of each stream before the first line that begins after the dropped part. The rest of a line that
    /// has lost its beginning is not shown, unless no line begins in the kept part, because one line is longer than
    /// that.
    pub(super) lines: PerStream<u64>,
}

/// A position between two records of a log. It counts everything written before it, including dropped parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogPosition {
    /// Number of bytes of records, including headers.
    pub(super) at: u64,
    /// Number of bytes of output.
    pub(super) counts: PerStream<u64>,
    /// Number of cut records.
    pub(super) cuts: u64,
}

impl LogPosition {
    /// The position after the record with this header.
    pub(super) fn after(mut self, header: Header) -> LogPosition {
        let len = u64::from(header.len);
        self.at += HEADER as u64 + len;
        match header.kind {
            RecordKind::Output(stream) => *self.counts.get_mut(stream) += len,
            RecordKind::Cut => self.cuts += 1,
        }
        self
    }
}

/// The unfinished line of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenLine {
    /// The start of the record with the first byte of the line.
    pub(super) record: LogPosition,
    /// Number of bytes of the stream before the line.
    pub(super) from: u64,
}

/// The end of a log at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) end: LogPosition,
    pub(super) open: PerStream<Option<OpenLine>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_decoded_as_it_was_encoded_and_other_bytes_are_rejected() {
        for kind in [RecordKind::Output(Stream::Stdout), RecordKind::Output(Stream::Stderr), RecordKind::Cut] {
            let len = if kind == RecordKind::Cut { 0 } else { 0xDEAD_BEEF };
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
