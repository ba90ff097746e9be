//! [`Event`]: something that has happened to a process, to a terminal session or to the supervisor.

use std::sync::Arc;

use crate::model::{HealthStatus, Millis, Pid, Port, RunEnd, UnitId};

/// An event (docs/api.md, Events). Cheap to clone: its texts are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its number. The numbers of one supervisor grow by one; those of a later supervisor are greater.
    pub id: u64,
    /// When it happened, or was noticed.
    pub at: Millis,
    /// The process or terminal session that it is about. None if it is about none, as
    /// [`EventKind::DaemonShutdown`] is.
    pub subject: Option<EventSubject>,
    /// What has happened.
    pub kind: EventKind,
}

/// The process or the terminal session that an [`Event`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventSubject {
    /// Its id.
    pub handle: UnitId,
    /// PID of the leader of the current run, or of the last run. None if it has never run.
    pub pid: Option<Pid>,
    /// The name of a managed process, if it has one.
    pub name: Option<Arc<str>>,
}

impl EventSubject {
    /// The subject with these properties.
    #[must_use]
    pub fn new(handle: UnitId, pid: Option<Pid>, name: Option<Arc<str>>) -> EventSubject {
        EventSubject { handle, pid, name }
    }
}

/// What an [`Event`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A run has started.
    ProcessStarted {
        /// The program, as it was requested.
        command: Arc<str>,
        /// Number of starts before this one.
        restart_count: u64,
    },
    /// A run has ended, and everything that its leader wrote was read.
    ProcessEnded(RunEnd),
    /// A managed process starts again after `delay_ms` milliseconds.
    ProcessRestarting {
        /// The delay in milliseconds.
        delay_ms: u64,
        /// Why, as a word: that of [`RunEnd::reason`], `unhealthy`, `start_failed` or `requested`.
        reason: &'static str,
    },
    /// A managed process is down and does not start again by itself.
    ProcessStopped {
        /// The last error, as a sentence.
        last_error: Option<Arc<str>>,
    },
    /// The health of a managed process has changed.
    ProcessHealth {
        /// Its health.
        status: HealthStatus,
        /// The error of the last probe, if it failed.
        error: Option<Arc<str>>,
    },
    /// A client has paused its tree.
    ProcessPaused,
    /// Its tree runs on after a pause.
    ProcessResumed,
    /// A terminal session has been opened.
    PtyOpened {
        /// Id of the session.
        session_id: Arc<str>,
    },
    /// The leader of a terminal session has ended.
    PtyEnded {
        /// Id of the session.
        session_id: Arc<str>,
        /// The exit code of the leader, or 128 plus the number of the signal that has ended it.
        exit_code: i32,
    },
    /// A process listens on a port. Only for subscriptions that [want ports](EventFilter::ports).
    PortOpened(Arc<Port>),
    /// Nothing listens any more on a port, at this address. The process is the one that did, when the port was opened.
    PortClosed(Arc<Port>),
    /// For the first time, output of this process was dropped or could not be kept.
    OutputTruncated,
    /// The ordered shutdown begins. Nothing is started any more; the ends of the processes that run follow.
    DaemonShutdown,
}

impl EventKind {
    /// The type as a word, for example `process.started`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            EventKind::ProcessStarted { .. } => "process.started",
            EventKind::ProcessEnded(_) => "process.ended",
            EventKind::ProcessRestarting { .. } => "process.restarting",
            EventKind::ProcessStopped { .. } => "process.stopped",
            EventKind::ProcessHealth { .. } => "process.health",
            EventKind::ProcessPaused => "process.paused",
            EventKind::ProcessResumed => "process.resumed",
            EventKind::PtyOpened { .. } => "pty.opened",
            EventKind::PtyEnded { .. } => "pty.ended",
            EventKind::PortOpened(_) => "port.opened",
            EventKind::PortClosed(_) => "port.closed",
            EventKind::OutputTruncated => "output.truncated",
            EventKind::DaemonShutdown => "daemon.shutdown",
        }
    }

    /// Whether it is about a port of the sandbox: only those get it that ask for ports.
    #[must_use]
    pub(crate) fn is_about_port(&self) -> bool {
        matches!(self, EventKind::PortOpened(_) | EventKind::PortClosed(_))
    }

    /// Bytes of the texts that it refers to.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            EventKind::ProcessStarted { command, .. } => command.len(),
            EventKind::ProcessStopped { last_error: text } | EventKind::ProcessHealth { error: text, .. } => {
                text.as_ref().map_or(0, |text| text.len())
            }
            EventKind::PtyOpened { session_id } | EventKind::PtyEnded { session_id, .. } => session_id.len(),
            EventKind::PortOpened(port) | EventKind::PortClosed(port) => {
                size_of::<Port>() + port.command.as_ref().map_or(0, |command| command.len())
            }
            EventKind::ProcessEnded(_)
            | EventKind::ProcessRestarting { .. }
            | EventKind::ProcessPaused
            | EventKind::ProcessResumed
            | EventKind::OutputTruncated
            | EventKind::DaemonShutdown => 0,
        }
    }
}

/// Bytes of the texts that an event refers to.
pub(super) fn text_bytes(subject: Option<&EventSubject>, kind: &EventKind) -> usize {
    subject.and_then(|subject| subject.name.as_ref()).map_or(0, |name| name.len()) + kind.text_bytes()
}

/// Which events a subscription yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only events about this process, and those about none, as [`EventKind::DaemonShutdown`] is. None: about all.
    pub handle: Option<UnitId>,
    /// Also events about ports. They are observed only while a subscription wants them, so those of the time before the
    /// first such subscription do not exist: [`Handle::ports`](crate::Handle::ports) has the ports that are open.
    pub ports: bool,
}

impl EventFilter {
    pub(super) fn admits(&self, subject: Option<&EventSubject>, kind: &EventKind) -> bool {
        let is_port = kind.is_about_port();
        // A port whose owner is not known is not about this process.
        let is_about = |wanted: UnitId| subject.map_or(!is_port, |subject| subject.handle == wanted);
        (self.ports || !is_port) && self.handle.is_none_or(is_about)
    }
}
