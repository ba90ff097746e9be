//! Finds out whether a WebSocket client is still reachable.

use std::time::{Duration, Instant};

use crate::http::message::Socket;

/// Interval between pings.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How often the kernel probes a client that has not acknowledged something or has no room, where it can be configured.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// A client's machine that is probed and has not been heard from for this long is gone.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(55);

/// The same where the kernel cannot be configured and the client has no room: the intervals between the probes of such
/// a kernel grow up to 2 min.
const SILENCE_TIMEOUT_UNPROBED: Duration = Duration::from_secs(150);

/// Whether the client's machine is still reachable. Its kernel acknowledges pings and probes even if its program does
/// not read.
#[derive(Debug)]
pub(crate) struct PeerLiveness {
    /// The kernel probes the client every [`PROBE_INTERVAL`].
    is_probed: bool,
}

impl PeerLiveness {
    /// Has the kernel probe the client, where it can be configured.
    pub(crate) fn new(socket: &Socket) -> PeerLiveness {
        PeerLiveness { is_probed: socket.set_max_probe_interval(PROBE_INTERVAL).is_ok() }
    }

    /// Whether the client's machine has been silent for so long that it is gone. This check was due at `due`. If it is
    /// late, this process or machine was stopped, and has sent nothing meanwhile that the client could acknowledge: that
    /// time does not count.
    pub(crate) fn is_lost(&self, socket: &Socket, due: Instant) -> bool {
        let timeout = self.timeout(|| socket.unsent().is_ok_and(|count| count > 0)) + due.elapsed();
        socket.silence().is_ok_and(|silence| silence > timeout)
    }

    fn timeout(&self, has_no_room: impl FnOnce() -> bool) -> Duration {
        if self.is_probed || !has_no_room() { SILENCE_TIMEOUT } else { SILENCE_TIMEOUT_UNPROBED }
    }
}

/// When to ping a client, and whether it has answered.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    next: Instant,
    /// The client has sent something since the last ping.
    heard: bool,
    missed: u32,
}

impl Heartbeat {
    /// Number of pings in a row without an answer after which a client counts as gone.
    const MAX_MISSED: u32 = 2;

    /// Time to answer the last of these pings, so that a client is found gone within 90 s.
    const LAST_TIMEOUT: Duration = Duration::from_secs(25);

    /// A heartbeat whose first ping is due after one interval.
    pub(crate) fn new(now: Instant) -> Heartbeat {
        Heartbeat { next: now + PING_INTERVAL, heard: true, missed: 0 }
    }

    /// Time of the next ping.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Records that the client has sent something.
    pub(crate) fn hear(&mut self) {
        self.heard = true;
    }

    /// Whether a ping is due. If so, the next one is scheduled.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            self.missed = if self.heard { 0 } else { self.missed + 1 };
            self.heard = false;
            let is_last = self.missed + 1 >= Heartbeat::MAX_MISSED;
            self.next = now + if is_last { Heartbeat::LAST_TIMEOUT } else { PING_INTERVAL };
        }
        due
    }

    /// Whether the client has left too many pings unanswered.
    pub(crate) fn is_lost(&self) -> bool {
        self.missed >= Heartbeat::MAX_MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_misses_two_pings_is_lost_within_90_s() {
        let begun = Instant::now();
        let at = |secs: u64| begun + Duration::from_secs(secs);
        let mut heartbeat = Heartbeat::new(begun);
        assert!(!heartbeat.is_due(at(29)) && heartbeat.is_due(at(30)) && !heartbeat.is_due(at(31)));
        // The client's last sign of life, right after the first ping.
        heartbeat.hear();
        assert!(heartbeat.is_due(at(60)) && !heartbeat.is_lost());
        assert!(heartbeat.is_due(at(90)) && !heartbeat.is_lost());
        assert!(!heartbeat.is_due(at(114)) && heartbeat.is_due(at(115)) && heartbeat.is_lost());
        heartbeat.hear();
        assert!(heartbeat.is_due(at(140)) && !heartbeat.is_lost());
        assert!(!heartbeat.is_due(at(169)), "once the client is heard again, the interval is as before");
    }

    #[test]
    fn a_client_without_room_gets_more_time_where_the_kernel_probes_seldom() {
        let timeout = |is_probed, has_no_room| PeerLiveness { is_probed }.timeout(|| has_no_room);
        assert_eq!([timeout(true, true), timeout(true, false), timeout(false, false)], [SILENCE_TIMEOUT; 3]);
        assert_eq!(timeout(false, true), SILENCE_TIMEOUT_UNPROBED);
        assert!(SILENCE_TIMEOUT + PING_INTERVAL < Duration::from_secs(90) && SILENCE_TIMEOUT > PROBE_INTERVAL * 3);
    }
}
