//! The end of everything, in order, with a deadline.

use std::time::Duration;

use super::actor::Actor;
use super::entry::Tree;
use crate::error::Error;
use crate::model::{MAX_MS, UnitId};
use crate::os::tree;
use crate::os::wait::has_children;
use crate::pending::Reply;
use crate::unit::{Event, Now};

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
    replies: Vec<Reply<()>>,
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
    pub(super) fn begin_shutdown(&mut self, grace: Duration, reply: Option<Reply<()>>, died: Option<&str>) {
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
        for id in &ids {
            self.step(*id, now, Event::ShutDown(kill_at));
        }
        if first {
            self.ask_the_rest(&ids);
        }
        self.advance_shutdown(now);
    }

    /// SIGTERM to whom no leader has passed it on; as PID 1 to all that there are.
    fn ask_the_rest(&mut self, ids: &[UnitId]) {
        let leaders = self.parts.fleet.leaders();
        if is_pid_1() {
            return tree::ask_the_rest(&leaders);
        }
        for id in ids {
            if let Some(slot) = self.parts.fleet.get_mut(*id)
                && slot.unit.leader().is_none()
                && !slot.data.tree.is_gone(&leaders)
            {
                slot.data.tree.ask(&leaders);
                self.lingering.insert(*id);
            }
        }
        for tree in &self.graveyard {
            tree.ask(&leaders);
        }
    }

    fn kill_the_rest(&mut self) {
        if is_pid_1() {
            tree::signal_everybody(libc::SIGKILL);
        }
        // For PID 1 that was everybody: reading /proc for each ended unit could take longer than there is time.
        let left = |tree: &Tree| !is_pid_1() || matches!(tree, Tree::Leaf(_));
        let ids: Vec<UnitId> =
            self.parts.fleet.iter().filter(|(_, slot)| left(&slot.data.tree)).map(|(id, _)| id).collect();
        for id in ids {
            self.kill_tree(id);
        }
        let leaders = self.parts.fleet.leaders();
        for tree in &mut self.graveyard {
            tree.kill(false, &leaders);
        }
    }

    /// Kills when the grace is over, and answers when nothing is left.
    pub(super) fn advance_shutdown(&mut self, now: Now) {
        let Some(shutdown) = &self.shutdown else { return };
        if shutdown.done {
            return self.answer_shutdown();
        }
        let trees = self.lingering.len() + self.graveyard.len();
        // As any other process than PID 1 we answer for our units only.
        let ended = self.parts.fleet.is_quiet() && trees == 0 && !(is_pid_1() && has_children());
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
