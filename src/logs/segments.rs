//! The list of the segments of one log: where each begins, how long it is, and where its records are stored.
//!
//! This state is under the log's lock and does no I/O: the writer creates, writes and removes files without the lock,
//! and publishes each result here. So a reader never waits because the writer waits for the disk.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use memchr::{memchr, memrchr};

use super::memory::Packed;
use super::record::{HEADER, Header, Kept, LogPosition, OpenLine, PerStream, RecordKind, Snapshot};
use super::segment::{Segment, Storage};
use crate::model::Stream;

/// Number of bytes, in whole lines, that are kept in memory while the disk fails. Also the number of bytes, with
/// headers, after which the disk is tried again.
pub(super) const MEMORY: u64 = 64 * 1024;
/// Number of bytes that are kept in memory if the last line alone is longer than [`MEMORY`].
const MEMORY_AT_MOST: u64 = 2 * MEMORY;
/// Maximum number of output bytes of a segment in memory.
const MEMORY_SEGMENT: usize = 8 * 1024;
/// Maximum size of a segment in memory with headers of their full size, in bytes.
pub(super) const MEMORY_SEGMENT_UNPACKED: u64 = 64 * 1024;

/// What is at a position of a log.
pub(super) enum Located {
    /// The position is the bound of the reader.
    AtEnd,
    /// The record at the position was dropped; the log continues at this place.
    Dropped(Kept),
    /// `len` bytes, up to the end of the segment, the end of the log, or the requested maximum.
    Here { number: u64, segment_end: u64, offset: u64, len: u64, source: Source },
}

/// The source from which the bytes of a segment are read.
pub(super) enum Source {
    /// The open file of the segment that is being written.
    Active(Arc<File>),
    /// The file of the segment, to be opened.
    Closed,
    /// A copy of the bytes.
    Memory(Vec<u8>),
}

/// The newest segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    pub(super) number: u64,
    pub(super) len: u64,
    pub(super) is_file: bool,
    /// Whether its last record is the last one of the log. It is not if a newer segment was damaged, and dropped.
    pub(super) is_end: bool,
}

/// A segment that was removed from the list. Must be dropped without the lock, because closing a file can block.
#[derive(Debug)]
#[must_use = "its file still exists"]
pub(super) struct Removed {
    /// The number of its file, if it had one.
    pub(super) file: Option<u64>,
    /// Size of that file, in bytes.
    pub(super) len: u64,
    /// Its open file, if it was being written.
    pub(super) active: Option<Arc<File>>,
}

/// The segments of one log, oldest first.
#[derive(Debug, Default)]
pub(super) struct Segments {
    segments: VecDeque<Segment>,
    /// The file of the newest segment, while it is open for appending.
    active: Option<Arc<File>>,
    /// Total size of all segments that are files, in bytes.
    used: u64,
    /// The end of the log.
    end: LogPosition,
    /// Its unfinished lines; None if there are none, as in most logs.
    open: Option<Box<PerStream<Option<OpenLine>>>>,
}

impl Segments {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { end: self.end, open: self.open.as_deref().copied().unwrap_or_default() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn newest(&self) -> Option<Newest> {
        let segment = self.segments.back()?;
        let is_end = segment.end() == self.end.at;
        Some(Newest { number: segment.number, len: segment.len, is_file: segment.is_file(), is_end })
    }

    pub(super) fn active(&self) -> Option<Arc<File>> {
        self.active.clone()
    }

    /// Replaces the open file of the newest segment. Returns the old one, which must be dropped without the lock.
    pub(super) fn set_active(&mut self, file: Option<Arc<File>>) -> Option<Arc<File>> {
        std::mem::replace(&mut self.active, file)
    }

    /// Whether a cut would write a record.
    pub(super) fn has_open_line(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the log can end here without a record.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.has_open_line() && self.is_on_disk()
    }

    /// Whether no segment is in memory because the disk fails.
    pub(super) fn is_on_disk(&self) -> bool {
        self.newest().is_none_or(|newest| newest.is_file)
    }

    /// The sizes of its files in bytes, oldest first.
    pub(super) fn file_sizes(&self) -> Vec<u64> {
        self.segments.iter().filter(|segment| segment.is_file()).map(|segment| segment.len).collect()
    }

    /// The number of the oldest segment that is a file.
    pub(super) fn oldest_file(&self) -> Option<u64> {
        self.segments.iter().find(|segment| segment.is_file()).map(|segment| segment.number)
    }

    /// Removes all segments. Returns the numbers of all files, the open file, and the total size of all files.
    pub(super) fn clear(&mut self) -> (Vec<u64>, Option<Arc<File>>, u64) {
        let files = self.segments.drain(..).filter(|segment| segment.is_file());
        let numbers = files.map(|segment| segment.number).collect();
        (numbers, self.active.take(), std::mem::take(&mut self.used))
    }

