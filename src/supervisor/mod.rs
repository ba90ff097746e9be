//! The supervisor: its [`Builder`], and the [`Handle`] that all requests go through.

mod actions;
mod actor;
mod announcements;
mod builder;
mod cgroups;
mod conditions;
mod context;
mod ending;
pub(crate) mod fd_budget;
mod handle;
mod keyed_requests;
mod launch;
mod limits;
mod mailbox;
mod measure;
mod memory_return;
mod message;
mod pause_watch;
mod pauses;
mod ports;
mod probes;
mod pty;
mod reap_scan;
mod reaping;
mod repeats;
mod replies;
mod reports;
mod requests;
mod resolver;
mod sessions;
mod shutdown;
mod single_instance;
pub(crate) mod task_limit;
#[cfg(test)]
mod tests;
mod threads;
mod trace;
mod tree_checks;
mod tree_watch;
mod trees;
mod usage;

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

pub use builder::Builder;
pub use conditions::ConditionWatch;
pub use handle::Handle;
pub use pty::Attached;
pub(crate) use replies::Census;
pub use replies::{Counts, SessionKey, Started, Stdin};
pub use trace::TraceStop;
pub(crate) use usage::UsageSums;

use fd_budget::Budget;
use message::{Command, Message};
use single_instance::SingleInstance;

/// A running supervisor. Dropping it ends its threads; the processes that it has started keep running. To end them too,
/// call [`Handle::shutdown`] first.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::{ProcessSpec, Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
/// handle.start(ProcessSpec::command("sleep").args(["60"]).build()?)?;
/// handle.shutdown(Duration::from_secs(5))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a supervisor ends its threads"]
pub struct Supervisor {
    handle: Handle,
    budget: Budget,
    warnings: Vec<String>,
    thread: Option<JoinHandle<()>>,
    /// Dropped last, so that no other supervisor starts before the threads of this one have ended.
    _instance: SingleInstance,
}

impl Supervisor {
    /// The longest time that [`Handle::shutdown`] takes in addition to its grace.
    pub const SHUTDOWN_MARGIN: Duration = Duration::from_secs(3);

    /// Begins to build a supervisor that keeps the output of its processes in `log_dir`.
    ///
    /// The directory is created if necessary, and its mode becomes 0700. It must be empty or the log directory of an
    /// earlier supervisor: the output in it is deleted at the start.
    pub fn builder(log_dir: impl Into<PathBuf>) -> Builder {
        Builder::new(log_dir.into())
    }

    /// A handle, through which any thread can make requests.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Number of connections that descriptors are reserved for: at most [`Builder::max_connections`]. The front end
    /// must not accept more: they would use descriptors reserved for processes.
    pub fn max_connections(&self) -> usize {
        self.budget.connections
    }

    /// One sentence for each resource that is scarcer than requested, or than is usual.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.handle.messages.send(Message::Command(Command::Quit));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
