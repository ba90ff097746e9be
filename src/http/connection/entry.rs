//! One connection of the table: its phase, and whether its client is slow.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use nix::sys::socket::{self, MsgFlags};

use tl_os::tcp;

/// Minimum time a connection gets to send its request head, or to take its response, before it may be evicted. The head
/// of a new client often arrives shortly after the connection; without this time two new clients could evict each other
/// forever. For a head, the time that the client has waited in the kernel's queue counts.
pub(crate) const EVICTION_GRACE: Duration = Duration::from_millis(100);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Waiting for the next request.
    Idle,
    /// Receiving a request head.
    Head,
    /// Receiving a body that must be complete before anything is executed.
    Body,
    /// Waiting for the client to take a finished response, or to close.
    Flushing,
    /// Executing a request.
    Busy,
    /// Evicted. The last phase.
    Evicted,
}

/// An entry of the table.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) stream: TcpStream,
    pub(super) phase: AtomicU8,
    /// Time of the last change of phase, in microseconds since the table was created.
    pub(super) since: AtomicU64,
    /// In [`Phase::Head`]: all that the client has sent was read, and is not a whole head.
    pub(super) starved: AtomicBool,
}

fn has_bytes(stream: &TcpStream) -> bool {
    let mut byte = [0];
    socket::recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|read| read > 0)
}

/// Whether all that the client has sent was read, and nothing has arrived from it for [`EVICTION_GRACE`].
pub(crate) fn is_silent(stream: &TcpStream) -> bool {
    tcp::silence(stream).is_ok_and(|time| time >= EVICTION_GRACE) && !has_bytes(stream)
}

impl Connection {
    /// Evicts the connection if it is still in the phase `from`: its thread then reads the end of the stream.
    pub(super) fn evict(&self, from: Phase) -> bool {
        let evicted = self.phase.compare_exchange(from as u8, Phase::Evicted as u8, SeqCst, SeqCst).is_ok();
        if evicted {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        evicted
    }

    pub(super) fn has_bytes(&self) -> bool {
        has_bytes(&self.stream)
    }
}
