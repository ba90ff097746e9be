//! What a fault may take away: the only place that says so. Everything else is a violation.
//!
//! | fault | what may be lost | how the daemon says so |
//! |---|---|---|
//! | the log disk is full | output of processes that lived meanwhile | `truncated` in a listing, a `gap` in a stream |
//! | the log disk is full | an upload to that disk | 507 `NO_SPACE`; the old file is unchanged |
//! | more than `--keep-ended` processes have ended since | an ended process, with its output | 404 `NOT_FOUND` |
//! | a PID was used again | the path of an ended plain process, by its PID | the other process has another handle |
//! | a process is killed | what it has not written yet | signal 9 |
//! | the client cuts a request before its response | whether the request was performed; not more than that | |
//! | the client cuts a run | the run, which is killed with its whole tree | it is listed as ended by signal 9 |
//! | a client has no token | its request | 401, and a line in the log |
//! | the daemon is stopped (SIGSTOP) | time: every response may take that much longer | |
//!
//! The fork server may be killed at any time: no start may fail by that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// `--keep-ended` of the daemon.
pub const KEEP_ENDED: u64 = 250;
/// Highest PID in the namespace. Each process and each connection, which has a thread, takes one; so a PID is used again
/// a few seconds after its end.
pub const PID_MAX: u64 = 3_000;
/// `GET /health` is answered within this time, and that for which the daemon was stopped meanwhile.
pub const HEALTH: Duration = Duration::from_secs(10);
/// After a fault, and when everything has ended, all is back to normal within this time.
pub const RECOVERY: Duration = Duration::from_secs(5);
/// Growth of the daemon's resident memory from the end of the first round to that of the last one, in KiB.
pub const MEMORY: u64 = 24 << 10;

/// Parts of lines of the daemon's log, at the levels WARN and ERROR, that the faults explain.
const EXPECTED_LOG: [&str; 8] = [
    "the fork server has ended",
    "the fork server does not answer",
    "is kept in memory: No space left on device",
    "RLIMIT_NOFILE is",
    "is stopped: gave up after",
    "a log cannot be read, trying again",
    "was rejected: it has no token",
    "were rejected",
];

/// Whether a line of the daemon's log tells of a fault that was not injected.
pub fn is_unexpected_log(line: &str) -> bool {
    let is_serious = line.contains("ERROR") || line.contains("WARN") || line.contains("panick");
    is_serious && !EXPECTED_LOG.iter().any(|part| line.contains(part))
}

/// When which fault was present.
#[derive(Default)]
pub struct Faults {
    full: Mutex<Vec<(Instant, Option<Instant>)>>,
    stopped: Mutex<Vec<(Instant, Option<Instant>)>>,
    /// Starts of all clients so far.
    pub starts: AtomicU64,
}

/// One more, or the end of the last one.
fn mark(intervals: &Mutex<Vec<(Instant, Option<Instant>)>>, is_present: bool) {
    let mut intervals = intervals.lock().expect("a lock");
    match intervals.last_mut() {
        Some(last) if !is_present => last.1 = Some(Instant::now()),
        _ => intervals.push((Instant::now(), None)),
    }
}

/// Time of the intervals that lies between `from` and now.
fn overlap(intervals: &Mutex<Vec<(Instant, Option<Instant>)>>, from: Instant) -> Duration {
    let now = Instant::now();
    let intervals = intervals.lock().expect("a lock");
    let time = |(begun, ended): &(Instant, Option<Instant>)| {
        ended.unwrap_or(now).saturating_duration_since((*begun).max(from))
    };
    intervals.iter().map(time).sum()
}

impl Faults {
    /// The log disk is being filled, or has space again.
    pub fn mark_full(&self, is_full: bool) {
        mark(&self.full, is_full);
    }

    /// The daemon is being stopped, or continues.
    pub fn mark_stopped(&self, is_stopped: bool) {
        mark(&self.stopped, is_stopped);
    }

    /// Whether output of a process that was started then may be missing, if the daemon says so, or an upload that began
    /// then may be refused with 507.
    pub fn disk_was_full_since(&self, started: Instant) -> bool {
        !overlap(&self.full, started).is_zero()
    }

    /// By how much a response to a request of this time may be late because the daemon was stopped.
    pub fn stopped_since(&self, sent: Instant) -> Duration {
        overlap(&self.stopped, sent)
    }

    /// Whether a process may no longer be listed that was last seen running when there had been `seen` starts.
    /// `running` is the number of processes that can have run at that time.
    pub fn may_be_forgotten(&self, seen: u64, running: u64) -> bool {
        self.starts.load(Ordering::SeqCst) - seen + running > KEEP_ENDED
    }
}
