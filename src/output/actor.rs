//! The loop of the output thread.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Poll, Token};

use super::attached::Attached;
use super::batch::{Operation, ROOM};
use super::capacity::LargePipes;
use super::log_writer::{Batches, Notify};
use super::message::{Message, Notice};
use super::pipe::{Pipe, PipeKind, Run};
use super::stdin::{StdinQueue, closed};
use crate::clock::wall;
use crate::error::Error;
use crate::model::terminal_size::TerminalSize;
use crate::model::{RunKey, RunNo, Stream, UnitId};
use crate::shrink::shrink_map;
use tl_os::pipe::has_reader;
use tl_os::pty::{self, Size};
use tl_os::thread;

/// The token of the waker.
pub(super) const WAKE: Token = Token(0);

/// Maximum number of messages handled before the pipes are served again.
const MESSAGES: usize = 256;

/// Time without activity after which the unused memory of batches is returned to the kernel.
const IDLE: Duration = Duration::from_secs(2);

pub(super) struct Actor {
    poll: Poll,
    attached: Receiver<Attached>,
    inbox: Receiver<Option<(RunKey, Message)>>,
    pub(super) notify: Notify,
    pub(super) pipes: HashMap<Token, Pipe>,
    pub(super) runs: HashMap<RunKey, Run>,
    /// The batches of log operations.
    pub(super) logs: Batches,
    /// For each unit, the run that wrote to its log last.
    pub(super) last_run: HashMap<UnitId, RunNo>,
    /// Drains that have not been reported as finished.
    pub(super) drains: Vec<PendingDrain>,
    /// Runs that were reported as drained because the disk stalls, and still have bytes in their pipes.
    pub(super) overdue: BTreeSet<RunKey>,
    /// The number of the last batch that had been written when a stall of the disk was last reported.
    pub(super) stall_reported: Option<u64>,
    /// Pipes with more to read after their turn. They are queued here because the kernel reports a pipe only once.
    unfinished: VecDeque<Token>,
    /// Pipes to read again when a batch has room.
    pub(super) stalled: Vec<Token>,
    /// Terminals that are not read before a time, so that viewers can catch up: (time, token).
    pub(super) pausing: Vec<(Instant, Token)>,
    pub(super) large_pipes: LargePipes,
    /// Buffer for reads of terminals.
    pub(super) buffer: Box<[u8]>,
}

/// A drain that has not been reported as finished.
pub(super) struct PendingDrain {
    pub(super) run: RunKey,
    /// Its end is reported at this time at the latest.
    pub(super) until: Instant,
    /// The batch with its last bytes; None while they are still in the pipes.
    pub(super) batch: Option<u64>,
    /// Its deadline has been extended because it was seen late.
    pub(super) is_extended: bool,
}

impl Actor {
    pub(super) fn new(
        poll: Poll,
        attached: Receiver<Attached>,
        inbox: Receiver<Option<(RunKey, Message)>>,
        notify: Notify,
        logs: Batches,
    ) -> Actor {
        Actor {
            poll,
            attached,
            inbox,
            notify,
            pipes: HashMap::new(),
            runs: HashMap::new(),
            logs,
            last_run: HashMap::new(),
            drains: Vec::new(),
            overdue: BTreeSet::new(),
            stall_reported: None,
            unfinished: VecDeque::new(),
            stalled: Vec::new(),
            pausing: Vec::new(),
            large_pipes: LargePipes::default(),
            buffer: vec![0; ROOM].into_boxed_slice(),
        }
    }

