//! The health thread, which is started again if it panics: a missing health check does not justify a shutdown.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::health::{Health, Verdict};
use crate::model::{HealthCheck, UnitId, WatchNo};

/// Time from a panic to the next start of the thread, so that repeated panics do not use all of a CPU.
const PAUSE: Duration = Duration::from_secs(1);

type Start = Box<dyn Fn() -> io::Result<Health> + Send>;

/// The health thread, and what is needed to start another.
pub(super) struct Probes {
    start: Start,
    health: Health,
    /// When to start another thread, after the current one has panicked.
    again: Option<Duration>,
    undelivered: Undelivered,
}

/// The units with a verdict in the supervisor's queue. It limits the queue to one verdict per unit, even while the
/// supervisor does not read it. A verdict that arrives while an earlier one is queued is dropped: the next probe
/// repeats it.
#[derive(Clone, Debug, Default)]
pub(super) struct Undelivered(Arc<Mutex<HashSet<UnitId>>>);

impl Undelivered {
    /// Returns whether a verdict may be sent. If so, it counts as queued.
    fn add(&self, unit: UnitId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(unit)
    }

    fn remove(&self, unit: UnitId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&unit);
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("health", &self.health).field("again", &self.again).finish_non_exhaustive()
    }
}

/// Filters the verdicts of one health thread: the supervisor gets only those that can change its state, one at a time
/// per unit.
#[derive(Debug, Default)]
pub(super) struct VerdictFilter {
    /// The units that the supervisor knows to be healthy. Their positive verdicts are dropped, so that healthy units
    /// do not wake the supervisor each second.
    healthy: RefCell<HashMap<UnitId, WatchNo>>,
    undelivered: Undelivered,
}

impl VerdictFilter {
    /// Maximum number of known healthy units. When it is reached, all are forgotten, and each is reported again once.
    const MAX: usize = 16_384;

    pub(super) fn new(undelivered: Undelivered) -> VerdictFilter {
        VerdictFilter { healthy: RefCell::default(), undelivered }
    }

    /// Whether to send a verdict. If so, the supervisor must call [`Probes::delivered`] when it receives the verdict.
    pub(super) fn admits(&self, verdict: &Verdict) -> bool {
        let mut healthy = self.healthy.borrow_mut();
        if verdict.outcome.is_ok() && healthy.get(&verdict.unit) == Some(&verdict.watch)
            || !self.undelivered.add(verdict.unit)
        {
            return false;
        }
        if verdict.outcome.is_err() {
            healthy.remove(&verdict.unit);
            return true;
        }
        if healthy.len() >= Self::MAX {
            healthy.clear();
        }
        healthy.insert(verdict.unit, verdict.watch);
        true
    }
}

impl Probes {
    /// `start` starts a health thread that sends the verdicts admitted by the [`VerdictFilter`].
    pub(super) fn new(start: impl Fn(VerdictFilter) -> io::Result<Health> + Send + 'static) -> io::Result<Probes> {
        let undelivered = Undelivered::default();
        let shared = undelivered.clone();
        let start = move || start(VerdictFilter::new(shared.clone()));
        let health = start()?;
        Ok(Probes { start: Box::new(start), health, again: None, undelivered })
    }

    /// Records that the supervisor has received the verdict of this unit: another one may be sent.
    pub(super) fn delivered(&self, unit: UnitId) {
        self.undelivered.remove(unit);
    }

    pub(super) fn watch(&self, unit: UnitId, watch: WatchNo, check: HealthCheck) {
        self.health.watch(unit, watch, check);
    }

    pub(super) fn unwatch(&self, unit: UnitId) {
        self.health.unwatch(unit);
    }

    pub(super) fn died(&mut self, now: Duration) {
        self.again = Some(now + PAUSE);
    }

    /// When the health thread is started again, after it has panicked.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.again
    }

    /// Starts another thread if that is due. If it returns true, the caller must register all units again.
    pub(super) fn restart_if_due(&mut self, now: Duration) -> bool {
        if self.again.is_none_or(|at| at > now) {
            return false;
        }
        match (self.start)() {
            Ok(health) => {
                self.health = health;
                self.again = None;
                true
            }
            Err(error) => {
                log::error!("cannot start another health thread yet: {error}");
                self.died(now);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verdicts_that_can_change_something_are_sent() {
        let filter = VerdictFilter::default();
        let verdict = |watch, outcome: Result<(), &str>| Verdict {
            unit: UnitId(1),
            watch,
            outcome: outcome.map_err(str::to_owned),
        };
        let cases =
            [(1, Ok(()), true), (1, Ok(()), false), (1, Err("x"), true), (1, Err("x"), true), (1, Ok(()), true)];
        for (run, outcome, expected) in cases.into_iter().chain([(1, Ok(()), false), (2, Ok(()), true)]) {
            assert_eq!(filter.admits(&verdict(run, outcome)), expected, "{run} {outcome:?}");
            filter.undelivered.remove(UnitId(1));
        }
    }

    #[test]
    fn the_queue_holds_at_most_one_verdict_per_unit() {
        let undelivered = Undelivered::default();
        let filter = VerdictFilter::new(undelivered.clone());
        let verdict = |unit, outcome: Result<(), &str>| Verdict {
            unit: UnitId(unit),
            watch: 1,
            outcome: outcome.map_err(str::to_owned),
        };
        assert!(filter.admits(&verdict(1, Err("x"))) && filter.admits(&verdict(2, Err("x"))));
        for outcome in [Err("x"), Ok(()), Err("y")] {
            assert!(!filter.admits(&verdict(1, outcome)));
            assert!(
                !VerdictFilter::new(undelivered.clone()).admits(&verdict(1, outcome)),
                "the next health thread shares the limit"
            );
        }
        undelivered.remove(UnitId(1));
        assert!(filter.admits(&verdict(1, Ok(()))), "a dropped verdict does not count as known");
    }
}
