//! The trees that the supervisor watches: when to check them, and which scan of /proc is in progress. Plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::RunKey;
use crate::pending::ReplySender;
use crate::trees::Tracking;

/// Time to the first check of an awaited tree; it doubles with each check. A cgroup can become
/// empty a moment after its last process has been reaped.
pub(super) const FIRST_CHECK: Duration = Duration::from_millis(1);
/// Time from a kill to its first repetition; it doubles from one repetition to the next. A kill can miss a process.
pub(super) const FIRST_KILL_AGAIN: Duration = Duration::from_millis(10);
/// The longest time between two checks.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Number of scans in a row without a process of a tree after which the tree counts as gone although orphans have ended
/// meanwhile. One such scan is enough if no orphan has ended since it was requested; otherwise it may have missed
/// processes that each fork and end at once.
const EMPTY_SCANS: u32 = 5;
/// Time from the end of an orphan to the check of all watched trees.
const CHECK_DELAY: Duration = Duration::from_millis(50);
/// Longest time from the end of a leader to the check whether its tree has ended too. That takes the supervisor some 20
/// µs, so it does it when it has nothing else to do: the client that waits for the end of the run gets it first.
const ENDED_DELAY: Duration = Duration::from_millis(1);
/// Number of ended leaders whose trees are checked without that delay.
const MANY_ENDED: usize = 16;
/// Number of retired trees without a cgroup that are added before the trees thread scans for those that are gone.
const UNSCANNED: usize = 64;

/// The trees that are watched, and the retired trees: those of earlier runs and of forgotten units.
#[derive(Debug, Default)]
pub(super) struct TreeWatches {
    /// Trees that may have processes left, although their leaders have ended or were killed.
    pub(super) watched: BTreeMap<RunKey, Watch>,
    /// Trees of earlier runs, and of units that have been forgotten.
    pub(super) retired: BTreeMap<RunKey, Tracking>,
    /// Runs whose leaders have ended and whose trees were not checked yet.
    ended: Vec<RunKey>,
    /// When the first of these leaders has ended.
    ended_at: Duration,
    /// When to check all watched trees, because an orphan has ended.
    check_at: Option<Duration>,
    /// The scan that was requested from the trees thread and has not been reported yet.
    pub(super) scan: Option<Scan>,
    /// The scan to request after that one.
    pub(super) next_scan: Option<NextScan>,
    /// Number of retired trees that remained after the last scan of them. The next scan is due with [`UNSCANNED`] more.
    pub(super) remaining: usize,
    /// Number of orphans reaped so far.
    orphans: u64,
}

/// A scan that is in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    /// Whether it includes the retired trees.
    pub(super) retired: bool,
    /// Number of orphans reaped before it was requested.
    orphans: u64,
}

/// A scan that has not been requested yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NextScan {
    /// Whether it includes the retired trees.
    pub(super) retired: bool,
}

/// One watched tree. It is *awaited* if a unit or the shutdown waits for its end, or if it was killed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// The time of the next check, and the current interval of checks; None if the tree is not awaited.
    pub(super) next: Option<(Duration, Duration)>,
    /// The tree was killed, and is killed again after each check that finds a process.
    pub(super) killed: bool,
    /// The tree is killed again if the scan in progress finds a process.
    pub(super) due: bool,
    /// Number of scans in a row that have found no process.
    pub(super) empty_scans: u32,
}

/// A request to end a unit that is answered at the end of its tree.
#[derive(Debug)]
pub(super) struct AwaitedKill {
    /// The last run of the unit at the time of the request.
    pub(super) run: RunKey,
    /// When it is answered in any case.
    pub(super) until: Duration,
    pub(super) reply: ReplySender<()>,
}

impl Watch {
    /// Whether the next check is due. If so, schedules the one after it.
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

    /// When the next check is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let ended = (!self.ended.is_empty()).then(|| self.ended_at + ENDED_DELAY);
        self.watched.values().filter_map(|watch| watch.next.map(|(at, _)| at)).chain(self.check_at).chain(ended).min()
    }

    /// Records that the leader of a run has ended.
    pub(super) fn leader_ended(&mut self, key: RunKey, now: Duration) {
        if self.ended.is_empty() {
            self.ended_at = now;
        }
        self.ended.push(key);
    }

    /// Whether the trees of ended leaders must be checked now.
    pub(super) fn are_ended_due(&self, now: Duration) -> bool {
        self.ended.len() >= MANY_ENDED || !self.ended.is_empty() && self.ended_at + ENDED_DELAY <= now
    }

    /// Takes the runs whose leaders have ended.
    pub(super) fn take_ended(&mut self) -> Vec<RunKey> {
        std::mem::take(&mut self.ended)
    }

    /// Records that an orphan has ended, which may have been the last process of a tree. There may be thousands of
    /// trees, so one check serves all orphans that end within [`CHECK_DELAY`].
    pub(super) fn orphan_reaped(&mut self, now: Duration) {
        self.orphans += 1;
        if !self.watched.is_empty() {
            self.check_at = self.check_at.or(Some(now + CHECK_DELAY));
        }
    }

    /// Whether the check of all trees is due. If so, clears it.
    pub(super) fn take_due_check(&mut self, now: Duration) -> bool {
        self.check_at.take_if(|at| *at <= now).is_some()
    }

    /// Records that a scan was requested.
    pub(super) fn begin_scan(&mut self, retired: bool) {
        self.scan = Some(Scan { retired, orphans: self.orphans });
    }

    /// Ends the scan in progress. Returns it, and whether no orphan has ended since it was requested.
    pub(super) fn end_scan(&mut self) -> Option<(Scan, bool)> {
        self.scan.take().map(|scan| (scan, scan.orphans == self.orphans))
    }

    /// Requests another scan after the one in progress.
    pub(super) fn scan_again(&mut self, retired: bool) {
        self.next_scan.get_or_insert_default().retired |= retired;
    }

    /// Whether the run counts as gone after a scan that has found none of its processes. `quiet`: no orphan has ended
    /// since that scan was requested.
    pub(super) fn counts_as_gone(&mut self, key: RunKey, quiet: bool) -> bool {
        let Some(watch) = self.watched.get_mut(&key) else { return quiet };
        watch.empty_scans += 1;
        let gone = quiet || watch.empty_scans >= EMPTY_SCANS;
        if !gone {
            // A tree that was killed is killed again first, which also searches it more closely.
            watch.due |= watch.killed;
            self.scan_again(false);
        }
        gone
    }

    /// The runs of the awaited trees.
    pub(super) fn awaited(&self) -> Vec<RunKey> {
        self.watched.iter().filter(|(_, watch)| watch.next.is_some()).map(|(key, _)| *key).collect()
    }

    /// Whether enough trees have been retired since the last scan that the trees thread should scan for those that are
    /// gone.
    pub(super) fn has_many_retired(&self) -> bool {
        self.retired.len() > self.remaining + UNSCANNED
    }
}
