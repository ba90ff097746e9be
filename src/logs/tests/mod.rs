//! Tests of logs through their public functions. Each test has a store in its own directory.

mod disk;
mod figures;
mod follow;
mod line_watch;
mod replay;
mod retention;
mod unusual_output;
mod whole_lines;

use std::sync::Arc;

use tempfile::TempDir;

use super::disk::Disk;
pub(super) use super::invariants::{ERR, OUT, Op, VIEWS, apply, model};
use super::record::PerStream;
use super::*;
use crate::logs::lines::Splitter;
use crate::model::{Exit, UnitId};
use tl_os::poll::Waker;

pub(super) const MIB: u64 = 1024 * 1024;

pub(super) fn store(per_unit: u64, total: u64, tune: impl FnOnce(&mut Disk)) -> (TempDir, Arc<LogStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(&dir.path().join("logs"), LogLimits { per_unit, total }, tune).unwrap();
    (dir, store)
}

pub(super) fn log() -> (TempDir, Arc<OutputLog>) {
    let (dir, store) = store(64 * MIB, 256 * MIB, |_| {});
    (dir, store.create(UnitId(1)))
}

impl OutputLog {
    fn finish_now(&self, end: RunEnd) {
        self.finish(self.epoch(), end);
    }

    fn begin_again(&self) {
        self.revoke_end();
        self.reopen();
    }
}

pub(super) fn waker() -> Arc<Waker> {
    Arc::new(Waker::new().unwrap())
}

pub(super) fn end(ended_at: Millis) -> RunEnd {
    RunEnd { exit: Exit::Code(0), timed_out: false, ended_at }
}

/// All items that a follower can read now.
pub(super) fn drain(follower: &mut Follower) -> Vec<Item> {
    std::iter::from_fn(|| follower.try_next()).collect()
}

pub(super) fn follow(log: &Arc<OutputLog>, view: View, from: StartAt) -> Vec<Item> {
    drain(&mut log.follow(view, from, waker()))
}

pub(super) fn texts(lines: impl IntoIterator<Item = Line>) -> Vec<String> {
    lines.into_iter().map(|line| line.text).collect()
}

/// The texts of the kept lines, read as a response of the HTTP API is: some without a copy, at most `most` at a time.
pub(super) fn texts_without_copies(log: &Arc<OutputLog>, view: View, tail: Option<u64>, most: usize) -> Vec<String> {
    let (mut lines, mut texts) = (log.lines(view, tail), Vec::new());
    loop {
        let mut left = most;
        lines.short_texts(|text| {
            texts.push(text.to_owned());
            left -= 1;
            left > 0
        });
        texts.push(match lines.next_text() {
            Some(LineText::Short(text)) => text,
            Some(LineText::Long(mut long)) => {
                let mut text = String::new();
                while let Text::Piece(piece) = long.next().unwrap() {
                    text.push_str(&piece);
                }
                text
            }
            None => break texts,
        });
    }
}

pub(super) fn lines_of(items: &[Item]) -> Vec<Line> {
    let line = |item: &Item| match item {
        Item::Line(line, _) => Some(line.clone()),
        _ => None,
    };
    items.iter().filter_map(line).collect()
}

pub(super) fn raw(log: &Arc<OutputLog>, view: View) -> Vec<u8> {
    raw_tail(log, view, None)
}

pub(super) fn raw_tail(log: &Arc<OutputLog>, view: View, tail: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut log.raw(view, tail).unwrap(), &mut bytes).unwrap();
    bytes
}

/// The cursor after an item.
pub(super) fn cursor(item: &Item) -> Cursor {
    match item {
        Item::Line(_, cursor) | Item::Gap { cursor, .. } | Item::End(_, cursor) => *cursor,
    }
}

/// The end, if the last item is one.
pub(super) fn end_of(items: &[Item]) -> Option<RunEnd> {
    match items.last() {
        Some(Item::End(end, _)) => Some(*end),
        _ => None,
    }
}

/// xorshift64: the same numbers in each test run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

pub(super) fn random_ops(random: &mut Random, count: usize) -> Vec<Op> {
    let parts: [&[u8]; 12] = [
        b"a",
        b"bcd",
        b"\n",
        b"x\n",
        b"\n\n",
        b"long long long",
        b"\r",
        b"\0",
        b"\xff",
        b"\xe2\x82",
        "\u{1F600}".as_bytes(),
        "é€".as_bytes(),
    ];
    (0..count)
        .map(|_| match random.below(12) {
            0 => Op::Cut,
            n => {
                let stream = if n < 8 { OUT } else { ERR };
                let bytes = (0..=random.below(5)).flat_map(|_| parts[random.below(parts.len())].to_vec()).collect();
                Op::Append(stream, bytes)
            }
        })
        .collect()
}
