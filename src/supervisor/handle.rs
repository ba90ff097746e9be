//! [`Handle`]: sends commands to the supervisor thread and waits for their results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::limits;
use super::mailbox::MessageSender;
use super::message::{Command, Message};
use super::replies::{Census, Counts, Started, Stdin};
use super::resolver::RunUser;
use super::usage::UsageSums;
use crate::error::Error;
use crate::events::{EventFilter, EventLog, EventStart, Events};
use crate::logs::{Follower, StartAt, View};
use crate::model::{ProcessInfo, ProcessSpec, RunEnd, Signal, SignalScope, Target, UnitId, Usage, UserSpec};
use crate::pending::{Pending, ReplySender, pending};
use crate::ports::Ports;

/// Size of the pieces in which [`Handle::write_stdin`] queues its bytes, in bytes.
const PIECE: usize = 64 * 1024;

/// Makes requests to a [`Supervisor`](crate::Supervisor), from any thread. Cheap to clone.
///
/// A call returns within microseconds unless its documentation says otherwise. Each returns [`Error::Internal`] if the
/// supervisor thread has ended.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::{ManagedSpec, Policy, ProcessSpec, Signal, Supervisor, Target, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
///
/// let managed = ManagedSpec::new(Policy::Always).named("sleeper");
/// handle.start(ProcessSpec::command("sleep").args(["60"]).managed(managed).build()?)?;
/// let sleeper = Target::from("sleeper");
/// assert_eq!(handle.list()?.len(), 1);
///
/// handle.signal(&sleeper, Signal::USR1, None)?;
/// handle.restart(&sleeper)?;
/// // A timeout beyond the range of the clock means no timeout.
/// handle.kill(&sleeper)?;
/// assert_eq!(handle.wait(&sleeper, Some(Duration::MAX))?.signal, Some(15));
/// handle.shutdown(Duration::MAX)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) messages: MessageSender,
    pub(super) ids: Arc<AtomicU64>,
    pub(super) default_user: Arc<UserSpec>,
    pub(super) events: Arc<EventLog>,
    pub(super) ports: Ports,
}

impl Handle {
    /// Sends a command, and blocks until its result.
    pub(super) fn call<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Result<T, Error> {
        self.begin(command).wait()
    }

    /// Sends a command. Its result is delivered later.
    fn begin<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Pending<T> {
        let (reply, result) = pending();
        // If the supervisor thread has ended, the message is dropped with the reply, which delivers an error.
        self.messages.send(Message::Command(command(reply)));
        result
    }

    /// Starts a process. Blocks while it reads `/etc/passwd`, and then until the exec has succeeded or failed. An exec
    /// that hangs counts as started after 5 s.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a spec with a terminal, which is for [`open_pty`](Handle::open_pty); or the reason why it
    /// could not be started.
    pub fn start(&self, spec: ProcessSpec) -> Result<ProcessInfo, Error> {
        spec.check_process()?;
        limits::check(&spec)?;
        let id = self.next_id();
        let user = Some(self.look_up_user(&spec));
        self.call(|reply| Command::Start { id, spec: Box::new(spec), user, reply }).map(|started| started.info)
    }

    /// Starts a process without blocking; another thread reads `/etc/passwd`. The id is valid at once, so that a caller
    /// that does not wait for the result can [`kill`](Handle::kill) the process.
    pub fn begin_start(&self, spec: ProcessSpec) -> (UnitId, Pending<Started>) {
        self.begin_start_as(spec, None)
    }

    /// Like [`begin_start`](Handle::begin_start), except that the calling thread reads `/etc/passwd`, which is faster.
    pub(crate) fn begin_start_with_user(&self, spec: ProcessSpec) -> (UnitId, Pending<Started>) {
        let user = self.look_up_user(&spec);
        self.begin_start_as(spec, Some(user))
    }

    fn begin_start_as(&self, spec: ProcessSpec, user: Option<Result<RunUser, Error>>) -> (UnitId, Pending<Started>) {
        let id = self.next_id();
        if let Err(error) = spec.check_process().and_then(|()| limits::check(&spec)) {
            let (reply, result) = pending();
            reply.send(Err(error.into()));
            return (id, result);
        }
        (id, self.begin(|reply| Command::Start { id, spec: Box::new(spec), user, reply }))
    }

