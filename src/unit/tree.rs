//! What is left of a run's tree when its leader has ended.

use std::time::Duration;

use super::{Action, Now, Out, Phase, State, TREE_PATIENCE, Then, TreeWait, Unit, take_if_due};
use crate::model::{Exit, RunEnd};

impl Unit {
    /// The next run follows when nothing of the tree is left. The tree has until `kill_at`; without that it has been killed.
    pub(super) fn await_tree(&mut self, now: Now, then: Then, kill_at: Option<Duration>) {
        let give_up = kill_at.unwrap_or(now.mono) + TREE_PATIENCE;
        self.state = State::AwaitingTree(TreeWait { then, kill_at, give_up });
    }

    pub(super) fn tick_awaiting(&mut self, now: Now, out: Out) {
        let State::AwaitingTree(wait) = &mut self.state else { return };
        if take_if_due(&mut wait.kill_at, now) {
            wait.give_up = now.mono + TREE_PATIENCE;
            out.push(Action::KillTree);
        } else if wait.kill_at.is_none() && wait.give_up <= now.mono {
            self.go_on(now, out);
        }
    }

    pub(super) fn tree_gone(&mut self, now: Now, out: Out) {
        match self.state {
            State::Down => self.sweep_at = None,
            State::AwaitingTree(_) => self.go_on(now, out),
            State::Forking | State::Up(_) | State::BackingOff { .. } => {}
        }
    }

    /// The next run, at once or after a wait, or none where there have been too many.
    fn go_on(&mut self, now: Now, out: Out) {
        let State::AwaitingTree(TreeWait { then, .. }) = self.state else { return };
        match then {
            Then::Restart => self.start_anew(out),
            Then::Policy | Then::Fail | Then::Stop | Then::Expired => self.back_off(now, self.last_end(now), out),
        }
    }

    /// How the last run ended, or what stands for that where none has.
    pub(super) fn last_end(&self, now: Now) -> RunEnd {
        self.last_exit.unwrap_or(RunEnd { exit: Exit::Code(127), timed_out: false, ended_at: now.wall })
    }

    /// Whether [`Event::TreeGone`](super::Event::TreeGone) is waited for.
    pub fn awaits_tree(&self) -> bool {
        matches!(self.state, State::AwaitingTree(_)) || self.sweep_at.is_some()
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
}
