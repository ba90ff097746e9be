//! A run, from the fork to the last byte of its output.

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, Phase, Run, Shown, State};
use super::times::EXEC_TIMEOUT;
use crate::error::Error;
use crate::model::{Exit, Leftovers, Occurrence, Pid, Policy, RestartReason, RunEnd};

impl Unit {
    pub(super) fn spawned(&mut self, now: Now, pid: Pid) {
        if self.state != State::Forking {
            return;
        }
        self.shown = Some(Shown { pid, started_at: now.wall, end: None });
        self.state = State::Up(Box::new(Run {
            pid,
            since: now.mono,
            counted_from: now.mono,
            paused_at: None,
            phase: Phase::Execing { give_up: now.mono + EXEC_TIMEOUT },
            next: Next::Policy,
            kill_at: None,
            disconnect_at: None,
            expires_at: self.timeout.map(|timeout| now.mono.saturating_add(timeout)),
            abandon_at: None,
        }));
    }

    pub(super) fn exec_ok(&mut self, now: Now, actions: Actions) {
        let State::Up(run) = &mut self.state else { return };
        match run.phase {
            Phase::Execing { .. } => {
                run.phase = Phase::Running;
                self.report_started(actions);
            }
            Phase::Slow => run.phase = Phase::Running,
            Phase::Reaped { end, slow } => {
                if !slow {
                    self.push_started(actions);
                }
                self.drain(now, end, actions);
            }
            Phase::Running | Phase::Broken(_) | Phase::Draining { .. } => {}
        }
    }

    pub(super) fn exec_failed(&mut self, now: Now, error: Error, actions: Actions) {
        let State::Up(run) = &mut self.state else { return };
        match run.phase {
            Phase::Execing { .. } => {
                run.phase = Phase::Broken(error);
                // The child must be able to exit.
                self.resume(now, actions);
            }
            Phase::Slow => {
                run.phase = Phase::Running;
                actions.push(Action::ReportLateFailure(error));
                self.resume(now, actions);
            }
            Phase::Reaped { end, slow: true } => {
                actions.push(Action::ReportLateFailure(error));
                self.drain(now, end, actions);
            }
            Phase::Reaped { end, slow: false } => {
                let next = run.next;
                self.start_failed(now, error, next, Some(end), actions);
            }
            Phase::Running | Phase::Broken(_) | Phase::Draining { .. } => {}
        }
    }

    /// Reports that the run has started, and begins its health checks.
    pub(super) fn report_started(&mut self, actions: Actions) {
        self.push_started(actions);
        if let Some(check) = self.probed() {
            let delay = Duration::from_millis(check.initial_delay_ms);
            self.watch(delay, actions);
        }
    }

    /// The clients that wait for the start come first: the report can take longer.
    fn push_started(&self, actions: Actions) {
        actions.push(Action::Started);
        actions.push(Action::Report(Occurrence::Started { restart_count: self.restart_count() }));
    }

    pub(super) fn exited(&mut self, now: Now, exit: Exit, actions: Actions) {
        let State::Up(run) = &mut self.state else { return };
        let timed_out = run.next == Next::TimedOut && exit == Exit::Signal(9);
        let end = RunEnd { exit, timed_out, ended_at: now.wall };
        match &run.phase {
            Phase::Execing { .. } | Phase::Slow => {
                run.phase = Phase::Reaped { end, slow: run.phase == Phase::Slow };
                if self.end_pause(now) {
                    actions.push(Action::Thaw);
                }
            }
            Phase::Running => self.drain(now, end, actions),
            Phase::Broken(error) => {
                let (error, next) = (error.clone(), run.next);
                self.start_failed(now, error, next, Some(end), actions);
            }
            Phase::Reaped { .. } | Phase::Draining { .. } => {}
        }
    }

