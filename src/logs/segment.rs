//! One segment of a log: consecutive records in one file, or in memory while the disk fails.

use super::memory::Packed;
use super::record::{LogPosition, PerStream, Snapshot};
use crate::model::Stream;

/// The storage of the records of a segment.
#[derive(Debug)]
pub(super) enum Storage {
    /// In the file `<unit>.<number>`.
    File,
    Memory(Packed),
}

/// A segment: whole records from `start` on.
#[derive(Debug)]
pub(super) struct Segment {
    /// Unique among all segments that the log has ever had, and increasing.
    pub(super) number: u64,
    /// The start of its first record.
    pub(super) start: LogPosition,
    /// Its size in bytes, headers included.
    pub(super) len: u64,
    pub(super) storage: Storage,
    /// Number of bytes of each stream before the first line that begins in this segment; None if no line does.
    pub(super) first_line: PerStream<Option<u64>>,
    index: Vec<IndexEntry>,
}

/// The start of a record, relative to the start of the segment. A segment has at most 1 GiB.
#[derive(Clone, Copy, Debug)]
struct IndexEntry {
    at: u32,
    counts: PerStream<u32>,
    cuts: u32,
}

impl Segment {
    /// An empty segment that begins where the log ends.
    pub(super) fn new(number: u64, log: Snapshot, storage: Storage) -> Segment {
        let first_line = |stream| match log.open.get(stream) {
            Some(_) => None,
            None => Some(*log.end.counts.get(stream)),
        };
        let first_line = PerStream { out: first_line(Stream::Stdout), err: first_line(Stream::Stderr) };
        Segment { number, start: log.end, len: 0, storage, first_line, index: Vec::new() }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.storage, Storage::File)
    }

    /// The end of its last record, as a number of bytes of records from the beginning of the log.
    pub(super) fn end(&self) -> u64 {
        self.start.at + self.len
    }

    /// Adds the record that begins at `record`, the present end of the segment, to the index if the last entry is at
    /// least `every` bytes before it.
    pub(super) fn note(&mut self, record: LogPosition, every: u64) {
        let last = self.index.last().map_or(0, |entry| u64::from(entry.at));
        if self.len < last + every {
            return;
        }
        let near = |to: u64, from: u64| u32::try_from(to.saturating_sub(from)).ok();
        let start = self.start;
        let entry = || {
            Some(IndexEntry {
                at: near(record.at, start.at)?,
                counts: PerStream {
                    out: near(record.counts.out, start.counts.out)?,
                    err: near(record.counts.err, start.counts.err)?,
                },
                cuts: near(record.cuts, start.cuts)?,
            })
        };
        self.index.extend(entry());
    }

    /// The last indexed start of a record that is not after `at`.
    pub(super) fn floor(&self, at: u64) -> LogPosition {
        let relative = at.saturating_sub(self.start.at);
        let after = self.index.partition_point(|entry| u64::from(entry.at) <= relative);
        let Some(entry) = after.checked_sub(1).and_then(|i| self.index.get(i)) else { return self.start };
        LogPosition {
            at: self.start.at + u64::from(entry.at),
            counts: PerStream {
                out: self.start.counts.out + u64::from(entry.counts.out),
                err: self.start.counts.err + u64::from(entry.counts.err),
            },
            cuts: self.start.cuts + u64::from(entry.cuts),
        }
    }
}
