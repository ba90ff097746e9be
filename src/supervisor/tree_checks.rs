//! Detects when all processes of a tree have ended.
//!
//! The last process of a tree always ends as a child of this process, so trees are checked after each reaping. Checking
//! a cgroup is immediate; for a tree without a cgroup the trees thread must scan /proc.

use std::collections::BTreeSet;

use super::actor::Actor;
use super::tree_watch::{FIRST_CHECK, FIRST_KILL_AGAIN};
use super::trees::log_failure;
use crate::model::{RunKey, UnitId};
use crate::trees::{Job, Report, Tracking};
use crate::unit::{Event, Now};
use tl_os::process_tree::Marks;
use tl_os::send_signal;

impl Actor {
    /// Watches a tree until all of its processes have ended. `awaited`: a unit or the shutdown waits for that.
    pub(super) fn watch(&mut self, key: RunKey, awaited: bool) {
        let next = awaited.then(|| (self.clock.now().mono + FIRST_CHECK, FIRST_CHECK));
        let watch = self.watches.watched.entry(key).or_default();
        watch.next = watch.next.or(next);
    }

    /// Watches the trees of leaders that have ended, if they have a cgroup: that needs no scan of /proc. Gives the
    /// cgroups back that are empty, as usual.
    pub(super) fn watch_leftovers(&mut self, now: Now) {
        for key in self.watches.take_ended() {
            if !matches!(self.tracking(key), Some(Tracking::Leaf(_))) {
                continue;
            }
            if self.release_if_empty(key) {
                self.report_gone(key, now);
            } else {
                self.watch(key, false);
            }
        }
    }

    /// After a step of a unit: watches its tree if the unit waits for the end of the tree. Returns [`Event::TreeGone`]
    /// if all processes of the tree have ended.
    pub(super) fn watch_if_awaited(&mut self, id: UnitId) -> Option<Event> {
        if !self.parts.fleet.get(id)?.unit.awaits_tree() {
            return None;
        }
        let key = self.current_run(id)?;
        if self.tracking(key).is_none() || self.release_if_empty(key) {
            return Some(Event::TreeGone);
        }
        if self.watches.watched.get(&key).is_none_or(|watch| watch.next.is_none()) {
            self.watch(key, true);
            self.scan_marked(false);
        }
        None
    }

    /// Tells the unit that all processes of its last run have ended.
    fn report_gone(&mut self, key: RunKey, now: Now) {
        if self.current_run(key.0) == Some(key) {
            self.step(key.0, now, Event::TreeGone);
        }
    }

    /// After children were reaped: checks the awaited trees.
    pub(super) fn check_awaited(&mut self, now: Now) {
        for key in self.watches.awaited() {
            if self.release_if_empty(key) {
                self.report_gone(key, now);
            } else if let Some(watch) = self.watches.watched.get_mut(&key)
                && !watch.killed
            {
                watch.next = Some((now.mono + FIRST_CHECK, FIRST_CHECK));
            }
        }
        self.scan_marked(false);
    }

    /// Checks the trees for which a check is due.
    pub(super) fn tick_trees(&mut self, now: Now) {
        if self.shutdown.is_some() || self.watches.are_ended_due(now.mono) {
            self.watch_leftovers(now);
        }
        if self.watches.deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        let all = self.watches.take_due_check(now.mono);
        for key in self.watches.watched.keys().copied().collect::<Vec<_>>() {
            let Some(watch) = self.watches.watched.get_mut(&key) else { continue };
            let (due, killed) = (watch.take_due(now.mono), watch.killed);
            if !all && !due {
                continue;
            }
            let is_leaf = matches!(self.tracking(key), Some(Tracking::Leaf(_)));
            if self.release_if_empty(key) {
                self.report_gone(key, now);
            } else if is_leaf && killed && due {
                self.kill_run(key);
            } else if let Some(watch) = self.watches.watched.get_mut(&key) {
                // A tree without a cgroup is killed again once the scan has found a process.
                watch.due |= due && !is_leaf;
            }
        }
        self.scan_marked(false);
    }

    /// Requests a scan for the processes of runs without a cgroup from the trees thread: of the awaited runs and, if
    /// `retired`, of the retired ones. At most one scan is in progress.
    pub(super) fn scan_marked(&mut self, retired: bool) {
        if self.watches.scan.is_some() {
            self.watches.scan_again(retired);
            return;
        }
        let mut keys: BTreeSet<RunKey> = self.watches.awaited().into_iter().collect();
        if retired {
            keys.extend(self.watches.retired.keys());
        }
        let marked = keys.into_iter().filter_map(|key| match self.tracking(key) {
            Some(Tracking::Marks(marks)) => Some((key, Marks::clone(marks))),
            _ => None,
        });
        let marked: Vec<_> = marked.collect();
        if !marked.is_empty() {
            self.watches.begin_scan(retired);
            self.send_job(Job::Scan(marked));
        }
    }

    /// Handles a report of the trees thread.
    pub(super) fn tree_report(&mut self, report: Report) {
        match report {
            Report::Killed(key) => {
                if self.current_run(key.0) == Some(key)
                    && let Some(leader) = self.leader(key.0)
                {
                    // Without /proc, the trees thread could not find the leader.
                    log_failure(key, "killing the leader", send_signal::signal_group(leader, libc::SIGKILL));
                }
            }
            Report::Scanned(empty) => self.scanned(empty, self.clock.now()),
            Report::Suspended(request, suspension) => self.suspended(request, suspension),
        }
    }

    /// Handles a finished scan, which has found no process of the runs `empty`.
    fn scanned(&mut self, empty: Vec<RunKey>, now: Now) {
        let Some((scan, quiet)) = self.watches.end_scan() else { return };
        // Without /proc, the scan misses leaders that are alive.
        let has_leader = |key: &RunKey| self.current_run(key.0) == Some(*key) && self.leader(key.0).is_some();
        let empty: BTreeSet<RunKey> = empty.into_iter().filter(|key| !has_leader(key)).collect();
        for key in &empty {
            if self.watches.counts_as_gone(*key, quiet) {
                self.release(*key);
                self.report_gone(*key, now);
            }
        }
        if scan.retired {
            self.watches.remaining = self.watches.retired.len();
        }
        self.kill_again(&empty, quiet, now);
        if let Some(next) = self.watches.next_scan.take() {
            self.scan_marked(next.retired);
        }
    }

    /// Kills the trees again that are due for it, after a scan that has found no process of the runs `empty`.
    fn kill_again(&mut self, empty: &BTreeSet<RunKey>, quiet: bool, now: Now) {
        let due = self.watches.watched.iter().filter(|(_, watch)| watch.due).map(|(key, _)| *key);
        for key in due.collect::<Vec<RunKey>>() {
            let Some(watch) = self.watches.watched.get_mut(&key) else { continue };
            watch.due = false;
            if !empty.contains(&key) {
                watch.empty_scans = 0;
            }
            if watch.killed {
                if !quiet {
                    // The ended orphans may belong to a tree that keeps forking: keep the interval short.
                    watch.next = Some((now.mono + FIRST_KILL_AGAIN, FIRST_KILL_AGAIN));
                }
                self.kill_run(key);
            }
        }
    }
}
