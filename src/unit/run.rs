//! A run, from the fork to the last byte of its output.

use super::{Action, EXEC_PATIENCE, Now, Out, Phase, Run, Shown, State, Then, Unit};
use crate::error::Error;
use crate::model::{Exit, Leftovers, Pid, Policy, RunEnd};

impl Unit {
    pub(super) fn spawned(&mut self, now: Now, pid: Pid) {
        if self.state != State::Forking {
            return;
        }
        self.shown = Some(Shown { pid, started_at: now.wall, end: None });
        self.state = State::Up(Run {
            pid,
            since: now.mono,
            phase: Phase::Execing { give_up: now.mono + EXEC_PATIENCE },
            then: Then::Policy,
            kill_at: None,
            disconnect_at: None,
            expires: self.timeout.map(|timeout| now.mono.saturating_add(timeout)),
            abandon_at: None,
        });
    }

    pub(super) fn exec_ok(&mut self, now: Now, out: Out) {
        let State::Up(run) = &mut self.state else { return };
        match run.phase {
            Phase::Execing { .. } => {
                run.phase = Phase::Running;
                self.is_up(out);
            }
            Phase::Slow => run.phase = Phase::Running,
            Phase::Reaped { end, slow } => {
                if !slow {
                    out.push(Action::Started);
                }
                self.drain(now, end, out);
            }
            Phase::Running | Phase::Broken(_) | Phase::Draining { .. } => {}
        }
    }

    pub(super) fn exec_failed(&mut self, now: Now, error: Error, out: Out) {
        let State::Up(run) = &mut self.state else { return };
        match run.phase {
            Phase::Execing { .. } => run.phase = Phase::Broken(error),
            Phase::Slow => {
                run.phase = Phase::Running;
                out.push(Action::Complain(error));
            }
            Phase::Reaped { end, slow: true } => {
                out.push(Action::Complain(error));
                self.drain(now, end, out);
            }
            Phase::Reaped { end, slow: false } => {
                let then = run.then;
                self.start_failed(now, error, then, Some(end), out);
            }
            Phase::Running | Phase::Broken(_) | Phase::Draining { .. } => {}
        }
    }

    /// It counts as started.
    pub(super) fn is_up(&self, out: Out) {
        out.push(Action::Started);
        if self.watched() && self.then() == Then::Policy {
            out.push(Action::Watch);
        }
    }

    pub(super) fn exited(&mut self, now: Now, exit: Exit, out: Out) {
        let State::Up(run) = &mut self.state else { return };
        let timed_out = run.then == Then::Expired && exit == Exit::Signal(9);
        let end = RunEnd { exit, timed_out, ended_at: now.wall };
        match &run.phase {
            Phase::Execing { .. } => run.phase = Phase::Reaped { end, slow: false },
            Phase::Slow => run.phase = Phase::Reaped { end, slow: true },
            Phase::Running => self.drain(now, end, out),
            Phase::Broken(error) => {
                let (error, then) = (error.clone(), run.then);
                self.start_failed(now, error, then, Some(end), out);
            }
            Phase::Reaped { .. } | Phase::Draining { .. } => {}
        }
    }

    pub(super) fn drain(&mut self, now: Now, end: RunEnd, out: Out) {
        self.note_run_length(now);
        if self.watched() {
            out.push(Action::Unwatch);
        }
        if self.kills_leftovers(end) {
            out.push(Action::KillTree);
        }
        self.no_longer_healthy();
        if let State::Up(run) = &mut self.state {
            run.phase = Phase::Draining { end };
        }
        out.push(Action::Drain);
    }

    /// Whether what the leader has left is killed now. What was asked to end has its grace instead.
    fn kills_leftovers(&self, end: RunEnd) -> bool {
        let State::Up(Run { kill_at: None, then, .. }) = self.state else { return false };
        // Before a restart, so that it is gone by then.
        self.will_restart(then, end) || then == Then::Policy && self.leftovers == Leftovers::Kill
    }

    pub(super) fn drained(&mut self, now: Now, out: Out) {
        let State::Up(run) = &self.state else { return };
        let Phase::Draining { end } = run.phase else { return };
        let (then, kill_at) = (run.then, run.kill_at);
        self.last_exit = Some(end);
        if let Some(shown) = &mut self.shown {
            shown.end = Some(end);
        }
        if self.will_restart(then, end) {
            self.await_tree(now, then, kill_at);
        } else {
            self.sweep_at = kill_at;
            self.go_down(end, out);
        }
    }

    pub(super) fn go_down(&mut self, end: RunEnd, out: Out) {
        self.state = State::Down;
        self.next_restart_at = None;
        out.push(Action::Finish(end));
    }

    /// Ends the run for everybody, without the reaping of its leader.
    pub(super) fn abandon(&mut self, now: Now, out: Out) {
        let State::Up(run) = &self.state else { return };
        out.push(Action::Abandon(run.pid));
        let end = RunEnd { exit: Exit::Signal(9), timed_out: run.then == Then::Expired, ended_at: now.wall };
        match &run.phase {
            Phase::Execing { .. } => {
                out.push(Action::Started);
                self.drain(now, end, out);
            }
            Phase::Slow | Phase::Running => self.drain(now, end, out),
            Phase::Broken(error) => {
                let (error, then) = (error.clone(), run.then);
                self.start_failed(now, error, then, Some(end), out);
            }
            Phase::Reaped { .. } | Phase::Draining { .. } => {}
        }
    }

    /// The program could not be run. `end` is that of the child which tried, if there was one.
    pub(super) fn start_failed(&mut self, now: Now, error: Error, then: Then, end: Option<RunEnd>, out: Out) {
        self.last_error = Some(error.to_string());
        out.push(Action::StartFailed(self.run, error));
        if self.run == 1 {
            self.state = State::Down;
            return out.push(Action::Forget);
        }
        self.short_runs = self.short_runs.saturating_add(1);
        if let (Some(shown), Some(_)) = (&mut self.shown, end) {
            shown.end = end;
            self.last_exit = end;
        }
        let failure = RunEnd { exit: Exit::Code(127), timed_out: false, ended_at: now.wall };
        let end = end.or(self.last_exit).unwrap_or(failure);
        let restarts = self.policy().is_some_and(|policy| policy.policy != Policy::Never);
        match then {
            Then::Stop => self.go_down(end, out),
            Then::Restart => self.start_anew(out),
            _ if restarts => self.back_off(now, end, out),
            _ => self.go_down(end, out),
        }
    }
}
