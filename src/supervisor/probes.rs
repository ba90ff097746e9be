//! The health thread, and another one where it has panicked: checks are not worth ending everything for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::health::{Health, Verdict};
use crate::model::{HealthCheck, RunNo, UnitId};

/// How long nothing is probed after a panic: what comes again at once must not keep us busy.
const PAUSE: Duration = Duration::from_secs(1);

type Start = Box<dyn Fn() -> io::Result<Health> + Send>;

/// The thread that probes.
pub(super) struct Probes {
    start: Start,
    health: Health,
    /// It has died; then there is to be another.
    again: Option<Duration>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("health", &self.health).field("again", &self.again).finish_non_exhaustive()
    }
}

/// Which units the supervisor knows to be healthy: a thousand of them that say so each second need not wake it.
#[derive(Debug, Default)]
pub(super) struct News(RefCell<HashMap<UnitId, RunNo>>);

impl News {
    /// More are not kept: then it is told once more.
    const MOST: usize = 16_384;

    /// Whether a verdict may change anything.
    pub(super) fn has(&self, verdict: &Verdict) -> bool {
        let mut healthy = self.0.borrow_mut();
        if verdict.outcome.is_err() {
            healthy.remove(&verdict.unit);
            return true;
        }
        if healthy.len() >= Self::MOST {
            healthy.clear();
        }
        healthy.insert(verdict.unit, verdict.run) != Some(verdict.run)
    }
}

impl Probes {
    pub(super) fn new(start: impl Fn() -> io::Result<Health> + Send + 'static) -> io::Result<Probes> {
        let health = start()?;
        Ok(Probes { start: Box::new(start), health, again: None })
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

    /// Starts another thread if that is due. True: it knows of nothing yet, everything is to be watched anew.
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
                log::error!("health checks cannot go on yet: {error}");
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
    fn only_what_may_change_something_is_news() {
        let news = News::default();
        let verdict =
            |run, outcome: Result<(), &str>| Verdict { unit: UnitId(1), run, outcome: outcome.map_err(str::to_owned) };
        let told = [(1, Ok(()), true), (1, Ok(()), false), (1, Err("x"), true), (1, Err("x"), true), (1, Ok(()), true)];
        for (run, outcome, is_news) in told.into_iter().chain([(1, Ok(()), false), (2, Ok(()), true)]) {
            assert_eq!(news.has(&verdict(run, outcome)), is_news, "{run} {outcome:?}");
        }
    }
}
