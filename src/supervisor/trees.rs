//! The trees of runs: signalled as wholes, and watched until nothing of them is left.
//!
//! What takes longer the more processes a tree has is done by the trees thread. When a tree may have ended is told by the
//! reaping of an orphan: the last process of a tree always ends as a child of ours.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::actor::Actor;
use super::entry::Tree;
use crate::model::{Pid, RunKey, UnitId};
use crate::pending::ReplySender;
use crate::trees::{Hold, Job, Report};
use crate::unit::{Event, Now};
use tl_os::process_tree::Marks;
use tl_os::send_signal;

/// Time to the first look at a tree that something waits for; it doubles from look to look. A cgroup can become empty a
/// moment after its last process has been reaped.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// Time from a kill to its first repetition; it doubles from one repetition to the next. A kill can miss a process.
const FIRST_KILL_AGAIN: Duration = Duration::from_millis(10);
/// The longest time between two looks.
const LAST_LOOK: Duration = Duration::from_secs(5);
/// Number of empty looks in a row after which a tree counts as gone although orphans have ended meanwhile. One empty look
/// is enough where no orphan has ended since it was requested; otherwise it may have missed processes that each fork and
/// end at once.
const EMPTY_LOOKS: u32 = 5;
/// From the death of an orphan to the look at the trees that nobody waits for.
const LOOK_AFTER: Duration = Duration::from_millis(50);
/// Number of retired trees without a cgroup that are kept before the trees thread is asked which of them are gone.
const UNSEEN: usize = 64;

/// The trees that are watched, and the retired trees: those of earlier runs and of forgotten units.
#[derive(Debug, Default)]
pub(super) struct Trees {
    /// Trees that may have processes left, though their leaders have ended or have been killed.
    watched: BTreeMap<RunKey, Watch>,
    /// Trees of earlier runs, and of units that have been forgotten.
    retired: BTreeMap<RunKey, Tree>,
    /// When those are looked at that nobody waits for.
    look_at: Option<Duration>,
    /// The trees thread has been asked to look, and has not answered.
    looking: bool,
    /// Another look is needed when it has answered.
    look_again: bool,
    /// That look includes the retired trees.
    look_again_at_retired: bool,
    /// The look that is not answered yet includes the retired trees.
    looking_at_retired: bool,
    /// Retired trees without a cgroup that the last look has found alive. The next is due with [`UNSEEN`] more.
    seen_to_live: usize,
    /// Number of orphans reaped so far.
    orphans: u64,
    /// That number when the look that is not answered yet was requested.
    orphans_at_look: u64,
    /// The leaders of all units, while they are needed for many jobs in a row.
    leaders: Option<Arc<HashSet<Pid>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// The next look, and the time from that to the one after it. None: nobody waits for the end of the tree.
    next: Option<(Duration, Duration)>,
    /// It has been killed, and is killed again at each look that finds something left.
    killed: bool,
    /// If the answer of the trees thread says that something is left, the tree is killed again.
    due: bool,
    /// Looks in a row that have found nothing.
    empty_looks: u32,
}

impl Trees {
    /// Whether nothing is left of runs that have ended, as far as that is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// When the next look is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.watched.values().filter_map(|watch| watch.next.map(|(at, _)| at)).chain(self.look_at).min()
    }

    /// An orphan has ended, which may have been the last of a tree. There may be thousands of trees: one look serves all
    /// that end meanwhile.
    pub(super) fn orphan_reaped(&mut self, now: Duration) {
        self.orphans += 1;
        if !self.watched.is_empty() {
            self.look_at = self.look_at.or(Some(now + LOOK_AFTER));
        }
    }

    /// Nothing was found of a run: whether that is believed. `quiet`: no orphan has ended since the look was asked for.
    fn is_believed(&mut self, key: RunKey, quiet: bool) -> bool {
        let Some(watch) = self.watched.get_mut(&key) else { return quiet };
        watch.empty_looks += 1;
        let believed = quiet || watch.empty_looks >= EMPTY_LOOKS;
        if !believed {
            // One that was killed is killed again first, which looks closer.
            watch.due |= watch.killed;
            self.look_again = true;
        }
        believed
    }

    fn awaited(&self) -> Vec<RunKey> {
        self.watched.iter().filter(|(_, watch)| watch.next.is_some()).map(|(key, _)| *key).collect()
    }
}

