//! The drain at the end of a run: reads exactly the bytes that its leader wrote, and reports when they are in its log.
//!
//! If the disk does not accept them in time, the drain is reported as finished even so: the run has ended for the
//! supervisor and its clients. The drain itself continues, and its bytes are written to the log when the disk responds
//! again. Until then it holds back the other operations on that log, above all its end, and the output of later runs of
//! the unit.

use std::time::{Duration, Instant};

use mio::Token;

use super::actor::{Actor, PendingDrain};
use super::batch::Operation;
use super::message::Notice;
use super::pipe::{Drain, Draining, Pipe, PipeKind};
use crate::clock::wall;
use crate::logs::{OutputLog, Writing};
use crate::model::{RunKey, RunNo, UnitId};
use tl_os::pipe::bytes_in;
use tl_os::pty::MAX_BUFFERED;

/// Longest time from the reaping of a leader to the report of its end, even if the disk of the logs hangs.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// A deadline that is seen later than this is extended by this time, once.
pub(super) const LATE: Duration = Duration::from_millis(100);

impl Actor {
    /// Begins the drain of a run after its leader was reaped. All unread output of the leader is in the pipes now.
    pub(super) fn drain(&mut self, key: RunKey, log: &OutputLog) {
        if let Some(token) = self.stdin_of(key) {
            self.close(token);
        }
        let run = match self.runs.get_mut(&key) {
            Some(run) if !run.drained => run,
            // All its output was read before.
            _ if log.is_at_rest() => return (self.notify)(key, Notice::Drained),
            _ => {
                self.push_in_order(key.0, Operation::Drained(key));
                return self.await_writer(key);
            }
        };
        run.draining = Some(Draining { writing: Writing::new(&run.log), then: Vec::new() });
        let tokens = run.tokens.clone();
        let is_terminal = run.terminal.is_some();
        for token in &tokens {
            if let Some(Pipe { fd, kind: PipeKind::Output { drain, .. }, .. }) = self.pipes.get_mut(token) {
                // FIONREAD does not count everything that a terminal holds, so a terminal is read until a read would
                // block.
                *drain = match if is_terminal { MAX_BUFFERED } else { bytes_in(&**fd) } {
                    0 => Drain::Held,
                    left => Drain::Left(left),
                };
            }
        }
        for token in tokens {
            self.serve(token);
        }
        self.end_drain(key);
        if self.runs.get(&key).is_some_and(|run| run.draining.is_some()) {
            self.drains.push(PendingDrain {
                run: key,
                until: Instant::now() + DRAIN_TIMEOUT,
                batch: None,
                is_extended: false,
            });
        }
    }

    /// Ends the output of a run if all its pipes are at their end before its leader was reaped, as usual. Its drain then
    /// only has to wait for the log writer.
    pub(super) fn end_output(&mut self, key: RunKey) {
        let waits = self.waits_for_earlier_run(key);
        let Some(run) = self.runs.get_mut(&key) else { return };
        let is_output = |token| matches!(self.pipes.get(token), Some(Pipe { kind: PipeKind::Output { .. }, .. }));
        if waits || run.drained || run.draining.is_some() || run.terminal.is_some() || run.tokens.iter().any(is_output)
        {
            return;
        }
        run.drained = true;
        // A later run may have begun a line: it has ended those of this run.
        let is_latest = self.last_run.get(&key.0).is_none_or(|last| *last <= key.1);
        if is_latest && !run.log.is_at_rest() {
            self.logs.push(Operation::Cut(Writing::new(&run.log), wall()));
        }
    }

