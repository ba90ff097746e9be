//! What must hold for every sequence of bytes that a WebSocket client sends (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{self, ErrorKind, Read, Write};

use tungstenite::protocol::frame::FrameSocket;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::fuzzing::Choices;
use crate::http::ws::{Closure, FrameKind, FrameReader, close_frame, would_block};

/// Maximum length of a frame in bytes; short, so that the inputs reach it.
const MAX_FRAME: usize = 300;

/// The frames of a client are read alike however their bytes arrive, as a simple reader of the whole stream does it, and
/// its messages as tungstenite assembles them.
pub(crate) fn websocket(input: &[u8]) {
    let mut choices = Choices(input);
    let plan = choices.bytes(8).to_vec();
    let stream = choices.0;
    let whole = read_frames(Client::new(vec![stream]));
    assert_eq!(whole, read_frames(Client::new(Choices::pieces(&plan, stream, 50))), "{plan:?}");
    assert_eq!(whole, read_whole(stream));
    check_messages(stream, &whole);
    let reason = String::from_utf8_lossy(stream);
    let frame = close_frame(CloseCode::Normal, &reason);
    assert!(reason.starts_with(frame.reason.as_str()) && frame.reason.len() <= 123);
    assert!(frame.reason.len() + 4 > 123 || *frame.reason == *reason, "more of the reason fits");
}

/// What a client has sent.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    data: Vec<u8>,
    /// Payload of each ping.
    pings: Vec<Vec<u8>>,
    end: End,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum End {
    /// The stream has ended between two frames, or in one.
    #[default]
    Disconnected,
    /// The client has sent a closing frame, with this code and reason.
    Closed(Option<(u16, String)>),
    /// The server must close the WebSocket with this code.
    Refused(u16),
}

/// Hands out the pieces of a stream, one for each read, with a `WouldBlock` in between.
struct Client<'s> {
    pieces: Vec<&'s [u8]>,
    at: usize,
    is_blocked: bool,
}

impl<'s> Client<'s> {
    fn new(pieces: Vec<&'s [u8]>) -> Client<'s> {
        Client { pieces, at: 0, is_blocked: false }
    }
}

impl Read for Client<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.is_blocked = !self.is_blocked;
        if self.is_blocked {
            return Err(ErrorKind::WouldBlock.into());
        }
        let Some(piece) = self.pieces.get_mut(self.at) else { return Ok(0) };
        let count = piece.len().min(out.len());
        out[..count].copy_from_slice(&piece[..count]);
        *piece = &piece[count..];
        self.at += usize::from(piece.is_empty());
        Ok(count)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads frames as a tunnel does.
fn read_frames(client: Client) -> Seen {
    let (mut frames, mut reader, mut seen) = (FrameSocket::new(client), FrameReader::default(), Seen::default());
    let code = |closure| match closure {
        Closure::Close(code, reason) => {
            assert!(!reason.is_empty());
            End::Refused(code.into())
        }
        Closure::Disconnected => End::Disconnected,
    };
    loop {
        let frame = match frames.read(Some(MAX_FRAME)) {
            Ok(Some(frame)) => frame,
            Err(Error::Io(error)) if would_block(&error) => continue,
            Ok(None) => return seen,
            Err(error) => return Seen { end: code(Closure::from_error(&error)), ..seen },
        };
        let before = seen.data.len();
        match reader.next(&frame, &mut seen.data) {
            Ok(FrameKind::Data) => assert_eq!(seen.data.len() - before, frame.payload().len()),
            Ok(FrameKind::Ping(payload)) => seen.pings.push(payload.to_vec()),
            Ok(FrameKind::Pong) => {}
            Ok(FrameKind::Close(frame)) => {
                let frame = frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()));
                return Seen { end: End::Closed(frame), ..seen };
            }
            Err(closure) => return Seen { end: code(closure), ..seen },
        }
    }
}

/// Reads a stream that is in memory as a whole, as RFC 6455, section 5.2 defines it.
fn read_whole(mut stream: &[u8]) -> Seen {
    let (mut seen, mut within) = (Seen::default(), false);
    while let [first, second, rest @ ..] = stream {
        let (is_final, opcode, short) = (first & 0x80 != 0, first & 15, second & 0x7F);
        let extended = [126, 127].iter().position(|mark| *mark == short).map_or(0, |at| [2, 8][at]);
        let is_masked = second & 0x80 != 0;
        let header = extended + if is_masked { 4 } else { 0 };
        if rest.len() < header {
            return seen;
        }
        let length = rest[..extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        let length = if extended == 0 { u64::from(short) } else { length };
        let refused = |code: u16| End::Refused(code);
        if matches!(opcode, 3..=7 | 11..=15) {
            return Seen { end: refused(1002), ..seen };
        }
        if length > MAX_FRAME as u64 {
            return Seen { end: refused(1009), ..seen };
        }
        let length = length as usize;
        let Some(masked) = rest.get(header..header + length) else { return seen };
        let mask = &rest[extended..header];
        let is_control = opcode >= 8;
        let is_wrong = !is_masked
            || first & 0x70 != 0
            || (is_control && (!is_final || length > 125))
            || (opcode == 2 && within)
            || (opcode == 0 && !within);
        if is_wrong {
            return Seen { end: refused(1002), ..seen };
        }
        let payload: Vec<u8> = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        match opcode {
            1 => return Seen { end: refused(1003), ..seen },
            0 | 2 => {
                within = !is_final;
                seen.data.extend(payload);
            }
            9 => seen.pings.push(payload),
            8 => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let reason = payload.get(2..).and_then(|reason| String::from_utf8(reason.to_vec()).ok());
                return Seen { end: End::Closed(code.zip(reason)), ..seen };
            }
            _ => {}
        }
        stream = &rest[header + length..];
    }
    seen
}

/// The messages that tungstenite assembles from the same bytes, as for a terminal session, are those of the tunnel.
fn check_messages(stream: &[u8], seen: &Seen) {
    let config = WebSocketConfig::default()
        .read_buffer_size(1 << 10)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    let mut socket = WebSocket::from_raw_socket(Client::new(vec![stream]), Role::Server, Some(config));
    let mut data = Vec::new();
    let end = loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => {
                assert!(bytes.len() <= MAX_FRAME);
                data.extend_from_slice(&bytes);
            }
            Ok(Message::Text(_)) => break None,
            Ok(_) => {}
            Err(Error::Io(error)) if would_block(&error) => {}
            Err(error) => break Some(Closure::from_error(&error)),
        }
    };
    if !matches!(seen.end, End::Refused(1003)) {
        assert!(seen.data.starts_with(&data), "{data:?} of {seen:?}");
        // tungstenite may also refuse a message that is too long, or a closing frame.
        let is_refused = matches!(end, Some(Closure::Close(..)));
        assert!(is_refused || !matches!(seen.end, End::Refused(_)), "only the tunnel refuses: {seen:?}");
    }
}
