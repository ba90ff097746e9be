//! The output thread: handles all pipes of all units in one mio loop. It reads pipes and passes their output to the log
//! writer thread, writes stdin with backpressure, and reports to the supervisor the outcome of each exec and when all
//! output of a leader is in its log.

mod actor;
mod batch;
mod capacity;
mod drain;
mod log_writer;
mod message;
mod pipe;
mod read;
mod stdin;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use mio::{Poll, Waker};

use crate::model::RunKey;
use actor::{Actor, WAKE};
use log_writer::{LogWriter, Remover};
pub use message::{Attach, Message, Notice};
use tl_os::thread;

/// Sends to the thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OutputSender {
    messages: Sender<Option<(RunKey, Message)>>,
    waker: Arc<Waker>,
}

impl OutputSender {
    /// Sends a message about a run. If the thread has ended, the message is dropped; dropping a reply in it delivers an
    /// error.
    pub fn send(&self, run: RunKey, message: Message) {
        self.post(Some((run, message)));
    }

    fn post(&self, message: Option<(RunKey, Message)>) {
        if self.messages.send(message).is_ok()
            && let Err(error) = self.waker.wake()
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
        let (messages, inbox) = unbounded();
        let notify = Arc::new(notify);
        let writer_died = died.clone();
        let (writer, batches) =
            LogWriter::start(notify.clone(), Arc::clone(&waker), move || writer_died("log-writer"))?;
        let mut actor = Actor::new(poll, inbox, notify, batches);
        let thread = thread::spawn("output", move || actor.run(), move || died("output"))?;
        Ok(Output { sender: OutputSender { messages, waker }, thread: Some(thread), writer })
    }

    /// A sender to the output thread.
    pub fn sender(&self) -> OutputSender {
        self.sender.clone()
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