impl Actor {
    fn current(&self, id: UnitId) -> Option<RunKey> {
        Some((id, self.parts.fleet.get(id)?.unit.run_no()))
    }

    fn leader(&self, id: UnitId) -> Option<Pid> {
        self.parts.fleet.get(id)?.unit.leader()
    }

    fn tree(&mut self, key: RunKey) -> Option<&mut Tree> {
        if let Some(tree) = self.trees.retired.get_mut(&key) {
            return Some(tree);
        }
        let slot = self.parts.fleet.get_mut(key.0)?;
        (slot.unit.run_no() == key.1).then_some(&mut slot.data.tree)
    }

    fn send_job(&self, job: Job) {
        let leaders = self.trees.leaders.clone().unwrap_or_else(|| Arc::new(self.parts.fleet.leaders()));
        self.parts.trees.send(job, leaders);
    }

    /// Does what sends jobs for many units; who leads them is asked once.
    pub(super) fn with_leaders_known(&mut self, work: impl FnOnce(&mut Actor)) {
        self.trees.leaders = Some(Arc::new(self.parts.fleet.leaders()));
        work(self);
        self.trees.leaders = None;
    }

    fn hold(&mut self, key: RunKey) -> Option<Hold> {
        match self.tree(key)? {
            Tree::Gone => None,
            Tree::Leaf(leaf) => Some(Hold::Leaf(leaf.clone())),
            Tree::Marked(marks) => Some(Hold::Marks(marks.clone())),
        }
    }

    /// SIGTERM and SIGCONT to every process of a unit's tree.
    pub(super) fn terminate_tree(&mut self, id: UnitId) {
        let leader = self.leader(id);
        if let Some(key) = self.current(id) {
            self.terminate(key, leader);
        }
    }

    fn terminate(&mut self, key: RunKey, leader: Option<Pid>) {
        let Some(hold) = self.hold(key) else { return };
        if let Some(leader) = leader {
            note(key, "asking it to end", send_signal::terminate_group(leader));
        }
        self.send_job(Job::Terminate(key, hold, leader));
    }

    /// SIGHUP and SIGCONT to the session of a unit's leader.
    pub(super) fn hang_up_session(&mut self, id: UnitId) {
        if let Some(leader) = self.leader(id) {
            note((id, 0), "hanging up", send_signal::signal_leader(leader, &send_signal::HANG_UP));
            self.send_job(Job::HangUp(Marks::of_session(leader)));
        }
    }

    /// A signal to every process of a unit's tree.
    pub(super) fn signal_tree(&mut self, id: UnitId, signal: i32, reply: ReplySender<()>) {
        let Some(key) = self.current(id) else { return reply.send(Ok(())) };
        match self.hold(key) {
            Some(hold) => self.send_job(Job::Signal(key, hold, signal, reply)),
            None => reply.send(Ok(())),
        }
    }

    /// SIGKILL to every process of a unit's tree, repeated until it is gone.
    pub(super) fn kill_tree(&mut self, id: UnitId) {
        let Some(slot) = self.parts.fleet.get_mut(id) else { return };
        slot.data.killed = true;
        let leader = slot.unit.leader();
        let Some(key) = self.current(id) else { return };
        self.kill_run(key);
        if let Some(leader) = leader
            && matches!(self.tree(key), Some(Tree::Leaf(_)))
        {
            // It may not have joined its cgroup yet.
            note(key, "killing the leader", send_signal::signal_group(leader, libc::SIGKILL));
        }
    }

    /// SIGKILL to a tree, and again later if something is left of it then.
    fn kill_run(&mut self, key: RunKey) {
        let next = Some((self.clock.now().mono + FIRST_KILL_AGAIN, FIRST_KILL_AGAIN));
        let again = self.trees.watched.get(&key).is_some_and(|watch| watch.killed);
        let Some(hold) = self.hold(key) else { return };
        let killed = match &hold {
            Hold::Leaf(leaf) => leaf.kill().is_ok(),
            Hold::Marks(_) => false,
        };
        // What the kernel has missed is found one by one, and so is everything that it does not kill as a whole.
        if again || !killed {
            self.send_job(Job::Kill { key, hold, again });
        }
        let watch = self.trees.watched.entry(key).or_default();
        if !again {
            (watch.killed, watch.next) = (true, next);
        }
    }

