//! The end of a WebSocket because the server shuts down.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use tl_os::poll::Events;

use crate::http::message::Socket;
use crate::http::ws::Closure;

/// Time between the beginning of the shutdown and the closing frame. What a WebSocket is for may be ending at the same
/// moment, and its own end says more.
const GRACE: Duration = Duration::from_millis(200);

/// When the WebSocket ends, once the server shuts down.
#[derive(Debug, Default)]
pub(crate) struct StopWatch {
    ends_at: Option<Instant>,
}

impl StopWatch {
    /// # Errors
    /// The closure, once the time is over.
    pub(crate) fn check(&mut self, socket: &Socket) -> Result<(), Closure> {
        if !socket.is_stopping() {
            return Ok(());
        }
        let now = Instant::now();
        if now < *self.ends_at.get_or_insert(now + GRACE) {
            return Ok(());
        }
        Err(Closure::close(CloseCode::Away, "shutting down"))
    }

    /// What to poll beside the connection: the beginning of the shutdown, until it was noticed.
    pub(crate) fn entry<'s>(&self, socket: &'s Socket) -> (BorrowedFd<'s>, Events) {
        (socket.stop_signal(), if self.ends_at.is_none() { Events::READ } else { Events::NONE })
    }

    /// The earlier of `deadline` and the end.
    pub(crate) fn limit(&self, deadline: Instant) -> Instant {
        self.ends_at.map_or(deadline, |at| at.min(deadline))
    }
}
