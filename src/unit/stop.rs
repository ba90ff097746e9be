//! What is asked of a unit from outside: to stop, to restart, to end with everything else.

use std::time::Duration;

use super::{Action, DISCONNECT, HANG_UP, Now, Out, Phase, Run, State, Then, Unit};
use crate::error::Error;

impl Unit {
    pub(super) fn stop(&mut self, now: Now, out: Out) {
        self.released = self.managed.is_some();
        let at_once = self.managed.is_none() && !self.terminal;
        match &mut self.state {
            // The grace that goes on stands.
            State::Down if self.sweep_at.is_some() && !at_once => {}
            State::Down => out.push(Action::KillTree),
            State::AwaitingUser if self.run == 0 => self.never_start(None, out),
            State::AwaitingUser | State::BackingOff { .. } => {
                out.push(Action::KillTree);
                self.go_down(self.last_end(now), out);
            }
            State::AwaitingTree(wait) => {
                self.sweep_at = wait.kill_at;
                self.go_down(self.last_end(now), out);
            }
            State::Up(run) if at_once => {
                if run.then == Then::Policy {
                    run.then = Then::Stop;
                }
                run.kill(now, out);
            }
            State::Forking | State::Up(_) => self.end_run(now, Then::Stop, self.kill_at(now), out),
        }
    }

    pub(super) fn shut_down(&mut self, now: Now, kill_at: Duration, out: Out) {
        match &mut self.state {
            State::Down => match &mut self.sweep_at {
                Some(at) => *at = kill_at.min(*at),
                None if self.run == 0 => {}
                // What a leader has left that ended by itself.
                None => {
                    self.sweep_at = Some(kill_at);
                    out.push(Action::Terminate);
                }
            },
            State::AwaitingUser if self.run == 0 => self.never_start(Some(Error::ShuttingDown), out),
            State::AwaitingUser | State::BackingOff { .. } => self.stop(now, out),
            State::AwaitingTree(wait) => {
                wait.kill_at = wait.kill_at.map(|at| at.min(kill_at));
                self.stop(now, out);
            }
            State::Up(run) if run.kill_at.is_none() && !run.has_leader() && run.then == Then::Policy => {
                run.then = Then::Stop;
                run.kill_at = Some(kill_at);
                out.push(Action::Terminate);
            }
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
        match &mut self.state {
            State::Down | State::BackingOff { .. } => {
                if self.state == State::Down {
                    out.push(Action::Reopen);
                }
                // What has been asked to end has the rest of its grace.
                let kill_at = self.sweep_at.take();
                if kill_at.is_none() {
                    out.push(Action::KillTree);
                }
                self.await_tree(now, Then::Restart, kill_at);
            }
            // The run that is about to begin is a new one.
            State::AwaitingUser => {}
            State::AwaitingTree(wait) => wait.then = Then::Restart,
            State::Forking | State::Up(_) => self.end_run(now, Then::Restart, self.kill_at(now), out),
        }
        self.released = false;
    }

    /// The first run is given up before its fork: the unit is removed.
    fn never_start(&mut self, error: Option<Error>, out: Out) {
        self.state = State::Down;
        out.extend(error.map(|error| Action::StartFailed(1, error)));
        out.push(Action::Forget);
    }

    pub(super) fn kill_at(&self, now: Now) -> Duration {
        let plain = if self.terminal { HANG_UP } else { Duration::ZERO };
        now.mono + self.managed.as_ref().map_or(plain, |managed| managed.stop_grace)
    }

    /// SIGTERM to the tree, or the hang-up of its terminal, and SIGKILL to the tree at `kill_at`.
    pub(super) fn end_run(&mut self, now: Now, then: Then, kill_at: Duration, out: Out) {
        let watched = self.watched();
        let (ask, disconnect_at) = match self.terminal {
            true => (Action::HangUp, Some(now.mono + DISCONNECT)),
            false => (Action::Terminate, None),
        };
        let State::Up(run) = &mut self.state else { return };
        let first = run.then == Then::Policy;
        run.then = then;
        match run.phase {
            // The leader has ended by itself: what it has left has no grace.
            Phase::Reaped { .. } | Phase::Draining { .. } if run.kill_at.is_none() => out.push(Action::KillTree),
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
            _ => {}
        }
    }

    /// The terminal goes away; what does not end by that lives on.
    pub(super) fn hang_up(&mut self, out: Out) {
        if let State::Up(run) = &mut self.state
            && self.terminal
            && run.has_leader()
        {
            run.disconnect_at = None;
            out.push(Action::Disconnect);
        }
    }
}
