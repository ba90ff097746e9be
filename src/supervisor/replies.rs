//! The results of commands: what a [`Handle`](super::Handle) gets back from the supervisor thread.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::logs::{Follower, OutputLog, StartAt, View};
use crate::model::{ProcessInfo, RunEnd, RunKey, UnitId};
use crate::output::{Message as ToOutput, OutputSender};
use crate::pending::{Pending, pending};
use crate::terminal::Terminal;
use crate::terminal::session::SessionInfo;
use tl_os::random::hex;

/// Numbers of processes, terminal sessions aside.
///
/// ```
/// # use tl_supervisor::{Supervisor, UserSpec};
/// # let dir = tempfile::tempdir()?;
/// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let counts = supervisor.handle().counts()?;
/// assert_eq!((counts.running, counts.total), (0, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Number of processes that are running or will be restarted.
    pub running: usize,
    /// Number of processes that are remembered, including the running ones.
    pub total: usize,
}

/// Numbers of units in each state, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Processes, by their status: running, exited, signaled, killed because memory had run out.
    pub(crate) processes: [u64; 4],
    /// Managed processes, by the status of their supervision: starting, running, backing off, stopped.
    pub(crate) managed: [u64; 4],
    /// Terminal sessions: alive, ended.
    pub(crate) sessions: [u64; 2],
    /// Clients that are attached to terminal sessions.
    pub(crate) viewers: u64,
}

/// A process with its output. The output stays readable after the supervisor has forgotten the process.
///
/// ```
/// # use tl_supervisor::{ProcessSpec, Supervisor, UserSpec};
/// # let dir = tempfile::tempdir()?;
/// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let spec = ProcessSpec::command("sh").args(["-c", "exit 7"]).build()?;
/// let started = supervisor.handle().begin_start(spec).1.wait()?;
/// let end = started.wait(None).expect("no deadline was given");
/// assert_eq!(end.exit.code(), Some(7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Started {
    /// The process, as it was when the request was answered.
    pub info: ProcessInfo,
    pub(crate) log: Arc<OutputLog>,
    /// The key of the session; None for a process.
    pub(super) session: Option<Box<SessionKey>>,
}

impl Started {
    /// Blocks until the process has ended (a managed one: until it is stopped). Returns None after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<RunEnd> {
        // A timeout beyond the range of the clock means no deadline.
        self.log.wait_end(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// Follows the output. `waker` is woken when [`Follower::try_next`] may return an item. A follower that is only
    /// read with [`Follower::next`] needs no waker: pass a clone of [`Waker::noop`].
    pub fn follow(&self, view: View, start: StartAt, waker: Waker) -> Follower {
        self.log.follow(view, start, waker)
    }
}

/// The standard input of one run of a process. Dropping it withdraws the bytes that are not written yet; it does not
/// close the pipe.
///
/// ```
/// # use tl_supervisor::{Pipes, ProcessSpec, StdinMode, Supervisor, Target, UserSpec};
/// # let dir = tempfile::tempdir()?;
/// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// # let handle = supervisor.handle();
/// let pipes = Pipes { stdin: StdinMode::Pipe, ..Pipes::default() };
/// let cat = Target::Unit(handle.start(ProcessSpec::command("cat").stdio(pipes).build()?)?.handle);
/// handle.stdin(&cat)?.begin_write(b"hello\n".to_vec()).wait()?;
/// handle.close_stdin(&cat)?;
/// assert_eq!(handle.wait(&cat, None)?.exit_code, Some(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stdin {
    output: OutputSender,
    run: RunKey,
    writer: u64,
}

impl Stdin {
    pub(super) fn new(output: OutputSender, run: RunKey, writer: u64) -> Stdin {
        Stdin { output, run, writer }
    }

    /// Queues `bytes` for the pipe. The result is delivered when all bytes are in the pipe. Bytes of other writers do
    /// not come between them. Wait for the result before the next call.
    pub fn begin_write(&mut self, bytes: Vec<u8>) -> Pending<()> {
        let (reply, written) = pending();
        self.send(ToOutput::Write { writer: self.writer, bytes, reply });
        written
    }

    /// Queues the entire standard input of the process. The pipe is closed once all of it is written. Bytes that are
    /// not written when the process ends are dropped. `held`, the reservation of their memory, is dropped with them.
    pub(crate) fn feed(self, bytes: Vec<u8>, held: Box<dyn Any + Send>) {
        self.send(ToOutput::Feed(bytes, held));
    }

    pub(super) fn send(&self, message: ToOutput) {
        self.output.send(self.run, message);
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.send(ToOutput::Abandon { writer: self.writer });
    }
}

/// The id of a terminal session, and the token needed to attach to it. Its `Debug` form does not show the token.
///
/// ```
/// # use tl_supervisor::{ProcessSpec, Supervisor, TerminalSize, UserSpec};
/// # let dir = tempfile::tempdir()?;
/// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// # let handle = supervisor.handle();
/// let shell = ProcessSpec::command("sh").stdio(TerminalSize::new(40, 120)).build()?;
/// let key = handle.open_pty(shell)?;
/// assert!(!format!("{key:?}").contains(&key.token));
/// handle.kill_pty(&key.session_id)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// Id of the session.
    pub session_id: String,
    /// Token of the session.
    pub token: String,
}

impl SessionKey {
    pub(super) fn generate() -> Result<SessionKey, Error> {
        let failed = |error| Error::from_io("making a token", &error);
        Ok(SessionKey { session_id: hex::<16>().map_err(failed)?, token: hex::<32>().map_err(failed)? })
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// A terminal session, with its output and its input.
#[derive(Debug)]
pub(crate) struct SessionAccess {
    pub(super) unit: UnitId,
    pub(super) info: SessionInfo,
    pub(super) terminal: Arc<Terminal>,
    pub(super) keyboard: Stdin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_unique_and_debug_hides_the_token() {
        let key = SessionKey::generate().unwrap();
        assert_eq!((key.session_id.len(), key.token.len()), (32, 64));
        assert!(key.token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!format!("{key:?}").contains(&key.token));
        assert_ne!(SessionKey::generate().unwrap(), key);
    }
}