    /// Everything is asked to end that no unit's tree has been asked for: as PID 1 all that there are, else what earlier
    /// runs have left.
    pub(super) fn terminate_the_rest(&mut self) {
        let retired: Vec<RunKey> = self.trees.retired.keys().copied().collect();
        for key in retired {
            self.terminate(key, None);
            self.watch(key, true);
        }
        if std::process::id() == 1 {
            self.send_job(Job::TerminateRest);
        }
    }

    /// SIGKILL to everything that is left.
    pub(super) fn kill_the_rest(&mut self) {
        if std::process::id() == 1 {
            send_signal::signal_everybody(libc::SIGKILL);
        }
        let keys: Vec<RunKey> = self.trees.watched.keys().copied().collect();
        keys.into_iter().for_each(|key| self.kill_run(key));
    }

    /// Watches a tree until nothing of it is left. `awaited`: something waits for that.
    fn watch(&mut self, key: RunKey, awaited: bool) {
        let next = awaited.then(|| (self.clock.now().mono + FIRST_LOOK, FIRST_LOOK));
        let watch = self.trees.watched.entry(key).or_default();
        watch.next = watch.next.or(next);
    }

    /// The leader of a unit has ended: what is left of its tree is watched, where that costs no look at /proc.
    pub(super) fn watch_what_is_left(&mut self, id: UnitId) {
        if let Some(key) = self.current(id)
            && matches!(self.tree(key), Some(Tree::Leaf(_)))
            && !self.is_leaf_gone(key)
        {
            self.watch(key, false);
        }
    }

    /// After each step of a unit: whether it waits for the end of its tree, and that has ended already.
    pub(super) fn watch_if_awaited(&mut self, id: UnitId) -> Option<Event> {
        if !self.parts.fleet.get(id)?.unit.awaits_tree() {
            return None;
        }
        let key = self.current(id)?;
        if matches!(self.tree(key), None | Some(Tree::Gone)) || self.is_leaf_gone(key) {
            return Some(Event::TreeGone);
        }
        if self.trees.watched.get(&key).is_none_or(|watch| watch.next.is_none()) {
            self.watch(key, true);
            self.look_at_marked(false);
        }
        None
    }

    /// Lets go of a cgroup that nothing lives in any more, and says whether that is so.
    fn is_leaf_gone(&mut self, key: RunKey) -> bool {
        let gone = matches!(self.tree(key), Some(Tree::Leaf(leaf)) if leaf.remove().is_ok());
        if gone {
            self.let_go(key);
        }
        gone
    }

    /// Nothing of the tree is left.
    fn let_go(&mut self, key: RunKey) {
        self.trees.watched.remove(&key);
        if self.trees.retired.remove(&key).is_none()
            && let Some(tree) = self.tree(key)
        {
            *tree = Tree::Gone;
        }
    }

    /// Tells the unit that nothing is left of its last run.
    fn tell_gone(&mut self, key: RunKey, now: Now) {
        if self.current(key.0) == Some(key) {
            self.step(key.0, now, Event::TreeGone);
        }
    }

    /// Keeps the tree of an earlier run or of a forgotten unit until nothing of it is left.
    pub(super) fn retire(&mut self, key: RunKey, tree: Tree) {
        let is_leaf = matches!(tree, Tree::Leaf(_));
        if matches!(tree, Tree::Gone) {
            self.trees.watched.remove(&key);
            return;
        }
        self.trees.retired.insert(key, tree);
        if is_leaf {
            if !self.is_leaf_gone(key) {
                self.watch(key, false);
            }
        } else if self.trees.retired.len() > self.trees.seen_to_live + UNSEEN {
            self.look_at_marked(true);
        }
    }

    /// A child has been reaped: looks at the trees that something waits for.
    pub(super) fn look_at_awaited(&mut self, now: Now) {
        for key in self.trees.awaited() {
            if self.is_leaf_gone(key) {
                self.tell_gone(key, now);
            } else if let Some(watch) = self.trees.watched.get_mut(&key)
                && !watch.killed
            {
                watch.next = Some((now.mono + FIRST_LOOK, FIRST_LOOK));
            }
        }
        self.look_at_marked(false);
    }

