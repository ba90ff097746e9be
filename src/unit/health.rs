//! What probes have to say about the run.

use std::time::Duration;

use super::{Now, Out, Phase, Run, State, Then, Unit};
use crate::model::{HealthCheck, HealthStatus, Policy, RunNo};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Health {
    pub(super) status: HealthStatus,
    pub(super) failures: u32,
    pub(super) healthy_since: Option<Duration>,
    /// It was healthy for long enough once in this run.
    pub(super) stable: bool,
}

impl Unit {
    /// Its leader has ended: nothing is healthy any more. That it was unhealthy is still worth knowing.
    pub(super) fn no_longer_healthy(&mut self) {
        if self.health.status == HealthStatus::Healthy {
            self.health.status = HealthStatus::Starting;
            self.health.failures = 0;
        }
    }

    /// The check whose verdicts count now, if there is one.
    pub fn probed(&self) -> Option<&HealthCheck> {
        match &self.state {
            State::Up(Run { phase: Phase::Running | Phase::Slow, then: Then::Policy, .. }) => {
                self.managed.as_ref()?.health.as_ref()
            }
            _ => None,
        }
    }

    pub(super) fn verdict(&mut self, now: Now, of: RunNo, outcome: Result<(), String>, out: Out) {
        let Some(check) = self.probed() else { return };
        if of != self.run {
            return;
        }
        let threshold = check.failure_threshold;
        match outcome {
            Ok(()) => {
                self.health.failures = 0;
                self.health.status = HealthStatus::Healthy;
                self.health.healthy_since.get_or_insert(now.mono);
            }
            Err(why) => {
                self.health.failures = self.health.failures.saturating_add(1);
                if self.health.failures < threshold {
                    return;
                }
                self.note_stability(now);
                self.health.healthy_since = None;
                self.health.status = HealthStatus::Unhealthy;
                self.last_error = Some(format!("unhealthy: {why}"));
                if self.policy().is_some_and(|policy| policy.policy != Policy::Never) {
                    self.end_run(now, Then::Fail, self.kill_at(now), out);
                }
            }
        }
    }
}
