//! Pausing a run, and resuming it.

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, Phase, State};
use crate::model::Occurrence;

impl Unit {
    /// Whether a client has paused its run, and nothing has resumed or ended it since.
    pub fn is_paused(&self) -> bool {
        matches!(&self.state, State::Up(run) if run.paused_at.is_some())
    }

    /// Whether its run can be paused: the leader runs, and nobody has begun to end it.
    pub fn can_pause(&self) -> bool {
        matches!(&self.state, State::Up(run) if run.next == Next::Policy
            && matches!(run.phase, Phase::Execing { .. } | Phase::Slow | Phase::Running))
    }

    pub(super) fn pause(&mut self, now: Now, actions: Actions) {
        if !self.can_pause() {
            return;
        }
        let is_probed = self.probed().is_some();
        let State::Up(run) = &mut self.state else { return };
        if run.paused_at.is_some() {
            return;
        }
        run.paused_at = Some(now.mono);
        if is_probed {
            actions.push(Action::Unwatch);
        }
        actions.push(Action::Freeze);
        actions.push(Action::Report(Occurrence::Paused));
    }

    pub(super) fn resume(&mut self, now: Now, actions: Actions) {
        if !self.end_pause(now) {
            return;
        }
        actions.push(Action::Thaw);
        actions.push(Action::Report(Occurrence::Resumed));
        if let Some(delay) = self.delay_after_pause(now) {
            self.watch(delay, actions);
        }
    }

    /// Ends the pause of the run, if there is one, and excludes it from the times that count. Returns whether there was
    /// one: [`Action::Thaw`] must follow.
    pub(super) fn end_pause(&mut self, now: Now) -> bool {
        let State::Up(run) = &mut self.state else { return false };
        let Some(at) = run.paused_at.take() else { return false };
        let paused = now.mono.saturating_sub(at);
        run.counted_from += paused;
        if let Some(since) = &mut self.health.healthy_since {
            *since += paused;
        }
        true
    }

    /// Time to the first probe after a pause: what is left of the initial delay, and at least one interval, because the
    /// process has to catch up. None if the run is not probed.
    fn delay_after_pause(&self, now: Now) -> Option<Duration> {
        let check = self.probed()?;
        let State::Up(run) = &self.state else { return None };
        let up = now.mono.saturating_sub(run.counted_from);
        let [initial, interval] = [check.initial_delay_ms, check.interval_ms].map(Duration::from_millis);
        Some(initial.saturating_sub(up).max(interval))
    }
}
