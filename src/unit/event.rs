//! The input and output of a unit: [`Event`], [`Action`] and the time.

use std::time::Duration;

use crate::error::Error;
use crate::model::{Exit, Millis, Occurrence, Pid, RunEnd, RunNo, WatchNo};

/// The current time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the start of the supervisor. All deadlines are on this clock.
    pub mono: Duration,
    /// Wall-clock time, which clients are shown.
    pub wall: Millis,
}

/// An input of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The unit was admitted to the fleet: start it.
    Start,
    /// [`Action::ResolveUser`] has finished. If the user could not be found, the supervisor answers [`Action::Spawn`]
    /// with [`Event::SpawnFailed`].
    UserResolved,
    /// [`Action::Spawn`] has forked this child.
    Spawned(Pid),
    /// [`Action::Spawn`] has failed before or at the fork.
    SpawnFailed(Error),
    /// The exec has succeeded.
    ExecOk,
    /// The exec has failed.
    ExecFailed(Error),
    /// The leader was reaped.
    Exited(Exit),
    /// Everything that the leader wrote is in the log.
    Drained,
    /// All processes of the last run have ended.
    TreeGone,
    /// No client has been attached to the terminal for too long: disconnect it, as when a terminal window is closed.
    HangUp,
    /// A client requests to end the unit and not to restart it.
    Stop,
    /// A client requests to end the unit, if it is up, and to start it again.
    Restart,
    /// The supervisor shuts down: SIGTERM to the tree now, SIGKILL at this time, no restart.
    ShutDown(Duration),
    /// A client pauses the run.
    Pause,
    /// A client resumes the run, or it could not be paused.
    Resume,
    /// A health probe has finished. It belongs to the [`Action::Watch`] with this number.
    Verdict(WatchNo, Result<(), String>),
    /// A deadline may have passed.
    Tick,
}

/// An operation that the supervisor performs for a unit. Actions are performed in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look up the user of the next run. [`Event::UserResolved`] follows, immediately or later. A unit that was stopped
    /// in the meantime ignores that event.
    ResolveUser,
    /// Fork a child. [`Event::Spawned`] or [`Event::SpawnFailed`] follows immediately.
    Spawn,
    /// Send SIGTERM and SIGCONT to every process of the tree.
    Terminate,
    /// Send SIGHUP to the session of the leader, which has not been reaped.
    HangUp,
    /// Disconnect the terminal.
    Disconnect,
    /// Send SIGKILL to every process of the tree.
    KillTree,
    /// Stop waiting for this leader, which was killed but not reaped. [`Event::Exited`] must not follow for it.
    Abandon(Pid),
    /// Stop the execution of every process of the tree, until [`Action::Thaw`].
    Freeze,
    /// Let every process of the tree run on. The tree may have ended.
    Thaw,
    /// Begin to probe the health of the run: the first probe after this time, later ones at the interval of the check.
    Watch(Duration),
    /// Stop probing.
    Unwatch,
    /// Read the rest of the output from the pipes. [`Event::Drained`] follows.
    Drain,
    /// Append the error to the unit's stderr: an exec that hung, and so counted as started, has failed.
    ReportLateFailure(Error),
    /// Tell the clients that wait for this run that it has started.
    Started,
    /// Tell the clients that wait for this run, or for an earlier one, that it could not be started. The same step may
    /// contain another [`Action::Spawn`].
    StartFailed(RunNo, Error),
    /// The unit is down and will not restart by itself: end its log and its followers.
    Finish(RunEnd),
    /// The unit starts again after an [`Action::Finish`]: reopen its log.
    Reopen,
    /// Tell operators what has happened: log it and count it.
    Report(Occurrence),
    /// The first start has failed: remove the unit.
    Forget,
}
