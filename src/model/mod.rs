//! Plain data: what a client asks for and what it is told. No I/O, no clock.
//!
//! [`ProcessSpec`] is validated once, when it is built; nothing after that checks again.
//! The `Serialize` forms are those of the wire contract (`process-api.md`, section 2).

mod info;
mod spec;
pub(crate) mod terminal_size;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use info::{HealthStatus, LastExit, ManagedInfo, ManagedStatus, ProcessInfo, Status};
pub use spec::{MAX_MS, MAX_TIMEOUT, ProcessSpec, SpecBuilder};

/// A process id as the kernel counts them; never 0 or negative for a process of ours.
pub type Pid = i32;

/// Milliseconds since the Unix epoch.
pub type Millis = u64;

/// The variable that names the run which a process was started in, as systemd's does (systemd.exec(5)). Children inherit
/// it, which tells whose they are when nothing else does.
pub(crate) const INVOCATION_ID: &str = "INVOCATION_ID";

/// Counts the starts of one unit: 1 is its first run.
pub type RunNo = u64;

/// One run of one unit.
pub type RunKey = (UnitId, RunNo);

/// Names one unit for the life of the daemon; never reused. On the wire: `handle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnitId(pub u64);

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a request addresses a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// By its handle.
    Unit(UnitId),
    /// By a PID: the newest process that had it.
    Pid(u64),
    /// By the name of a managed process.
    Name(String),
}

impl Target {
    /// Reads the `{process}` segment of a path, percent-decoded already: all digits means a PID.
    pub fn parse(segment: &str) -> Target {
        if segment.is_empty() || !segment.bytes().all(|b| b.is_ascii_digit()) {
            return Target::Name(segment.to_owned());
        }
        // More digits than a u64 holds is a PID that no process has.
        Target::Pid(segment.parse().unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unit(unit) => write!(f, "handle {unit}"),
            Target::Pid(pid) => write!(f, "PID {pid}"),
            Target::Name(name) => write!(f, "name {name:?}"),
        }
    }
}

/// One of the two captured streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// How a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code, 0..=255.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// The kernel's out-of-memory killer killed it (with signal 9).
    OomKilled,
}

impl Exit {
    /// The exit code, where there is one.
    pub fn code(self) -> Option<i32> {
        match self {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) | Exit::OomKilled => None,
        }
    }

    /// The signal that killed it, where one did.
    pub fn signal(self) -> Option<i32> {
        match self {
            Exit::Code(_) => None,
            Exit::Signal(signal) => Some(signal),
            Exit::OomKilled => Some(9),
        }
    }

    /// The exit status that a shell reports: the exit code, or 128 plus the number of the signal.
    pub fn shell_status(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
            Exit::OomKilled => 128 + 9,
        }
    }

    /// The word for it.
    pub fn status(self) -> Status {
        match self {
            Exit::Code(_) => Status::Exited,
            Exit::Signal(_) => Status::Signaled,
            Exit::OomKilled => Status::OomKilled,
        }
    }

    /// Whether this counts as a success: exit code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// The end of a run, as its followers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunEnd {
    /// How the leader ended.
    pub exit: Exit,
    /// It was our SIGKILL at its [`SpecBuilder::timeout`] that ended it.
    pub timed_out: bool,
    /// When.
    pub ended_at: Millis,
}

impl RunEnd {
    /// The word for it on the wire: `exited`, `signaled`, `oom_killed` or `timed_out`.
    pub fn reason(&self) -> &'static str {
        match self.exit {
            _ if self.timed_out => "timed_out",
            Exit::Code(_) => "exited",
            Exit::Signal(_) => "signaled",
            Exit::OomKilled => "oom_killed",
        }
    }
}

/// What stdin of a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Closed,
    /// A pipe that the API writes to.
    Pipe,
}

/// What stdout or stderr of a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputMode {
    /// A pipe that lands in the log.
    #[default]
    Capture,
    /// `/dev/null`.
    Discard,
}

/// What becomes of the rest of a process's tree when its leader ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Leftovers {
    /// It lives on. A managed process that is restarted has it killed before the next run all the same.
    #[default]
    Keep,
    /// It is killed.
    Kill,
}

/// Which processes of a tree get a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalScope {
    /// The leader alone.
    Leader,
    /// The process group of the leader.
    Group,
    /// Every process of the tree.
    Tree,
}

/// Whom a process runs as, before any look at `/etc/passwd` (section 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSpec {
    /// A name in `/etc/passwd`, with its groups unless a gid is given.
    Name {
        /// The name.
        name: String,
        /// This gid and no supplementary groups.
        gid: Option<u32>,
    },
    /// A UID, with its entry's groups unless a gid is given.
    Uid {
        /// The UID.
        uid: u32,
        /// This gid and no supplementary groups.
        gid: Option<u32>,
    },
}

/// When a managed process is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Never.
    Never,
    /// After a non-zero exit, a signal, an OOM kill or a failed health check.
    #[default]
    OnFailure,
    /// After every exit.
    Always,
}

/// A policy with its backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
pub struct RestartPolicy {
    /// When to restart.
    pub policy: Policy,
    /// Consecutive restarts before giving up; none: no limit.
    pub max_restarts: Option<u32>,
    /// The wait before the first restart, in milliseconds.
    pub initial_backoff_ms: u64,
    /// The longest wait, in milliseconds.
    pub max_backoff_ms: u64,
}

impl RestartPolicy {
    /// The defaults of section 2 with this policy.
    pub fn new(policy: Policy) -> RestartPolicy {
        RestartPolicy { policy, max_restarts: None, initial_backoff_ms: 500, max_backoff_ms: 30_000 }
    }
}

/// What a health check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// `GET path` with a 2xx or 3xx answer.
    Http,
    /// A connection.
    Tcp,
}

/// A check of a managed process on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Hash)]
pub struct HealthCheck {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: HealthKind,
    /// The port, 1..=65535.
    pub port: u16,
    /// The path of an HTTP check; none for TCP.
    pub path: Option<String>,
    /// From the start to the first probe, in milliseconds.
    pub initial_delay_ms: u64,
    /// From one probe to the next, in milliseconds.
    pub interval_ms: u64,
    /// What one probe may take, in milliseconds.
    pub timeout_ms: u64,
    /// Consecutive failures that make it unhealthy.
    pub failure_threshold: u32,
}

/// What makes a process managed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ManagedSpec {
    /// The name it is addressed by.
    pub name: Option<String>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// How its health is checked.
    pub health: Option<HealthCheck>,
    /// From SIGTERM to SIGKILL when it is stopped or restarted.
    pub stop_grace: Duration,
}

impl ManagedSpec {
    /// A managed process without a name or a check, with the default grace of 10 s.
    pub fn new(policy: Policy) -> ManagedSpec {
        ManagedSpec {
            name: None,
            restart: RestartPolicy::new(policy),
            health: None,
            stop_grace: Duration::from_millis(10_000),
        }
    }
}
