//! The queue of the supervisor thread, on which that thread also waits for SIGCHLD.
//!
//! A thread that sends a message makes a system call only if the supervisor sleeps. The supervisor neither spins before
//! it sleeps nor needs another thread to hear of the end of a child.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::message::Message;
use crate::model::Pid;
use tl_os::bell::Bell;
use tl_os::child_signal::ChildSignal;

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
    was_children: Cell<bool>,
}

/// A queue.
///
/// # Errors
/// When no descriptor is left.
pub(super) fn mailbox() -> io::Result<(MessageSender, Inbox)> {
    let (sender, messages) = unbounded();
    let bell = Arc::new(Bell::new()?);
    Ok((
        MessageSender { messages: sender, bell: Arc::clone(&bell) },
        Inbox { messages, bell, children: None, was_children: Cell::new(false) },
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

    /// Waits for a message or for SIGCHLD, until `deadline`.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Wake {
        loop {
            if !self.was_children.take() && self.children.as_ref().is_some_and(ChildSignal::take) {
                self.was_children.set(true);
                return Wake::Children;
            }
            match self.messages.try_recv() {
                Ok(message) => return Wake::Message(message),
                Err(TryRecvError::Disconnected) => return Wake::Closed,
                Err(TryRecvError::Empty) => {}
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Wake::Deadline;
            }
            let has_work = || !self.messages.is_empty() || self.children.as_ref().is_some_and(ChildSignal::is_received);
            if let Err(error) = self.bell.sleep_unless(has_work, deadline) {
                log::error!("the supervisor cannot sleep: {error}");
                std::thread::yield_now();
            }
        }
    }

    /// The children that the latest signals were for.
    pub(super) fn signalled_children(&self) -> Vec<Pid> {
        self.children.iter().flat_map(ChildSignal::pids).collect()
    }

    /// Whether no message is in the queue.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}
