//! Reading: what may be concluded from one read, and how the pipes share the thread.
//!
//! The kernel reports a pipe once, when something comes (edge-triggered epoll). So each is read until a read would
//! block; a read that gives less than there was room for says nothing. A pipe whose writer has set `O_DIRECT` gives one
//! packet at a time (pipe(7)), and a terminal 4 KiB.

use std::time::{Duration, Instant};

use mio::Token;
use nix::errno::Errno;
use nix::unistd::read;

use super::actor::{Actor, Drain, Kind, Source};
use super::{Notice, RunKey};
use crate::clock::wall;
use crate::model::Stream;
use tl_os::spawn::{ExecFailure, ReportBuffer};

/// Room for one read, in bytes: as much as an unprivileged process can make a pipe hold (pipe(7), `pipe-max-size`).
///
/// A read with less room than the pipe holds may end within a packet, and the kernel discards the rest of that packet.
/// The pages behind what a pipe really holds, 64 KiB by default, are never touched.
pub(super) const ROOM: usize = 1 << 20;

/// Reads and bytes in a row from one pipe before the others have their turn.
const TURN: (usize, usize) = (16, 1 << 20);

/// What one read gave.
enum Got {
    Bytes(usize),
    /// Nothing now: the kernel will tell when there is more.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Actor {
    pub(super) fn read_output(&mut self, token: Token) {
        let Some(key) = self.sources.get(&token).map(|source| source.run) else { return };
        let may_open_again = self.is_open_terminal(key);
        if may_open_again && self.pausing.iter().any(|(_, pausing)| *pausing == token) {
            return;
        }
        let (mut reads, mut all) = (0, 0);
        while reads < TURN.0 && all < TURN.1 {
            let Some(Source { fd, kind: Kind::Output { drain, .. }, .. }) = self.sources.get(&token) else { return };
            if *drain == Drain::Held {
                return;
            }
            let got = match read(fd, &mut self.buffer) {
                Ok(0) => Got::End,
                Ok(count) => Got::Bytes(count),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Got::Nothing,
                // EIO is how a terminal says that nobody has it open; its leader may open it again.
                Err(Errno::EIO) if may_open_again => return,
                Err(Errno::EIO) => Got::End,
                Err(errno) => {
                    log::error!("unit {}: reading a pipe: {errno}", key.0);
                    Got::End
                }
            };
            match got {
                Got::Bytes(count) => {
                    (reads, all) = (reads + 1, all + count);
                    if self.take(token, key, count) {
                        return self.end_drain_of(token);
                    }
                }
                Got::Nothing => {
                    self.pause(token, all);
                    return self.end_drain_of(token);
                }
                Got::End => return self.close(token),
            }
        }
        if !self.pause(token, all) {
            self.again(token);
        }
    }

    /// Takes `count` bytes of the buffer as read from this pipe. True when these are the last for the drain of its run:
    /// what was read beyond that is kept until the run has ended.
    fn take(&mut self, token: Token, key: RunKey, count: usize) -> bool {
        let Some(Source { kind: Kind::Output { stream, drain, surplus }, .. }) = self.sources.get_mut(&token) else {
            return false;
        };
        let mut now = count;
        if let Drain::Left(left) = drain {
            now = count.min(*left);
            *left -= now;
            surplus.extend_from_slice(self.buffer.get(now..count).unwrap_or_default());
        }
        let (stream, ended) = (*stream, *drain == Drain::Left(0));
        // Out of `self` for the call; no allocation.
        let buffer = std::mem::take(&mut self.buffer);
        self.append(key, stream, buffer.get(..now).unwrap_or_default());
        self.buffer = buffer;
        ended
    }

    /// Appends to where the output of a run goes.
    pub(super) fn append(&mut self, key: RunKey, stream: Stream, bytes: &[u8]) {
        let Some(run) = self.runs.get(&key) else { return };
        // What an earlier run left unfinished, or a child of it still writes, is not glued to this.
        if self.last_run.insert(key.0, key.1) != Some(key.1) && key.1 > 1 {
            run.log.cut(wall());
        }
        match &run.terminal {
            Some(terminal) => terminal.append(bytes),
            None => run.log.append(wall(), stream, bytes),
        }
    }

    /// Leaves a terminal alone for a moment that has written so many bytes, if somebody has to catch up; whether it does.
    fn pause(&mut self, token: Token, bytes: usize) -> bool {
        let Some(key) = self.sources.get(&token).map(|source| source.run) else { return false };
        if !self.is_open_terminal(key) {
            return false;
        }
        let terminal = self.runs.get(&key).and_then(|run| run.terminal.as_ref());
        let pause = terminal.and_then(|terminal| terminal.pause(bytes));
        self.pausing.extend(pause.map(|pause| (Instant::now() + pause, token)));
        pause.is_some()
    }

    /// How long until the first pause is over.
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

    /// How an exec went. The report is a single write of a few bytes, which a pipe never splits.
    pub(super) fn read_report(&mut self, token: Token) {
        let Some(Source { fd, run, .. }) = self.sources.get(&token) else { return };
        let (key, mut report) = (*run, ReportBuffer::default());
        let notice = loop {
            match read(fd, &mut report) {
                Ok(count) => break ExecFailure::read(report.get(..count).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => break None,
            }
        };
        self.close(token);
        (self.notify)(key, notice.map_or(Notice::ExecOk, Notice::ExecFailed));
    }
}
