//! The end of a run: what its leader wrote has been read, to the byte.

use mio::Token;

use super::actor::{Actor, Drain, Kind, Source};
use super::{Notice, RunKey};
use crate::clock::wall;
use tl_os::pipe::bytes_in;
use tl_os::pty::MAX_BUFFERED;

impl Actor {
    /// Everything that the leader wrote has been read, or is in its pipes now: so much is still to be read.
    pub(super) fn drain(&mut self, key: RunKey) {
        if let Some(token) = self.stdin_of(key) {
            self.close(token);
        }
        let Some(run) = self.runs.get_mut(&key) else { return (self.notify)(key, Notice::Drained) };
        run.draining = true;
        let tokens = run.tokens.clone();
        let is_terminal = run.terminal.is_some();
        for token in &tokens {
            if let Some(Source { fd, kind: Kind::Output { drain, .. }, .. }) = self.sources.get_mut(token) {
                // FIONREAD does not see all of what a terminal holds; a read that would block has.
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
    }

    /// The pipe has nothing left for its drain, if there is one.
    pub(super) fn end_drain_of(&mut self, token: Token) {
        let Some(Source { run, kind: Kind::Output { drain, .. }, .. }) = self.sources.get_mut(&token) else { return };
        if !matches!(drain, Drain::Left(_)) {
            return;
        }
        *drain = Drain::Held;
        let key = *run;
        self.end_drain(key);
    }

    /// Ends the drain of a run if none of its pipes has anything left for it.
    pub(super) fn end_drain(&mut self, key: RunKey) {
        let Some(run) = self.runs.get_mut(&key) else { return };
        let is_left = |token| {
            matches!(self.sources.get(token), Some(Source { kind: Kind::Output { drain: Drain::Left(_), .. }, .. }))
        };
        if !run.draining || run.tokens.iter().any(is_left) {
            return;
        }
        run.draining = false;
        run.drained = true;
        if run.terminal.is_some() {
            // As at the end of any login: whoever has it open still gets a hang-up.
            let tokens = run.tokens.clone();
            tokens.into_iter().for_each(|token| self.close(token));
            (self.notify)(key, Notice::Drained);
            return self.end_run(key);
        }
        run.log.cut(wall());
        // What a child of the leader writes from now on comes after the end.
        for token in run.tokens.clone() {
            if let Some(Source { kind: Kind::Output { stream, drain, surplus }, .. }) = self.sources.get_mut(&token) {
                *drain = Drain::Open;
                let (stream, surplus) = (*stream, std::mem::take(surplus));
                if !surplus.is_empty() {
                    self.append(key, stream, &surplus);
                }
                self.again(token);
            }
        }
        (self.notify)(key, Notice::Drained);
        self.end_run(key);
    }
}