    fn push(&mut self, segment: Segment) {
        // Most logs have one segment.
        if self.segments.is_empty() {
            self.segments.reserve_exact(1);
        }
        self.segments.push_back(segment);
    }

    /// Adds a segment for a new file. Returns the old open file, which must be dropped without the lock.
    pub(super) fn push_file(&mut self, number: u64, file: Arc<File>) -> Option<Arc<File>> {
        self.push(Segment::new(number, self.snapshot(), Storage::File));
        self.set_active(Some(file))
    }

    /// Records that a record was written to the file of segment `number`. Returns false if that segment was dropped
    /// meanwhile: the record is lost with it.
    pub(super) fn written(&mut self, number: u64, header: Header, bytes: &[u8], index_every: u64) -> bool {
        let is_kept = self.segments.back().is_some_and(|newest| newest.number == number);
        if is_kept {
            self.used += (HEADER + bytes.len()) as u64;
        }
        self.advance(is_kept, header, bytes, index_every);
        is_kept
    }

    /// Counts a record at the end of the log, which is in the newest segment if `is_kept`.
    fn advance(&mut self, is_kept: bool, header: Header, bytes: &[u8], index_every: u64) {
        let Snapshot { end, mut open } = self.snapshot();
        let mut segment = if is_kept { self.segments.back_mut() } else { None };
        if let Some(segment) = &mut segment {
            segment.note(end, index_every);
            segment.len += (HEADER + bytes.len()) as u64;
        }
        match header.kind {
            RecordKind::Output(stream) => {
                let before = *end.counts.get(stream);
                let after = |newline: usize| before + newline as u64 + 1;
                let open = open.get_mut(stream);
                match memrchr(b'\n', bytes) {
                    Some(last) => {
                        let unfinished = last + 1 < bytes.len();
                        *open = unfinished.then_some(OpenLine { record: end, from: after(last) });
                        if let Some(segment) = segment {
                            // Searched once per segment, so that appending stays cheap.
                            let first_line = segment.first_line.get_mut(stream);
                            *first_line = first_line.or_else(|| memchr(b'\n', bytes).map(after));
                        }
                    }
                    None => *open = open.or(Some(OpenLine { record: end, from: before })),
                }
            }
            RecordKind::Cut => {
                open = PerStream::default();
                if let Some(segment) = segment {
                    for stream in [Stream::Stdout, Stream::Stderr] {
                        segment.first_line.get_mut(stream).get_or_insert(*end.counts.get(stream));
                    }
                }
            }
        }
        self.end = end.after(header);
        match &mut self.open {
            Some(kept) if open != PerStream::default() => **kept = open,
            kept => *kept = (open != PerStream::default()).then(|| Box::new(open)),
        }
    }

    /// Appends a record in memory. New segments get their numbers from `next_number`.
    pub(super) fn append_in_memory(
        &mut self,
        next_number: &mut u64,
        header: Header,
        bytes: &[u8],
        segment_size: u64,
        index_every: u64,
    ) {
        let most = MEMORY_SEGMENT_UNPACKED.min(segment_size);
        let longest = MEMORY_SEGMENT.min((most as usize).saturating_sub(HEADER));
        let mut rest = bytes;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(longest));
            let size = (HEADER + piece.len()) as u64;
            let fits = |segment: &Segment| {
                matches!(&segment.storage, Storage::Memory(packed) if packed.output() + piece.len() <= MEMORY_SEGMENT)
                    && segment.len + size <= most
            };
            if !self.segments.back().is_some_and(fits) {
                if let Some(Segment { storage: Storage::Memory(packed), .. }) = self.segments.back_mut() {
                    packed.shrink();
                }
                let memory = Storage::Memory(Packed::default());
                self.push(Segment::new(*next_number, self.snapshot(), memory));
                *next_number += 1;
            }
            let header = Header { len: piece.len() as u32, ..header };
            if let Some(Segment { storage: Storage::Memory(packed), .. }) = self.segments.back_mut() {
                packed.push(header, piece);
            }
            self.advance(true, header, piece, index_every);
            self.bound_memory();
            rest = more;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Drops the oldest segments in memory that the last 64 KiB of whole lines do not need.
    fn bound_memory(&mut self) {
        let end = self.end;
        let after = |counts: PerStream<u64>| {
            end.counts.out.saturating_sub(counts.out) + end.counts.err.saturating_sub(counts.err)
        };
        while let Some(first) = self.segments.iter().position(|segment| !segment.is_file())
            && let Some(second) = self.segments.get(first + 1)
        {
            // Only bytes from the beginning of a line count: the rest of a line that has lost its beginning is useless.
            let lines = |stream| self.first_line(first + 1, stream).unwrap_or(*end.counts.get(stream));
            let lines = PerStream { out: lines(Stream::Stdout), err: lines(Stream::Stderr) };
            if after(lines) < MEMORY && after(second.start.counts) < MEMORY_AT_MOST {
                return;
            }
            self.segments.remove(first);
        }
    }

