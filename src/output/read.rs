//! Reads pipes in turns.
//!
//! The kernel reports a pipe once when bytes arrive (edge-triggered epoll), so each pipe is read until a read would
//! block. A short read does not mean that the pipe is empty: if the writer has set `O_DIRECT`, each read returns one
//! packet (pipe(7)), and each read of a terminal returns at most 4 KiB.

use std::time::{Duration, Instant};

use mio::Token;
use nix::errno::Errno;
use nix::unistd::read;

use super::actor::Actor;
use super::batch::Operation;
use super::pipe::{Drain, Pipe, PipeKind};
use crate::clock::wall;
use crate::logs::Writing;
use crate::metrics::METRICS;
use crate::model::RunKey;
use tl_os::pipe::is_at_end;

/// Maximum number of reads and of bytes from one pipe before the other pipes are read.
const TURN: (usize, usize) = (16, 1 << 20);

/// The outcome of one read.
enum ReadOutcome {
    Bytes(usize),
    /// No bytes now. The kernel reports the pipe when more arrive.
    Nothing,
    /// The end of the output.
    End,
    /// No batch has room, or an earlier run of the unit must be read first: nothing was read.
    Stalled,
}

impl Actor {
    pub(super) fn read_output(&mut self, token: Token) {
        let Some(key) = self.pipes.get(&token).map(|pipe| pipe.run) else { return };
        let may_open_again = self.is_open_terminal(key);
        if may_open_again && self.pausing.iter().any(|(_, pausing)| *pausing == token) {
            return;
        }
        let (mut reads, mut all) = (0, 0);
        while reads < TURN.0 && all < TURN.1 {
            let Some(Pipe { kind: PipeKind::Output { drain, .. }, .. }) = self.pipes.get(&token) else { return };
            if *drain == Drain::Held {
                return self.close_if_at_end(token);
            }
            // The log is not at rest while bytes are neither in the pipe nor in a batch.
            let reading = self.runs.get(&key).map(|run| Writing::new(&run.log));
            let outcome = self.read_once(token, key, may_open_again);
            if let ReadOutcome::Bytes(count) = outcome {
                (reads, all) = (reads + 1, all + count);
                if self.take(token, key, count) {
                    drop(reading);
                    return self.end_drain_of(token);
                }
                continue;
            }
            drop(reading);
            match outcome {
                ReadOutcome::Bytes(_) => {}
                ReadOutcome::Nothing => {
                    self.pause(token, all);
                    return self.end_drain_of(token);
                }
                ReadOutcome::End => return self.close(token),
                ReadOutcome::Stalled => return self.stall(token),
            }
        }
        if !self.pause(token, all) {
            self.again(token);
        }
    }

    /// Reads a pipe into the current batch, or a terminal into the buffer of this thread.
    fn read_once(&mut self, token: Token, key: RunKey, may_open_again: bool) -> ReadOutcome {
        let waits = self.waits_for_earlier_run(key);
        let Some(pipe) = self.pipes.get(&token) else { return ReadOutcome::End };
        let is_terminal = self.runs.get(&key).is_some_and(|run| run.terminal.is_some());
        let room = if is_terminal {
            &mut self.buffer
        } else {
            match self.logs.for_reading() {
                Some(batch) if !waits => batch.room(),
                // The descriptor of such a pipe is free before the disk responds.
                _ if is_at_end(&*pipe.fd) => return ReadOutcome::End,
                _ => return ReadOutcome::Stalled,
            }
        };
        loop {
            return match read(&*pipe.fd, room) {
                Ok(0) => ReadOutcome::End,
                Ok(count) => ReadOutcome::Bytes(count),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => ReadOutcome::Nothing,
                // EIO means that no process has the terminal open; its leader may open it again.
                Err(Errno::EIO) if may_open_again => ReadOutcome::Nothing,
                Err(Errno::EIO) => ReadOutcome::End,
                Err(errno) => {
                    log::error!("unit {}: reading a pipe: {errno}", key.0);
                    ReadOutcome::End
                }
            };
        }
    }

    /// Processes the `count` bytes that were read from this pipe. Returns true if they include the last ones for the
    /// drain of its run. Bytes beyond those are kept until the run has ended.
    fn take(&mut self, token: Token, key: RunKey, count: usize) -> bool {
        let Some(pipe) = self.pipes.get_mut(&token) else { return false };
        let Pipe { fd, kind: PipeKind::Output { stream, drain, surplus }, capacity, .. } = pipe else { return false };
        let Some(run) = self.runs.get(&key) else { return false };
        let mut now = count;
        if let Drain::Left(left) = drain {
            now = count.min(*left);
            *left -= now;
        }
        let ended = *drain == Drain::Left(0);
        METRICS.read(run.terminal.is_none().then_some(*stream), count);
        if let Some(terminal) = &run.terminal {
            let bytes = self.buffer.get(..count).unwrap_or_default();
            let (bytes, more) = bytes.split_at(now.min(bytes.len()));
            surplus.extend_from_slice(more);
            terminal.append(bytes);
            return ended;
        }
        capacity.note_read(&**fd, count, &self.large_pipes);
        // An unfinished line of an earlier run ends before the output of this run.
        let is_first = self.last_run.insert(key.0, key.1) != Some(key.1) && key.1 > 1;
        let cut = is_first.then(|| Operation::Cut(Writing::new(&run.log), wall()));
        self.logs.append_read(Writing::new(&run.log), *stream, now, count, surplus, cut);
        ended
    }

    /// Closes a pipe that is not read during the drain of its run, if it is at its end. Such a drain can last as long as
    /// the disk stalls; the descriptor is free earlier.
    fn close_if_at_end(&mut self, token: Token) {
        let Some(Pipe { fd, run, kind: PipeKind::Output { surplus, .. }, .. }) = self.pipes.get(&token) else { return };
        let is_terminal = self.runs.get(run).is_some_and(|run| run.terminal.is_some());
        if !is_terminal && surplus.is_empty() && self.logs.for_reading().is_none() && is_at_end(&**fd) {
            self.close(token);
        }
    }

    /// Queues the pipe to be read again when a batch has room.
    fn stall(&mut self, token: Token) {
        if let Some(pipe) = self.pipes.get_mut(&token)
            && !std::mem::replace(&mut pipe.queued, true)
        {
            self.stalled.push(token);
        }
    }

    /// Pauses reading of a terminal if a viewer must catch up, after `bytes` bytes were read. Returns whether it does.
    fn pause(&mut self, token: Token, bytes: usize) -> bool {
        let Some(key) = self.pipes.get(&token).map(|source| source.run) else { return false };
        if !self.is_open_terminal(key) {
            return false;
        }
        let terminal = self.runs.get(&key).and_then(|run| run.terminal.as_ref());
        let pause = terminal.and_then(|terminal| terminal.pause(bytes));
        self.pausing.extend(pause.map(|pause| (Instant::now() + pause, token)));
        pause.is_some()
    }

    /// Time until the first pause ends.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        let first = self.pausing.iter().map(|(until, _)| *until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    pub(super) fn end_pauses(&mut self) {
        if self.pausing.is_empty() {
            return;
        }
        let now = Instant::now();
        let (over, left): (Vec<_>, Vec<_>) = self.pausing.drain(..).partition(|(until, _)| *until <= now);
        self.pausing = left;
        over.into_iter().for_each(|(_, token)| self.again(token));
    }
}
