//! Looks up the users of runs that no caller's thread has looked one up for: restarts, and starts that must not block.
//!
//! `/etc/passwd` and `/etc/group` are read afresh for each run, and a disk can make that take for ever. So a thread of its own
//! reads them; the unit stays in its state *awaiting user* meanwhile, in which it can be stopped, killed and shut down. All these
//! runs need the same two files, so one thread is enough: while one look-up hangs, the others would hang as well.

use std::io;

use crossbeam_channel::{Sender, unbounded};

use crate::error::Error;
use crate::model::{UnitId, UserSpec};
use crate::users::{self, Identity};
use tl_os::thread;

/// The user of one run, as the files in `/etc` describe it.
#[derive(Clone, Debug)]
pub(crate) struct RunUser {
    pub(super) identity: Identity,
    /// The group of a terminal; None for a run without a terminal, or where `/etc/group` has no `tty`.
    pub(super) tty_group: Option<u32>,
}

impl RunUser {
    /// Reads `/etc/passwd`, and `/etc/group` where it is needed. Blocks as long as the file system does.
    ///
    /// # Errors
    /// Those of [`users::resolve`].
    pub(super) fn look_up(user: &UserSpec, has_terminal: bool) -> Result<RunUser, Error> {
        let identity = users::resolve(user)?;
        let tty_group = if has_terminal { users::group("tty") } else { None };
        Ok(RunUser { identity, tty_group })
    }
}

/// Whether a look-up for a unit is under way. The supervisor asks for one at a time for each unit, which bounds the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LookUp {
    #[default]
    Idle,
    /// One is under way.
    Asked,
    /// One is under way, for a run that was stopped meanwhile. Its answer may be older than the present run: another look-up
    /// follows it.
    AskedBefore,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(super) unit: UnitId,
    pub(super) user: Result<RunUser, Error>,
}

/// The thread. It ends when this is dropped, and is not joined: it may hang in a dead file system, and holds nothing.
#[derive(Debug)]
pub(super) struct Resolver(Sender<(UnitId, UserSpec)>);

impl Resolver {
    /// Starts the thread. It calls `report`, which must not block, with each answer; `died` if it panics.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub(super) fn start(
        report: impl Fn(Resolved) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Resolver> {
        let (requests, inbox) = unbounded::<(UnitId, UserSpec)>();
        let body = move || {
            for (unit, user) in inbox {
                // Terminals are opened by callers, which look up the user themselves.
                report(Resolved { unit, user: RunUser::look_up(&user, false) });
            }
            Ok(())
        };
        drop(thread::spawn("users", body, died)?);
        Ok(Resolver(requests))
    }

    /// Asks for the user of the next run of a unit.
    pub(super) fn ask(&self, unit: UnitId, user: &UserSpec) {
        // If the thread has ended, the supervisor shuts down.
        let _ = self.0.send((unit, user.clone()));
    }
}
