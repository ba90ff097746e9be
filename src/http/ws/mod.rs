//! The way into a WebSocket (RFC 6455, section 4) and out of it (section 7). What is in between is tungstenite's.
//!
//! The thread of the connection is the only one that writes to its socket: what others have for it they put where it
//! can look, and wake it. No extension is negotiated, whatever the client offers.

pub(in crate::http) mod frames;

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use sha1::{Digest, Sha1};
use tungstenite::Error;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::Problem;
use crate::http::server::socket::Socket;

/// What every server appends to the key (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Frames of a client that are taken in a row before the other direction has its turn.
pub(in crate::http) const FRAMES: usize = 64;

/// The largest frame that is taken, and the largest message made of frames.
pub(in crate::http) const LARGEST: usize = 1 << 20;

/// How often a client is pinged.
pub(in crate::http) const BEAT: Duration = Duration::from_secs(30);

/// How long a client may take for one thing that it is sent: what it has not read is kept for it.
pub(in crate::http) const STUCK: Duration = Duration::from_secs(60);

/// How long a client may take for the words that it is told to go with, if it has done something wrong.
pub(in crate::http) const FAREWELL: Duration = Duration::from_secs(5);

/// What it may still have sent until it has read them.
const STRAGGLERS: usize = 64 << 20;

/// How often the kernel asks a client that has not acknowledged something or has no room, where it can be told.
const ASK: Duration = Duration::from_secs(15);

/// Without an acknowledgement for this long, while it is asked, the client's machine is gone…
const LOST: Duration = Duration::from_secs(55);
/// …or for this long, while it has no room and the kernel cannot be told: it asks every 2 min at last then.
const LOST_UNASKED: Duration = Duration::from_secs(150);

/// A client's key, which proves that it means a WebSocket.
#[derive(Debug)]
pub(in crate::http) struct Handshake {
    accept: String,
}

impl Handshake {
    /// # Errors
    /// [`Problem::UpgradeRequired`] for any other request, [`Problem::Invalid`] for a bad one.
    pub(in crate::http) fn of(request: &Request<'_>) -> Result<Handshake, Problem> {
        if !request.upgrades_to("websocket") {
            return Err(Problem::UpgradeRequired);
        }
        let invalid = |sentence: &str| Err(Problem::Invalid(sentence.to_owned()));
        if request.field("Sec-WebSocket-Version").is_none_or(|version| version.trim() != "13") {
            return invalid("`Sec-WebSocket-Version` must be 13");
        }
        if !request.is_bare() {
            return invalid("a WebSocket begins without a body");
        }
        let key = request.field("Sec-WebSocket-Key").unwrap_or_default();
        match BASE64.decode(key.trim().as_bytes()) {
            Ok(bytes) if bytes.len() == 16 => Ok(Handshake { accept: accept(key.trim()) }),
            _ => invalid("`Sec-WebSocket-Key` must be 16 bytes in base64"),
        }
    }

    /// Accepts; `serve` has the connection then.
    pub(in crate::http) fn answer(self, serve: impl FnOnce(&mut Socket) + 'static) -> Answer {
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nServer: tl-init\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            self.accept
        );
        Answer::Upgraded { head: head.into_bytes(), serve: Box::new(serve) }
    }
}

fn accept(key: &str) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// The connection as tungstenite reads and writes it: never waiting.
#[derive(Debug)]
pub(in crate::http) struct Wire<'c>(pub(super) &'c mut Socket);

impl Read for Wire<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read_now(out)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_now(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a WebSocket ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum End {
    /// The client has gone, or has heard all that there was to say.
    Gone,
    /// The client is told.
    Close(CloseCode, String),
}

impl End {
    pub(in crate::http) fn close(code: CloseCode, reason: impl Into<String>) -> End {
        End::Close(code, reason.into())
    }

    /// What the client did wrong, if it did.
    pub(in crate::http) fn of(error: &Error) -> End {
        match error {
            Error::Capacity(_) => End::close(CloseCode::Size, "a frame or message is over 1 MiB"),
            Error::Utf8(_) => End::close(CloseCode::Invalid, "a text is not UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
            Error::Protocol(wrong) => End::close(CloseCode::Protocol, wrong.to_string()),
            _ => End::Gone,
        }
    }
}

/// The frame that says so; a reason has 123 bytes at most (RFC 6455, section 5.5).
pub(in crate::http) fn close_frame(code: CloseCode, reason: &str) -> CloseFrame {
    CloseFrame { code, reason: reason.get(..123).unwrap_or(reason).into() }
}

/// Whether everything has been written: tungstenite keeps what the kernel does not take now, and it is tried again later.
pub(in crate::http) fn is_flushed(result: Result<(), Error>) -> Result<bool, End> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::Io(error)) if is_later(&error) => Ok(false),
        Err(_) => Err(End::Gone),
    }
}

