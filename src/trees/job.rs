//! Jobs of the trees thread, and its reports.

use std::fmt;

use crate::events::EventSubject;
use crate::model::{Pid, RunKey};
use crate::pending::ReplySender;
use tl_os::cgroup::Leaf;
use tl_os::process_tree::Marks;
use tl_os::procfs::Process;
use tl_os::send_signal::TERMINATE;

/// How the processes of a run are tracked.
#[derive(Clone, Debug)]
pub enum Tracking {
    /// The cgroup that they are in.
    Leaf(Leaf),
    /// Without cgroups, marks by which they are found in /proc.
    Marks(Box<Marks>),
}

/// Replies to a client. Dropping it replies with an error.
pub struct Reply(pub Box<dyn FnOnce() + Send>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// A job for the thread. The queue of jobs has no bound of its own: the supervisor requests one [`Job::Scan`] at a
/// time, a unit has only a few signals pending, and each client waits for the answer to its signal.
#[derive(Debug)]
pub enum Job {
    /// Send SIGTERM and SIGCONT to the run, except to the process group with this id, which already got them.
    Terminate(RunKey, Tracking, Option<Pid>),
    /// Send SIGKILL to the run. Reported by [`Report::Killed`].
    Kill {
        /// The run.
        key: RunKey,
        /// How its processes are tracked.
        tracking: Tracking,
        /// Whether it was killed before.
        again: bool,
    },
    /// Send one signal to the run, then complete the reply.
    Signal(RunKey, Tracking, i32, ReplySender<()>),
    /// Send SIGSTOP to the run until every process of it is stopped. Reported by [`Report::Suspended`].
    Suspend {
        /// The run.
        key: RunKey,
        /// How its processes are tracked.
        tracking: Tracking,
        /// Number of the request, for the report.
        request: u64,
    },
    /// Send SIGCONT to the processes that [`Job::Suspend`] has stopped.
    Continue {
        /// The run.
        key: RunKey,
        /// How its processes are tracked.
        tracking: Tracking,
        /// Whether the others, which something else has stopped, get it too.
        all: bool,
    },
    /// Reply to a client, once the jobs before this one are done.
    Reply(Reply),
    /// Send SIGHUP and SIGCONT to the session of a leader, except to the leader, which already got them.
    HangUp(Marks),
    /// Find out of which of these runs all processes have ended. Reported by [`Report::Scanned`].
    Scan(Vec<(RunKey, Marks)>),
    /// Find the runs to which processes belong, then complete the reply.
    Attribute(Box<Attribution>),
    /// As PID 1 only: send SIGTERM and SIGCONT to all processes that were not asked to end, by [`Job::Terminate`], by
    /// [`Job::HangUp`], or with the session or the process group of a leader.
    TerminateRest,
}

/// Processes whose runs are to be found.
#[derive(Debug)]
pub struct Attribution {
    /// The runs, with what is answered for each.
    pub runs: Vec<(RunKey, Marks, EventSubject)>,
    /// Each process with its ancestors, up to a child of this process, and its index in the answer.
    pub processes: Vec<(usize, Vec<Process>)>,
    /// The answer as far as it is known.
    pub found: Vec<Option<EventSubject>>,
    /// Completed with the answer.
    pub reply: ReplySender<Vec<Option<EventSubject>>>,
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Every process of the run that could be found was sent SIGKILL.
    Killed(RunKey),
    /// The runs of a [`Job::Scan`] of which all processes have ended.
    Scanned(Vec<RunKey>),
    /// The request of a [`Job::Suspend`], and how far it has got.
    Suspended(u64, Suspension),
}

/// How far a [`Job::Suspend`] has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspension {
    /// Every process of the run is stopped.
    Complete,
    /// Every process of the run got SIGSTOP, and some have not stopped yet.
    Signalled,
    /// The last look has found new processes.
    Growing,
    /// The processes of the run cannot be found.
    Blind,
}

/// A tree to look for in /proc.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    /// The run, if it is known.
    pub(super) key: Option<RunKey>,
    pub(super) leader: Pid,
}

/// The signals to send to all processes of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGTERM and SIGCONT, except to the process group with this id.
    Terminate(Option<Pid>),
    /// SIGKILL.
    Kill {
        /// Whether the run was killed before.
        again: bool,
    },
    /// This signal.
    Signal(i32),
}

impl Job {
    /// The report to send if this job panics, because the supervisor waits for it.
    pub(super) fn report_if_it_fails(&self) -> Option<Report> {
        match self {
            Job::Kill { key, .. } => Some(Report::Killed(*key)),
            Job::Scan(_) => Some(Report::Scanned(Vec::new())),
            Job::Suspend { request, .. } => Some(Report::Suspended(*request, Suspension::Growing)),
            Job::Continue { .. }
            | Job::Reply(_)
            | Job::Attribute(_)
            | Job::Terminate(..)
            | Job::Signal(..)
            | Job::HangUp(_)
            | Job::TerminateRest => None,
        }
    }

    /// The run to signal as a whole, and the signals, if this job signals one.
    pub(super) fn signals(&self) -> Option<(RunKey, &Tracking, Kind)> {
        match self {
            Job::Terminate(key, tracking, but) => Some((*key, tracking, Kind::Terminate(*but))),
            Job::Kill { key, tracking, again, .. } => Some((*key, tracking, Kind::Kill { again: *again })),
            Job::Signal(key, tracking, signal, _) => Some((*key, tracking, Kind::Signal(*signal))),
            Job::Suspend { .. }
            | Job::Continue { .. }
            | Job::Reply(_)
            | Job::Attribute(_)
            | Job::HangUp(_)
            | Job::Scan(_)
            | Job::TerminateRest => None,
        }
    }

    /// The trees that are looked for in /proc after the signals of all jobs were sent; None for all processes.
    pub(super) fn trees(&self) -> Option<Vec<Tree>> {
        match self {
            Job::Scan(runs) => {
                Some(runs.iter().map(|(key, marks)| Tree { key: Some(*key), leader: marks.leader() }).collect())
            }
            Job::HangUp(marks) => Some(vec![Tree { key: None, leader: marks.leader() }]),
            Job::TerminateRest => None,
            Job::Terminate(..) | Job::Kill { .. } | Job::Signal(..) => Some(Vec::new()),
            Job::Suspend { .. } | Job::Continue { .. } | Job::Reply(_) | Job::Attribute(_) => Some(Vec::new()),
        }
    }
}

impl Kind {
    pub(super) fn is_kill(self) -> bool {
        matches!(self, Kind::Kill { .. })
    }

    /// The signals, in the order in which they are sent.
    pub(super) fn signals(&self) -> &[i32] {
        match self {
            Kind::Terminate(_) => &TERMINATE,
            Kind::Kill { .. } => &[libc::SIGKILL],
            Kind::Signal(signal) => std::slice::from_ref(signal),
        }
    }
}
