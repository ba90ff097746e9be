//! Read access to a unit.

use super::Unit;
use super::state::{Phase, Shown, State};
use crate::model::{Exit, HealthStatus, ManagedSpec, ManagedStatus, Millis, Pid, RunEnd, RunNo, Status};

impl Unit {
    /// Whether it is a terminal session.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// The spec of its supervision, if it is managed.
    pub fn managed(&self) -> Option<&ManagedSpec> {
        self.managed.as_deref()
    }

    /// The number of the current or last run; 0 before the first.
    pub fn run_no(&self) -> RunNo {
        self.run
    }

    /// The current run, or the last one.
    pub fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// The leader, while it can be signalled: after the fork and before the reaping.
    pub fn leader(&self) -> Option<Pid> {
        match &self.state {
            State::Up(run) if run.has_leader() => Some(run.pid),
            _ => None,
        }
    }

    /// Whether it is not known yet if its first run can execute its program.
    pub fn is_starting(&self) -> bool {
        let is_open = |phase: &Phase| {
            matches!(phase, Phase::Execing { .. } | Phase::Broken(_) | Phase::Reaped { slow: false, .. })
        };
        self.run == 1 && matches!(&self.state, State::Up(run) if is_open(&run.phase))
    }

    /// Whether it neither runs nor waits for a restart.
    pub fn is_down(&self) -> bool {
        self.state == State::Down
    }

    /// Whether another unit may take its name: a client has stopped it, or it is down.
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

    /// The status of its supervision.
    pub fn managed_status(&self) -> ManagedStatus {
        match &self.state {
            State::Down => ManagedStatus::Stopped,
            State::AwaitingUser | State::Forking => ManagedStatus::Starting,
            // Not `BackingOff`, because the time of the next run is not known.
            State::AwaitingTree(_) => ManagedStatus::Starting,
            State::BackingOff { .. } => ManagedStatus::BackingOff,
            State::Up(run) => match run.phase {
                Phase::Execing { .. } | Phase::Broken(_) => ManagedStatus::Starting,
                _ => ManagedStatus::Running,
            },
        }
    }

    /// Its health, and the number of failed probes in a row.
    pub fn health(&self) -> (HealthStatus, u32) {
        (self.health.status, self.health.failures)
    }

    /// Number of its starts after the first one, including those that failed.
    pub fn restart_count(&self) -> u64 {
        self.run.saturating_sub(1)
    }

    /// How the most recently ended run ended.
    pub fn last_exit(&self) -> Option<RunEnd> {
        self.last_exit
    }

    /// The last error, as a sentence.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Time of the next restart, while it backs off.
    pub fn next_restart_at(&self) -> Option<Millis> {
        self.next_restart_at
    }
}
