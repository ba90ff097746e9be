//! Requests to a unit: stop, restart, shutdown.

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, Phase, State};
use super::times::{DISCONNECT, HANG_UP_GRACE};
use crate::error::Error;

impl Unit {
    pub(super) fn stop(&mut self, now: Now, actions: Actions) {
        self.released = self.managed.is_some();
        let at_once = self.managed.is_none() && !self.terminal;
        match &mut self.state {
            // An earlier stop has given the tree a grace, which still lasts.
            State::Down if self.sweep_at.is_some() && !at_once => {}
            State::Down => actions.push(Action::KillTree),
            State::AwaitingUser if self.run == 0 => self.cancel_first_start(None, actions),
            State::AwaitingUser | State::BackingOff { .. } => {
                actions.push(Action::KillTree);
                self.go_down(self.last_end(now), false, actions);
            }
            State::AwaitingTree(wait) => {
                self.sweep_at = wait.kill_at;
                self.go_down(self.last_end(now), false, actions);
            }
            State::Up(run) if at_once => {
                if run.next == Next::Policy {
                    run.next = Next::Stop;
                }
                run.kill(now, actions);
            }
            State::Forking | State::Up(_) => self.end_run(now, Next::Stop, self.kill_at(now), actions),
        }
    }

    pub(super) fn shut_down(&mut self, now: Now, kill_at: Duration, actions: Actions) {
        match &mut self.state {
            State::Down => match &mut self.sweep_at {
                Some(at) => *at = kill_at.min(*at),
                None if self.run == 0 => {}
                // The leader has exited by itself, so its leftovers have not been terminated yet.
                None => {
                    self.sweep_at = Some(kill_at);
                    actions.push(Action::Terminate);
                }
            },
            State::AwaitingUser if self.run == 0 => self.cancel_first_start(Some(Error::ShuttingDown), actions),
            State::AwaitingUser | State::BackingOff { .. } => self.stop(now, actions),
            State::AwaitingTree(wait) => {
                wait.kill_at = wait.kill_at.map(|at| at.min(kill_at));
                self.stop(now, actions);
            }
            State::Up(run) if run.kill_at.is_none() && !run.has_leader() && run.next == Next::Policy => {
                run.next = Next::Stop;
                run.kill_at = Some(kill_at);
                actions.push(Action::Terminate);
            }
            State::Forking | State::Up(_) => {
                self.end_run(now, Next::Stop, kill_at, actions);
                // An earlier deadline takes precedence.
                if let State::Up(run) = &mut self.state
                    && let Some(at) = &mut run.kill_at
                {
                    *at = kill_at.min(*at);
                }
            }
        }
    }

    pub(super) fn restart(&mut self, now: Now, actions: Actions) {
        if self.managed.is_none() {
            return;
        }
        match &mut self.state {
            State::Down | State::BackingOff { .. } => {
                if self.state == State::Down {
                    actions.push(Action::Reopen);
                }
                // A tree that was already terminated keeps the rest of its grace.
                let kill_at = self.sweep_at.take();
                if kill_at.is_none() {
                    actions.push(Action::KillTree);
                }
                self.await_tree(now, Next::Restart, kill_at);
            }
            // The run that is about to begin is the requested one, and starts with cleared counts.
            State::AwaitingUser => self.clear_counts(),
            State::AwaitingTree(wait) => wait.next = Next::Restart,
            State::Forking | State::Up(_) => self.end_run(now, Next::Restart, self.kill_at(now), actions),
        }
        self.released = false;
    }

    /// Cancels the first run before its fork. The unit is removed.
    fn cancel_first_start(&mut self, error: Option<Error>, actions: Actions) {
        self.state = State::Down;
        actions.extend(error.map(|error| Action::StartFailed(1, error)));
        actions.push(Action::Forget);
    }

    /// When the tree is killed if it is terminated now.
    pub(super) fn kill_at(&self, now: Now) -> Duration {
        let default = if self.terminal { HANG_UP_GRACE } else { Duration::ZERO };
        now.mono + self.managed.as_ref().map_or(default, |managed| managed.stop_grace)
    }

    /// Terminates the tree, or hangs up the session, and schedules the kill of the tree for `kill_at`.
    pub(super) fn end_run(&mut self, now: Now, next: Next, kill_at: Duration, actions: Actions) {
        let watched = self.watched();
        let (terminate, disconnect_at) = match self.terminal {
            true => (Action::HangUp, Some(now.mono + DISCONNECT)),
            false => (Action::Terminate, None),
        };
        let State::Up(run) = &mut self.state else { return };
        let first = run.next == Next::Policy;
        run.next = next;
        // A process that is paused could not react to a signal.
        self.resume(now, actions);
        let State::Up(run) = &mut self.state else { return };
        match run.phase {
            // The leader has exited by itself: the processes it left behind have no grace.
            Phase::Reaped { .. } | Phase::Draining { .. } if run.kill_at.is_none() => actions.push(Action::KillTree),
            Phase::Broken(_) => {}
            Phase::Execing { .. } | Phase::Slow | Phase::Running if first => {
                run.kill_at = Some(kill_at);
                run.disconnect_at = disconnect_at;
                actions.push(terminate);
                if watched {
                    actions.push(Action::Unwatch);
                }
            }
            // SIGTERM was sent before, and its deadline stays.
            _ => {}
        }
    }

    /// Disconnects the terminal. A process that ignores that keeps running.
    pub(super) fn hang_up(&mut self, now: Now, actions: Actions) {
        if let State::Up(run) = &mut self.state
            && self.terminal
            && run.has_leader()
        {
            run.disconnect_at = None;
            self.resume(now, actions);
            actions.push(Action::Disconnect);
        }
    }
}
