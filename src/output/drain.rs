//! The drain at the end of a run: reads exactly the bytes that its leader wrote, and reports when they are in its log.
//!
//! If the disk does not accept them in time, the drain is reported as finished even so: the run has ended for the
//! supervisor and its clients, and its output is written to the log when the disk responds again.

use std::time::{Duration, Instant};

use mio::Token;

use super::actor::{Actor, PendingDrain};
use super::batch::Operation;
use super::message::Notice;
use super::pipe::{Drain, Pipe, PipeKind};
use crate::clock::wall;
use crate::logs::Writing;
use crate::model::RunKey;
use tl_os::pipe::bytes_in;
use tl_os::pty::MAX_BUFFERED;

/// Longest time from the reaping of a leader to the report of its end, even if the disk of the logs hangs.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Actor {
    /// Begins the drain of a run after its leader was reaped. All unread output of the leader is in the pipes now.
    pub(super) fn drain(&mut self, key: RunKey) {
        if let Some(token) = self.stdin_of(key) {
            self.close(token);
        }
        let Some(run) = self.runs.get_mut(&key) else { return (self.notify)(key, Notice::Drained) };
        run.draining = true;
        let tokens = run.tokens.clone();
        let is_terminal = run.terminal.is_some();
        for token in &tokens {
            if let Some(Pipe { fd, kind: PipeKind::Output { drain, .. }, .. }) = self.pipes.get_mut(token) {
                // FIONREAD does not count everything that a terminal holds, so a terminal is read until a read would
                // block.
                *drain = match if is_terminal { MAX_BUFFERED } else { bytes_in(fd) } {
                    0 => Drain::Held,
                    left => Drain::Left(left),
                };
            }
        }
        for token in tokens {
            self.serve(token);
        }
        self.end_drain(key);
        if self.runs.get(&key).is_some_and(|run| run.draining) {
            self.drains.push(PendingDrain { run: key, until: Instant::now() + DRAIN_TIMEOUT, batch: None });
        }
    }

    /// Records that all bytes of this pipe that belong to a drain have been read. Without a drain, does nothing.
    pub(super) fn end_drain_of(&mut self, token: Token) {
        let Some(Pipe { run, kind: PipeKind::Output { drain, .. }, .. }) = self.pipes.get_mut(&token) else { return };
        if !matches!(drain, Drain::Left(_)) {
            return;
        }
        *drain = Drain::Held;
        let key = *run;
        self.end_drain(key);
    }

    /// Ends the drain of a run if all bytes that belong to it have been read.
    pub(super) fn end_drain(&mut self, key: RunKey) {
        let Some(run) = self.runs.get_mut(&key) else { return };
        let is_left = |token| {
            matches!(self.pipes.get(token), Some(Pipe { kind: PipeKind::Output { drain: Drain::Left(_), .. }, .. }))
        };
        if !run.draining || run.tokens.iter().any(is_left) {
            return;
        }
        run.draining = false;
        run.drained = true;
        if run.terminal.is_some() {
            // Processes that have the terminal open get SIGHUP, as at the end of a login.
            let tokens = run.tokens.clone();
            tokens.into_iter().for_each(|token| self.close(token));
            (self.notify)(key, Notice::Drained);
            return self.end_run(key);
        }
        let at_rest = run.log.is_at_rest();
        if !at_rest {
            let writing = Writing::new(&run.log);
            self.logs.push(Operation::Cut(writing, wall()));
            self.logs.push(Operation::Drained(key));
            self.await_writer(key);
        }
        // Output that a child of the leader writes from now on is logged after the end.
        for token in self.runs.get(&key).map(|run| run.tokens.clone()).unwrap_or_default() {
            if let Some(Pipe { kind: PipeKind::Output { stream, drain, surplus }, .. }) = self.pipes.get_mut(&token) {
                *drain = Drain::Open;
                let (stream, surplus) = (*stream, std::mem::take(surplus));
                if let (false, Some(run)) = (surplus.is_empty(), self.runs.get(&key)) {
                    self.logs.append_owned(Writing::new(&run.log), wall(), stream, surplus);
                }
                self.again(token);
            }
        }
        if at_rest {
            (self.notify)(key, Notice::Drained);
        }
        self.end_run(key);
    }

    /// Records that the last bytes of a drain are in the batch that is being filled.
    fn await_writer(&mut self, key: RunKey) {
        let batch = Some(self.logs.number());
        match self.drains.iter_mut().find(|drain| drain.run == key) {
            Some(drain) => drain.batch = batch,
            None => self.drains.push(PendingDrain { run: key, until: Instant::now() + DRAIN_TIMEOUT, batch }),
        }
    }

    /// Time until the first drain is overdue.
    pub(super) fn drain_left(&self) -> Option<Duration> {
        let first = self.drains.iter().map(|drain| drain.until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Reports the ends of drains that are overdue.
    pub(super) fn end_drains(&mut self) {
        if self.drains.is_empty() {
            return;
        }
        let written = self.logs.collect();
        let runs = &self.runs;
        // The log writer reports a drain once it has written its last bytes; a drain without output is reported at
        // once.
        self.drains.retain(|drain| match drain.batch {
            Some(batch) => batch > written,
            None => runs.get(&drain.run).is_some_and(|run| run.draining),
        });
        let now = Instant::now();
        let overdue: Vec<PendingDrain> = self.drains.extract_if(.., |drain| drain.until <= now).collect();
        for drain in overdue {
            match drain.batch {
                None if self.logs.for_reading().is_some() => {
                    // A batch has room, so the pipes will be read: the drain gets more time.
                    self.drains.push(PendingDrain { until: now + DRAIN_TIMEOUT, ..drain });
                    continue;
                }
                None => self.give_up_drain(drain.run),
                Some(_) => {}
            }
            log::warn!("unit {}: the disk does not accept its output; its run is reported as ended", drain.run.0);
            (self.notify)(drain.run, Notice::Drained);
        }
    }

    /// Ends a drain although its pipes hold unread bytes, which are read when a batch has room again.
    fn give_up_drain(&mut self, key: RunKey) {
        for token in self.runs.get(&key).map(|run| run.tokens.clone()).unwrap_or_default() {
            if let Some(Pipe { kind: PipeKind::Output { drain, .. }, .. }) = self.pipes.get_mut(&token)
                && matches!(drain, Drain::Left(_))
            {
                *drain = Drain::Held;
            }
        }
        self.end_drain(key);
        self.drains.retain(|drain| drain.run != key);
    }
}
