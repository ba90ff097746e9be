//! The health of a unit, from the verdicts of its probes.

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, Phase, State};
use crate::model::{HealthCheck, HealthStatus, Occurrence, Policy, WatchNo};

impl Unit {
    /// Ends a healthy status when the leader has ended. An unhealthy status stays: it is the reason for the restart.
    pub(super) fn end_healthy_status(&mut self) {
        if self.health.status == HealthStatus::Healthy {
            self.health.status = HealthStatus::Starting;
            self.health.failures = 0;
        }
    }

    /// The health check, if its verdicts have an effect in the present state.
    pub fn probed(&self) -> Option<&HealthCheck> {
        match &self.state {
            State::Up(run)
                if run.next == Next::Policy
                    && run.paused_at.is_none()
                    && matches!(run.phase, Phase::Running | Phase::Slow) =>
            {
                self.managed.as_ref()?.health.as_ref()
            }
            _ => None,
        }
    }

    /// Begins to probe the run, for the first time after `delay`.
    pub(super) fn watch(&mut self, delay: Duration, actions: Actions) {
        self.watch += 1;
        actions.push(Action::Watch(delay));
    }

    /// The number of the latest [`Action::Watch`]; 0 before the first.
    pub fn watch_no(&self) -> WatchNo {
        self.watch
    }

    pub(super) fn verdict(&mut self, now: Now, of: WatchNo, outcome: Result<(), String>, actions: Actions) {
        let Some(check) = self.probed() else { return };
        if of != self.watch {
            return;
        }
        let threshold = check.failure_threshold;
        match outcome {
            Ok(()) => {
                self.health.failures = 0;
                self.health.healthy_since.get_or_insert(now.mono);
                self.set_health(HealthStatus::Healthy, None, actions);
            }
            Err(why) => {
                self.health.failures = self.health.failures.saturating_add(1);
                if self.health.failures < threshold {
                    return;
                }
                self.note_stability(now);
                self.health.healthy_since = None;
                self.last_error = Some(format!("unhealthy: {why}"));
                self.set_health(HealthStatus::Unhealthy, Some(why), actions);
                if self.policy().is_some_and(|policy| policy.policy != Policy::Never) {
                    self.end_run(now, Next::Failed, self.kill_at(now), actions);
                }
            }
        }
    }

    /// Sets the health, and reports it if it changes.
    fn set_health(&mut self, status: HealthStatus, error: Option<String>, actions: Actions) {
        if std::mem::replace(&mut self.health.status, status) != status {
            actions.push(Action::Report(Occurrence::Health { status, error }));
        }
    }
}