    /// Runs until the message that ends the thread.
    ///
    /// # Errors
    /// The error of `epoll_wait(2)`.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut more_messages = false;
        loop {
            let timeout = if more_messages { Some(Duration::ZERO) } else { self.timeout() };
            match thread::idle(|| self.poll.poll(&mut events, timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if events.is_empty() {
                self.logs.release_memory();
            }
            // A run is handed over before its pipes are registered.
            self.take_attached();
            for event in &events {
                self.serve(event.token());
            }
            self.end_pauses();
            self.end_stalls();
            for _ in 0..self.unfinished.len() {
                if let Some(token) = self.unfinished.pop_front() {
                    self.serve_queued(token);
                }
            }
            // After the events, so that the readiness of the pipes has been handled when a drain begins.
            more_messages = true;
            for _ in 0..MESSAGES {
                let Ok(message) = self.inbox.try_recv() else {
                    more_messages = false;
                    break;
                };
                let Some((run, message)) = message else {
                    self.logs.send_last();
                    return Ok(());
                };
                self.receive(run, message);
            }
            self.end_drains();
        }
    }

    /// Longest time to wait for events. First sends the pending log operations to the log writer.
    fn timeout(&mut self) -> Option<Duration> {
        self.logs.send_before_sleep();
        let has_room = !self.stalled.is_empty() && self.logs.for_reading().is_some();
        if has_room || !self.unfinished.is_empty() {
            return Some(Duration::ZERO);
        }
        let idle = self.logs.hold_memory().then_some(IDLE);
        [self.pause_left(), self.drain_left(), idle].into_iter().flatten().min()
    }

    /// Reads the stalled pipes if a batch has room again.
    fn end_stalls(&mut self) {
        if !self.stalled.is_empty() && self.logs.for_reading().is_some() {
            for token in std::mem::take(&mut self.stalled) {
                self.serve_queued(token);
            }
        }
    }

    fn serve_queued(&mut self, token: Token) {
        if let Some(pipe) = self.pipes.get_mut(&token) {
            pipe.queued = false;
        }
        self.serve(token);
    }

    fn receive(&mut self, key: RunKey, message: Message) {
        // A run is handed over before the first message about it is sent.
        self.take_attached();
        match message {
            Message::Unwatched(token) => self.close(token),
            Message::Drain(log) => self.drain(key, &log),
            Message::Forget => self.forget(key),
            Message::AppendToLog(log, line) => {
                self.push_in_order(key.0, Operation::AppendOwned(log, wall(), Stream::Stderr, line));
            }
            Message::FinishLog(log, epoch, end) => self.push_in_order(key.0, Operation::Finish(log, epoch, end)),
            Message::ReopenLog(log) => self.push_in_order(key.0, Operation::Reopen(log)),
            Message::CloseStdin => {
                if let Some(token) = self.stdin_of(key) {
                    self.close(token);
                }
            }
            Message::Write { writer, bytes, reply } => match self.stdin_of(key).and_then(|token| self.queue(token)) {
                Some((token, queue)) => {
                    queue.push(writer, bytes, reply);
                    self.serve(token);
                }
                None => reply.send(Err(closed(key.0))),
            },
            Message::Feed(bytes, held) => {
                if let Some((token, queue)) = self.stdin_of(key).and_then(|token| self.queue(token)) {
                    queue.push_last(bytes, held);
                    (self.notify)(key, Notice::StdinClosed);
                    self.serve(token);
                }
            }
            Message::HangUp => self.hang_up(key),
            Message::Resize(size, reply) => reply.send(self.resize(key, size)),
            Message::Abandon { writer } => {
                if let Some((_, queue)) = self.stdin_of(key).and_then(|token| self.queue(token)) {
                    queue.abandon(writer);
                }
            }
        }
    }

    /// Takes over the runs that have been handed over.
    fn take_attached(&mut self) {
        while let Ok(Attached { key, run, pipes }) = self.attached.try_recv() {
            self.runs.insert(key, run);
            self.pipes.extend(pipes);
            self.end_output(key);
        }
    }

    pub(super) fn serve(&mut self, token: Token) {
        let Some(pipe) = self.pipes.get_mut(&token) else { return };
        match &mut pipe.kind {
            PipeKind::Output { .. } => self.read_output(token),
            PipeKind::Stdin(queue) => {
                let run = pipe.run;
                let (failed, unread) = (queue.write_to(&*pipe.fd).is_err(), !has_reader(&*pipe.fd));
                let failed = failed || queue.is_at_end();
                if failed || unread && !self.is_open_terminal(run) {
                    self.close(token);
                    (self.notify)(run, Notice::StdinClosed);
                }
            }
        }
    }

    /// Queues a pipe to be served again after the others.
    pub(super) fn again(&mut self, token: Token) {
        if let Some(pipe) = self.pipes.get_mut(&token)
            && !std::mem::replace(&mut pipe.queued, true)
        {
            self.unfinished.push_back(token);
        }
    }

    /// Whether the run has a terminal and its leader has not ended. If so, the master of the terminal stays open even
    /// if the leader closes its own end: closing the master would hang up the session.
    pub(super) fn is_open_terminal(&self, key: RunKey) -> bool {
        self.runs.get(&key).is_some_and(|run| run.terminal.is_some() && run.draining.is_none() && !run.drained)
    }

    fn hang_up(&mut self, key: RunKey) {
        let tokens = self.runs.get(&key).map(|run| run.tokens.clone()).unwrap_or_default();
        for token in tokens {
            self.close(token);
        }
    }

    fn resize(&mut self, key: RunKey, size: TerminalSize) -> Result<(), Error> {
        let run = self.runs.get(&key).ok_or_else(|| closed(key.0))?;
        let terminal = run.terminal.as_ref().ok_or_else(|| closed(key.0))?;
        let master = run.tokens.iter().find_map(|token| self.pipes.get(token)).ok_or_else(|| closed(key.0))?;
        pty::resize(&master.fd, Size { rows: size.rows, cols: size.cols })
            .map_err(|error| Error::from_io("resizing a terminal", &error))?;
        terminal.set_size(size);
        Ok(())
    }

    fn forget(&mut self, key: RunKey) {
        let Some(run) = self.runs.get_mut(&key) else { return };
        run.drained = true;
        for token in run.tokens.clone() {
            self.close(token);
        }
        self.end_run(key);
    }

    pub(super) fn close(&mut self, token: Token) {
        let Some(pipe) = self.pipes.remove(&token) else { return };
        shrink_map(&mut self.pipes);
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&pipe.fd.as_fd().as_raw_fd())) {
            log::debug!("unit {}: a pipe cannot be removed from the poll: {error}", pipe.run.0);
        }
        if let Some(run) = self.runs.get_mut(&pipe.run) {
            run.tokens.retain(|other| *other != token);
        }
        self.end_drain(pipe.run);
        self.end_output(pipe.run);
        self.end_run(pipe.run);
    }

    /// Removes a run that is drained and has no open pipe.
    pub(super) fn end_run(&mut self, key: RunKey) {
        if self.runs.get(&key).is_some_and(|run| run.drained && run.tokens.is_empty())
            && let Some(run) = self.runs.remove(&key)
        {
            if run.log.is_open() {
                self.logs.push(Operation::Close(run.log));
            }
            if self.last_run.get(&key.0) == Some(&key.1) {
                self.last_run.remove(&key.0);
                shrink_map(&mut self.last_run);
            }
            shrink_map(&mut self.runs);
        }
    }

    pub(super) fn stdin_of(&self, key: RunKey) -> Option<Token> {
        let tokens = &self.runs.get(&key)?.tokens;
        let is_stdin = |token: &&Token| matches!(self.pipes.get(token), Some(Pipe { kind: PipeKind::Stdin(_), .. }));
        tokens.iter().find(is_stdin).copied()
    }

    fn queue(&mut self, token: Token) -> Option<(Token, &mut StdinQueue)> {
        match self.pipes.get_mut(&token)? {
            Pipe { kind: PipeKind::Stdin(queue), .. } => Some((token, queue)),
            _ => None,
        }
    }
}