    pub(super) fn drain(&mut self, now: Now, end: RunEnd, actions: Actions) {
        let was_paused = self.end_pause(now);
        self.note_run_length(now);
        if self.watched() {
            actions.push(Action::Unwatch);
        }
        if self.kills_leftovers(end) {
            actions.push(Action::KillTree);
        }
        if was_paused {
            actions.push(Action::Thaw);
        }
        self.end_healthy_status();
        if let State::Up(run) = &mut self.state {
            run.phase = Phase::Draining { end };
        }
        actions.push(Action::Drain);
    }

    /// Whether the processes that the leader left behind are killed now. After a stop they have a grace instead.
    fn kills_leftovers(&self, end: RunEnd) -> bool {
        let State::Up(run) = &self.state else { return false };
        let Run { kill_at: None, next, .. } = **run else { return false };
        // Before a restart they are always killed, so that they have ended when the next run starts.
        self.will_restart(next, end) || next == Next::Policy && self.leftovers == Leftovers::Kill
    }

    pub(super) fn drained(&mut self, now: Now, actions: Actions) {
        let State::Up(run) = &self.state else { return };
        let Phase::Draining { end } = run.phase else { return };
        let (next, kill_at, lasted) = (run.next, run.kill_at, now.mono.saturating_sub(run.since));
        actions.push(Action::Report(Occurrence::Ended { end, lasted }));
        self.last_exit = Some(end);
        if let Some(shown) = &mut self.shown {
            shown.end = Some(end);
        }
        if self.will_restart(next, end) {
            self.await_tree(now, next, kill_at);
        } else {
            self.sweep_at = kill_at;
            self.go_down(end, false, actions);
        }
    }

    /// `gave_up`: the limit on restarts was reached.
    pub(super) fn go_down(&mut self, end: RunEnd, gave_up: bool, actions: Actions) {
        self.state = State::Down;
        self.next_restart_at = None;
        if self.managed.is_some() {
            let last_error = self.last_error.clone();
            actions.push(Action::Report(Occurrence::Stopped { last_error, gave_up }));
        }
        actions.push(Action::Finish(end));
    }

    /// Ends the run without waiting for the reaping of its leader.
    pub(super) fn abandon(&mut self, now: Now, actions: Actions) {
        let State::Up(run) = &self.state else { return };
        actions.push(Action::Abandon(run.pid));
        let end = RunEnd { exit: Exit::Signal(9), timed_out: run.next == Next::TimedOut, ended_at: now.wall };
        match &run.phase {
            Phase::Execing { .. } => {
                self.push_started(actions);
                self.drain(now, end, actions);
            }
            Phase::Slow | Phase::Running => self.drain(now, end, actions),
            Phase::Broken(error) => {
                let (error, next) = (error.clone(), run.next);
                self.start_failed(now, error, next, Some(end), actions);
            }
            Phase::Reaped { .. } | Phase::Draining { .. } => {}
        }
    }

    /// Handles a program that could not be started. `end` is the end of the forked child, if there was one.
    pub(super) fn start_failed(&mut self, now: Now, error: Error, next: Next, end: Option<RunEnd>, actions: Actions) {
        if self.end_pause(now) {
            actions.push(Action::Thaw);
        }
        self.last_error = Some(error.to_string());
        actions.push(Action::StartFailed(self.run, error));
        if self.run == 1 {
            self.state = State::Down;
            return actions.push(Action::Forget);
        }
        self.short_runs = self.short_runs.saturating_add(1);
        if let (Some(shown), Some(_)) = (&mut self.shown, end) {
            shown.end = end;
            self.last_exit = end;
        }
        let failure = RunEnd { exit: Exit::Code(127), timed_out: false, ended_at: now.wall };
        let end = end.or(self.last_exit).unwrap_or(failure);
        let restarts = self.policy().is_some_and(|policy| policy.policy != Policy::Never);
        match next {
            Next::Stop => self.go_down(end, false, actions),
            Next::Restart => self.start_anew(actions),
            _ if restarts => {
                let reason = RestartReason::StartFailed(self.last_error.clone());
                self.back_off(now, end, reason, actions);
            }
            _ => self.go_down(end, false, actions),
        }
    }
}
