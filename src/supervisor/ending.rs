//! The shutdown: terminates everything, kills the remaining processes after the grace, and replies when it is done.

use std::time::Duration;

use super::actor::Actor;
use super::reports;
use super::shutdown::Shutdown;
use crate::events::EventKind;
use crate::model::MAX_MS;
use crate::pending::ReplySender;
use crate::unit::{Event, Now};
use tl_os::wait::has_children;

/// The grace of a shutdown because a thread of the supervisor has panicked.
const GRACE_AFTER_PANIC: Duration = Duration::from_secs(5);

impl Actor {
    /// Begins the shutdown because a thread of the supervisor has panicked, this one or another. This thread ends after
    /// it.
    pub(super) fn shut_down_after_panic(&mut self, thread: &str) {
        log::error!("the {thread} thread has panicked: shutting down");
        self.begin_shutdown(GRACE_AFTER_PANIC, None, true);
    }

    /// Begins the shutdown, or shortens its grace. `ends_thread`: the supervisor thread ends after the shutdown as well.
    pub(super) fn begin_shutdown(&mut self, grace: Duration, reply: Option<ReplySender<()>>, ends_thread: bool) {
        let now = self.clock.now();
        // Limited to one day, like every other duration, so that no deadline overflows.
        let kill_at = now.mono + grace.min(Duration::from_millis(MAX_MS));
        let first = self.shutdown.is_none();
        if first {
            reports::shutdown_begun(grace);
            self.parts.events.push(None, EventKind::DaemonShutdown);
            self.parts.ports.refuse_waits();
        }
        self.parts.spawner.stop_server();
        self.watch_leftovers(now);
        let shutdown = self.shutdown.get_or_insert_with(|| Shutdown::new(now.mono, kill_at));
        let kill_at = shutdown.join(kill_at, reply, ends_thread);
        let ids = self.parts.fleet.shutdown_order();
        for id in ids {
            self.step(id, now, Event::ShutDown(kill_at));
        }
        if first {
            self.terminate_the_rest();
        }
        self.advance_shutdown(now);
    }

    /// Kills the remaining processes when the grace is over, and replies when everything has ended.
    pub(super) fn advance_shutdown(&mut self, now: Now) {
        let Some(shutdown) = &self.shutdown else { return };
        let kill_is_due = shutdown.is_kill_due(now.mono);
        if !shutdown.is_done() {
            let is_quiet = self.parts.fleet.is_quiet() && self.watches.is_empty();
            let (is_pid_1, has_children) = (std::process::id() == 1, has_children());
            let ended = match shutdown.ends_thread {
                // What has panicked may be what would have noted that a run has ended.
                true => !has_children || (is_quiet && !is_pid_1),
                // Only PID 1 waits for processes that belong to no unit.
                false => is_quiet && !(is_pid_1 && has_children),
            };
            if !ended && kill_is_due {
                self.kill_the_rest();
            }
            if let Some(shutdown) = &mut self.shutdown
                && shutdown.advance(ended, now.mono)
            {
                let took = now.mono.saturating_sub(shutdown.begun_at());
                // This thread may end before they are due.
                self.log_left_out(Duration::MAX);
                reports::shutdown_done(took, ended);
                // Before the reply: a subscription must end before the connections are waited for.
                self.parts.events.close();
            }
        }
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.answer();
        }
    }
}
