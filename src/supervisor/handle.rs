//! The public face: asks the supervisor thread and waits for its answer.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::message::{Command, Message};
use super::resolver::RunUser;
use crate::error::Error;
use crate::logs::{Follower, OutputLog, StartAt, View};
use crate::model::{ProcessInfo, ProcessSpec, RunEnd, RunKey, SignalScope, Target, UnitId, UserSpec};
use crate::output::{Message as ToOutput, OutputSender};
use crate::pending::{Pending, ReplySender, pending};
use tl_os::poll::Waker;

/// Asks the supervisor. Cheap to clone; every call is answered in microseconds unless its documentation says otherwise.
///
/// Each gives [`Error::Internal`] when the supervisor thread has died.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) messages: Sender<Message>,
    pub(super) ids: Arc<AtomicU64>,
    pub(super) default_user: Arc<UserSpec>,
}

/// Numbers for `GET /info` and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Processes that run or will be started again.
    pub running: usize,
    /// Processes that are remembered, the running ones included.
    pub total: usize,
}

/// A process, with the log to follow.
#[derive(Clone, Debug)]
pub struct Started {
    /// The process.
    pub info: ProcessInfo,
    /// What it writes.
    pub log: Arc<OutputLog>,
}

impl Handle {
    pub(super) fn ask<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = pending(None);
        self.send(command(reply));
        answer.wait()
    }

    fn send(&self, command: Command) {
        // A thread that is gone has dropped its end: the reply goes with the message, and that is the answer.
        let _ = self.messages.send(Message::Command(command));
    }

    /// Starts a process. Blocks until its program runs or has failed to, or for 5 s of a hanging exec.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a spec with a terminal, which is for [`open_pty`](Handle::open_pty); or why it could not be
    /// started.
    ///
    /// ```no_run
    /// # use tl_supervisor::*;
    /// # fn f(handle: Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// let info = handle.start(ProcessSpec::command("sleep").args(["1"]).build()?)?;
    /// println!("PID {}", info.pid);
    /// # Ok(()) }
    /// ```
    pub fn start(&self, spec: ProcessSpec) -> Result<ProcessInfo, Error> {
        spec.check_process()?;
        let id = self.next_id();
        let user = Some(self.look_up_user(&spec));
        self.ask(|reply| Command::Start { id, spec: Box::new(spec), user, reply }).map(|started: Started| started.info)
    }

    /// The same without blocking: another thread reads `/etc/passwd`, and `waker` is woken when the answer is there. The id is valid at once, so that a caller
    /// that gives up can [`kill`](Handle::kill) it.
    pub fn begin_start(&self, spec: ProcessSpec, waker: Arc<Waker>) -> (UnitId, Pending<Started>) {
        self.begin_start_as(spec, None, waker)
    }

    /// The same for a thread that may wait for `/etc/passwd`, which it reads itself: that is faster.
    pub(crate) fn begin_start_with_user(&self, spec: ProcessSpec, waker: Arc<Waker>) -> (UnitId, Pending<Started>) {
        let user = self.look_up_user(&spec);
        self.begin_start_as(spec, Some(user), waker)
    }

    fn begin_start_as(
        &self,
        spec: ProcessSpec,
        user: Option<Result<RunUser, Error>>,
        waker: Arc<Waker>,
    ) -> (UnitId, Pending<Started>) {
        let (reply, answer) = pending(Some(waker));
        let id = self.next_id();
        match spec.check_process() {
            Ok(()) => self.send(Command::Start { id, spec: Box::new(spec), user, reply }),
            Err(error) => reply.send(Err(error.into())),
        }
        (id, answer)
    }

    /// The user of a process with this spec, looked up by the calling thread: a file system that hangs holds up nobody else.
    /// What goes wrong is reported where the supervisor would fork, so that a limit that is reached is still told first.
    pub(super) fn look_up_user(&self, spec: &ProcessSpec) -> Result<RunUser, Error> {
        RunUser::look_up(spec.user.as_ref().unwrap_or(&self.default_user), spec.terminal.is_some())
    }

    pub(super) fn next_id(&self) -> UnitId {
        UnitId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Whom a process runs as that does not say.
    pub fn default_user(&self) -> &UserSpec {
        &self.default_user
    }

    /// All processes, the oldest first.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn list(&self) -> Result<Vec<ProcessInfo>, Error> {
        self.ask(Command::List)
    }

    /// One process.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.look_up(target).map(|found| found.info)
    }

    /// One process, with its log.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn look_up(&self, target: &Target) -> Result<Started, Error> {
        self.ask(|reply| Command::LookUp(target.clone(), reply))
    }

    /// How many there are.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.ask(Command::Counts)
    }

    /// Sends a signal, 1..=64, to the processes of `scope`; without one, to the process group, and 9 to the whole tree.
    ///
    /// # Errors
    /// [`Error::InvalidSignal`], [`Error::NotFound`], [`Error::NotRunning`].
    pub fn signal(&self, target: &Target, signal: i64, scope: Option<SignalScope>) -> Result<(), Error> {
        self.begin_signal(target, signal, scope).wait()
    }

    /// The same without blocking.
    pub fn begin_signal(&self, target: &Target, signal: i64, scope: Option<SignalScope>) -> Pending<()> {
        let (reply, answer) = pending(None);
        self.send(Command::Signal { target: target.clone(), signal, scope, reply });
        answer
    }

    /// Ends a process and never restarts it: a plain one with SIGKILL to its tree; a managed one with SIGTERM first, and
    /// SIGKILL after its grace. Blocks until the tree is gone, or for 2 s while that goes on. Ended already is no error;
    /// what is left of its tree is killed then.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn kill(&self, target: &Target) -> Result<(), Error> {
        self.begin_kill(target).wait()
    }

    /// The same without blocking.
    pub fn begin_kill(&self, target: &Target) -> Pending<()> {
        let (reply, answer) = pending(None);
        self.send(Command::Kill(target.clone(), reply));
        answer
    }

    /// Ends the run of a managed process as [`kill`](Handle::kill) does, and starts it again at once. Blocks until the
    /// new run has started.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotManaged`], [`Error::NameInUse`], or why it could not be started.
    pub fn restart(&self, target: &Target) -> Result<ProcessInfo, Error> {
        self.ask(|reply| Command::Restart(target.clone(), reply)).map(|started: Started| started.info)
    }

    /// stdin of the current run, to write to.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::StdinNotWritable`], [`Error::StdinClosed`].
    pub fn stdin(&self, target: &Target) -> Result<Stdin, Error> {
        self.ask(|reply| Command::Stdin(target.clone(), reply))
    }

    /// Writes all of `bytes` to stdin. Blocks as long as the process does not read.
    ///
    /// # Errors
    /// As [`stdin`](Handle::stdin); [`Error::StdinClosed`] also when that happens meanwhile.
    pub fn write_stdin(&self, target: &Target, bytes: &[u8]) -> Result<(), Error> {
        let mut stdin = self.stdin(target)?;
        for chunk in bytes.chunks(64 * 1024) {
            stdin.begin_write(chunk.to_vec(), None).wait()?;
        }
        Ok(())
    }

    /// Closes stdin. Closed already is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::StdinNotWritable`].
    pub fn close_stdin(&self, target: &Target) -> Result<(), Error> {
        self.ask(|reply| Command::CloseStdin(target.clone(), reply))
    }

    /// Blocks until the process has ended (a managed one: until it is stopped), or `timeout` is over; then says how it
    /// stands.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::OutOfResources`] without a descriptor for the wait.
    pub fn wait(&self, target: &Target, timeout: Option<Duration>) -> Result<ProcessInfo, Error> {
        let failed = |error: std::io::Error| Error::from_io("waiting for a process", &error);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let found = self.look_up(target)?;
        let waker = Arc::new(Waker::new().map_err(failed)?);
        let end = found.log.wait_end(&waker, deadline).map_err(failed)?;
        self.after_wait(found.info, end)
    }

    /// How a process stands after a wait for its end. Retention may have forgotten it by then, or
    /// everything may be ending; how it ended is known all the same.
    pub(crate) fn after_wait(&self, info: ProcessInfo, end: Option<RunEnd>) -> Result<ProcessInfo, Error> {
        let found = self.get(&Target::Unit(info.handle));
        end.map_or(found.clone(), |end| found.or(Ok(info.after(end))))
    }

    /// Follows the output from its beginning.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::OutOfResources`] without a descriptor for the wait.
    pub fn follow(&self, target: &Target, view: View) -> Result<Follower, Error> {
        let waker = Waker::new().map_err(|error| Error::from_io("following a process", &error))?;
        Ok(self.look_up(target)?.log.follow(view, StartAt::Beginning, Arc::new(waker)))
    }

    /// Ends everything: SIGTERM to all, SIGKILL after `grace` to what is left; nothing new is started. Blocks until all is
    /// gone or has been killed. Called again it shortens the grace.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn shutdown(&self, grace: Duration) -> Result<(), Error> {
        self.begin_shutdown(grace).wait()
    }

    /// The same without blocking, for one who has other things to wait for.
    pub fn begin_shutdown(&self, grace: Duration) -> Pending<()> {
        let (reply, answer) = pending(None);
        self.send(Command::Shutdown(grace, reply));
        answer
    }
}

/// stdin of one run of one process. Dropped, it takes back what is not written yet; it does not close the pipe.
#[derive(Debug)]
pub struct Stdin {
    pub(super) output: OutputSender,
    pub(super) run: RunKey,
    pub(super) writer: u64,
}

impl Stdin {
    /// Hands `bytes` to the pipe, in one piece beside other writers' pieces. Answered once all of them are in it, and
    /// `waker` is woken then. One at a time.
    pub fn begin_write(&mut self, bytes: Vec<u8>, waker: Option<Arc<Waker>>) -> Pending<()> {
        let (reply, answer) = pending(waker);
        self.output.send(self.run, ToOutput::Write { writer: self.writer, bytes, reply });
        answer
    }

    /// Hands over all that stdin will get, and does not wait: it is closed once the process has taken all of it. What it
    /// does not take is dropped with its end, and so is `held`, which says that these bytes are still in memory.
    pub fn feed(self, bytes: Vec<u8>, held: Box<dyn Any + Send>) {
        self.output.send(self.run, ToOutput::Feed(bytes, held));
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.output.send(self.run, ToOutput::Abandon { writer: self.writer });
    }
}
