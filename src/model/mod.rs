//! Plain data types of requests and of their results. No I/O and no clock.
//!
//! A [`ProcessSpec`] is validated once, when it is built; no code after that checks it again. The `Serialize` forms are
//! those of the process API (docs/api.md, Data model).

mod condition;
mod info;
mod limits;
mod managed;
mod occurrence;
mod port;
mod request_key;
mod signal;
mod spec;
mod stdio;
pub(crate) mod terminal_size;
mod usage;
mod user;

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

pub use condition::{Condition, LineQuery, Met, Waited};
pub use info::{HealthStatus, LastExit, ManagedInfo, ManagedStatus, ProcessInfo, Status};
pub(crate) use limits::MAX_CPU_WEIGHT;
pub use limits::{Cpus, Limits};
pub use managed::{HealthCheck, HealthKind, ManagedSpec, Policy, RestartPolicy};
pub(crate) use managed::{MAX_MS, is_request_path};
pub use occurrence::{Occurrence, RestartReason};
pub use port::{Port, PortQuery};
pub(crate) use request_key::{Operation, RequestKey};
pub use signal::Signal;
pub(crate) use spec::MAX_TIMEOUT;
pub use spec::{ProcessSpec, SpecBuilder};
pub use stdio::{OutputMode, Pipes, StdinMode, Stdio};
pub use terminal_size::TerminalSize;
pub use usage::{Usage, UsageScope};
pub(crate) use user::NO_ID;
pub use user::UserSpec;

/// A process id of the kernel (`pid_t`). The PID of a child is at least 1.
pub type Pid = i32;

/// A time in milliseconds since the Unix epoch.
pub type Millis = u64;

/// The environment variable that names the run in which a process was started (systemd.exec(5)). Children inherit it,
/// so it identifies the run of a process even after that process has left its parent and its session.
pub(crate) const INVOCATION_ID: &str = "INVOCATION_ID";

/// Number of one run of a unit; the first is 1.
pub(crate) type RunNo = u64;

/// Number of one watch of the health of a unit. Each run that is probed has one, and another one after each pause.
pub(crate) type WatchNo = u64;

/// One run of one unit.
pub(crate) type RunKey = (UnitId, RunNo);

/// Identifies a process across all of its restarts. Never reused while the supervisor runs. On the wire it is called
/// `handle`.
///
/// ```
/// use tl_supervisor::{Target, UnitId};
///
/// assert_eq!(Target::from(UnitId::from(7)), Target::Unit(UnitId::from(7)));
/// assert_eq!(UnitId::from(7).to_string(), "7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UnitId(pub(crate) u64);

impl From<u64> for UnitId {
    fn from(number: u64) -> UnitId {
        UnitId(number)
    }
}

impl From<UnitId> for u64 {
    fn from(unit: UnitId) -> u64 {
        unit.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a request addresses a process.
///
/// ```
/// use tl_supervisor::Target;
///
/// assert_eq!(Target::from("web"), Target::Name("web".to_owned()));
/// assert_eq!(Target::from("42"), Target::Pid(42));
/// assert_eq!(Target::from("web").to_string(), "name \"web\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// By its id.
    Unit(UnitId),
    /// By PID: the latest process with this PID.
    Pid(u64),
    /// By the name of a managed process.
    Name(String),
}

impl From<UnitId> for Target {
    fn from(unit: UnitId) -> Target {
        Target::Unit(unit)
    }
}

impl From<&str> for Target {
    /// A PID if `text` has only digits, else a name: the `{process}` segment of a path, percent-decoded.
    fn from(text: &str) -> Target {
        Target::parse(text)
    }
}

impl Target {
    /// See [`Target::from`].
    pub(crate) fn parse(text: &str) -> Target {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Target::Name(text.to_owned());
        }
        // A number too large for a u64 is not the PID of any process, and neither is u64::MAX.
        Target::Pid(text.parse().unwrap_or(u64::MAX))
    }
}

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Target, Infallible> {
        Ok(Target::from(text))
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
    /// Standard output, file descriptor 1.
    Stdout,
    /// Standard error, file descriptor 2.
    Stderr,
}

/// How the leader of a process tree ended.
///
/// ```
/// use tl_supervisor::Exit;
///
/// assert!(Exit::Code(0).success());
/// assert_eq!((Exit::Code(3).code(), Exit::Code(3).signal()), (Some(3), None));
/// assert_eq!((Exit::OomKilled.code(), Exit::OomKilled.signal()), (None, Some(9)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code, from 0 to 255.
    Code(i32),
    /// The signal with this number killed it.
    Signal(i32),
    /// The kernel killed it with SIGKILL because memory had run out.
    OomKilled,
}

impl Exit {
    /// The exit code, if it exited.
    pub fn code(self) -> Option<i32> {
        match self {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) | Exit::OomKilled => None,
        }
    }

    /// The number of the signal that killed it, if one did.
    pub fn signal(self) -> Option<i32> {
        match self {
            Exit::Code(_) => None,
            Exit::Signal(signal) => Some(signal),
            Exit::OomKilled => Some(Signal::KILL.number()),
        }
    }

    /// The exit status that a shell reports: the exit code, or 128 plus the number of the signal.
    pub fn shell_status(self) -> i32 {
        self.code().or(self.signal().map(|signal| 128 + signal)).unwrap_or(1)
    }

    /// The status of a process that ended like this.
    pub fn status(self) -> Status {
        match self {
            Exit::Code(_) => Status::Exited,
            Exit::Signal(_) => Status::Signaled,
            Exit::OomKilled => Status::OomKilled,
        }
    }

    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

/// The end of a run.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::{ProcessSpec, Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let spec = ProcessSpec::command("sleep").args(["60"]).timeout(Duration::from_millis(50)).build()?;
/// let end = supervisor.handle().begin_start(spec).1.wait()?.wait(None).expect("no deadline was given");
/// assert!(end.timed_out);
/// assert_eq!(end.reason(), "timed_out");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RunEnd {
    /// How the leader ended.
    pub exit: Exit,
    /// Whether the supervisor killed it because its [timeout](SpecBuilder::timeout) expired.
    pub timed_out: bool,
    /// When it ended.
    pub ended_at: Millis,
}

impl RunEnd {
    /// The reason as a word: `exited`, `signaled`, `oom_killed` or `timed_out`.
    pub fn reason(&self) -> &'static str {
        match self.exit {
            _ if self.timed_out => "timed_out",
            Exit::Code(_) => "exited",
            Exit::Signal(_) => "signaled",
            Exit::OomKilled => "oom_killed",
        }
    }
}

/// What happens to the other processes of a tree when its leader exits by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Leftovers {
    /// They keep running. If the process is managed and is restarted, they are killed before the next run.
    #[default]
    Keep,
    /// They are killed.
    Kill,
}

/// Which processes of a tree a signal is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalScope {
    /// The leader alone.
    Leader,
    /// The process group of the leader.
    Group,
    /// Every process of the tree.
    Tree,
}
