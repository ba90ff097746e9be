//! Jobs of the trees thread, and its reports.

use crate::model::{Pid, RunKey};
use crate::pending::ReplySender;
use tl_os::cgroup::Leaf;
use tl_os::process_tree::Marks;
use tl_os::send_signal::TERMINATE;

/// What identifies the processes of a run.
#[derive(Clone, Debug)]
pub enum Hold {
    /// The cgroup that they are in.
    Leaf(Leaf),
    /// Without cgroups, marks by which they are found in /proc.
    Marks(Marks),
}

/// A job for the thread. The queue of jobs has no bound of its own: the supervisor sends one [`Job::Look`] at a time, a
/// unit has only a few signals pending, and each client waits for the answer to its signal.
#[derive(Debug)]
pub enum Job {
    /// Send SIGTERM and SIGCONT to the run, except to this process group, which was sent them already.
    Terminate(RunKey, Hold, Option<Pid>),
    /// Send SIGKILL to the run. Reported by [`Report::Killed`].
    Kill {
        /// The run.
        key: RunKey,
        /// What identifies its processes.
        hold: Hold,
        /// Whether it was killed before.
        again: bool,
    },
    /// Send one signal to the run, then complete the reply.
    Signal(RunKey, Hold, i32, ReplySender<()>),
    /// Send SIGHUP and SIGCONT to the session of a leader, except to the leader, which was sent them already.
    HangUp(Marks),
    /// Find out which of these runs have no process left. Reported by [`Report::Looked`].
    Look(Vec<(RunKey, Marks)>),
    /// As PID 1 only: send SIGTERM and SIGCONT to all processes that were not asked to end, by [`Job::Terminate`], by
    /// [`Job::HangUp`], or with the session or the process group of a leader.
    TerminateRest,
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Every process of the run that could be found was sent SIGKILL.
    Killed(RunKey),
    /// Those of the runs in a [`Job::Look`] that have no process left.
    Looked(Vec<RunKey>),
}

/// What is sent to all processes of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGTERM and SIGCONT, except to this process group.
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
    /// The report that the supervisor waits for, to be sent if this job panics.
    pub(super) fn report_if_it_fails(&self) -> Option<Report> {
        match self {
            Job::Kill { key, .. } => Some(Report::Killed(*key)),
            Job::Look(_) => Some(Report::Looked(Vec::new())),
            Job::Terminate(..) | Job::Signal(..) | Job::HangUp(_) | Job::TerminateRest => None,
        }
    }

    /// The run that is to be signalled as a whole, and what it is sent.
    pub(super) fn signals(&self) -> Option<(&Hold, Kind)> {
        match self {
            Job::Terminate(_, hold, but) => Some((hold, Kind::Terminate(*but))),
            Job::Kill { hold, again, .. } => Some((hold, Kind::Kill { again: *again })),
            Job::Signal(_, hold, signal, _) => Some((hold, Kind::Signal(*signal))),
            Job::HangUp(_) | Job::Look(_) | Job::TerminateRest => None,
        }
    }

    /// The run that is to be signalled as a whole.
    pub(super) fn key(&self) -> Option<RunKey> {
        match self {
            Job::Terminate(key, ..) | Job::Kill { key, .. } | Job::Signal(key, ..) => Some(*key),
            Job::HangUp(_) | Job::Look(_) | Job::TerminateRest => None,
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