    /// The oldest segment in memory: its number, and its records in the format of a file.
    pub(super) fn oldest_in_memory(&self) -> Option<(u64, Vec<u8>)> {
        self.segments.iter().find_map(|segment| match &segment.storage {
            Storage::Memory(packed) => Some((segment.number, packed.unpacked())),
            Storage::File => None,
        })
    }

    /// Records that a segment in memory was written to a file. Returns false if it was dropped meanwhile.
    pub(super) fn memory_written(&mut self, number: u64) -> bool {
        match self.segments.iter_mut().find(|segment| segment.number == number) {
            Some(segment) if !segment.is_file() => {
                segment.storage = Storage::File;
                self.used += segment.len;
                true
            }
            _ => false,
        }
    }

    /// Moves the records of the newest segment, `number`, from its file to memory. Returns false if it is not a file or
    /// was dropped meanwhile.
    pub(super) fn file_to_memory(&mut self, number: u64, packed: Packed) -> bool {
        match self.segments.back_mut() {
            Some(segment) if segment.number == number && segment.is_file() => {
                segment.storage = Storage::Memory(packed);
                self.used = self.used.saturating_sub(segment.len);
                true
            }
            _ => false,
        }
    }

    /// Removes a segment from the list.
    pub(super) fn remove(&mut self, number: u64) -> Option<Removed> {
        let at = self.segments.iter().position(|segment| segment.number == number)?;
        let newest = at + 1 == self.segments.len();
        let segment = self.segments.remove(at)?;
        let active = if newest { self.active.take() } else { None };
        let file = segment.is_file().then_some(segment.number);
        if file.is_some() {
            self.used = self.used.saturating_sub(segment.len);
        }
        Some(Removed { file, len: segment.len, active })
    }

    /// What is at `at`, up to `limit` and at most `most` bytes. Bytes in memory are copied.
    pub(super) fn locate(&self, at: u64, limit: LogPosition, most: u64) -> Located {
        if at >= limit.at {
            return Located::AtEnd;
        }
        let Some((i, segment)) = self.find(at).filter(|(_, segment)| segment.start.at < limit.at) else {
            return Located::Dropped(Kept { record: limit, lines: limit.counts });
        };
        let Some(offset) = at.checked_sub(segment.start.at) else {
            return Located::Dropped(self.kept_from(i, segment.start, limit));
        };
        let len = segment.end().min(limit.at).saturating_sub(at).min(most);
        let source = match (&segment.storage, &self.active) {
            (Storage::Memory(packed), _) => {
                let bytes = packed.unpacked();
                Source::Memory(bytes.get(offset as usize..(offset + len) as usize).unwrap_or_default().to_vec())
            }
            (Storage::File, Some(file)) if i + 1 == self.segments.len() => Source::Active(Arc::clone(file)),
            (Storage::File, _) => Source::Closed,
        };
        Located::Here { number: segment.number, segment_end: segment.end(), offset, len, source }
    }

    /// The segment that contains `at`, or the next one after it.
    fn find(&self, at: u64) -> Option<(usize, &Segment)> {
        let i = self.segments.partition_point(|segment| segment.end() <= at);
        self.segments.get(i).map(|segment| (i, segment))
    }

    /// The last indexed start of a record that is not after `at`; None if `at` was dropped or is beyond the end.
    pub(super) fn floor(&self, at: u64) -> Option<LogPosition> {
        let (_, segment) = self.find(at)?;
        (segment.start.at <= at).then(|| segment.floor(at))
    }

    /// The start of the oldest record that is kept.
    pub(super) fn oldest(&self) -> LogPosition {
        self.segments.front().map_or(self.end, |segment| segment.start)
    }

    /// The kept part of the log up to `limit`.
    pub(super) fn kept(&self, limit: LogPosition) -> Kept {
        self.kept_from(0, self.oldest(), limit)
    }

    /// The kept part of the log from `record`, the start of the segment with this index, up to `limit`.
    fn kept_from(&self, i: usize, record: LogPosition, limit: LogPosition) -> Kept {
        let line = |stream| {
            let begins = self.first_line(i, stream).filter(|begins| begins < limit.counts.get(stream));
            begins.unwrap_or(*record.counts.get(stream))
        };
        Kept { record, lines: PerStream { out: line(Stream::Stdout), err: line(Stream::Stderr) } }
    }

    /// Number of bytes of the stream before the first line that begins in the segment with this index or later.
    fn first_line(&self, i: usize, stream: Stream) -> Option<u64> {
        self.segments.range(i.min(self.segments.len())..).find_map(|segment| *segment.first_line.get(stream))
    }

    /// Number of bytes that are kept in memory.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let size = |segment: &Segment| match &segment.storage {
            Storage::Memory(packed) => size_of::<Segment>() + packed.size(),
            Storage::File => 0,
        };
        self.segments.iter().map(size).sum()
    }
}
