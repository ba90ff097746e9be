//! WebSockets: the opening handshake (RFC 6455, section 4), single frames, pings, and the closing (section 7).
//!
//! Only the thread of the connection writes to its socket; other threads wake it when there is something to send. No
//! extension is negotiated, whatever the client offers. [`Handshake`] is public; for messages and frames a handler uses
//! tungstenite, or any other implementation that reads and writes a [`Socket`](crate::http::message::Socket).

mod closure;
mod frames;
mod handshake;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod liveness;
mod stop;

use std::time::Duration;

pub use handshake::Handshake;

pub(crate) use closure::{Closure, close_frame, is_flushed, linger, would_block};
pub(crate) use frames::{FrameKind, FrameReader, binary_frame};
pub(crate) use liveness::{Heartbeat, PING_INTERVAL, PeerLiveness};
pub(crate) use stop::StopWatch;

/// Maximum number of a client's frames that are read before the other direction gets its turn.
pub(crate) const FRAMES_PER_TURN: usize = 64;

/// Maximum size of a frame, and of a message of several frames, in bytes.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;

/// How long a client may take nothing of what is sent to it.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client that has broken the protocol, or is too slow, may take to receive the closing frame.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
