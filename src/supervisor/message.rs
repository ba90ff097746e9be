//! The messages to the supervisor thread.
//!
//! The queue has no bound of its own. Each sender limits its messages: a client waits for the result of a command
//! before it sends another; a unit has at most one health verdict, one answer about its user, and a few notices of the
//! output and trees threads in the queue.

use std::time::Duration;

use super::replies::{Census, Counts, SessionAccess, SessionKey, Started, Stdin};
use super::resolver::{Resolved, RunUser};
use super::usage::UsagePage;
use crate::error::Error;
use crate::events::EventSubject;
use crate::health::Verdict;
use crate::model::{ProcessInfo, ProcessSpec, RunKey, Signal, SignalScope, Target, UnitId, Usage};
use crate::output::Notice;
use crate::pending::ReplySender;
use crate::ports::Candidate;
use crate::terminal::session::SessionInfo;
use crate::trees::Report;

/// A request with the sender for its result.
#[derive(Debug)]
pub(crate) enum Command {
    /// `user`: the result of the look-up by the caller's thread; None if the supervisor has to request it.
    Start {
        id: UnitId,
        spec: Box<ProcessSpec>,
        user: Option<Result<RunUser, Error>>,
        reply: ReplySender<Started>,
    },
    List(ReplySender<Vec<ProcessInfo>>),
    LookUp(Target, ReplySender<Started>),
    Counts(ReplySender<Counts>),
    Census(ReplySender<Census>),
    /// The units to whose trees these processes belong.
    UnitsOf(Vec<Candidate>, ReplySender<Vec<Option<EventSubject>>>),
    Usage(Target, ReplySender<Usage>),
    /// The sums of the processes after this unit.
    UsagePage(Option<UnitId>, ReplySender<UsagePage>),
    /// A scope of None means the process group, or the tree for SIGKILL.
    Signal {
        target: Target,
        signal: Signal,
        scope: Option<SignalScope>,
        reply: ReplySender<()>,
    },
    Kill(Target, ReplySender<()>),
    Restart(Target, ReplySender<Started>),
    Pause(Target, ReplySender<Started>),
    Resume(Target, ReplySender<Started>),
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
    LookUpPty(String, ReplySender<SessionAccess>),
    KillPty(String, ReplySender<()>),
    /// The token must be that of the session.
    Attach(SessionKey, ReplySender<SessionAccess>),
    Detach(UnitId),
    /// The client with this id no longer follows the run of its request, which has an idempotency key.
    LeaveRun(UnitId),
    Shutdown(Duration, ReplySender<()>),
    /// Ends the supervisor thread. Processes keep running.
    Quit,
}

/// A message to the supervisor thread.
#[derive(Debug)]
pub(crate) enum Message {
    Command(Command),
    /// The kernel has killed a process of a unit because memory had run out.
    OomKill,
    /// For the first time, output of this unit was dropped or could not be kept. Sent once for each unit.
    Truncated(UnitId),
    Output(RunKey, Notice),
    Trees(Report),
    UserResolved(Resolved),
    Health(Verdict),
    /// The health thread has panicked and must be started again.
    HealthDied,
    /// The thread with this name has panicked. The supervisor cannot work without it, and shuts down.
    ThreadDied(&'static str),
}
