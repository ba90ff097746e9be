//! The end of everything, in order, with a deadline.

use std::time::Duration;

use super::actor::Actor;
use crate::error::Error;
use crate::model::MAX_MS;
use crate::pending::ReplySender;
use crate::unit::{Event, Now};
use tl_os::wait::has_children;

/// What SIGKILL has not ended by then (in the kernel's hands, state D) is left to the kernel.
const KILL_TIME: Duration = Duration::from_secs(2);

/// A shutdown that goes on.
#[derive(Debug)]
pub(super) struct Shutdown {
    kill_at: Duration,
    killed: bool,
    done: bool,
    /// An actor has died: the supervisor's thread ends with it.
    end: bool,
    replies: Vec<ReplySender<()>>,
}

impl Shutdown {
    fn new(kill_at: Duration) -> Shutdown {
        Shutdown { kill_at, killed: false, done: false, end: false, replies: Vec::new() }
    }

    /// When something is to be done even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match (self.done, self.killed) {
            (true, _) => None,
            (false, false) => Some(self.kill_at),
            (false, true) => Some(self.kill_at + KILL_TIME),
        }
    }

    /// Whether the thread is to end now.
    pub(super) fn is_the_end(&self) -> bool {
        self.done && self.end
    }
}

impl Actor {
    /// Begins it, or shortens its grace. `died`: an actor that is gone, so that its notices will never come; the thread
    /// ends too then, as soon as everything else has.
    pub(super) fn begin_shutdown(&mut self, grace: Duration, reply: Option<ReplySender<()>>, died: Option<&str>) {
        let now = self.clock.now();
        // A day, as for every other time: it keeps the deadline far from any overflow.
        let kill_at = now.mono + grace.min(Duration::from_millis(MAX_MS));
        if let Some(thread) = died {
            log::error!("without the {thread} thread nothing works: shutting down");
        }
        let first = self.shutdown.is_none();
        let shutdown = self.shutdown.get_or_insert_with(|| Shutdown::new(kill_at));
        shutdown.kill_at = shutdown.kill_at.min(kill_at);
        shutdown.end |= died.is_some();
        shutdown.replies.extend(reply);
        let kill_at = shutdown.kill_at;
        let ids = self.parts.fleet.in_order_of_end();
        self.with_leaders_known(|actor| {
            for id in &ids {
                actor.step(*id, now, Event::ShutDown(kill_at));
            }
            if first {
                actor.terminate_the_rest();
            }
        });
        self.advance_shutdown(now);
    }

    /// Kills when the grace is over, and answers when nothing is left.
    pub(super) fn advance_shutdown(&mut self, now: Now) {
        let Some(shutdown) = &self.shutdown else { return };
        if shutdown.done {
            return self.answer_shutdown();
        }
        // As any other process than PID 1 we answer for our units only.
        let ended = self.parts.fleet.is_quiet() && self.trees.is_empty() && !(is_pid_1() && has_children());
        let (killed, kill_at) = (shutdown.killed, shutdown.kill_at);
        if !ended && !killed && kill_at <= now.mono {
            self.kill_the_rest();
        }
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.killed |= kill_at <= now.mono;
            shutdown.done = ended || (killed && kill_at + KILL_TIME <= now.mono);
        }
        self.answer_shutdown();
    }

    fn answer_shutdown(&mut self) {
        if let Some(shutdown) = &mut self.shutdown
            && shutdown.done
        {
            for reply in shutdown.replies.drain(..) {
                reply.send(Ok::<(), Error>(()));
            }
        }
    }
}

/// Whether everything in our namespace is ours to end.
fn is_pid_1() -> bool {
    std::process::id() == 1
}
