//! [`ProcessInfo`]: what is told of a process.

use std::sync::Arc;

use serde::Serialize;

use super::{Exit, HealthCheck, Millis, Pid, RestartPolicy, RunEnd, UnitId};

/// What `status` says of the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The leader runs.
    Running,
    /// It exited.
    Exited,
    /// A signal killed it.
    Signaled,
    /// The kernel killed it for want of memory.
    OomKilled,
}

/// What `managed.status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagedStatus {
    /// Forked, and not known to run yet.
    Starting,
    /// Up.
    Running,
    /// Waits for its next restart.
    BackingOff,
    /// Down, and stays so.
    Stopped,
}

/// What `managed.health_status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// There is no check.
    Disabled,
    /// No probe of this run has succeeded or failed for good yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// `failure_threshold` consecutive probes failed.
    Unhealthy,
}

/// How an earlier run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastExit {
    /// Set when it exited.
    pub exit_code: Option<i32>,
    /// Set when a signal killed it.
    pub signal: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// When.
    pub ended_at: Millis,
}

impl From<RunEnd> for LastExit {
    fn from(end: RunEnd) -> LastExit {
        LastExit {
            exit_code: end.exit.code(),
            signal: end.exit.signal(),
            oom_killed: end.exit == Exit::OomKilled,
            ended_at: end.ended_at,
        }
    }
}

/// The supervision of a managed process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManagedInfo {
    /// The name, or an opaque id where there is none.
    pub id: String,
    /// The name.
    pub name: Option<String>,
    /// What supervision does with it.
    pub status: ManagedStatus,
    /// Every start but the first.
    pub restart_count: u64,
    /// Its policy.
    pub restart: RestartPolicy,
    /// Its check.
    pub health_check: Option<HealthCheck>,
    /// What the check says.
    pub health_status: HealthStatus,
    /// Failed probes in a row.
    pub consecutive_health_failures: u32,
    /// How the last ended run ended.
    pub last_exit: Option<LastExit>,
    /// A sentence about what went wrong last.
    pub last_error: Option<String>,
    /// When it is started again, while it backs off.
    pub next_restart_at: Option<Millis>,
}

/// A process as the API shows it (section 2). All fields are always present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessInfo {
    /// Unique for the life of the daemon.
    pub handle: UnitId,
    /// Of the current run, or the last one.
    pub pid: Pid,
    /// Of the current run, or the last one.
    pub status: Status,
    /// Set only for `exited`.
    pub exit_code: Option<i32>,
    /// Set only for `signaled` and `oom_killed`.
    pub signal: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// stdin is an open pipe and the process runs.
    pub stdin_writable: bool,
    /// As it was asked for.
    pub command: Arc<str>,
    /// As they were asked for. Shared, as the command is: a listing copies neither.
    pub args: Arc<[String]>,
    /// Of the current run, or the last one.
    pub started_at: Millis,
    /// None while it runs.
    pub ended_at: Option<Millis>,
    /// None for a plain process.
    pub managed: Option<ManagedInfo>,
}

impl ProcessInfo {
    /// The same process once it has ended like this.
    pub(crate) fn after(mut self, end: RunEnd) -> ProcessInfo {
        self.status = end.exit.status();
        self.exit_code = end.exit.code();
        self.signal = end.exit.signal();
        self.oom_killed = end.exit == Exit::OomKilled;
        self.stdin_writable = false;
        self.ended_at = Some(end.ended_at);
        self
    }
}
