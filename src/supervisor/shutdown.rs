//! The state of a shutdown. Plain data; `ending` acts on it.

use std::time::Duration;

use crate::pending::ReplySender;

/// Longest time from the SIGKILL to the end of the shutdown. Processes that still exist then hang in the kernel (state
/// D).
const KILL_TIME: Duration = Duration::from_secs(2);

/// A shutdown that has begun. All times are those of the supervisor's monotonic clock.
#[derive(Debug)]
pub(super) struct Shutdown {
    begun_at: Duration,
    /// When the grace is over.
    kill_at: Duration,
    /// Everything was killed after the grace.
    killed: bool,
    /// Everything has ended, or [`KILL_TIME`] has passed since the kill.
    done: bool,
    /// The supervisor thread ends after the shutdown, because one of the supervisor's threads has panicked.
    pub(super) ends_thread: bool,
    /// The requests that get a reply when the shutdown is done.
    replies: Vec<ReplySender<()>>,
}

impl Shutdown {
    pub(super) fn new(begun_at: Duration, kill_at: Duration) -> Shutdown {
        Shutdown { begun_at, kill_at, killed: false, done: false, ends_thread: false, replies: Vec::new() }
    }

    /// Adds a request. Returns the end of the grace, which is the earliest one of all requests.
    pub(super) fn join(&mut self, kill_at: Duration, reply: Option<ReplySender<()>>, ends_thread: bool) -> Duration {
        self.kill_at = self.kill_at.min(kill_at);
        self.ends_thread |= ends_thread;
        self.replies.extend(reply);
        self.kill_at
    }

    /// When the next step of the shutdown is due even if no process ends.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match (self.done, self.killed) {
            (true, _) => None,
            (false, false) => Some(self.kill_at),
            (false, true) => Some(self.kill_at + KILL_TIME),
        }
    }

    pub(super) fn begun_at(&self) -> Duration {
        self.begun_at
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the supervisor thread must end now.
    pub(super) fn ends_thread_now(&self) -> bool {
        self.done && self.ends_thread
    }

    /// Whether the remaining processes must be killed now.
    pub(super) fn is_kill_due(&self, now: Duration) -> bool {
        !self.killed && self.kill_at <= now
    }

    /// Updates the state with the time and with whether everything has ended. Returns whether the shutdown is done.
    pub(super) fn advance(&mut self, ended: bool, now: Duration) -> bool {
        self.done = ended || (self.killed && self.kill_at + KILL_TIME <= now);
        self.killed |= self.kill_at <= now;
        self.done
    }

    /// Replies to all requests if the shutdown is done.
    pub(super) fn answer(&mut self) {
        if self.done {
            for reply in self.replies.drain(..) {
                reply.send(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::pending;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_shortest_grace_applies_and_the_shutdown_ends_two_seconds_after_the_kill() {
        let (reply, answer) = pending();
        let mut shutdown = Shutdown::new(SECOND, 10 * SECOND);
        assert_eq!(shutdown.join(5 * SECOND, Some(reply), false), 5 * SECOND);
        assert_eq!(shutdown.join(7 * SECOND, None, true), 5 * SECOND);
        assert_eq!((shutdown.deadline(), shutdown.is_kill_due(4 * SECOND)), (Some(5 * SECOND), false));
        assert!(shutdown.is_kill_due(5 * SECOND));
        shutdown.advance(false, 5 * SECOND);
        assert_eq!((shutdown.deadline(), shutdown.is_kill_due(6 * SECOND)), (Some(7 * SECOND), false));
        shutdown.advance(false, 6 * SECOND);
        shutdown.answer();
        assert!(!shutdown.is_done() && answer.try_take().is_none());
        shutdown.advance(false, 7 * SECOND);
        shutdown.answer();
        assert_eq!((shutdown.ends_thread_now(), shutdown.deadline(), answer.try_take()), (true, None, Some(Ok(()))));
    }
}
