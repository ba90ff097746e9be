//! What is asked of a unit from outside: to stop, to restart, to end with everything else.

use std::time::Duration;

use super::{Action, DISCONNECT, HANG_UP, Now, Out, Phase, Run, State, Then, Unit};
use crate::model::{Exit, RunEnd};

impl Unit {
    pub(super) fn stop(&mut self, now: Now, out: Out) {
        self.released = self.managed.is_some();
        match &self.state {
            State::Down => out.push(Action::KillTree),
            State::BackingOff { .. } => {
                out.push(Action::KillTree);
                let failure = RunEnd { exit: Exit::Code(127), timed_out: false, ended_at: now.wall };
                self.go_down(self.last_exit.unwrap_or(failure), out);
            }
            State::Up(_) if self.managed.is_none() && !self.terminal => {
                out.push(Action::KillTree);
                self.set_then(Then::Stop);
            }
            State::Forking | State::Up(_) => self.end_run(now, Then::Stop, self.kill_at(now), out),
        }
    }

    pub(super) fn shut_down(&mut self, now: Now, kill_at: Duration, out: Out) {
        match &mut self.state {
            State::Down => {}
            State::BackingOff { .. } => self.stop(now, out),
            State::Forking | State::Up(_) => {
                self.end_run(now, Then::Stop, kill_at, out);
                // An earlier deadline stands.
                if let State::Up(Run { kill_at: Some(at), .. }) = &mut self.state {
                    *at = kill_at.min(*at);
                }
            }
        }
    }

    pub(super) fn restart(&mut self, now: Now, out: Out) {
        if self.managed.is_none() {
            return;
        }
        match &self.state {
            State::Down | State::BackingOff { .. } => {
                if self.state == State::Down {
                    out.push(Action::Reopen);
                }
                out.push(Action::KillTree);
                self.start_anew(out);
            }
            State::Forking | State::Up(_) => self.end_run(now, Then::Restart, self.kill_at(now), out),
        }
        self.released = false;
    }

    pub(super) fn kill_at(&self, now: Now) -> Duration {
        let plain = if self.terminal { HANG_UP } else { Duration::ZERO };
        now.mono + self.managed.as_ref().map_or(plain, |managed| managed.stop_grace)
    }

    /// SIGTERM to the group, or the hang-up of its terminal, and SIGKILL to the tree at `kill_at`.
    pub(super) fn end_run(&mut self, now: Now, then: Then, kill_at: Duration, out: Out) {
        let watched = self.watched();
        let (ask, disconnect_at) = match self.terminal {
            true => (Action::HangUp, Some(now.mono + DISCONNECT)),
            false => (Action::Ask, None),
        };
        let State::Up(run) = &mut self.state else { return };
        let first = run.then == Then::Policy;
        run.then = then;
        match run.phase {
            // Reaped: there is nobody to ask nicely, and no PID to signal.
            Phase::Reaped { .. } | Phase::Draining { .. } => out.push(Action::KillTree),
            Phase::Broken(_) => {}
            Phase::Execing { .. } | Phase::Slow | Phase::Running if first => {
                run.kill_at = Some(kill_at);
                run.disconnect_at = disconnect_at;
                out.push(ask);
                if watched {
                    out.push(Action::Unwatch);
                }
            }
            // The SIGTERM is on its way already, and its deadline stands.
            Phase::Execing { .. } | Phase::Slow | Phase::Running => {}
        }
    }

    fn set_then(&mut self, then: Then) {
        if let State::Up(run) = &mut self.state
            && run.then == Then::Policy
        {
            run.then = then;
        }
    }
}
