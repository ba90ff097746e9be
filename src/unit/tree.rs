//! What is left of a run's tree when its leader has ended.

use std::time::Duration;

use super::{Action, Now, Out, State, TREE_PATIENCE, Then, TreeWait, Unit, take_if_due};
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
            State::AwaitingUser | State::Forking | State::Up(_) | State::BackingOff { .. } => {}
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

    /// Whether [`Event::UserResolved`](super::Event::UserResolved) is waited for.
    pub fn awaits_user(&self) -> bool {
        self.state == State::AwaitingUser
    }

    /// Whether [`Event::TreeGone`](super::Event::TreeGone) is waited for.
    pub fn awaits_tree(&self) -> bool {
        matches!(self.state, State::AwaitingTree(_)) || self.sweep_at.is_some()
    }
}
