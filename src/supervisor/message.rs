//! What the supervisor thread is told.
//!
//! Its queue has no bound of its own. Each sender bounds what it puts there: a client waits for the answer before it asks
//! again; a unit has at most one verdict on its health, one answer about its user, and a few notices of the output and the trees
//! thread in the queue; SIGCHLD is announced once until it has been looked at.

use std::time::Duration;

use super::handle::{Counts, Started, Stdin};
use super::pty::{Found, SessionKey};
use super::resolver::{Resolved, RunUser};
use crate::error::Error;
use crate::health::Verdict;
use crate::model::{ProcessInfo, ProcessSpec, RunKey, SignalScope, Target, UnitId};
use crate::output::Notice;
use crate::pending::ReplySender;
use crate::terminal::session::SessionInfo;
use crate::trees::Report;

/// A request, with where its answer goes.
#[derive(Debug)]
pub(crate) enum Command {
    /// `user`: whom the run is to be, as the caller's thread has looked it up; none where the supervisor is to have that
    /// done.
    Start {
        id: UnitId,
        spec: Box<ProcessSpec>,
        user: Option<Result<RunUser, Error>>,
        reply: ReplySender<Started>,
    },
    List(ReplySender<Vec<ProcessInfo>>),
    LookUp(Target, ReplySender<Started>),
    Counts(ReplySender<Counts>),
    /// Without a scope: to the group, 9 to the tree.
    Signal {
        target: Target,
        signal: i64,
        scope: Option<SignalScope>,
        reply: ReplySender<()>,
    },
    Kill(Target, ReplySender<()>),
    Restart(Target, ReplySender<Started>),
    Stdin(Target, ReplySender<Stdin>),
    CloseStdin(Target, ReplySender<()>),
    OpenPty {
        id: UnitId,
        spec: Box<ProcessSpec>,
        user: Result<RunUser, Error>,
        key: SessionKey,
        reply: ReplySender<Started>,
    },
    ListPtys(ReplySender<Vec<SessionInfo>>),
    LookUpPty(String, ReplySender<Found>),
    KillPty(String, ReplySender<()>),
    /// With the token.
    Attach(SessionKey, ReplySender<Found>),
    Detach(UnitId),
    Shutdown(Duration, ReplySender<()>),
    /// The thread ends; what runs goes on without it.
    Quit,
}

/// Anything that comes.
#[derive(Debug)]
pub(crate) enum Message {
    Command(Command),
    /// SIGCHLD: somebody is to be reaped.
    Child,
    /// The kernel has killed something of a unit for want of memory.
    OomKill,
    Output(RunKey, Notice),
    Trees(Report),
    UserResolved(Resolved),
    Health(Verdict),
    /// The health thread has panicked: there is to be another.
    HealthDied,
    /// An actor has panicked: without it nothing works, so everything ends.
    Died(&'static str),
}
