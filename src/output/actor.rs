//! The loop of the output thread.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::read::ROOM;
use super::stdin::{StdinQueue, closed};
use super::{Attach, Message, Notice, RunKey, WAKE};
use crate::clock::wall;
use crate::error::Error;
use crate::logs::OutputLog;
use crate::model::terminal_size::TerminalSize;
use crate::model::{RunNo, Stream, UnitId};
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;
use tl_os::pipe::has_reader;
use tl_os::pty::{self, Size};

/// Messages taken in a row before the pipes have their turn.
const MESSAGES: usize = 256;

type Notify = Box<dyn FnMut(RunKey, Notice) + Send>;

pub(super) struct Actor {
    poll: Poll,
    inbox: Receiver<Option<(RunKey, Message)>>,
    pub(super) notify: Notify,
    pub(super) sources: HashMap<Token, Source>,
    pub(super) runs: HashMap<RunKey, Run>,
    /// Which run's output was the last to go into a unit's log.
    pub(super) last_run: HashMap<UnitId, RunNo>,
    /// Pipes that had more when their turn was over: the kernel tells only once.
    unfinished: VecDeque<Token>,
    /// Terminals whose viewers get a moment to catch up, and when it is over.
    pub(super) pausing: Vec<(Instant, Token)>,
    last_token: usize,
    pub(super) buffer: Box<[u8]>,
}

pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) run: RunKey,
    pub(super) kind: Kind,
    /// It is among the unfinished.
    queued: bool,
    /// Given back when it is closed.
    _taken: Taken,
}

pub(super) enum Kind {
    /// `surplus`: bytes that were read together with the last of a drain, and came after it.
    Output {
        stream: Stream,
        drain: Drain,
        surplus: Vec<u8>,
    },
    Stdin(StdinQueue),
    Report,
}

/// How far a pipe is with what was in it when its leader was reaped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// The leader lives, or the drain is over: read whatever comes.
    Open,
    /// So many bytes are still to be read for the end.
    Left(usize),
    /// Done, but the other pipe is not: what comes now belongs after the end.
    Held,
}

pub(super) struct Run {
    pub(super) log: Arc<OutputLog>,
    pub(super) terminal: Option<Arc<Terminal>>,
    pub(super) tokens: Vec<Token>,
    pub(super) draining: bool,
    pub(super) drained: bool,
    /// Its descriptors that are no pipes: its log's, and a probe's.
    taken: Taken,
}

impl Actor {
    pub(super) fn new(poll: Poll, inbox: Receiver<Option<(RunKey, Message)>>, notify: Notify) -> Actor {
        Actor {
            poll,
            inbox,
            notify,
            sources: HashMap::new(),
            runs: HashMap::new(),
            last_run: HashMap::new(),
            unfinished: VecDeque::new(),
            pausing: Vec::new(),
            last_token: WAKE.0,
            buffer: vec![0; ROOM].into_boxed_slice(),
        }
    }

