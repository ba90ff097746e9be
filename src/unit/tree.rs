//! The wait for the remaining processes of a tree after the end of its leader.

use std::time::Duration;

use super::Unit;
use super::event::{Action, Now};
use super::state::{Actions, Next, State, TreeWait, take_if_due};
use super::times::TREE_TIMEOUT;
use crate::model::{Exit, RestartReason, RunEnd};

impl Unit {
    /// Waits for the end of the tree before `next`. The tree is killed at `kill_at`; None if it has been killed
    /// already.
    pub(super) fn await_tree(&mut self, now: Now, next: Next, kill_at: Option<Duration>) {
        let give_up = kill_at.unwrap_or(now.mono) + TREE_TIMEOUT;
        self.state = State::AwaitingTree(Box::new(TreeWait { next, kill_at, give_up }));
    }

    pub(super) fn tick_awaiting(&mut self, now: Now, actions: Actions) {
        let State::AwaitingTree(wait) = &mut self.state else { return };
        if take_if_due(&mut wait.kill_at, now) {
            wait.give_up = now.mono + TREE_TIMEOUT;
            actions.push(Action::KillTree);
        } else if wait.kill_at.is_none() && wait.give_up <= now.mono {
            self.start_next(now, actions);
        }
    }

    pub(super) fn tree_gone(&mut self, now: Now, actions: Actions) {
        match self.state {
            State::Down => self.sweep_at = None,
            State::AwaitingTree(_) => self.start_next(now, actions),
            State::AwaitingUser | State::Forking | State::Up(_) | State::BackingOff { .. } => {}
        }
    }

    /// Starts the next run, at once or after its backoff, unless there have been too many restarts.
    fn start_next(&mut self, now: Now, actions: Actions) {
        let State::AwaitingTree(wait) = &self.state else { return };
        let next = wait.next;
        match next {
            Next::Restart => self.start_anew(actions),
            Next::Policy | Next::Failed | Next::Stop | Next::TimedOut => {
                let end = self.last_end(now);
                let reason = match next {
                    Next::Failed => RestartReason::Unhealthy(self.last_error.clone()),
                    _ => RestartReason::Ended(end),
                };
                self.back_off(now, end, reason, actions);
            }
        }
    }

    /// How the last run ended. Exit code 127 stands for a run that could not be started.
    pub(super) fn last_end(&self, now: Now) -> RunEnd {
        self.last_exit.unwrap_or(RunEnd { exit: Exit::Code(127), timed_out: false, ended_at: now.wall })
    }

    /// Whether the unit waits for [`Event::UserResolved`](super::Event::UserResolved).
    pub fn awaits_user(&self) -> bool {
        self.state == State::AwaitingUser
    }

    /// Whether the unit waits for [`Event::TreeGone`](super::Event::TreeGone).
    pub fn awaits_tree(&self) -> bool {
        matches!(self.state, State::AwaitingTree(_)) || self.sweep_at.is_some()
    }
}
