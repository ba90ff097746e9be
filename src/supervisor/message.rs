//! What the supervisor thread is told.
//!
//! Its queue has no bound of its own: whoever asks waits for the answer before it asks again, each unit has a few notices
//! on the way at most, and SIGCHLD is announced once until it has been looked at.

use std::time::Duration;

use super::handle::{Counts, Started, Stdin};
use super::pty::{Found, SessionKey};
use crate::health::Verdict;
use crate::model::{ProcessInfo, ProcessSpec, RunKey, Signal, SignalScope, Target, UnitId};
use crate::output::Notice;
use crate::pending::ReplySender;
use crate::terminal::session::SessionInfo;
use crate::trees::Report;

/// A request, with where its answer goes.
#[derive(Debug)]
pub(crate) enum Command {
    Start {
        id: UnitId,
        spec: Box<ProcessSpec>,
        reply: ReplySender<Started>,
    },
    List(ReplySender<Vec<ProcessInfo>>),
    LookUp(Target, ReplySender<Started>),
    Counts(ReplySender<Counts>),
    /// Without a scope: to the group, 9 to the tree.
    Signal {
        target: Target,
        signal: Signal,
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
    Health(Verdict),
    /// The health thread has panicked: there is to be another.
    HealthDied,
    /// An actor has panicked: without it nothing works, so everything ends.
    Died(&'static str),
}
