//! Supervises processes: starts, restarts, signals and kills them with their whole trees, reaps them, and keeps every byte
//! that they write. It works as PID 1 and in any other process on Linux, and needs no async runtime.
//!
//! [`Supervisor::builder`] starts a [`Supervisor`]. Its [`Handle`] takes requests from any thread: it starts the process that
//! a [`ProcessSpec`] describes, and lists, signals, restarts and ends processes. A [`Follower`] reads the output of a process
//! as it is written. With the feature `http`, which is on by default, `http::Server` serves the same over HTTP.
//!
//! ```
//! use tl_supervisor::{Item, ProcessSpec, Supervisor, Target, UserSpec, View};
//!
//! let dir = tempfile::tempdir()?;
//! // Processes run as the user that runs this program, so that it needs no privilege.
//! let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
//! let handle = supervisor.handle();
//!
//! let info = handle.start(ProcessSpec::command("sh").args(["-c", "echo hello; exit 3"]).build()?)?;
//! let mut follower = handle.follow(&Target::Unit(info.handle), View::Combined)?;
//! while let Some(item) = follower.next(None)? {
//!     match item {
//!         Item::Line(line, _) => assert_eq!(line.text, "hello"),
//!         Item::End(end, _) => assert_eq!(end.exit.code(), Some(3)),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
// Some functions have no caller but the HTTP API.
#![cfg_attr(not(feature = "http"), allow(dead_code, unused_imports))]

mod clock;
mod error;
mod events;
#[cfg(feature = "http")]
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod health;
#[cfg(feature = "http")]
pub mod http;
mod logs;
pub mod metrics;
mod model;
mod oom;
mod output;
mod pending;
mod ports;
mod probe;
#[cfg(feature = "http")]
pub mod program_log;
mod rate_limit;
mod shrink;
mod supervisor;
mod terminal;
mod trees;
mod unit;
mod users;

pub use error::{Error, SpecError, SystemFailure};
pub use events::{Event, EventFilter, EventItem, EventKind, EventStart, EventSubject, Events};
pub use logs::{BadCursor, Cursor, Follower, Item, Line, LogLimits, StartAt, View};
pub use model::{
    Condition, Cpus, Exit, HealthCheck, HealthKind, HealthStatus, LastExit, Leftovers, Limits, LineQuery, ManagedInfo,
    ManagedSpec, ManagedStatus, Met, Millis, OutputMode, Pid, Pipes, Policy, Port, PortQuery, ProcessInfo, ProcessSpec,
    RestartPolicy, RunEnd, Signal, SignalScope, SpecBuilder, Status, StdinMode, Stdio, Stream, Target, TerminalSize,
    UnitId, Usage, UsageScope, UserSpec, Waited,
};
pub use pending::Pending;
pub use ports::PortWatch;
pub use rate_limit::RateLimit;
pub use supervisor::{
    Attached, Builder, ConditionWatch, Counts, Handle, SessionKey, Started, Stdin, Supervisor, TraceStop,
};
pub use terminal::session::SessionInfo;
pub use terminal::{Seen, Viewer};
