//! The output thread: handles all pipes of all units in one mio loop. It reads pipes and passes their output to the log
//! writer thread, writes stdin with backpressure, and reports to the supervisor when all output of a leader is in its log.

mod actor;
mod attached;
mod batch;
mod capacity;
mod descriptor;
mod drain;
mod log_writer;
mod message;
mod pipe;
mod read;
mod stdin;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use mio::unix::SourceFd;
use mio::{Poll, Registry, Waker};

use crate::model::RunKey;
use actor::{Actor, WAKE};
use attached::Attached;
pub use descriptor::Descriptor;
use log_writer::{LogWriter, Remover};
pub use message::{Attach, Message, Notice};
use tl_os::thread;

/// Sends to the thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OutputSender {
    messages: Sender<Option<(RunKey, Message)>>,
    attached: Sender<Attached>,
    shared: Arc<Shared>,
}

/// What all senders share.
#[derive(Debug)]
struct Shared {
    waker: Arc<Waker>,
    /// Where the pipes of the thread are registered.
    registry: Registry,
    /// The number of the latest pipe.
    last_token: AtomicUsize,
}

impl OutputSender {
    /// Hands a run that has been forked over to the thread, and registers its pipes. The thread is not woken for that:
    /// it learns of the run at the first event of a pipe, or with the first message about the run.
    pub fn attach(&self, run: RunKey, attach: Attach) {
        let attached = Attached::new(run, attach, &self.shared.last_token);
        let sources = attached.sources();
        // Without a pipe there is nothing to do, and no event that would tell the thread of the run.
        if sources.is_empty() || self.attached.send(attached).is_err() {
            return;
        }
        for (token, fd, interest) in sources {
            if let Err(error) = self.shared.registry.register(&mut SourceFd(&fd.as_fd().as_raw_fd()), token, interest) {
                log::error!("unit {}: a pipe cannot be watched: {error}", run.0);
                self.send(run, Message::Unwatched(token));
            }
        }
    }

    /// Sends a message about a run. If the thread has ended, the message is dropped; dropping a reply in it delivers an
    /// error.
    pub fn send(&self, run: RunKey, message: Message) {
        self.post(Some((run, message)));
    }

    fn post(&self, message: Option<(RunKey, Message)>) {
        if self.messages.send(message).is_ok()
            && let Err(error) = self.shared.waker.wake()
        {
            log::error!("cannot wake the output thread: {error}");
        }
    }
}

/// Handles to the output thread and to the log writer thread. Both threads end when this is dropped.
pub struct Output {
    sender: OutputSender,
    thread: Option<JoinHandle<()>>,
    /// Dropped after the output thread was joined, because that thread sends its last batch when it ends.
    writer: LogWriter,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Output {
    /// Starts both threads. They call `notify` with each notice, and `died` with the name of a thread that panics.
    /// Neither may block.
    ///
    /// # Errors
    /// If the system has run out of descriptors or threads.
    pub fn start(
        notify: impl Fn(RunKey, Notice) + Send + Sync + 'static,
        died: impl Fn(&'static str) + Clone + Send + 'static,
    ) -> io::Result<Output> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let registry = poll.registry().try_clone()?;
        let (messages, inbox) = unbounded();
        let (attached, runs) = unbounded();
        let notify = Arc::new(notify);
        let writer_died = died.clone();
        let (writer, batches) =
            LogWriter::start(notify.clone(), Arc::clone(&waker), move || writer_died("log-writer"))?;
        let mut actor = Actor::new(poll, runs, inbox, notify, batches);
        let thread = thread::spawn("output", move || actor.run(), move || died("output"))?;
        let shared = Arc::new(Shared { waker, registry, last_token: AtomicUsize::new(WAKE.0) });
        Ok(Output { sender: OutputSender { messages, attached, shared }, thread: Some(thread), writer })
    }

    /// A sender to the output thread.
    pub fn sender(&self) -> &OutputSender {
        &self.sender
    }

    /// A handle that removes files of logs on the log writer thread.
    pub fn remover(&self) -> Remover {
        self.writer.remover()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.sender.post(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
