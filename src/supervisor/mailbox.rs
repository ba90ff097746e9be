//! The queue of the supervisor thread, on which that thread also waits for SIGCHLD and for the reports of execs.
//!
//! A thread that sends a message makes a system call only if the supervisor sleeps. The supervisor neither spins before
//! it sleeps nor needs another thread to hear of the end of a child.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::message::Message;
use crate::model::{Pid, UnitId};
use tl_os::bell::Bell;
use tl_os::child_signal::ChildSignal;
use tl_os::thread;

/// Sends to the supervisor thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct MessageSender {
    messages: Sender<Message>,
    bell: Arc<Bell>,
}

impl MessageSender {
    /// Sends a message. If the supervisor thread has ended, the message is dropped; dropping a reply in it delivers an
    /// error.
    pub(crate) fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            self.bell.ring();
        }
    }
}

/// What the supervisor thread was woken for.
#[derive(Debug)]
pub(super) enum Wake {
    Message(Message),
    /// A child may have ended or stopped.
    Children,
    /// The outcome of the exec of this unit's run can be read.
    ExecReport(UnitId),
    /// The deadline has been reached.
    Deadline,
    /// No sender is left.
    Closed,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: Receiver<Message>,
    bell: Arc<Bell>,
    /// None in tests, which have no children.
    children: Option<ChildSignal>,
    /// The last wait has returned for SIGCHLD: it is a message's turn, so that neither starves the other.
    was_children: bool,
    /// Units whose exec reports can be read.
    reports: Vec<UnitId>,
    /// Number of waits since the reports were last looked at.
    since_look: u32,
}

/// Number of waits that return messages before the reports are looked at: under load, the supervisor does not sleep.
const LOOK_AFTER: u32 = 16;

/// A queue.
///
/// # Errors
/// When no descriptor is left.
pub(super) fn mailbox() -> io::Result<(MessageSender, Inbox)> {
    let (sender, messages) = unbounded();
    let bell = Arc::new(Bell::new()?);
    Ok((
        MessageSender { messages: sender, bell: Arc::clone(&bell) },
        Inbox { messages, bell, children: None, was_children: false, reports: Vec::new(), since_look: 0 },
    ))
}

impl Inbox {
    /// Begins to watch for SIGCHLD, which is blocked for the calling thread from now on.
    ///
    /// # Errors
    /// What `sigaction(2)` says.
    pub(super) fn watch_children(&mut self) -> io::Result<()> {
        self.children = Some(ChildSignal::register(Arc::clone(&self.bell))?);
        Ok(())
    }

    /// Lets the calling thread, the supervisor, receive SIGCHLD.
    ///
    /// # Errors
    /// What `sigprocmask(2)` says.
    pub(super) fn unblock(&self) -> io::Result<()> {
        self.children.as_ref().map_or(Ok(()), ChildSignal::unblock)
    }

    /// Watches the report of a unit's exec until it is closed.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub(super) fn watch_report(&self, unit: UnitId, report: impl AsFd) -> io::Result<()> {
        self.bell.watch(report, unit.0)
    }

    /// Waits for a message, for SIGCHLD or for the report of an exec, until `deadline`.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Wake {
        self.since_look += 1;
        if self.since_look >= LOOK_AFTER {
            self.since_look = 0;
            let reports = &mut self.reports;
            self.bell.look(|unit| reports.push(UnitId(unit))).unwrap_or_else(log_failure);
        }
        loop {
            if !std::mem::take(&mut self.was_children) && self.children.as_ref().is_some_and(ChildSignal::take) {
                self.was_children = true;
                return Wake::Children;
            }
            if let Some(unit) = self.reports.pop() {
                return Wake::ExecReport(unit);
            }
            match self.messages.try_recv() {
                Ok(message) => return Wake::Message(message),
                Err(TryRecvError::Disconnected) => return Wake::Closed,
                Err(TryRecvError::Empty) => {}
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Wake::Deadline;
            }
            let (messages, children, reports) = (&self.messages, &self.children, &mut self.reports);
            let has_work = || !messages.is_empty() || children.as_ref().is_some_and(ChildSignal::is_received);
            let slept = thread::idle(|| self.bell.sleep_unless(has_work, deadline, |unit| reports.push(UnitId(unit))));
            self.since_look = 0;
            slept.unwrap_or_else(log_failure);
        }
    }

    /// The children that the latest signals were for.
    pub(super) fn signalled_children(&self) -> Vec<Pid> {
        self.children.iter().flat_map(ChildSignal::pids).collect()
    }

    /// Whether no message is in the queue.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

fn log_failure(error: io::Error) {
    log::error!("the supervisor cannot wait: {error}");
    // Not to fill the log if this happens again at once.
    std::thread::sleep(Duration::from_millis(10));
}
