//! A run on its way to the output thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::{Interest, Token};

use super::capacity::Capacity;
use super::descriptor::Descriptor;
use super::message::Attach;
use super::pipe::{Drain, Pipe, PipeKind, Run};
use super::stdin::StdinQueue;
use crate::model::{RunKey, Stream};

/// A run that has been forked, with its pipes and their tokens.
pub(super) struct Attached {
    pub(super) key: RunKey,
    pub(super) run: Run,
    pub(super) pipes: Vec<(Token, Pipe)>,
}

impl Attached {
    /// Gives each pipe a token; `last_token` is the latest one that was given.
    pub(super) fn new(key: RunKey, attach: Attach, last_token: &AtomicUsize) -> Attached {
        let mut taken = attach.taken;
        let stdin = attach.stdin.map(|fd| Descriptor::new(fd, taken.one()));
        let output = |stream| PipeKind::Output { stream, drain: Drain::Open, surplus: Vec::new() };
        let pipes = [
            (attach.stdout, output(Stream::Stdout)),
            (attach.stderr, output(Stream::Stderr)),
            (stdin, PipeKind::Stdin(StdinQueue::new(key.0))),
        ];
        let pipes = pipes.into_iter().filter_map(|(fd, kind)| {
            let token = Token(last_token.fetch_add(1, Ordering::Relaxed) + 1);
            Some((token, Pipe { fd: fd?, run: key, kind, queued: false, capacity: Capacity::default() }))
        });
        let pipes: Vec<_> = pipes.collect();
        let run = Run {
            log: attach.log,
            terminal: attach.terminal,
            tokens: pipes.iter().map(|(token, _)| *token).collect(),
            draining: None,
            drained: false,
            _taken: taken,
        };
        Attached { key, run, pipes }
    }

    /// What is to be registered for each pipe.
    pub(super) fn sources(&self) -> Vec<(Token, Arc<Descriptor>, Interest)> {
        let interest = |kind: &PipeKind| match kind {
            PipeKind::Stdin(_) => Interest::WRITABLE,
            PipeKind::Output { .. } => Interest::READABLE,
        };
        self.pipes.iter().map(|(token, pipe)| (*token, Arc::clone(&pipe.fd), interest(&pipe.kind))).collect()
    }
}
