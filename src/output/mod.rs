//! The output thread: all pipes of all units in one mio loop. It reads into the logs, writes stdin with backpressure,
//! and tells the supervisor how each exec went and when what a leader wrote has been read.

mod actor;
mod drain;
mod read;
mod stdin;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use mio::{Poll, Token, Waker};

use crate::logs::OutputLog;
use crate::model::terminal_size::TerminalSize;
use crate::model::{RunEnd, RunKey};
use crate::pending::ReplySender;
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;
use actor::Actor;
use tl_os::spawn::ExecFailure;
use tl_os::thread;

/// What the thread has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The program runs, or its process was killed before it did.
    ExecOk,
    /// The program could not be run.
    ExecFailed(ExecFailure),
    /// Everything that was in the pipes when [`Message::Drain`] came is in the log, and lines are cut there.
    Drained,
    /// The process has closed its stdin.
    StdinClosed,
}

/// Our ends of a run's pipes, and where its output goes.
#[derive(Debug)]
pub struct Attach {
    /// Where the output goes.
    pub log: Arc<OutputLog>,
    /// Where it goes instead where there is a terminal: `stdin` and `stdout` are its master then.
    pub terminal: Option<Arc<Terminal>>,
    /// To write to.
    pub stdin: Option<OwnedFd>,
    /// To read from.
    pub stdout: Option<OwnedFd>,
    /// To read from.
    pub stderr: Option<OwnedFd>,
    /// How the exec went.
    pub report: OwnedFd,
    /// What these descriptors and the log's are counted by.
    pub taken: Taken,
}

/// What the thread is asked. The queue has no bound of its own: each unit has a few messages on the way at most, and
/// each writer of a stdin waits for its answer before it sends more.
#[derive(Debug)]
pub enum Message {
    /// A run has been forked.
    Attach(Box<Attach>),
    /// Its leader has been reaped.
    Drain,
    /// It never came to run its program: no drain will follow.
    Forget,
    /// A chunk for stdin, by one of its writers. Answered when all of it is in the pipe.
    Write {
        /// Whose.
        writer: u64,
        /// What.
        bytes: Vec<u8>,
        /// To be told.
        reply: ReplySender<()>,
    },
    /// All that stdin gets: it is closed once this is in the pipe, and counts as closed for everybody else from now on.
    Feed(Vec<u8>, Box<dyn Any + Send>),
    /// The writer has gone: what it still has in the queue is not to be written.
    Abandon {
        /// Who.
        writer: u64,
    },
    /// A line of the supervisor's own for stderr of this log.
    AppendToLog(Arc<OutputLog>, Vec<u8>),
    /// The last run has ended, in this epoch of the log: followers end here.
    FinishLog(Arc<OutputLog>, u64, RunEnd),
    /// Another run follows after [`Message::FinishLog`].
    ReopenLog(Arc<OutputLog>),
    /// Close stdin.
    CloseStdin,
    /// Let go of the terminal: whoever has it open finds it hung up.
    HangUp,
    /// Set the size of the terminal. Answered when it is set.
    Resize(TerminalSize, ReplySender<()>),
}

/// Sends to the thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OutputSender {
    messages: Sender<Option<(RunKey, Message)>>,
    waker: Arc<Waker>,
}

impl OutputSender {
    /// Sends. To a thread that has died it is lost, with the reply in it, whose drop is an answer.
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

/// The thread; ends and is joined on drop.
#[derive(Debug)]
pub struct Output {
    sender: OutputSender,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Starts it. `notify` is called on its thread and must not block.
    ///
    /// # Errors
    /// When there is no descriptor or thread left for it.
    pub fn start(
        notify: impl FnMut(RunKey, Notice) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Output> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (messages, inbox) = unbounded();
        let mut actor = Actor::new(poll, inbox, Box::new(notify));
        let thread = thread::spawn("output", move || actor.run(), died)?;
        Ok(Output { sender: OutputSender { messages, waker }, thread: Some(thread) })
    }

    /// A sender to it.
    pub fn sender(&self) -> OutputSender {
        self.sender.clone()
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

const WAKE: Token = Token(0);
