//! How a unit looks from outside.

use super::{Phase, Run, Shown, State, Unit};
use crate::model::{Exit, HealthStatus, ManagedSpec, ManagedStatus, Millis, Pid, RunEnd, RunNo, Status};

impl Unit {
    /// Whether it is ended by the hang-up of a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// What makes it managed, if it is.
    pub fn managed(&self) -> Option<&ManagedSpec> {
        self.managed.as_ref()
    }

    /// The number of the current or last run; 0 before the first.
    pub fn run_no(&self) -> RunNo {
        self.run
    }

    /// The current run, or the last.
    pub fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// The leader, while it may be signalled: forked and not reaped.
    pub fn leader(&self) -> Option<Pid> {
        match &self.state {
            State::Up(run) if run.has_leader() => Some(run.pid),
            _ => None,
        }
    }

    /// Whether nothing of it runs or will run by itself.
    pub fn is_down(&self) -> bool {
        self.state == State::Down
    }

    /// Whether it has been taken out of supervision, so that its name is free.
    pub fn is_released(&self) -> bool {
        self.released || self.is_down()
    }

    /// The status of the run that is shown.
    pub fn status(&self) -> Status {
        match self.shown.and_then(|shown| shown.end) {
            None => Status::Running,
            Some(RunEnd { exit: Exit::Code(_), .. }) => Status::Exited,
            Some(RunEnd { exit: Exit::Signal(_), .. }) => Status::Signaled,
            Some(RunEnd { exit: Exit::OomKilled, .. }) => Status::OomKilled,
        }
    }

    /// What supervision does with it.
    pub fn managed_status(&self) -> ManagedStatus {
        match &self.state {
            State::Down => ManagedStatus::Stopped,
            State::AwaitingUser | State::Forking => ManagedStatus::Starting,
            // Not backing off: when the next run begins is not known.
            State::AwaitingTree(_) => ManagedStatus::Starting,
            State::BackingOff { .. } => ManagedStatus::BackingOff,
            State::Up(Run { phase: Phase::Execing { .. } | Phase::Broken(_), .. }) => ManagedStatus::Starting,
            State::Up(_) => ManagedStatus::Running,
        }
    }

    /// What its health check says, and how many probes failed in a row.
    pub fn health(&self) -> (HealthStatus, u32) {
        (self.health.status, self.health.failures)
    }

    /// Every start but the first, those included that failed.
    pub fn restart_count(&self) -> u64 {
        self.run.saturating_sub(1)
    }

    /// How the last run that is over ended.
    pub fn last_exit(&self) -> Option<RunEnd> {
        self.last_exit
    }

    /// A sentence about what went wrong last.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// When it is started again, while it backs off.
    pub fn next_restart_at(&self) -> Option<Millis> {
        self.next_restart_at
    }
}