    /// Looks at what is due.
    pub(super) fn tend_trees(&mut self, now: Now) {
        if self.trees.deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        let all = self.trees.look_at.take_if(|at| *at <= now.mono).is_some();
        for key in self.trees.watched.keys().copied().collect::<Vec<_>>() {
            let Some(watch) = self.trees.watched.get_mut(&key) else { continue };
            let due = watch.next.take_if(|(at, _)| *at <= now.mono);
            if let Some((_, wait)) = due {
                let wait = (2 * wait).min(LAST_LOOK);
                watch.next = Some((now.mono + wait, wait));
            }
            if !all && due.is_none() {
                continue;
            }
            let (killed, due) = (watch.killed, due.is_some());
            let is_leaf = matches!(self.tree(key), Some(Tree::Leaf(_)));
            if self.is_leaf_gone(key) {
                self.tell_gone(key, now);
            } else if is_leaf && killed && due {
                self.kill_run(key);
            } else if let Some(watch) = self.trees.watched.get_mut(&key) {
                // Without a cgroup, not before the look has found something.
                watch.due |= due && !is_leaf;
            }
        }
        self.look_at_marked(false);
    }

    /// Has the trees thread look for what is left of the runs that have no cgroup, one look at a time: of those that
    /// something waits for, and of the retired ones if they are to be looked at as well.
    fn look_at_marked(&mut self, retired: bool) {
        if self.trees.looking {
            self.trees.look_again = true;
            self.trees.look_again_at_retired |= retired;
            return;
        }
        let mut keys: BTreeSet<RunKey> = self.trees.awaited().into_iter().collect();
        if retired {
            keys.extend(self.trees.retired.keys());
        }
        let marked = keys.into_iter().filter_map(|key| match self.tree(key) {
            Some(Tree::Marked(marks)) => Some((key, marks.clone())),
            _ => None,
        });
        let marked: Vec<_> = marked.collect();
        if !marked.is_empty() {
            self.trees.looking = true;
            self.trees.looking_at_retired = retired;
            self.trees.orphans_at_look = self.trees.orphans;
            self.send_job(Job::Look(marked));
        }
    }

    /// What the trees thread has done.
    pub(super) fn tree_report(&mut self, report: Report) {
        let now = self.clock.now();
        match report {
            Report::Killed((id, run)) => {
                if self.current(id) == Some((id, run))
                    && let Some(leader) = self.leader(id)
                {
                    // Also where there is no /proc to find it in.
                    note((id, run), "killing the leader", send_signal::signal_group(leader, libc::SIGKILL));
                }
            }
            Report::Looked(empty) => self.looked(empty, now),
        }
    }

    /// The trees thread has found nothing of these runs.
    fn looked(&mut self, empty: Vec<RunKey>, now: Now) {
        self.trees.looking = false;
        // A leader that lives is not found where there is no /proc.
        let has_leader = |key: &RunKey| self.current(key.0) == Some(*key) && self.leader(key.0).is_some();
        let empty: BTreeSet<RunKey> = empty.into_iter().filter(|key| !has_leader(key)).collect();
        let quiet = self.trees.orphans == self.trees.orphans_at_look;
        for key in &empty {
            if self.trees.is_believed(*key, quiet) {
                self.let_go(*key);
                self.tell_gone(*key, now);
            }
        }
        if mem::take(&mut self.trees.looking_at_retired) {
            self.trees.seen_to_live = self.trees.retired.len();
        }
        let due: Vec<RunKey> = self.trees.watched.iter().filter(|(_, watch)| watch.due).map(|(key, _)| *key).collect();
        for key in due {
            let Some(watch) = self.trees.watched.get_mut(&key) else { continue };
            watch.due = false;
            if !empty.contains(&key) {
                watch.empty_looks = 0;
            }
            if watch.killed {
                if !quiet {
                    // It may be what ends and forks all the time: it is not left alone for longer and longer.
                    watch.next = Some((now.mono + FIRST_KILL_AGAIN, FIRST_KILL_AGAIN));
                }
                self.kill_run(key);
            }
        }
        if mem::take(&mut self.trees.look_again) {
            let retired = mem::take(&mut self.trees.look_again_at_retired);
            self.look_at_marked(retired);
        }
    }
}

fn note(key: RunKey, doing: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::debug!("unit {}: {doing}: {error}", key.0);
    }
}