    /// The user of a process with this spec, looked up by the calling thread, so that a hanging file system delays no
    /// other thread. An error is reported only where the supervisor would fork, so that an error about a limit takes
    /// precedence.
    pub(super) fn look_up_user(&self, spec: &ProcessSpec) -> Result<RunUser, Error> {
        RunUser::look_up(spec.user.as_ref().unwrap_or(&self.default_user), spec.stdio.terminal().is_some())
    }

    pub(super) fn next_id(&self) -> UnitId {
        UnitId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The user of processes with a spec that names none.
    pub fn default_user(&self) -> &UserSpec {
        &self.default_user
    }

    /// All processes, oldest first; terminal sessions are not among them.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn list(&self) -> Result<Vec<ProcessInfo>, Error> {
        self.call(Command::List)
    }

    /// One process.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.look_up(target).map(|found| found.info)
    }

    /// One process with its output.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn look_up(&self, target: &Target) -> Result<Started, Error> {
        self.call(|reply| Command::LookUp(target.clone(), reply))
    }

    /// The number of processes.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.call(Command::Counts)
    }

    /// The number of units in each state. None if the supervisor thread does not answer within `timeout`, or has ended.
    pub(crate) fn census(&self, timeout: Duration) -> Option<Census> {
        self.begin(Command::Census).wait_until(Instant::now() + timeout)?.ok()
    }

    /// What the current run of a process has used, or its last one.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn usage(&self, target: &Target) -> Result<Usage, Error> {
        self.call(|reply| Command::Usage(target.clone(), reply))
    }

    /// Like [`usage`](Handle::usage). None also if the supervisor thread does not answer until the deadline.
    pub(crate) fn usage_until(&self, target: &Target, deadline: Instant) -> Option<Usage> {
        self.begin(|reply| Command::Usage(target.clone(), reply)).wait_until(deadline)?.ok()
    }

    /// The sums of what all processes have used, by their status, sessions aside. None if the supervisor thread does not
    /// answer until the deadline, or has ended.
    pub(crate) fn usage_sums(&self, deadline: Instant) -> Option<[UsageSums; 4]> {
        let (mut sums, mut after) = ([UsageSums::default(); 4], None);
        loop {
            let page = self.begin(|reply| Command::UsagePage(after, reply)).wait_until(deadline)?.ok()?;
            sums.iter_mut().zip(&page.sums).for_each(|(sum, more)| sum.merge(more));
            after = page.last;
            if after.is_none() {
                return Some(sums);
            }
        }
    }

    /// Sends a signal to the processes of `scope`. None means the process group, except for SIGKILL, which goes to the
    /// whole tree.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotRunning`].
    pub fn signal(&self, target: &Target, signal: Signal, scope: Option<SignalScope>) -> Result<(), Error> {
        self.begin_signal(target, signal, scope).wait()
    }

    /// [`signal`](Handle::signal) without blocking.
    pub fn begin_signal(&self, target: &Target, signal: Signal, scope: Option<SignalScope>) -> Pending<()> {
        self.begin(|reply| Command::Signal { target: target.clone(), signal, scope, reply })
    }

    /// Ends a process, and does not restart it. A plain process gets SIGKILL, with its whole tree; a managed one gets
    /// SIGTERM, and SIGKILL after its grace. Blocks until all processes of the tree have ended, but at most 2 s; the
    /// operation continues after that. If the process has ended, the remaining processes of its tree are killed.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn kill(&self, target: &Target) -> Result<(), Error> {
        self.begin_kill(target).wait()
    }

    /// [`kill`](Handle::kill) without blocking.
    pub fn begin_kill(&self, target: &Target) -> Pending<()> {
        self.begin(|reply| Command::Kill(target.clone(), reply))
    }

    /// Ends the run of a managed process as [`kill`](Handle::kill) does, and starts it again without a backoff. Blocks
    /// until the new run has started.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotManaged`], [`Error::NameInUse`], or the reason why it could not be started.
    pub fn restart(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.call(|reply| Command::Restart(target.clone(), reply)).map(|started| started.info)
    }

    /// Pauses a process: no process of its tree runs until it is [resumed](Handle::resume). Blocks until the whole tree
    /// stands still, but at most 2 s; a process that hangs in the kernel then stands still once its system call returns.
    /// Has no effect on a process that is paused.
    ///
    /// Whatever ends the process resumes it first, except a SIGKILL, which ends it at once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotRunning`] also for a process that is being ended; [`Error::Internal`] if there is
    /// no cgroup and its processes cannot be found, or start others more quickly than they can be stopped. The process
    /// then runs on.
    ///
    /// ```
    /// # use tl_supervisor::{ProcessSpec, Supervisor, Target, UserSpec};
    /// # let dir = tempfile::tempdir()?;
    /// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
    /// # let handle = supervisor.handle();
    /// let process = Target::Unit(handle.start(ProcessSpec::command("sleep").args(["60"]).build()?)?.handle);
    /// assert!(handle.pause(&process)?.paused);
    /// assert!(!handle.resume(&process)?.paused);
    /// handle.kill(&process)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.call(|reply| Command::Pause(target.clone(), reply)).map(|started| started.info)
    }

    /// Resumes a process that was [paused](Handle::pause). Has no effect on one that was not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotRunning`].
    pub fn resume(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.call(|reply| Command::Resume(target.clone(), reply)).map(|started| started.info)
    }

    /// The standard input of the current run, to write to.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::StdinNotWritable`], [`Error::StdinClosed`].
    pub fn stdin(&self, target: &Target) -> Result<Stdin, Error> {
        self.call(|reply| Command::Stdin(target.clone(), reply))
    }

    /// Writes all of `bytes` to standard input. Blocks while the process does not read.
    ///
    /// # Errors
    /// Those of [`stdin`](Handle::stdin); [`Error::StdinClosed`] also if it is closed before all is written.
    pub fn write_stdin(&self, target: &Target, bytes: &[u8]) -> Result<(), Error> {
        let mut stdin = self.stdin(target)?;
        for piece in bytes.chunks(PIECE) {
            stdin.begin_write(piece.to_vec()).wait()?;
        }
        Ok(())
    }

    /// Closes standard input. If it is closed already, this does nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::StdinNotWritable`].
    pub fn close_stdin(&self, target: &Target) -> Result<(), Error> {
        self.call(|reply| Command::CloseStdin(target.clone(), reply))
    }

    /// Blocks until the process has ended (a managed one: until it is stopped), or until `timeout` has passed. Returns
    /// the state of the process at that time.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn wait(&self, target: &Target, timeout: Option<Duration>) -> Result<ProcessInfo, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let found = self.look_up(target)?;
        let end = found.log.wait_end(deadline);
        self.after_wait(found.info, end)
    }

    /// The process after a wait for its end. The supervisor may have forgotten it or may be shutting down by then, but
    /// how the process ended is known.
    pub(crate) fn after_wait(&self, info: ProcessInfo, end: Option<RunEnd>) -> Result<ProcessInfo, Error> {
        let found = self.get(&Target::Unit(info.handle));
        end.map_or(found.clone(), |end| found.or(Ok(info.after(end))))
    }

    /// Follows the output of a process from its beginning.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn follow(&self, target: &Target, view: View) -> Result<Follower, Error> {
        Ok(self.look_up(target)?.follow(view, StartAt::Beginning, Waker::noop().clone()))
    }

    /// Subscribes to what happens to processes, to terminal sessions and to the supervisor, from now on or from an earlier
    /// event. `waker` is woken when [`Events::try_next`] may return an item. A subscription that is only read with
    /// [`Events::next`] needs no waker: pass a clone of [`Waker::noop`].
    pub fn events(&self, start: EventStart, filter: EventFilter, waker: Waker) -> Events {
        self.events.subscribe(start, filter, waker)
    }

    /// Ends all processes: SIGTERM to all of them, and SIGKILL after `grace` (at most one day) to those that still run.
    /// Nothing is started any more. Blocks until all have ended or have been killed. A second call can only shorten the
    /// grace.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn shutdown(&self, grace: Duration) -> Result<(), Error> {
        self.begin_shutdown(grace).wait()
    }

    /// [`shutdown`](Handle::shutdown) without blocking.
    pub fn begin_shutdown(&self, grace: Duration) -> Pending<()> {
        self.begin(|reply| Command::Shutdown(grace, reply))
    }
}
