//! Terminal sessions, as a [`Handle`] offers them: open, list, resize, end, attach.

use std::sync::Arc;
use std::task::Waker;

use super::handle::Handle;
use super::mailbox::MessageSender;
use super::message::{Command, Message};
use super::replies::{SessionAccess, SessionKey, Stdin};
use crate::error::Error;
use crate::model::{ProcessSpec, TerminalSize, UnitId};
use crate::output::Message as ToOutput;
use crate::pending::{Pending, pending};
use crate::terminal::session::SessionInfo;
use crate::terminal::{Terminal, Viewer};

impl Handle {
    /// Opens a session: starts a process on a terminal. Blocks as [`start`](Handle::start) does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a spec without a terminal, or with a timeout or a [`ManagedSpec`](crate::ManagedSpec);
    /// [`Error::TooManySessions`]; or the reason why it could not be started.
    pub fn open_pty(&self, spec: ProcessSpec) -> Result<SessionKey, Error> {
        self.open_pty_or_repeat(spec).map(|opened| opened.result)
    }

    /// All sessions, oldest first. An ended one is kept for a minute.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn ptys(&self) -> Result<Vec<SessionInfo>, Error> {
        self.call(Command::ListPtys)
    }

    /// One session.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn pty(&self, session_id: &str) -> Result<SessionInfo, Error> {
        self.look_up_pty(session_id).map(|session| session.info)
    }

    fn look_up_pty(&self, session_id: &str) -> Result<SessionAccess, Error> {
        self.call(|reply| Command::LookUpPty(session_id.to_owned(), reply))
    }

    /// Sets the size of a session's terminal. For a session that has ended it does nothing.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn resize_pty(&self, session_id: &str, size: TerminalSize) -> Result<(), Error> {
        match begin_resize(&self.look_up_pty(session_id)?.keyboard, size).wait() {
            Err(Error::StdinClosed(_)) => Ok(()),
            result => result,
        }
    }

    /// Ends a session: SIGHUP to its processes, and SIGKILL to its tree after 5 s. Blocks until no process of it is
    /// left, for at most 2 s; the operation continues after that. For a session that has ended it does nothing.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn kill_pty(&self, session_id: &str) -> Result<(), Error> {
        self.call(|reply| Command::KillPty(session_id.to_owned(), reply))
    }

    /// Attaches to a session. `waker` is woken when [`Viewer::read`] may return something new.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`], [`Error::InvalidToken`].
    pub fn attach(&self, key: &SessionKey, waker: impl Into<Waker>) -> Result<Attached, Error> {
        let SessionAccess { unit, terminal, keyboard, .. } = self.call(|reply| Command::Attach(key.clone(), reply))?;
        Ok(Attached::new(&terminal, keyboard, unit, self.messages.clone(), waker.into()))
    }
}

fn begin_resize(keyboard: &Stdin, size: TerminalSize) -> Pending<()> {
    let (reply, resized) = pending();
    keyboard.send(ToOutput::Resize(size, reply));
    resized
}

/// A client attached to a terminal session: reads its output and writes its input. Dropping it detaches the client, and
/// withdraws input that has not been written to the terminal yet.
///
/// ```
/// use std::task::Waker;
/// use std::time::Duration;
/// # use tl_supervisor::{ProcessSpec, Seen, Supervisor, TerminalSize, UserSpec};
/// # let dir = tempfile::tempdir()?;
/// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// # let handle = supervisor.handle();
///
/// let key = handle.open_pty(ProcessSpec::command("cat").stdio(TerminalSize::default()).build()?)?;
/// // A real client has a waker and does not poll.
/// let mut attached = handle.attach(&key, Waker::noop().clone())?;
/// attached.viewer.ready();
/// attached.begin_type(b"hello\n".to_vec()).wait()?;
/// let mut screen = Vec::new();
/// while !String::from_utf8_lossy(&screen).contains("hello") {
///     if attached.viewer.read(4096, &mut screen) == Seen::Nothing {
///         std::thread::sleep(Duration::from_millis(1));
///     }
/// }
/// handle.kill_pty(&key.session_id)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it detaches the client"]
pub struct Attached {
    /// Reads the output of the session.
    pub viewer: Viewer,
    keyboard: Stdin,
    unit: UnitId,
    messages: MessageSender,
}

impl Attached {
    fn new(terminal: &Arc<Terminal>, keyboard: Stdin, unit: UnitId, messages: MessageSender, waker: Waker) -> Attached {
        Attached { viewer: terminal.view(waker), keyboard, unit, messages }
    }

    /// Queues `bytes` for the terminal, as [`Stdin::begin_write`] does for a pipe.
    pub fn begin_type(&mut self, bytes: Vec<u8>) -> Pending<()> {
        self.keyboard.begin_write(bytes)
    }

    /// Sets the size of the terminal. It applies before input that is queued after this call.
    pub fn resize(&self, size: TerminalSize) {
        drop(begin_resize(&self.keyboard, size));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.messages.send(Message::Command(Command::Detach(self.unit)));
    }
}
