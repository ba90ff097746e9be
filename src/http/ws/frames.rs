//! The frames of a WebSocket client, one by one: what each means where it stands (RFC 6455, section 5).

use tungstenite::Bytes;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::http::ws::End;

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Incoming {
    /// Bytes, which have been appended.
    Bytes,
    /// To be answered with the same.
    Ping(Bytes),
    /// Nothing to do.
    Pong,
    /// Nothing more comes; the client's words, where it said any.
    Close(Option<CloseFrame>),
}

impl Incoming {
    /// A frame of ours with bytes for the client.
    pub(in crate::http) fn frame(bytes: &[u8]) -> Frame {
        Frame::message(Bytes::copy_from_slice(bytes), OpCode::Data(Data::Binary), true)
    }
}

/// Follows the frames. Where messages begin and end means nothing to a tunnel, but has to be right.
#[derive(Debug, Default)]
pub(in crate::http) struct Sequence {
    within_message: bool,
}

impl Sequence {
    /// Takes one frame, unmasks it, and appends the bytes that it carries to `into`.
    ///
    /// # Errors
    /// How the WebSocket ends when the frame cannot stand here.
    pub(in crate::http) fn next(&mut self, frame: &Frame, into: &mut Vec<u8>) -> Result<Incoming, End> {
        let header = frame.header();
        let wrong = |what: &str| Err(End::close(CloseCode::Protocol, what));
        let Some(mask) = header.mask else { return wrong("a client's frames must be masked") };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return wrong("no extension was negotiated");
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final || frame.payload().len() > 125 => {
                wrong("a control frame must be whole and short")
            }
            OpCode::Control(Control::Ping) => Ok(Incoming::Ping(unmasked(frame.payload(), mask).into())),
            OpCode::Control(Control::Pong) => Ok(Incoming::Pong),
            OpCode::Control(Control::Close) => Ok(Incoming::Close(words(&unmasked(frame.payload(), mask)))),
            OpCode::Data(Data::Binary) if !self.within_message => {
                self.within_message = !header.is_final;
                unmask(frame.payload(), mask, into);
                Ok(Incoming::Bytes)
            }
            OpCode::Data(Data::Continue) if self.within_message => {
                self.within_message = !header.is_final;
                unmask(frame.payload(), mask, into);
                Ok(Incoming::Bytes)
            }
            OpCode::Data(Data::Text) => Err(End::close(CloseCode::Unsupported, "a tunnel carries binary frames only")),
            OpCode::Data(Data::Binary | Data::Continue) => wrong("a message within a message, or the rest of none"),
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => wrong("an unknown opcode"),
        }
    }
}

fn words(payload: &[u8]) -> Option<CloseFrame> {
    let (code, reason) = payload.split_first_chunk::<2>()?;
    let reason = std::str::from_utf8(reason).ok()?;
    Some(CloseFrame { code: u16::from_be_bytes(*code).into(), reason: reason.into() })
}

fn unmasked(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    unmask(payload, mask, &mut out);
    out
}

/// Eight bytes at a time: all that a client sends goes through here.
fn unmask(payload: &[u8], mask: [u8; 4], into: &mut Vec<u8>) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let begin = into.len();
    into.extend_from_slice(payload);
    let (words, rest) = into.get_mut(begin..).unwrap_or_default().as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::protocol::frame::FrameHeader;

    const MASK: [u8; 4] = [1, 2, 4, 250];

    fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> Frame {
        let header = FrameHeader { is_final, opcode, mask: Some(MASK), ..FrameHeader::default() };
        Frame::from_payload(header, unmasked(payload, MASK).into())
    }

    #[test]
    fn masks_of_every_length() {
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).collect();
            let masked: Vec<u8> = bytes.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let mut out = b"before".to_vec();
            unmask(&masked, MASK, &mut out);
            assert_eq!(out, [b"before", &bytes[..]].concat());
        }
    }

    #[test]
    fn fragments_may_have_control_frames_between_them() {
        let (mut sequence, mut bytes) = (Sequence::default(), Vec::new());
        let mut next = |opcode, is_final, payload: &[u8]| sequence.next(&frame(opcode, is_final, payload), &mut bytes);
        let (binary, more) = (OpCode::Data(Data::Binary), OpCode::Data(Data::Continue));
        assert_eq!(next(binary, true, b"a"), Ok(Incoming::Bytes));
        assert_eq!(next(binary, false, b"b"), Ok(Incoming::Bytes));
        assert_eq!(next(OpCode::Control(Control::Ping), true, b"p"), Ok(Incoming::Ping("p".into())));
        assert_eq!(next(more, false, b""), Ok(Incoming::Bytes));
        assert_eq!(next(OpCode::Control(Control::Pong), true, b"p"), Ok(Incoming::Pong));
        assert_eq!(next(more, true, b"c"), Ok(Incoming::Bytes));
        let close =
            |code: u16, reason: &str| Incoming::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }));
        assert_eq!(next(OpCode::Control(Control::Close), true, b"\x03\xe8bye"), Ok(close(1000, "bye")));
        assert_eq!(next(OpCode::Control(Control::Close), true, b""), Ok(Incoming::Close(None)));
        assert_eq!(bytes, b"abc");
    }

    #[test]
    fn what_cannot_stand_there() {
        let (binary, more) = (OpCode::Data(Data::Binary), OpCode::Data(Data::Continue));
        let code = |sequence: &mut Sequence, frame: Frame| match sequence.next(&frame, &mut Vec::new()) {
            Err(End::Close(code, _)) => u16::from(code),
            other => panic!("{other:?}"),
        };
        let fresh = Sequence::default;
        assert_eq!(code(&mut fresh(), frame(OpCode::Data(Data::Text), true, b"x")), 1003);
        assert_eq!(code(&mut fresh(), frame(more, true, b"x")), 1002);
        assert_eq!(code(&mut Sequence { within_message: true }, frame(binary, true, b"x")), 1002);
        assert_eq!(code(&mut fresh(), frame(OpCode::Control(Control::Ping), false, b"x")), 1002);
        assert_eq!(code(&mut fresh(), frame(OpCode::Control(Control::Close), true, &[3; 126])), 1002);
        let plain = FrameHeader { opcode: binary, ..FrameHeader::default() };
        assert_eq!(code(&mut fresh(), Frame::from_payload(plain.clone(), "x".into())), 1002);
        let packed = FrameHeader { rsv1: true, mask: Some(MASK), ..plain };
        assert_eq!(code(&mut fresh(), Frame::from_payload(packed, "x".into())), 1002);
    }
}