/// Whether it is only not possible now.
pub(in crate::http) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// How long a client that is told this may take nothing of what was sent before it. The rest of a session or of a
/// connection may still be on its way to one that is slow.
pub(in crate::http) fn patience(code: CloseCode) -> Duration {
    match code {
        CloseCode::Policy | CloseCode::Protocol | CloseCode::Unsupported | CloseCode::Invalid | CloseCode::Size => {
            FAREWELL
        }
        _ => STUCK,
    }
}

/// The last words are out: waits for the client to go, so that what it still sends does not take them away, nor what
/// was sent before them.
pub(in crate::http) fn part(socket: &mut Socket, patience: Duration) {
    socket.linger(FAREWELL, patience, STRAGGLERS);
}

/// Whether the client's machine is there: its kernel acknowledges pings and questions whether or not its program reads.
#[derive(Debug)]
pub(in crate::http) struct Line {
    asked_often: bool,
}

impl Line {
    /// From here on the client is asked often enough.
    pub(in crate::http) fn new(socket: &Socket) -> Line {
        Line { asked_often: socket.ask_at_least_every(ASK).is_ok() }
    }

    /// Whether it has not been heard of for so long that it is gone.
    pub(in crate::http) fn is_lost(&self, socket: &Socket) -> bool {
        let most = self.patience(|| socket.unsent().is_ok_and(|count| count > 0));
        socket.silence().is_ok_and(|silence| silence > most)
    }

    fn patience(&self, no_room: impl FnOnce() -> bool) -> Duration {
        if self.asked_often || !no_room() { LOST } else { LOST_UNASKED }
    }
}

/// When a client is pinged.
#[derive(Debug)]
pub(in crate::http) struct Beat {
    at: Instant,
    heard: bool,
    missed: u32,
}

impl Beat {
    /// Pings missed until a client counts as gone.
    const MOST_MISSED: u32 = 2;

    /// How long it has to answer the last of them: all in all less than 90 s.
    const LAST: Duration = Duration::from_secs(25);

    pub(in crate::http) fn new(now: Instant) -> Beat {
        Beat { at: now + BEAT, heard: true, missed: 0 }
    }

    /// The next ping.
    pub(in crate::http) fn at(&self) -> Instant {
        self.at
    }

    /// Anything at all came from the client.
    pub(in crate::http) fn hear(&mut self) {
        self.heard = true;
    }

    /// Whether a ping is due.
    pub(in crate::http) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.at <= now;
        if due {
            self.missed = if self.heard { 0 } else { self.missed + 1 };
            self.heard = false;
            self.at = now + if self.missed + 1 < Beat::MOST_MISSED { BEAT } else { Beat::LAST };
        }
        due
    }

    /// Whether it has not answered for too long.
    pub(in crate::http) fn is_over(&self) -> bool {
        self.missed >= Beat::MOST_MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_client_that_misses_two_pings_is_over_within_90_s() {
        let begun = Instant::now();
        let at = |secs: u64| begun + Duration::from_secs(secs);
        let mut beat = Beat::new(begun);
        assert!(!beat.is_due(at(29)) && beat.is_due(at(30)) && !beat.is_due(at(31)));
        beat.hear();
        // The last that was heard of it, right after the first ping.
        assert!(beat.is_due(at(60)) && !beat.is_over());
        assert!(beat.is_due(at(90)) && !beat.is_over());
        assert!(!beat.is_due(at(114)) && beat.is_due(at(115)) && beat.is_over());
        beat.hear();
        assert!(beat.is_due(at(140)) && !beat.is_over());
        assert!(!beat.is_due(at(169)), "as ever, once it is heard again");
    }

    #[test]
    fn a_kernel_that_asks_seldom_is_given_time_where_there_is_no_room() {
        let patience = |asked_often, no_room| Line { asked_often }.patience(|| no_room);
        assert_eq!([patience(true, true), patience(true, false), patience(false, false)], [LOST; 3]);
        assert_eq!(patience(false, true), LOST_UNASKED);
        assert!(LOST + BEAT < Duration::from_secs(90) && LOST > ASK * 3);
    }

    #[test]
    fn reasons_are_short_enough() {
        assert_eq!(close_frame(CloseCode::Normal, &"x".repeat(500)).reason.len(), 123);
    }
}
