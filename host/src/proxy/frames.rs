//! Where the frames of a WebSocket end, so that the proxy can send one of its own between two of them. Pure.

/// Length of the longest header of a frame: two bytes, a length of eight, and a mask of four.
const MAX_HEADER: usize = 14;

/// The opcode of a closing frame.
const CLOSE: u8 = 8;

/// A closing frame of a server with the code 1001 (going away) and a reason.
pub(crate) const GOING_AWAY: &[u8] = b"\x88\x0f\x03\xe9shutting down";

/// How far one direction of a WebSocket has come: its frames without their payload (RFC 6455, section 5.2).
#[derive(Debug, Default)]
pub(crate) struct FrameBounds {
    /// The first `known` bytes of the header of the next frame.
    header: [u8; MAX_HEADER],
    known: usize,
    /// Bytes of payload that are left of the frame before it.
    payload: u64,
    has_closed: bool,
}

impl FrameBounds {
    /// Records that `bytes` have passed.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let skipped = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.known) {
                *place = *first;
            }
            self.known += 1;
            bytes = rest;
            self.finish_header();
        }
    }

    /// Begins the payload if the header is complete.
    fn finish_header(&mut self) {
        let [first, second, extended @ ..] = self.header;
        let size = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if self.known < 2 + size + mask {
            return;
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.payload =
            if size == 0 { u64::from(second & 0x7f) } else { number(extended.get(..size).unwrap_or_default()) };
        self.has_closed |= first & 0x0f == CLOSE;
        (self.header, self.known) = ([0; MAX_HEADER], 0);
    }

    /// Whether the last frame has passed as a whole.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.known == 0 && self.payload == 0
    }

    /// Whether a closing frame has passed, after which no other frame may.
    pub(crate) fn has_closed(&self) -> bool {
        self.has_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many bytes of `stream` a frame may be inserted.
    fn bounds(stream: &[u8]) -> Vec<usize> {
        let mut one_by_one = FrameBounds::default();
        let mut bounds = Vec::new();
        for (index, byte) in stream.iter().enumerate() {
            one_by_one.pass(&[*byte]);
            let mut at_once = FrameBounds::default();
            at_once.pass(&stream[..=index]);
            assert_eq!(at_once.is_between_frames(), one_by_one.is_between_frames(), "{index}");
            if at_once.is_between_frames() {
                bounds.push(index + 1);
            }
        }
        bounds
    }

    #[test]
    fn frames_of_all_lengths_are_followed() {
        assert!(FrameBounds::default().is_between_frames());
        let long = [&[0x82, 126, 0x01, 0x00][..], &[0xff; 256]].concat();
        let longer = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0xff; 65_536]].concat();
        let masked = [&[0x82, 0x83, 1, 2, 3, 4][..], &[0xff; 3]].concat();
        let stream = [&[0x89, 0][..], &[0x82, 2, 8, 8], &long, &longer, &masked].concat();
        assert_eq!(bounds(&stream), [2, 6, 266, 65_812, 65_821]);
    }

    #[test]
    fn a_closing_frame_is_noticed() {
        let mut frames = FrameBounds::default();
        frames.pass(&[0x82, 1, 0x88, 0x89, 0]);
        assert!(!frames.has_closed());
        frames.pass(GOING_AWAY);
        assert!(frames.has_closed() && frames.is_between_frames());
    }
}
