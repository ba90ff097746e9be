//! What happens to a unit, as the log, the metrics and the events report it.

use std::time::Duration;

use super::{HealthStatus, RunEnd};

/// Something that has happened to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// A run has started. `restart_count` is the number of starts before it.
    Started { restart_count: u64 },
    /// A run has ended, and everything that its leader wrote was read. `lasted` is the time since its fork.
    Ended { end: RunEnd, lasted: Duration },
    /// A managed process starts again after `delay`.
    Restarting { delay: Duration, reason: RestartReason },
    /// A managed process is down and does not restart by itself. `gave_up`: the limit on restarts was reached.
    Stopped { last_error: Option<String>, gave_up: bool },
    /// A client pauses it. Its tree stands still a moment later.
    Paused,
    /// It runs on after a pause. Not reported if it ends while it is paused.
    Resumed,
    /// The health of a managed process has changed. `error` is that of the last probe, if it failed.
    Health { status: HealthStatus, error: Option<String> },
}

/// Why a managed process starts again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartReason {
    /// Its last run ended like this.
    Ended(RunEnd),
    /// Its health check failed. Contains the error of the last probe.
    Unhealthy(Option<String>),
    /// Its last start failed. Contains the error.
    StartFailed(Option<String>),
    /// A client requests it.
    Requested,
}

impl RestartReason {
    /// The reason as a word: that of [`RunEnd::reason`], `unhealthy`, `start_failed` or `requested`.
    pub fn word(&self) -> &'static str {
        match self {
            RestartReason::Ended(end) => end.reason(),
            RestartReason::Unhealthy(_) => "unhealthy",
            RestartReason::StartFailed(_) => "start_failed",
            RestartReason::Requested => "requested",
        }
    }

    /// The error that led to the restart, if there was one.
    pub fn error(&self) -> Option<&str> {
        match self {
            RestartReason::Unhealthy(error) | RestartReason::StartFailed(error) => error.as_deref(),
            RestartReason::Ended(_) | RestartReason::Requested => None,
        }
    }
}