    /// Ends the output of the runs that have waited for this one, and are not draining.
    fn end_later_outputs(&mut self, (unit, run): RunKey) {
        let later = self.runs.keys().filter(|key| key.0 == unit && key.1 > run).copied();
        for key in later.collect::<Vec<_>>() {
            self.end_output(key);
            self.end_run(key);
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

    /// Ends the drain of a run if all its bytes have been read, and then the drains of later runs that waited for it.
    pub(super) fn end_drain(&mut self, key: RunKey) {
        let mut next = Some(key);
        while let Some(key) = next {
            next = self.end_one_drain(key);
        }
    }

    /// Ends the drain of one run if all its bytes have been read. Returns the next run of the unit that is draining.
    fn end_one_drain(&mut self, key: RunKey) -> Option<RunKey> {
        let waits = self.waits_for_earlier_run(key);
        let run = self.runs.get_mut(&key)?;
        let is_left = |token| {
            matches!(self.pipes.get(token), Some(Pipe { kind: PipeKind::Output { drain: Drain::Left(_), .. }, .. }))
        };
        if waits || run.tokens.iter().any(is_left) {
            return None;
        }
        let Draining { writing, then } = run.draining.take()?;
        drop(writing);
        run.drained = true;
        let was_reported = self.overdue.remove(&key);
        if run.terminal.is_some() {
            // Processes that have the terminal open get SIGHUP, as at the end of a login.
            let tokens = run.tokens.clone();
            tokens.into_iter().for_each(|token| self.close(token));
            (self.notify)(key, Notice::Drained);
            self.end_run(key);
            return None;
        }
        let at_rest = run.log.is_at_rest();
        if !at_rest {
            let writing = Writing::new(&run.log);
            self.logs.push(Operation::Cut(writing, wall()));
            if !was_reported {
                self.logs.push(Operation::Drained(key));
                self.await_writer(key);
            }
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
        then.into_iter().for_each(|operation| self.logs.push(operation));
        if at_rest && !was_reported {
            (self.notify)(key, Notice::Drained);
        }
        self.end_run(key);
        // A later run exists only if this one was reported as drained before.
        if !was_reported {
            return None;
        }
        self.end_later_outputs(key);
        self.earliest_drain(key.0)
    }

    /// The earliest run of a unit that is draining.
    fn earliest_drain(&self, unit: UnitId) -> Option<RunKey> {
        let draining = self.runs.iter().filter(|(key, run)| key.0 == unit && run.draining.is_some());
        draining.map(|(key, _)| *key).min()
    }

    /// Whether an earlier run of the unit still has bytes in its pipes, which must be logged before those of this run.
    pub(super) fn waits_for_earlier_run(&self, key: RunKey) -> bool {
        self.overdue.range((key.0, RunNo::MIN)..key).next().is_some()
    }

    /// Adds an operation on the log of a unit, to be performed after the bytes that are still in pipes of ended runs.
    pub(super) fn push_in_order(&mut self, unit: UnitId, operation: Operation) {
        let last = self.overdue.range((unit, RunNo::MIN)..=(unit, RunNo::MAX)).next_back();
        match last.and_then(|key| self.runs.get_mut(key)).and_then(|run| run.draining.as_mut()) {
            Some(draining) => draining.then.push(operation),
            None => self.logs.push(operation),
        }
    }

    /// Records that the last bytes of a drain are in the batch that is being filled.
    fn await_writer(&mut self, key: RunKey) {
        let batch = Some(self.logs.number());
        match self.drains.iter_mut().find(|drain| drain.run == key) {
            Some(drain) => drain.batch = batch,
            None => self.drains.push(PendingDrain {
                run: key,
                until: Instant::now() + DRAIN_TIMEOUT,
                batch,
                is_extended: false,
            }),
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
            None => runs.get(&drain.run).is_some_and(|run| run.draining.is_some()),
        });
        let now = Instant::now();
        let overdue: Vec<PendingDrain> = self.drains.extract_if(.., |drain| drain.until <= now).collect();
        for drain in overdue {
            // This process, or the machine that it is in, was stopped: the log writer had no time to write either.
            if now > drain.until + LATE && !drain.is_extended {
                self.drains.push(PendingDrain { until: now + LATE, is_extended: true, ..drain });
                continue;
            }
            if drain.batch.is_none() {
                if !self.waits_for_disk(drain.run) {
                    // The pipes will be read: the drain gets more time.
                    self.drains.push(PendingDrain { until: now + DRAIN_TIMEOUT, ..drain });
                    continue;
                }
                self.overdue.insert(drain.run);
            }
            // One warning for each stall of the disk.
            let is_first = self.stall_reported.replace(written) != Some(written);
            let level = if is_first { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "unit {}: the disk does not accept its output; its run is reported as ended", drain.run.0);
            (self.notify)(drain.run, Notice::Drained);
        }
    }

    /// Whether the pipes of a run cannot be read before the disk responds. A terminal can always be read, because its
    /// output is not written to a disk.
    fn waits_for_disk(&mut self, key: RunKey) -> bool {
        let is_terminal = self.runs.get(&key).is_some_and(|run| run.terminal.is_some());
        !is_terminal && (self.logs.for_reading().is_none() || self.waits_for_earlier_run(key))
    }
}
