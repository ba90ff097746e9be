//! Notices when no process of a tree is left.
//!
//! The last process of a tree always ends as a child of this process, so each reaping is a reason to look. An empty cgroup
//! is found at once; for a tree without a cgroup the trees thread has to look at /proc.

use std::collections::BTreeSet;

use super::actor::Actor;
use super::tree_watch::{FIRST_KILL_AGAIN, FIRST_LOOK};
use super::trees::log_failure;
use crate::model::{RunKey, UnitId};
use crate::trees::{Hold, Job, Report};
use crate::unit::{Event, Now};
use tl_os::send_signal;

impl Actor {
    /// Watches a tree until no process of it is left. `awaited`: something waits for that.
    pub(super) fn watch(&mut self, key: RunKey, awaited: bool) {
        let next = awaited.then(|| (self.clock.now().mono + FIRST_LOOK, FIRST_LOOK));
        let watch = self.watches.watched.entry(key).or_default();
        watch.next = watch.next.or(next);
    }

    /// The leader of a unit has ended: watches the rest of its tree if it has a cgroup, where that needs no look at /proc.
    pub(super) fn watch_leftovers(&mut self, id: UnitId) {
        if let Some(key) = self.current_run(id)
            && matches!(self.hold(key), Some(Hold::Leaf(_)))
            && !self.release_if_empty(key)
        {
            self.watch(key, false);
        }
    }

    /// After a step of a unit: watches its tree if the unit waits for the end of that. Returns [`Event::TreeGone`] if no
    /// process is left.
    pub(super) fn watch_if_awaited(&mut self, id: UnitId) -> Option<Event> {
        if !self.parts.fleet.get(id)?.unit.awaits_tree() {
            return None;
        }
        let key = self.current_run(id)?;
        if self.hold(key).is_none() || self.release_if_empty(key) {
            return Some(Event::TreeGone);
        }
        if self.watches.watched.get(&key).is_none_or(|watch| watch.next.is_none()) {
            self.watch(key, true);
            self.look_at_marked(false);
        }
        None
    }

    /// Tells the unit that no process of its last run is left.
    fn report_gone(&mut self, key: RunKey, now: Now) {
        if self.current_run(key.0) == Some(key) {
            self.step(key.0, now, Event::TreeGone);
        }
    }

    /// A child has been reaped: looks at the trees whose end something waits for.
    pub(super) fn look_at_awaited(&mut self, now: Now) {
        for key in self.watches.awaited() {
            if self.release_if_empty(key) {
                self.report_gone(key, now);
            } else if let Some(watch) = self.watches.watched.get_mut(&key)
                && !watch.killed
            {
                watch.next = Some((now.mono + FIRST_LOOK, FIRST_LOOK));
            }
        }
        self.look_at_marked(false);
    }

    /// Looks at the trees whose look is due.
    pub(super) fn tend_trees(&mut self, now: Now) {
        if self.watches.deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        let all = self.watches.take_due_look(now.mono);
        for key in self.watches.watched.keys().copied().collect::<Vec<_>>() {
            let Some(watch) = self.watches.watched.get_mut(&key) else { continue };
            let (due, killed) = (watch.take_due(now.mono), watch.killed);
            if !all && !due {
                continue;
            }
            let is_leaf = matches!(self.hold(key), Some(Hold::Leaf(_)));
            if self.release_if_empty(key) {
                self.report_gone(key, now);
            } else if is_leaf && killed && due {
                self.kill_run(key);
            } else if let Some(watch) = self.watches.watched.get_mut(&key) {
                // A tree without a cgroup is killed again once the look has found a process.
                watch.due |= due && !is_leaf;
            }
        }
        self.look_at_marked(false);
    }

    /// Has the trees thread look for the processes of runs without a cgroup: of those whose end something waits for and, if
    /// `retired`, of the retired ones. One look is under way at a time.
    pub(super) fn look_at_marked(&mut self, retired: bool) {
        if self.watches.look.is_some() {
            self.watches.look_again(retired);
            return;
        }
        let mut keys: BTreeSet<RunKey> = self.watches.awaited().into_iter().collect();
        if retired {
            keys.extend(self.watches.retired.keys());
        }
        let marked = keys.into_iter().filter_map(|key| match self.hold(key) {
            Some(Hold::Marks(marks)) => Some((key, marks.clone())),
            _ => None,
        });
        let marked: Vec<_> = marked.collect();
        if !marked.is_empty() {
            self.watches.begin_look(retired);
            self.send_job(Job::Look(marked));
        }
    }

    /// Handles a report of the trees thread.
    pub(super) fn tree_report(&mut self, report: Report) {
        match report {
            Report::Killed(key) => {
                if self.current_run(key.0) == Some(key)
                    && let Some(leader) = self.leader(key.0)
                {
                    // Where there is no /proc, the trees thread could not find the leader.
                    log_failure(key, "killing the leader", send_signal::signal_group(leader, libc::SIGKILL));
                }
            }
            Report::Looked(empty) => self.looked(empty, self.clock.now()),
        }
    }

    /// The trees thread has looked, and has found no process of the runs `empty`.
    fn looked(&mut self, empty: Vec<RunKey>, now: Now) {
        let Some((look, quiet)) = self.watches.end_look() else { return };
        // Where there is no /proc, the look misses leaders that are alive.
        let has_leader = |key: &RunKey| self.current_run(key.0) == Some(*key) && self.leader(key.0).is_some();
        let empty: BTreeSet<RunKey> = empty.into_iter().filter(|key| !has_leader(key)).collect();
        for key in &empty {
            if self.watches.is_believed(*key, quiet) {
                self.release(*key);
                self.report_gone(*key, now);
            }
        }
        if look.retired {
            self.watches.seen_alive = self.watches.retired.len();
        }
        self.kill_again(&empty, quiet, now);
        if let Some(next) = self.watches.next_look.take() {
            self.look_at_marked(next.retired);
        }
    }

    /// Kills the trees again that were due for it, after a look that has found no process of the runs `empty`.
    fn kill_again(&mut self, empty: &BTreeSet<RunKey>, quiet: bool, now: Now) {
        let due = self.watches.watched.iter().filter(|(_, watch)| watch.due).map(|(key, _)| *key);
        for key in due.collect::<Vec<RunKey>>() {
            let Some(watch) = self.watches.watched.get_mut(&key) else { continue };
            watch.due = false;
            if !empty.contains(&key) {
                watch.empty_looks = 0;
            }
            if watch.killed {
                if !quiet {
                    // The orphans that end may be of a tree that forks all the time: keep the interval short.
                    watch.next = Some((now.mono + FIRST_KILL_AGAIN, FIRST_KILL_AGAIN));
                }
                self.kill_run(key);
            }
        }
    }
}
