//! Who waits for more output of a log, or for its end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Waker;

use crate::pending::parker::Parker;
use crate::pending::wake;

/// The wakers of one log.
#[derive(Default)]
pub(super) struct Wakers {
    /// The id of the last one.
    last: u64,
    pub(super) followers: Vec<(u64, Arc<Armed>)>,
    /// Those that wait for the end of the log.
    pub(super) ends: Vec<(u64, Waker)>,
}

impl Wakers {
    /// The id of another one.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// The waker of a follower, and the flag that the follower raises when it has found no item.
pub(super) struct Armed {
    pub(super) flag: AtomicBool,
    pub(super) waker: Waker,
    pub(super) parker: Parker,
}

impl Armed {
    /// Wakes the follower's waker, and a thread that waits in [`Follower::next`](super::Follower::next).
    pub(super) fn wake(&self) {
        self.parker.unpark();
        wake(&self.waker);
    }
}
