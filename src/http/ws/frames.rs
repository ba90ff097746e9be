//! Reads and checks single frames of a WebSocket client (RFC 6455, section 5).

use tungstenite::Bytes;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::http::ws::closure::Closure;

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Data. The bytes have been appended.
    Data,
    /// A ping, which must be answered by a pong with the same payload.
    Ping(Bytes),
    /// A pong. There is nothing to do.
    Pong,
    /// The last frame of the client, with its code and reason if it has given any.
    Close(Option<CloseFrame>),
}

/// A frame with data for the client.
pub(crate) fn binary_frame(bytes: &[u8]) -> Frame {
    Frame::message(Bytes::copy_from_slice(bytes), OpCode::Data(Data::Binary), true)
}

/// Reads a client's frames in their order. A tunnel ignores the boundaries of messages, but they must be valid.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// The last data frame was not the last one of its message.
    within_message: bool,
}

impl FrameReader {
    /// Takes one frame, and appends the data that it carries to `data`, unmasked.
    ///
    /// # Errors
    /// How the WebSocket must be closed because the frame is not valid here.
    pub(crate) fn next(&mut self, frame: &Frame, data: &mut Vec<u8>) -> Result<FrameKind, Closure> {
        let header = frame.header();
        let invalid = |what: &str| Err(Closure::close(CloseCode::Protocol, what));
        let Some(mask) = header.mask else { return invalid("a client's frames must be masked") };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return invalid("a reserved bit is set, but no extension was negotiated");
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final || frame.payload().len() > 125 => {
                invalid("a control frame must not be fragmented or longer than 125 bytes")
            }
            OpCode::Control(Control::Ping) => Ok(FrameKind::Ping(unmasked(frame.payload(), mask).into())),
            OpCode::Control(Control::Pong) => Ok(FrameKind::Pong),
            OpCode::Control(Control::Close) => Ok(FrameKind::Close(close_reason(&unmasked(frame.payload(), mask)))),
            OpCode::Data(Data::Binary) if !self.within_message => {
                self.within_message = !header.is_final;
                unmask(frame.payload(), mask, data);
                Ok(FrameKind::Data)
            }
            OpCode::Data(Data::Continue) if self.within_message => {
                self.within_message = !header.is_final;
                unmask(frame.payload(), mask, data);
                Ok(FrameKind::Data)
            }
            OpCode::Data(Data::Text) => {
                Err(Closure::close(CloseCode::Unsupported, "a tunnel carries binary frames only"))
            }
            OpCode::Data(Data::Binary) => invalid("a message began within another message"),
            OpCode::Data(Data::Continue) => invalid("a continuation frame without a message"),
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => invalid("an unknown opcode"),
        }
    }
}

/// Code and reason of a closing frame. None if it has none, or if they are not valid.
fn close_reason(payload: &[u8]) -> Option<CloseFrame> {
    let (code, reason) = payload.split_first_chunk::<2>()?;
    let reason = std::str::from_utf8(reason).ok()?;
    Some(CloseFrame { code: u16::from_be_bytes(*code).into(), reason: reason.into() })
}

fn unmasked(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    unmask(payload, mask, &mut out);
    out
}

/// Appends the payload to `into`, unmasked. Works on eight bytes at a time, because every byte of a client passes
/// through here.
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
    fn payloads_of_every_length_are_unmasked() {
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).collect();
            let masked: Vec<u8> = bytes.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let mut out = b"before".to_vec();
            unmask(&masked, MASK, &mut out);
            assert_eq!(out, [b"before", &bytes[..]].concat());
        }
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let (mut reader, mut bytes) = (FrameReader::default(), Vec::new());
        let mut next = |opcode, is_final, payload: &[u8]| reader.next(&frame(opcode, is_final, payload), &mut bytes);
        let (binary, more) = (OpCode::Data(Data::Binary), OpCode::Data(Data::Continue));
        assert_eq!(next(binary, true, b"a"), Ok(FrameKind::Data));
        assert_eq!(next(binary, false, b"b"), Ok(FrameKind::Data));
        assert_eq!(next(OpCode::Control(Control::Ping), true, b"p"), Ok(FrameKind::Ping("p".into())));
        assert_eq!(next(more, false, b""), Ok(FrameKind::Data));
        assert_eq!(next(OpCode::Control(Control::Pong), true, b"p"), Ok(FrameKind::Pong));
        assert_eq!(next(more, true, b"c"), Ok(FrameKind::Data));
        let close =
            |code: u16, reason: &str| FrameKind::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }));
        assert_eq!(next(OpCode::Control(Control::Close), true, b"\x03\xe8bye"), Ok(close(1000, "bye")));
        assert_eq!(next(OpCode::Control(Control::Close), true, b""), Ok(FrameKind::Close(None)));
        assert_eq!(bytes, b"abc");
    }

    #[test]
    fn invalid_frames_close_the_websocket() {
        let (binary, more) = (OpCode::Data(Data::Binary), OpCode::Data(Data::Continue));
        let code = |reader: &mut FrameReader, frame: Frame| match reader.next(&frame, &mut Vec::new()) {
            Err(Closure::Close(code, _)) => u16::from(code),
            other => panic!("{other:?}"),
        };
        let fresh = FrameReader::default;
        assert_eq!(code(&mut fresh(), frame(OpCode::Data(Data::Text), true, b"x")), 1003);
        assert_eq!(code(&mut fresh(), frame(more, true, b"x")), 1002);
        assert_eq!(code(&mut FrameReader { within_message: true }, frame(binary, true, b"x")), 1002);
        assert_eq!(code(&mut fresh(), frame(OpCode::Control(Control::Ping), false, b"x")), 1002);
        assert_eq!(code(&mut fresh(), frame(OpCode::Control(Control::Close), true, &[3; 126])), 1002);
        let plain = FrameHeader { opcode: binary, ..FrameHeader::default() };
        assert_eq!(code(&mut fresh(), Frame::from_payload(plain.clone(), "x".into())), 1002);
        let packed = FrameHeader { rsv1: true, mask: Some(MASK), ..plain };
        assert_eq!(code(&mut fresh(), Frame::from_payload(packed, "x".into())), 1002);
    }
}
