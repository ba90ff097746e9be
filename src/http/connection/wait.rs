//! What a thread waits for at a socket, and what ends its wait.

use std::time::{Duration, Instant};

/// How long to wait for a client that does not take what is sent to it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SendDeadline {
    /// At most this long without progress. The connection may be evicted meanwhile.
    Stalled(Duration),
    /// Until this time, whatever the progress. The connection may be evicted meanwhile.
    At(Instant),
    /// Forever, even if the client has closed its sending direction: for data that has an end.
    Never,
    /// Until the client disconnects. A client that has closed its sending direction counts as disconnected.
    Disconnect,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wakeup {
    /// The waker was woken, and has been cleared.
    Waker,
    /// The deadline has passed.
    Deadline,
    /// The client has disconnected.
    Disconnected,
}

/// State of the client's end of the connection, as far as the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerState {
    /// The client sends and receives.
    Connected,
    /// The client sends no more, and may or may not receive.
    HalfClosed,
    /// The client neither sends nor receives.
    Closed,
}
