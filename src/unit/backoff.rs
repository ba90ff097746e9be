//! What follows the end of a run: another one or none, and how long that waits (section 6).

use std::time::Duration;

use super::{Now, Out, State, Then, Unit};
use crate::model::{Policy, RunEnd};

/// A run that lasts less is a short one.
pub(super) const SHORT_RUN: Duration = Duration::from_secs(1);
/// After so many short runs in a row…
pub(super) const SHORT_RUNS: u32 = 5;
/// …no wait is shorter than this.
const SHORT_RUN_WAIT: Duration = Duration::from_millis(100);
/// A run that stays up this long, or for the longest backoff, starts the count of restarts anew.
const STABLE: Duration = Duration::from_secs(10);

impl Unit {
    pub(super) fn note_run_length(&mut self, now: Now) {
        let State::Up(run) = &self.state else { return };
        let up = now.mono.saturating_sub(run.since);
        self.short_runs = if up < SHORT_RUN { self.short_runs.saturating_add(1) } else { 0 };
        self.note_stability(now);
        let stable = if self.watched() { self.health.stable } else { up >= self.stable_after() };
        if stable {
            self.streak = 0;
            if self.then() != Then::Fail {
                self.last_error = None;
            }
        }
    }

    pub(super) fn note_stability(&mut self, now: Now) {
        if let Some(since) = self.health.healthy_since
            && now.mono.saturating_sub(since) >= self.stable_after()
        {
            self.health.stable = true;
        }
    }

    /// Somebody wants a new run: what went wrong before is history.
    pub(super) fn start_anew(&mut self, out: Out) {
        self.streak = 0;
        self.short_runs = 0;
        self.last_error = None;
        self.begin_run(out);
    }

    fn stable_after(&self) -> Duration {
        self.policy().map_or(STABLE, |policy| STABLE.max(Duration::from_millis(policy.max_backoff_ms)))
    }

    pub(super) fn will_restart(&self, then: Then, end: RunEnd) -> bool {
        let Some(policy) = self.policy() else { return false };
        let failed = then == Then::Fail || !end.exit.success();
        match then {
            Then::Stop => false,
            Then::Restart => true,
            Then::Policy | Then::Fail | Then::Expired => match policy.policy {
                Policy::Never => false,
                Policy::OnFailure => failed,
                Policy::Always => true,
            },
        }
    }

    pub(super) fn back_off(&mut self, now: Now, end: RunEnd, out: Out) {
        let Some(policy) = self.policy() else { return };
        if policy.max_restarts.is_some_and(|most| self.streak >= most) {
            self.last_error = Some(match &self.last_error {
                Some(error) => format!("gave up after {} restarts in a row; the last error: {error}", self.streak),
                None => format!("gave up after {} restarts in a row", self.streak),
            });
            return self.go_down(end, out);
        }
        let doubled = 1u64.checked_shl(self.streak).unwrap_or(u64::MAX);
        let wait = policy.initial_backoff_ms.saturating_mul(doubled).min(policy.max_backoff_ms);
        let mut wait = Duration::from_millis(wait);
        if self.short_runs >= SHORT_RUNS {
            wait = wait.max(SHORT_RUN_WAIT);
        }
        self.streak = self.streak.saturating_add(1);
        if wait.is_zero() {
            return self.begin_run(out);
        }
        self.state = State::BackingOff { until: now.mono + wait };
        self.next_restart_at = Some(now.wall.saturating_add(wait.as_millis() as u64));
    }
}
