//! Terminal sessions for those who ask: open, list, resize, end, attach.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::handle::{Handle, Started, Stdin};
use super::message::{Command, Message};
use crate::error::Error;
use crate::model::terminal_size::TerminalSize;
use crate::model::{ProcessSpec, UnitId};
use crate::output::Message as ToOutput;
use crate::pending::{Pending, pending};
use crate::terminal::session::SessionInfo;
use crate::terminal::{Terminal, Viewer};
use tl_os::poll::Waker;
use tl_os::random::hex;

/// What it takes to attach to a session.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// Names it.
    pub session_id: String,
    /// Proves that one may.
    pub token: String,
}

impl SessionKey {
    fn make() -> Result<SessionKey, Error> {
        let failed = |error: std::io::Error| Error::Internal(format!("making a token: {error}"));
        Ok(SessionKey { session_id: hex::<16>().map_err(failed)?, token: hex::<32>().map_err(failed)? })
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// A session, as the supervisor finds it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) unit: UnitId,
    pub(super) info: SessionInfo,
    pub(super) terminal: Arc<Terminal>,
    pub(super) keyboard: Stdin,
}

impl Handle {
    /// Starts a session: a process with a terminal, and with nobody attached. Blocks as [`start`](Handle::start) does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a spec with modes of its streams, a timeout or a policy, none of which a session has;
    /// [`Error::TooManySessions`], or why it could not be started.
    pub fn open_pty(&self, mut spec: ProcessSpec) -> Result<SessionKey, Error> {
        spec.check_session()?;
        spec.terminal.get_or_insert_default();
        let key = SessionKey::make()?;
        let (id, for_it) = (self.next_id(), key.clone());
        let user = self.look_up_user(&spec);
        let open = |reply| Command::OpenPty { id, spec: Box::new(spec), user, key: for_it, reply };
        self.ask(open).map(|_: Started| key)
    }

    /// All sessions, the oldest first; ended ones for a minute.
    ///
    /// # Errors
    /// [`Error::Internal`] only.
    pub fn ptys(&self) -> Result<Vec<SessionInfo>, Error> {
        self.ask(Command::ListPtys)
    }

    /// One session.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn pty(&self, session_id: &str) -> Result<SessionInfo, Error> {
        self.look_up_pty(session_id).map(|found| found.info)
    }

    fn look_up_pty(&self, session_id: &str) -> Result<Found, Error> {
        self.ask(|reply| Command::LookUpPty(session_id.to_owned(), reply))
    }

    /// Sets the size of a session's window. Once it has ended this does nothing.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn resize_pty(&self, session_id: &str, window: TerminalSize) -> Result<(), Error> {
        match resize(&self.look_up_pty(session_id)?.keyboard, window, None).wait() {
            Err(Error::StdinClosed(_)) => Ok(()),
            result => result,
        }
    }

    /// Ends a session: SIGHUP to all of it, SIGKILL to its tree after 5 s. Blocks until it is gone, or for 2 s while that
    /// goes on. Ended already is no error.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`].
    pub fn kill_pty(&self, session_id: &str) -> Result<(), Error> {
        self.ask(|reply| Command::KillPty(session_id.to_owned(), reply))
    }

    /// Attaches to a session. `waker` is woken when there may be something to see.
    ///
    /// # Errors
    /// [`Error::SessionNotFound`], [`Error::InvalidToken`].
    pub fn attach(&self, key: &SessionKey, waker: Arc<Waker>) -> Result<Attached, Error> {
        let Found { unit, terminal, keyboard, .. } = self.ask(|reply| Command::Attach(key.clone(), reply))?;
        let viewer = terminal.view(waker);
        Ok(Attached { viewer, keyboard, unit, messages: self.messages.clone() })
    }
}

fn resize(keyboard: &Stdin, window: TerminalSize, waker: Option<Arc<Waker>>) -> Pending<()> {
    let (reply, answer) = pending(waker);
    keyboard.output.send(keyboard.run, ToOutput::Resize(window, reply));
    answer
}

/// One client's place at a session. Dropped, it is detached, and what it typed is taken back where it was not taken yet.
#[derive(Debug)]
pub struct Attached {
    /// What it sees.
    pub viewer: Viewer,
    keyboard: Stdin,
    unit: UnitId,
    messages: Sender<Message>,
}

impl Attached {
    /// Hands `bytes` to the terminal as [`Stdin::begin_write`] does.
    pub fn begin_type(&mut self, bytes: Vec<u8>, waker: Arc<Waker>) -> Pending<()> {
        self.keyboard.begin_write(bytes, Some(waker))
    }

    /// Sets the size of the window, before anything that is typed after this.
    pub fn resize(&self, window: TerminalSize) {
        drop(resize(&self.keyboard, window, None));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Command(Command::Detach(self.unit)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_never_shown() {
        let key = SessionKey::make().unwrap();
        assert_eq!((key.session_id.len(), key.token.len()), (32, 64));
        assert!(key.token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!format!("{key:?}").contains(&key.token));
        assert_ne!(SessionKey::make().unwrap(), key);
    }
}
