//! Packed records in memory. With headers of their full size, records of one byte would need 17 times the memory of
//! their output.

use super::record::{Header, RecordKind};
use crate::model::{Millis, Stream};

/// Packed records. Each consists of one number with the payload length and the kind, the time since the previous
/// record, and the payload. A number has seven bits in each byte, lowest first (LEB128); the highest bit means that
/// another byte follows.
#[derive(Debug, Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// The time of the last record.
    time: Millis,
    /// Bytes of payload.
    output: usize,
}

impl Packed {
    pub(super) fn push(&mut self, header: Header, payload: &[u8]) {
        let kind = match header.kind {
            RecordKind::Output(Stream::Stdout) => 1,
            RecordKind::Output(Stream::Stderr) => 2,
            RecordKind::Cut => 3,
        };
        self.number(u64::from(header.len) << 2 | kind);
        // Wraps around if the clock was set back; the number then takes ten bytes.
        self.number(header.time.wrapping_sub(self.time));
        self.bytes.extend_from_slice(payload);
        self.time = header.time;
        self.output += payload.len();
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// Bytes of payload.
    pub(super) fn output(&self) -> usize {
        self.output
    }

    /// Size of the records in memory, in bytes.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.bytes.capacity()
    }

    /// Releases unused capacity, because no record follows.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    /// The records in the format of a file.
    pub(super) fn unpacked(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (mut rest, mut time) = (&self.bytes[..], 0);
        while let Some((header, payload, more)) = first(rest, time) {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(payload);
            (rest, time) = (more, header.time);
        }
        out
    }
}

/// The first record of `bytes`: its header, its payload, and the bytes after it. `time` is the time of the previous
/// record.
fn first(bytes: &[u8], time: Millis) -> Option<(Header, &[u8], &[u8])> {
    let (word, bytes) = number(bytes)?;
    let (since, bytes) = number(bytes)?;
    let kind = match word & 3 {
        1 => RecordKind::Output(Stream::Stdout),
        2 => RecordKind::Output(Stream::Stderr),
        _ => RecordKind::Cut,
    };
    let len = u32::try_from(word >> 2).ok()?;
    let (payload, rest) = bytes.split_at_checked(len as usize)?;
    Some((Header { kind, len, time: time.wrapping_add(since) }, payload, rest))
}

fn number(mut bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        number |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some((number, rest));
        }
        (bytes, shift) = (rest, shift + 7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_records_are_those_that_were_packed() {
        let kinds = [RecordKind::Output(Stream::Stdout), RecordKind::Output(Stream::Stderr), RecordKind::Cut];
        let times = [0, 1, 1, 1_773_950_228_855, 1_773_950_228_856, 5, u64::MAX, 0, 127, 255];
        let mut packed = Packed::default();
        let (mut expected, mut output) = (Vec::new(), 0);
        assert_eq!(packed.unpacked(), expected);
        for (i, time) in (0..1000).flat_map(|_| times).enumerate() {
            let kind = kinds[i % 3];
            let payload = if kind == RecordKind::Cut { Vec::new() } else { vec![i as u8; [1, 2, 31, 32, 5000][i % 5]] };
            let header = Header { kind, len: payload.len() as u32, time };
            packed.push(header, &payload);
            expected.extend_from_slice(&header.encode());
            expected.extend_from_slice(&payload);
            output += payload.len();
        }
        assert!(packed.unpacked() == expected);
        assert_eq!(packed.output(), output);
    }

    #[test]
    fn a_record_of_one_byte_takes_three() {
        let mut packed = Packed::default();
        for _ in 0..1000 {
            packed.push(Header { kind: RecordKind::Output(Stream::Stderr), len: 1, time: 1_773_950_228_855 }, b"x");
        }
        packed.shrink();
        assert!(packed.size() < 3010, "{}", packed.size());
    }
}