    /// Runs until it is told to end.
    ///
    /// # Errors
    /// When it cannot wait for its pipes any more.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut more = false;
        loop {
            let timeout = if self.unfinished.is_empty() && !more { self.pause_left() } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                self.serve(event.token());
            }
            self.end_pauses();
            for _ in 0..self.unfinished.len() {
                if let Some(token) = self.unfinished.pop_front() {
                    if let Some(source) = self.sources.get_mut(&token) {
                        source.queued = false;
                    }
                    self.serve(token);
                }
            }
            // Last, so that a drain finds the readiness of its pipes taken.
            more = true;
            for _ in 0..MESSAGES {
                let Ok(message) = self.inbox.try_recv() else {
                    more = false;
                    break;
                };
                let Some((run, message)) = message else { return Ok(()) };
                self.receive(run, message);
            }
        }
    }

    fn receive(&mut self, key: RunKey, message: Message) {
        match message {
            Message::Attach(attach) => self.attach(key, *attach),
            Message::Drain => self.drain(key),
            Message::Forget => self.forget(key),
            Message::AppendToLog(log, line) => log.append(wall(), Stream::Stderr, &line),
            Message::FinishLog(log, epoch, end) => log.finish_epoch(epoch, end),
            Message::ReopenLog(log) => log.reopen(),
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
            Message::Resize(window, reply) => reply.send(self.resize(key, window)),
            Message::Abandon { writer } => {
                if let Some((_, queue)) = self.stdin_of(key).and_then(|token| self.queue(token)) {
                    queue.abandon(writer);
                }
            }
        }
    }

    fn attach(&mut self, key: RunKey, attach: Attach) {
        self.runs.insert(
            key,
            Run {
                log: attach.log,
                terminal: attach.terminal,
                tokens: Vec::new(),
                draining: false,
                drained: false,
                taken: attach.taken,
            },
        );
        let output = |stream| Kind::Output { stream, drain: Drain::Open, surplus: Vec::new() };
        let sources = [
            (attach.stdout, output(Stream::Stdout)),
            (attach.stderr, output(Stream::Stderr)),
            (attach.stdin, Kind::Stdin(StdinQueue::new(key.0))),
            (Some(attach.report), Kind::Report),
        ];
        for (fd, kind) in sources {
            if let Some(fd) = fd {
                self.register(key, fd, kind);
            }
        }
    }

    fn register(&mut self, key: RunKey, fd: OwnedFd, kind: Kind) {
        self.last_token += 1;
        let token = Token(self.last_token);
        let interest = match kind {
            Kind::Stdin(_) => Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, interest) {
            log::error!("unit {}: a pipe cannot be watched: {error}", key.0);
            if matches!(kind, Kind::Report) {
                (self.notify)(key, Notice::ExecOk);
            }
            return;
        }
        let Some(run) = self.runs.get_mut(&key) else { return };
        self.sources.insert(token, Source { fd, run: key, kind, queued: false, _taken: run.taken.one() });
        run.tokens.push(token);
    }

    pub(super) fn serve(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(&token) else { return };
        match &mut source.kind {
            Kind::Output { .. } => self.read_output(token),
            Kind::Report => self.read_report(token),
            Kind::Stdin(queue) => {
                let run = source.run;
                let (failed, unread) = (queue.write_to(&source.fd).is_err(), !has_reader(&source.fd));
                let failed = failed || queue.is_at_end();
                if failed || unread && !self.is_open_terminal(run) {
                    self.close(token);
                    (self.notify)(run, Notice::StdinClosed);
                }
            }
        }
    }

    /// Serves a pipe once more when the others have had their turn.
    pub(super) fn again(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(&token)
            && !std::mem::replace(&mut source.queued, true)
        {
            self.unfinished.push_back(token);
        }
    }

    /// Whether the run has a terminal and its leader lives: closing our end would hang up on it, whatever it has done with
    /// its own.
    pub(super) fn is_open_terminal(&self, key: RunKey) -> bool {
        self.runs.get(&key).is_some_and(|run| run.terminal.is_some() && !run.draining && !run.drained)
    }

    fn hang_up(&mut self, key: RunKey) {
        let tokens = self.runs.get(&key).map(|run| run.tokens.clone()).unwrap_or_default();
        for token in tokens {
            if self.sources.get(&token).is_some_and(|source| !matches!(source.kind, Kind::Report)) {
                self.close(token);
            }
        }
    }

    fn resize(&mut self, key: RunKey, window: TerminalSize) -> Result<(), Error> {
        let run = self.runs.get(&key).ok_or_else(|| closed(key.0))?;
        let terminal = run.terminal.as_ref().ok_or_else(|| closed(key.0))?;
        let mut sources = run.tokens.iter().filter_map(|token| self.sources.get(token));
        let master = sources.find(|source| !matches!(source.kind, Kind::Report)).ok_or_else(|| closed(key.0))?;
        pty::resize(&master.fd, Size { rows: window.rows, cols: window.cols })
            .map_err(|error| Error::from_io("resizing a terminal", &error))?;
        terminal.set_window(window);
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
        let Some(source) = self.sources.remove(&token) else { return };
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&source.fd.as_raw_fd())) {
            log::debug!("unit {}: a pipe was not watched: {error}", source.run.0);
        }
        if let Some(run) = self.runs.get_mut(&source.run) {
            run.tokens.retain(|other| *other != token);
        }
        self.end_drain(source.run);
        self.end_run(source.run);
    }

    /// Lets go of a run that is drained and that nobody writes for any more.
    pub(super) fn end_run(&mut self, key: RunKey) {
        if self.runs.get(&key).is_some_and(|run| run.drained && run.tokens.is_empty())
            && let Some(run) = self.runs.remove(&key)
        {
            run.log.close_file();
            if self.last_run.get(&key.0) == Some(&key.1) {
                self.last_run.remove(&key.0);
            }
        }
    }

    pub(super) fn stdin_of(&self, key: RunKey) -> Option<Token> {
        let tokens = &self.runs.get(&key)?.tokens;
        let is_stdin = |token: &&Token| matches!(self.sources.get(token), Some(Source { kind: Kind::Stdin(_), .. }));
        tokens.iter().find(is_stdin).copied()
    }

    fn queue(&mut self, token: Token) -> Option<(Token, &mut StdinQueue)> {
        match self.sources.get_mut(&token)? {
            Source { kind: Kind::Stdin(queue), .. } => Some((token, queue)),
            _ => None,
        }
    }
}
