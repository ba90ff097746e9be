//! Whether a run is followed by a restart, and how long the restart waits (docs/api.md, Processes).

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, State};
use crate::model::{Occurrence, Policy, RestartReason, RunEnd};

/// A run that lasts less than this is short.
pub(super) const SHORT_RUN: Duration = Duration::from_secs(1);
/// Number of short runs in a row after which a restart waits for at least [`SHORT_RUN_WAIT`].
pub(super) const SHORT_RUNS: u32 = 5;
/// Minimum wait before a restart after [`SHORT_RUNS`] short runs in a row.
const SHORT_RUN_WAIT: Duration = Duration::from_millis(100);
/// Minimum length of a stable run, which must also last at least the longest backoff. It resets the count of restarts.
const STABLE: Duration = Duration::from_secs(10);

impl Unit {
    pub(super) fn note_run_length(&mut self, now: Now) {
        let State::Up(run) = &self.state else { return };
        let up = now.mono.saturating_sub(run.counted_from);
        self.short_runs = if up < SHORT_RUN { self.short_runs.saturating_add(1) } else { 0 };
        self.note_stability(now);
        let stable = if self.watched() { self.health.stable } else { up >= self.stable_after() };
        if stable {
            self.restarts = 0;
            if self.next() != Next::Failed {
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

    /// Starts a run that a client has requested: clears the error and the counts of earlier ones.
    pub(super) fn start_anew(&mut self, actions: Actions) {
        self.clear_counts();
        report_restart(Duration::ZERO, RestartReason::Requested, actions);
        self.begin_run(actions);
    }

    /// Clears the error and the counts of earlier runs.
    pub(super) fn clear_counts(&mut self) {
        self.restarts = 0;
        self.short_runs = 0;
        self.last_error = None;
    }

    fn stable_after(&self) -> Duration {
        self.policy().map_or(STABLE, |policy| STABLE.max(Duration::from_millis(policy.max_backoff_ms)))
    }

    pub(super) fn will_restart(&self, next: Next, end: RunEnd) -> bool {
        let Some(policy) = self.policy() else { return false };
        let failed = next == Next::Failed || !end.exit.success();
        match next {
            Next::Stop => false,
            Next::Restart => true,
            Next::Policy | Next::Failed | Next::TimedOut => match policy.policy {
                Policy::Never => false,
                Policy::OnFailure => failed,
                Policy::Always => true,
            },
        }
    }

    pub(super) fn back_off(&mut self, now: Now, end: RunEnd, reason: RestartReason, actions: Actions) {
        let Some(policy) = self.policy() else { return };
        if policy.max_restarts.is_some_and(|max| self.restarts >= max) {
            self.last_error = Some(match &self.last_error {
                Some(error) => format!("gave up after {} restarts in a row; the last error: {error}", self.restarts),
                None => format!("gave up after {} restarts in a row", self.restarts),
            });
            return self.go_down(end, true, actions);
        }
        let doubled = 1u64.checked_shl(self.restarts).unwrap_or(u64::MAX);
        let wait = policy.initial_backoff_ms.saturating_mul(doubled).min(policy.max_backoff_ms);
        let mut wait = Duration::from_millis(wait);
        if self.short_runs >= SHORT_RUNS {
            wait = wait.max(SHORT_RUN_WAIT);
        }
        self.restarts = self.restarts.saturating_add(1);
        report_restart(wait, reason, actions);
        if wait.is_zero() {
            return self.begin_run(actions);
        }
        self.state = State::BackingOff { until: now.mono + wait };
        self.next_restart_at = Some(now.wall.saturating_add(wait.as_millis() as u64));
    }
}

fn report_restart(delay: Duration, reason: RestartReason, actions: Actions) {
    actions.push(Action::Report(Occurrence::Restarting { delay, reason }));
}
