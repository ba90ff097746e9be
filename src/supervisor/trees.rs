//! Signals whole trees, and retires the trees of earlier runs and of forgotten units.
//!
//! Work that takes longer the more processes a tree has is done by the trees thread. See `tree_checks` for how the end
//! of a tree is detected.

use std::io;

use super::actor::Actor;
use super::tree_watch::FIRST_KILL_AGAIN;
use crate::model::{Pid, RunKey, UnitId};
use crate::pending::ReplySender;
use crate::trees::{Job, Tracking};
use tl_os::process_tree::Marks;
use tl_os::send_signal;

impl Actor {
    /// The current or last run of a unit.
    pub(super) fn current_run(&self, id: UnitId) -> Option<RunKey> {
        Some((id, self.parts.fleet.get(id)?.unit.run_no()))
    }

    /// The leader of a unit, if it has not been reaped.
    pub(super) fn leader(&self, id: UnitId) -> Option<Pid> {
        self.parts.fleet.get(id)?.unit.leader()
    }

    /// How the tree of a run is tracked; None if all of its processes have ended.
    pub(super) fn tracking(&self, key: RunKey) -> Option<&Tracking> {
        self.watches.retired.get(&key).or_else(|| {
            let member = self.parts.fleet.get(key.0)?;
            member.context.tree.as_ref().filter(|_| member.unit.run_no() == key.1)
        })
    }

    pub(super) fn send_job(&self, job: Job) {
        self.parts.trees.send(job, self.parts.fleet.leaders());
    }

    /// Sends SIGTERM and SIGCONT to every process of a unit's tree.
    pub(super) fn terminate_tree(&mut self, id: UnitId) {
        let leader = self.leader(id);
        if let Some(key) = self.current_run(id) {
            self.terminate(key, leader);
        }
    }

    fn terminate(&mut self, key: RunKey, leader: Option<Pid>) {
        let Some(tracking) = self.tracking(key).cloned() else { return };
        if let Some(leader) = leader {
            log_failure(key, "terminating the process group", send_signal::terminate_group(leader));
        }
        self.send_job(Job::Terminate(key, tracking, leader));
    }

    /// Sends SIGHUP and SIGCONT to the session of a unit's leader.
    pub(super) fn hang_up_session(&mut self, id: UnitId) {
        if let Some(leader) = self.leader(id) {
            log_failure((id, 0), "hanging up the session", send_signal::signal_leader(leader, &send_signal::HANG_UP));
            self.send_job(Job::HangUp(Marks::of_session(leader)));
        }
    }

    /// Sends a signal to every process of a unit's tree. Completes `reply` when that is done.
    pub(super) fn signal_tree(&mut self, id: UnitId, signal: i32, reply: ReplySender<()>) {
        let run = self.current_run(id).and_then(|key| Some((key, self.tracking(key)?.clone())));
        match run {
            Some((key, tracking)) => self.send_job(Job::Signal(key, tracking, signal, reply)),
            None => reply.send(Ok(())),
        }
    }

    /// Sends SIGKILL to every process of a unit's tree, repeatedly until all have ended.
    pub(super) fn kill_tree(&mut self, id: UnitId) {
        let Some(member) = self.parts.fleet.get_mut(id) else { return };
        member.context.killed = true;
        let leader = member.unit.leader();
        let Some(key) = self.current_run(id) else { return };
        self.kill_run(key);
        if let Some(leader) = leader
            && matches!(self.tracking(key), Some(Tracking::Leaf(_)))
        {
            // The leader may not have joined its cgroup yet.
            log_failure(key, "killing the leader", send_signal::signal_group(leader, libc::SIGKILL));
        }
    }

    /// Sends SIGKILL to the tree of a run, and again later while a process of it exists.
    pub(super) fn kill_run(&mut self, key: RunKey) {
        let next = Some((self.clock.now().mono + FIRST_KILL_AGAIN, FIRST_KILL_AGAIN));
        let again = self.watches.watched.get(&key).is_some_and(|watch| watch.killed);
        let Some(tracking) = self.tracking(key).cloned() else { return };
        let killed = match &tracking {
            Tracking::Leaf(leaf) => leaf.kill().is_ok(),
            Tracking::Marks(_) => false,
        };
        // The trees thread kills each process: if there is no cgroup, or if the kill of the cgroup has missed a
        // process.
        if again || !killed {
            self.send_job(Job::Kill { key, tracking, again });
        }
        let watch = self.watches.watched.entry(key).or_default();
        if !again {
            (watch.killed, watch.next) = (true, next);
        }
    }

    /// Terminates the processes that belong to no unit: the retired trees and, as PID 1, every other process.
    pub(super) fn terminate_the_rest(&mut self) {
        let retired: Vec<RunKey> = self.watches.retired.keys().copied().collect();
        for key in retired {
            self.terminate(key, None);
            self.watch(key, true);
        }
        if std::process::id() == 1 {
            self.send_job(Job::TerminateRest);
        }
    }

    /// Sends SIGKILL to all watched trees and, as PID 1, to every other process.
    pub(super) fn kill_the_rest(&mut self) {
        if std::process::id() == 1 {
            send_signal::signal_all_processes(libc::SIGKILL);
        }
        let keys: Vec<RunKey> = self.watches.watched.keys().copied().collect();
        keys.into_iter().for_each(|key| self.kill_run(key));
    }

    /// Keeps the tree of an earlier run or of a forgotten unit until all of its processes have ended.
    pub(super) fn retire(&mut self, key: RunKey, tree: Option<Tracking>) {
        let Some(tracking) = tree else {
            self.watches.watched.remove(&key);
            return;
        };
        let is_leaf = matches!(tracking, Tracking::Leaf(_));
        self.watches.retired.insert(key, tracking);
        if is_leaf {
            if !self.release_if_empty(key) {
                self.watch(key, false);
            }
        } else if self.watches.has_many_retired() {
            self.scan_marked(true);
        }
    }

    /// Gives the cgroup of a run back if it is empty. Returns whether it was.
    pub(super) fn release_if_empty(&mut self, key: RunKey) -> bool {
        self.keep_tree_usage(key);
        let empty = matches!(self.tracking(key), Some(Tracking::Leaf(leaf)) if leaf.give_back().is_ok());
        if empty {
            self.release(key);
        }
        empty
    }

    /// Forgets the tree of a run after all of its processes have ended.
    pub(super) fn release(&mut self, key: RunKey) {
        self.watches.watched.remove(&key);
        if self.watches.retired.remove(&key).is_none()
            && let Some(member) = self.parts.fleet.get_mut(key.0)
            && member.unit.run_no() == key.1
        {
            member.context.tree = None;
        }
    }
}

pub(super) fn log_failure(key: RunKey, doing: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::debug!("unit {}: {doing}: {error}", key.0);
    }
}
