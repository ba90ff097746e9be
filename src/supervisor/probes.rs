//! The health thread, which is replaced if it panics: health checks are not worth a shutdown.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::health::{Health, Verdict};
use crate::model::{HealthCheck, RunNo, UnitId};

/// Time without health checks after a panic, so that one that repeats at once does not keep the machine busy.
const PAUSE: Duration = Duration::from_secs(1);

type Start = Box<dyn Fn() -> io::Result<Health> + Send>;

/// The health thread, and what is needed to start another.
pub(super) struct Probes {
    start: Start,
    health: Health,
    /// When to start another thread, after this one has panicked.
    again: Option<Duration>,
    undelivered: Undelivered,
}

/// The units with a verdict in the supervisor's queue, which so holds at most one for each unit, however long the supervisor
/// does not read it. A verdict that comes while an earlier one is there is dropped: the next probe says the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Undelivered(Arc<Mutex<HashSet<UnitId>>>);

impl Undelivered {
    /// Whether a verdict may be sent; then it counts as in the queue.
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

/// Filters the verdicts of one health thread: the supervisor gets those that may change anything, one at a time for each unit.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The units that the supervisor knows to be healthy. Their positive verdicts are dropped, so that a thousand healthy units
    /// do not wake the supervisor each second.
    healthy: RefCell<HashMap<UnitId, RunNo>>,
    undelivered: Undelivered,
}

impl News {
    /// Maximum number of known healthy units. When it is reached, all are forgotten, and each is reported once more.
    const MAX: usize = 16_384;

    pub(super) fn new(undelivered: Undelivered) -> News {
        News { healthy: RefCell::default(), undelivered }
    }

    /// Whether a verdict is to be sent; then the supervisor must call [`Probes::delivered`] when it has got it.
    pub(super) fn has(&self, verdict: &Verdict) -> bool {
        let mut healthy = self.healthy.borrow_mut();
        if verdict.outcome.is_ok() && healthy.get(&verdict.unit) == Some(&verdict.run)
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
        healthy.insert(verdict.unit, verdict.run);
        true
    }
}

impl Probes {
    /// `start` starts a health thread, whose verdicts are filtered by a [`News`].
    pub(super) fn new(start: impl Fn(News) -> io::Result<Health> + Send + 'static) -> io::Result<Probes> {
        let undelivered = Undelivered::default();
        let filter = undelivered.clone();
        let start = move || start(News::new(filter.clone()));
        let health = start()?;
        Ok(Probes { start: Box::new(start), health, again: None, undelivered })
    }

    /// The supervisor has got the verdict of this unit: another one may be sent.
    pub(super) fn delivered(&self, unit: UnitId) {
        self.undelivered.remove(unit);
    }

    pub(super) fn watch(&self, unit: UnitId, run: RunNo, check: HealthCheck) {
        self.health.watch(unit, run, check);
    }

    pub(super) fn unwatch(&self, unit: UnitId) {
        self.health.unwatch(unit);
    }

    pub(super) fn died(&mut self, now: Duration) {
        self.again = Some(now + PAUSE);
    }

    /// When [`Probes::revive`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.again
    }

    /// Starts another thread if that is due. Returns whether it did: then all units have to be watched again.
    pub(super) fn revive(&mut self, now: Duration) -> bool {
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
        let news = News::default();
        let verdict =
            |run, outcome: Result<(), &str>| Verdict { unit: UnitId(1), run, outcome: outcome.map_err(str::to_owned) };
        let told = [(1, Ok(()), true), (1, Ok(()), false), (1, Err("x"), true), (1, Err("x"), true), (1, Ok(()), true)];
        for (run, outcome, is_news) in told.into_iter().chain([(1, Ok(()), false), (2, Ok(()), true)]) {
            assert_eq!(news.has(&verdict(run, outcome)), is_news, "{run} {outcome:?}");
            news.undelivered.remove(UnitId(1));
        }
    }

    #[test]
    fn the_queue_holds_one_verdict_for_each_unit() {
        let undelivered = Undelivered::default();
        let news = News::new(undelivered.clone());
        let verdict = |unit, outcome: Result<(), &str>| Verdict {
            unit: UnitId(unit),
            run: 1,
            outcome: outcome.map_err(str::to_owned),
        };
        assert!(news.has(&verdict(1, Err("x"))) && news.has(&verdict(2, Err("x"))));
        for outcome in [Err("x"), Ok(()), Err("y")] {
            assert!(!news.has(&verdict(1, outcome)));
            assert!(!News::new(undelivered.clone()).has(&verdict(1, outcome)), "nor of another thread");
        }
        undelivered.remove(UnitId(1));
        assert!(news.has(&verdict(1, Ok(()))), "what was dropped is not known");
    }
}
