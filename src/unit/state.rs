//! The state of a unit. Plain data: the other files of this directory change it.

use std::time::Duration;

use super::event::{Action, Now};
use super::times::REAP_TIMEOUT;
use crate::error::Error;
use crate::model::{HealthStatus, Millis, Pid, RunEnd};

/// The list to which a step appends its actions.
pub(super) type Actions<'a> = &'a mut Vec<Action>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Down,
    /// [`Action::ResolveUser`] has not finished. The run number is still that of the last run.
    AwaitingUser,
    /// [`Action::Spawn`] is being performed.
    Forking,
    /// Boxed, because most units are down.
    Up(Box<Run>),
    /// The last run has ended, and the next one waits for the end of its tree.
    AwaitingTree(Box<TreeWait>),
    BackingOff {
        until: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TreeWait {
    pub(super) next: Next,
    /// When the grace of the tree is over; None once the tree has been killed.
    pub(super) kill_at: Option<Duration>,
    /// When to stop waiting for the end of the tree.
    pub(super) give_up: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) pid: Pid,
    /// When it was forked.
    pub(super) since: Duration,
    /// `since`, moved by the length of each pause: the run has lasted from here on without its pauses.
    pub(super) counted_from: Duration,
    /// When a client has paused it; None once the leader was reaped.
    pub(super) paused_at: Option<Duration>,
    pub(super) phase: Phase,
    pub(super) next: Next,
    /// When the grace of a stop is over.
    pub(super) kill_at: Option<Duration>,
    /// When the terminal is disconnected.
    pub(super) disconnect_at: Option<Duration>,
    /// When the timeout of the process is over.
    pub(super) expires_at: Option<Duration>,
    /// When to stop waiting for the reaping of the leader; set with its SIGKILL.
    pub(super) abandon_at: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// The outcome of the exec is not known. At `give_up` the run counts as started.
    Execing {
        give_up: Duration,
    },
    /// The exec hangs. The run counts as started.
    Slow,
    Running,
    /// The exec has failed, and the child has not been reaped.
    Broken(Error),
    /// The leader was reaped before the outcome of the exec was known. `slow`: the run already counted as started.
    Reaped {
        end: RunEnd,
        slow: bool,
    },
    /// The leader was reaped, and the rest of its output is being read.
    Draining {
        end: RunEnd,
    },
}

/// What follows the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    /// The restart policy.
    Policy,
    /// The restart policy, applied to a failure: the run was unhealthy, and its exit code does not matter.
    Failed,
    /// Nothing: a client or the shutdown has stopped the unit.
    Stop,
    /// Another run: a client has requested it.
    Restart,
    /// The restart policy; the run was killed at its timeout.
    TimedOut,
}

/// The run that clients are shown: the current one or, if there is none, the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// PID of its leader.
    pub pid: Pid,
    /// When it was forked.
    pub started_at: Millis,
    /// How it ended; None while it is up.
    pub end: Option<RunEnd>,
}

/// Health of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Health {
    pub(super) status: HealthStatus,
    /// Number of failed probes in a row.
    pub(super) failures: u32,
    /// Time of the first successful probe since the last unhealthy verdict.
    pub(super) healthy_since: Option<Duration>,
    /// Whether the run has been healthy for long enough to count as stable.
    pub(super) stable: bool,
}

impl Run {
    /// Whether the leader has not been reaped yet. Until it is, no other process can get its PID.
    pub(super) fn has_leader(&self) -> bool {
        !matches!(self.phase, Phase::Reaped { .. } | Phase::Draining { .. })
    }

    /// Kills the tree. A leader that is not reaped within [`REAP_TIMEOUT`] is abandoned.
    pub(super) fn kill(&mut self, now: Now, actions: Actions) {
        if self.has_leader() {
            self.abandon_at.get_or_insert(now.mono + REAP_TIMEOUT);
        }
        actions.push(Action::KillTree);
    }
}

/// Whether the deadline has passed. If so, clears it.
pub(super) fn take_if_due(deadline: &mut Option<Duration>, now: Now) -> bool {
    deadline.take_if(|at| *at <= now.mono).is_some()
}
