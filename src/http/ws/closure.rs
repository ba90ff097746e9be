//! How and why a WebSocket ends.

use std::io::{self, ErrorKind};
use std::time::Duration;

use tungstenite::Error;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::http::message::Socket;
use crate::http::ws::{CLOSE_TIMEOUT, STALL_TIMEOUT};

/// Maximum length of the reason in a closing frame, in bytes (RFC 6455, section 5.5).
const MAX_REASON: usize = 123;

/// Maximum number of bytes that a client may still send before it has read the closing frame.
const MAX_LATE_BYTES: usize = 64 << 20;

/// Why a WebSocket ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closure {
    /// The connection ends without a closing frame: the client has disconnected, or the closing handshake is over.
    Disconnected,
    /// The client gets a closing frame with this code and reason.
    Close(CloseCode, String),
}

impl Closure {
    /// A closing frame with this code and reason.
    pub(crate) fn close(code: CloseCode, reason: impl Into<String>) -> Closure {
        Closure::Close(code, reason.into())
    }

    /// The closure that an error of tungstenite calls for.
    pub(crate) fn from_error(error: &Error) -> Closure {
        match error {
            Error::Capacity(_) => Closure::close(CloseCode::Size, "a frame or message is longer than 1 MiB"),
            Error::Utf8(_) => Closure::close(CloseCode::Invalid, "a text message is not UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Closure::Disconnected,
            Error::Protocol(error) => Closure::close(CloseCode::Protocol, error.to_string()),
            _ => Closure::Disconnected,
        }
    }

    /// How long a client that gets a closing frame with this code may take nothing of what was sent before it. The last
    /// output of a session or of a service may still be on its way to a slow client.
    pub(crate) fn timeout(code: CloseCode) -> Duration {
        match code {
            CloseCode::Policy | CloseCode::Protocol | CloseCode::Unsupported | CloseCode::Invalid | CloseCode::Size => {
                CLOSE_TIMEOUT
            }
            _ => STALL_TIMEOUT,
        }
    }
}

/// A closing frame. A reason that is too long is truncated.
pub(crate) fn close_frame(code: CloseCode, reason: &str) -> CloseFrame {
    let end = (0..=MAX_REASON).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    CloseFrame { code, reason: reason.get(..end).unwrap_or_default().into() }
}

/// Whether everything was written. If not, tungstenite keeps what the kernel had no room for, and a later flush writes
/// it.
pub(crate) fn is_flushed(result: Result<(), Error>) -> Result<bool, Closure> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::Io(error)) if would_block(&error) => Ok(false),
        Err(_) => Err(Closure::Disconnected),
    }
}

/// Whether an operation failed only because it would have blocked or was interrupted.
pub(crate) fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Waits, after the closing frame was sent, for the client to disconnect or to have taken nothing for `stall_timeout`.
/// If the socket were closed at once, bytes that the client still sends would make the kernel discard what is on its
/// way.
pub(crate) fn linger(socket: &mut Socket, stall_timeout: Duration) {
    socket.linger(CLOSE_TIMEOUT, stall_timeout, MAX_LATE_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_truncated_between_two_characters() {
        assert_eq!(close_frame(CloseCode::Normal, &"x".repeat(500)).reason.len(), 123);
        assert_eq!(close_frame(CloseCode::Normal, &"é".repeat(500)).reason.len(), 122);
        assert_eq!(close_frame(CloseCode::Normal, "short").reason.as_str(), "short");
    }
}
