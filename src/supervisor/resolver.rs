//! Looks up the users of runs when the calling thread cannot: for restarts, and for starts that must not block.
//!
//! `/etc/passwd` and `/etc/group` are looked at for each run, and read again if they have changed. A hanging disk can
//! block that for ever, so a separate thread does it. Meanwhile the unit is in its state *awaiting user*, in which it can
//! be stopped, killed and shut down. One thread is enough because all these runs need the same two files: while one
//! look-up hangs, others would hang too.

use std::io;
use std::sync::Arc;

use crate::error::Error;
use crate::model::{UnitId, UserSpec};
use crate::pending::mailbox::{MailSender, mailbox};
use crate::users::{self, Identity};
use tl_os::thread;

/// The user of one run, as the files in `/etc` describe it.
#[derive(Clone, Debug)]
pub(crate) struct RunUser {
    pub(super) identity: Arc<Identity>,
    /// The group of a terminal; None for a run without a terminal, or if `/etc/group` has no group `tty`.
    pub(super) tty_group: Option<u32>,
}

impl RunUser {
    /// Looks the user up in `/etc/passwd`, and in `/etc/group` if it is needed. Blocks while the file system does.
    ///
    /// # Errors
    /// Those of [`users::resolve`].
    pub(super) fn look_up(user: &UserSpec, has_terminal: bool) -> Result<RunUser, Error> {
        let identity = users::resolve(user)?;
        let tty_group = if has_terminal { users::group("tty") } else { None };
        Ok(RunUser { identity, tty_group })
    }
}

/// Whether a look-up for a unit is in progress. The supervisor requests one at a time per unit, which bounds the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LookUp {
    #[default]
    Idle,
    /// A look-up is in progress.
    Requested,
    /// A look-up is in progress for a run that was stopped meanwhile. Its answer may be outdated for the present run,
    /// so another look-up follows.
    Outdated,
}

/// The result of a look-up.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(super) unit: UnitId,
    pub(super) user: Result<RunUser, Error>,
}

/// A handle to the thread, which ends when this is dropped. It is not joined, since it may hang in a dead file system.
#[derive(Debug)]
pub(super) struct Resolver(MailSender<(UnitId, UserSpec)>);

impl Resolver {
    /// Starts the thread. It calls `report`, which must not block, with each answer; `died` if it panics.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(
        report: impl Fn(Resolved) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Resolver> {
        let (requests, inbox) = mailbox::<(UnitId, UserSpec)>();
        let body = move || {
            while let Some((unit, user)) = inbox.recv() {
                // Terminals are opened by callers, which look up the user themselves.
                report(Resolved { unit, user: RunUser::look_up(&user, false) });
            }
            Ok(())
        };
        drop(thread::spawn("users", body, died)?);
        Ok(Resolver(requests))
    }

    /// Requests the user of the next run of a unit.
    pub(super) fn request(&self, unit: UnitId, user: &UserSpec) {
        // If the thread has ended, the supervisor shuts down.
        self.0.send((unit, user.clone()));
    }
}
