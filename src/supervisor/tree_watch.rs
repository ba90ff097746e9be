//! The trees that the supervisor watches: when to look at them, and which look is under way. Plain state.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Pid, RunKey};
use crate::trees::Hold;

/// Time to the first look at a tree that something waits for; it doubles from look to look. A cgroup can become empty a
/// moment after its last process has been reaped.
pub(super) const FIRST_LOOK: Duration = Duration::from_millis(1);
/// Time from a kill to its first repetition; it doubles from one repetition to the next. A kill can miss a process.
pub(super) const FIRST_KILL_AGAIN: Duration = Duration::from_millis(10);
/// The longest time between two looks.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Number of empty looks in a row after which a tree counts as gone although orphans have ended meanwhile. One empty look
/// is enough where no orphan has ended since it was requested; otherwise it may have missed processes that each fork and
/// end at once.
const EMPTY_LOOKS: u32 = 5;
/// Time from the end of an orphan to a look at the trees that nothing waits for.
const LOOK_AFTER: Duration = Duration::from_millis(50);
/// Number of retired trees without a cgroup that are kept before the trees thread is asked which of them are gone.
const UNSEEN: usize = 64;

/// The trees that are watched, and the retired trees: those of earlier runs and of forgotten units.
#[derive(Debug, Default)]
pub(super) struct TreeWatches {
    /// Trees that may have processes left, although their leaders have ended or were killed.
    pub(super) watched: BTreeMap<RunKey, Watch>,
    /// Trees of earlier runs, and of units that have been forgotten.
    pub(super) retired: BTreeMap<RunKey, Hold>,
    /// When to look at the trees that nothing waits for.
    look_at: Option<Duration>,
    /// The look that the trees thread has been asked for and has not reported yet.
    pub(super) look: Option<Look>,
    /// The look that is needed after that one.
    pub(super) next_look: Option<NextLook>,
    /// Number of retired trees without a cgroup that the last look has found alive. The next one is due with [`UNSEEN`]
    /// more.
    pub(super) seen_alive: usize,
    /// Number of orphans reaped so far.
    orphans: u64,
    /// The leaders of all units, while they are needed for many jobs in a row.
    pub(super) leaders: Option<Arc<HashSet<Pid>>>,
}

/// A look that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether it includes the retired trees.
    pub(super) retired: bool,
    /// Number of orphans reaped before it was requested.
    orphans: u64,
}

/// A look that is still to be requested.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NextLook {
    /// Whether it includes the retired trees.
    pub(super) retired: bool,
}

/// One tree that is watched.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// The next look, and the time from that to the one after it. None if nothing waits for the end of the tree.
    pub(super) next: Option<(Duration, Duration)>,
    /// The tree was killed, and is killed again at each look that finds a process.
    pub(super) killed: bool,
    /// The tree is killed again if the look that is under way finds a process.
    pub(super) due: bool,
    /// Number of looks in a row that have found no process.
    pub(super) empty_looks: u32,
}

impl Watch {
    /// Whether the next look is due. If so, the one after it is scheduled.
    pub(super) fn take_due(&mut self, now: Duration) -> bool {
        let Some((_, wait)) = self.next.take_if(|(at, _)| *at <= now) else { return false };
        let wait = (2 * wait).min(LONGEST_WAIT);
        self.next = Some((now + wait, wait));
        true
    }
}

impl TreeWatches {
    /// Whether no tree is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// When the next look is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.watched.values().filter_map(|watch| watch.next.map(|(at, _)| at)).chain(self.look_at).min()
    }

    /// Notes that an orphan has ended, which may have been the last process of a tree. There may be thousands of trees, so
    /// one look serves all orphans that end within [`LOOK_AFTER`].
    pub(super) fn orphan_reaped(&mut self, now: Duration) {
        self.orphans += 1;
        if !self.watched.is_empty() {
            self.look_at = self.look_at.or(Some(now + LOOK_AFTER));
        }
    }

    /// Whether the look at all trees is due. If so, it is removed.
    pub(super) fn take_due_look(&mut self, now: Duration) -> bool {
        self.look_at.take_if(|at| *at <= now).is_some()
    }

    /// Notes that a look was requested.
    pub(super) fn begin_look(&mut self, retired: bool) {
        self.look = Some(Look { retired, orphans: self.orphans });
    }

    /// Ends the look that was under way. Returns it, and whether no orphan has ended since it was requested.
    pub(super) fn end_look(&mut self) -> Option<(Look, bool)> {
        self.look.take().map(|look| (look, look.orphans == self.orphans))
    }

    /// Has another look follow the one that is under way.
    pub(super) fn look_again(&mut self, retired: bool) {
        self.next_look.get_or_insert_default().retired |= retired;
    }

    /// Whether the run counts as gone after a look that has found none of its processes. `quiet`: no orphan has ended since
    /// that look was requested.
    pub(super) fn is_believed(&mut self, key: RunKey, quiet: bool) -> bool {
        let Some(watch) = self.watched.get_mut(&key) else { return quiet };
        watch.empty_looks += 1;
        let believed = quiet || watch.empty_looks >= EMPTY_LOOKS;
        if !believed {
            // A tree that was killed is killed again first, which looks closer.
            watch.due |= watch.killed;
            self.look_again(false);
        }
        believed
    }

    /// The runs whose end something waits for.
    pub(super) fn awaited(&self) -> Vec<RunKey> {
        self.watched.iter().filter(|(_, watch)| watch.next.is_some()).map(|(key, _)| *key).collect()
    }

    /// Whether so many trees without a cgroup have been retired that the trees thread should look for those that are gone.
    pub(super) fn has_many_retired(&self) -> bool {
        self.retired.len() > self.seen_alive + UNSEEN
    }
}
