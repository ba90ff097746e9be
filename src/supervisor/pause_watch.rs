//! The trees that are being paused, and the clients that wait for that. Plain data; `pauses` acts on it.

use std::time::Duration;

use super::replies::Started;
use crate::model::{RunKey, Target};
use crate::pending::ReplySender;
use crate::trees::Suspension;

/// How a tree is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// By the freezer of its cgroup.
    Frozen,
    /// Each process has got SIGSTOP.
    Stopped {
        /// A client has sent SIGCONT meanwhile: processes that were stopped before the pause run on with the others.
        continue_all: bool,
    },
}

/// The pauses that clients wait for.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    pub(super) waiting: Vec<Pausing>,
    /// Number of the latest one.
    pub(super) last: u64,
}

/// A tree that does not stand still yet, as far as is known.
#[derive(Debug)]
pub(super) struct Pausing {
    pub(super) number: u64,
    pub(super) run: RunKey,
    /// When to look again; None while the trees thread is at work.
    pub(super) next: Option<Duration>,
    /// Time from that look to the one after it.
    pub(super) wait: Duration,
    /// When it is answered in any case.
    pub(super) until: Duration,
    /// What the trees thread has reported last.
    pub(super) suspension: Suspension,
    pub(super) waiting: Vec<(Target, ReplySender<Started>)>,
}

impl Pauses {
    /// When the next look is due, or the reply to a client.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting.iter().map(|pausing| pausing.next.map_or(pausing.until, |next| next.min(pausing.until))).min()
    }
}
