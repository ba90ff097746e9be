//! [`ProcessInfo`]: a process as clients see it.

use std::sync::Arc;

use serde::Serialize;

use super::{Exit, HealthCheck, Limits, Millis, Pid, RestartPolicy, RunEnd, UnitId};

/// Status of the current run of a process, or of its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// The leader is running.
    Running,
    /// The leader exited.
    Exited,
    /// A signal killed the leader.
    Signaled,
    /// The kernel killed the leader because memory had run out.
    OomKilled,
}

/// Status of the supervision of a managed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ManagedStatus {
    /// It is being started: its exec is not confirmed yet, or its next run waits until the tree of the last run has
    /// ended.
    Starting,
    /// It is running.
    Running,
    /// It waits for its next restart.
    BackingOff,
    /// It has ended and will not be restarted.
    Stopped,
}

/// Health of a managed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthStatus {
    /// It has no health check.
    Disabled,
    /// No probe of this run has succeeded, and fewer than `failure_threshold` have failed.
    Starting,
    /// A probe has succeeded, and fewer than `failure_threshold` probes in a row have failed since then.
    Healthy,
    /// `failure_threshold` probes in a row have failed.
    Unhealthy,
}

/// How the most recently ended run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastExit {
    /// The exit code, if the leader exited.
    pub exit_code: Option<i32>,
    /// The number of the signal that killed the leader, if one did.
    pub signal: Option<i32>,
    /// Whether the kernel killed the leader because memory had run out.
    pub oom_killed: bool,
    /// When it ended.
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
#[non_exhaustive]
pub struct ManagedInfo {
    /// Its name, or a generated id if it has none.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// Status of its supervision.
    pub status: ManagedStatus,
    /// Number of its starts after the first one.
    pub restart_count: u64,
    /// Its restart policy.
    pub restart: RestartPolicy,
    /// Its health check.
    pub health_check: Option<HealthCheck>,
    /// Its health.
    pub health_status: HealthStatus,
    /// Number of failed probes in a row.
    pub consecutive_health_failures: u32,
    /// How its most recently ended run ended.
    pub last_exit: Option<LastExit>,
    /// The last error, as a sentence.
    pub last_error: Option<String>,
    /// Time of the next restart, while the status is [`ManagedStatus::BackingOff`].
    pub next_restart_at: Option<Millis>,
}

/// A process as clients see it; its `Serialize` form is that of docs/api.md, Data model.
///
/// ```
/// use tl_supervisor::{ProcessSpec, Status, Supervisor, Target, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
/// let info = handle.start(ProcessSpec::command("sh").args(["-c", "exit 3"]).build()?)?;
/// let info = handle.wait(&Target::Unit(info.handle), None)?;
/// assert_eq!((info.status, info.exit_code), (Status::Exited, Some(3)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its id. Never reused while the supervisor runs.
    pub handle: UnitId,
    /// PID of the leader of the current run, or of the last run.
    pub pid: Pid,
    /// Status of the current run, or of the last run.
    pub status: Status,
    /// The exit code, if the status is [`Status::Exited`].
    pub exit_code: Option<i32>,
    /// The number of the signal, if the status is [`Status::Signaled`] or [`Status::OomKilled`].
    pub signal: Option<i32>,
    /// Whether the kernel killed the leader because memory had run out.
    pub oom_killed: bool,
    /// Whether standard input is an open pipe and the process is running.
    pub stdin_writable: bool,
    /// Whether a client has paused it: no process of its tree runs until it is resumed.
    pub paused: bool,
    /// The program, as it was requested.
    pub command: Arc<str>,
    /// The arguments, as they were requested. Shared, like `command`, so that a listing copies neither.
    pub args: Arc<[String]>,
    /// When the current run, or the last one, was started.
    pub started_at: Millis,
    /// When the run ended; None while it is running.
    pub ended_at: Option<Millis>,
    /// The limits of the current run, or of the last one, the supervisor's default ones included; None if it has none.
    pub limits: Option<Arc<Limits>>,
    /// Its supervision; None if it is not managed.
    pub managed: Option<ManagedInfo>,
}

impl ProcessInfo {
    /// The information of the same process after its run has ended with `end`.
    pub(crate) fn after(mut self, end: RunEnd) -> ProcessInfo {
        self.status = end.exit.status();
        self.exit_code = end.exit.code();
        self.signal = end.exit.signal();
        self.oom_killed = end.exit == Exit::OomKilled;
        self.stdin_writable = false;
        self.paused = false;
        self.ended_at = Some(end.ended_at);
        self
    }
}
