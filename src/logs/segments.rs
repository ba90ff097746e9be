//! The segments of one log: appending, dropping, and finding a place. Everything here is under the log's lock.
//!
//! A failed write loses nothing that was written before: readers look only at what is counted here, and the record
//! that failed goes to memory. Memory keeps the last 64 KiB of output, and becomes files as soon as the disk allows.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memchr::{memchr, memrchr};

use crate::logs::memory::Packed;
use crate::logs::record::{HEADER, Header, Kept, Kind, PerStream, Place};
use crate::logs::segment::{Body, Segment, take_back, write_record};
use crate::logs::store::Disk;
use crate::model::{Millis, Stream, UnitId};

/// Output kept in memory while the disk is full, in bytes of whole lines; and how much (with headers) has to pass before
/// the disk is tried again.
const MEMORY: u64 = 64 * 1024;
/// The same with what is left of a torn line.
const MEMORY_AT_MOST: u64 = 2 * MEMORY;
/// Output of a segment in memory, in bytes.
const MEMORY_SEGMENT: usize = 8 * 1024;
/// The most that a segment in memory has with headers, in bytes.
pub(super) const MEMORY_SEGMENT_UNPACKED: u64 = 64 * 1024;

/// What a chain needs to know of its surroundings.
#[derive(Clone, Copy)]
pub(super) struct Home<'a> {
    pub(super) disk: &'a Disk,
    pub(super) unit: UnitId,
    pub(super) truncated: &'a AtomicBool,
}

/// The unfinished line of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// The record with its first byte.
    pub(super) place: Place,
    /// Bytes of the stream before its first.
    pub(super) from: u64,
}

/// Where a log ends, as of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) end: Place,
    pub(super) open: PerStream<Option<Open>>,
}

/// What there is at a position.
pub(super) enum Located {
    /// Nothing yet.
    AtEnd,
    /// It was dropped; the log goes on there.
    Dropped(Kept),
    /// So many bytes, up to the end of the segment or of the log or of what was asked for.
    Here { number: u64, segment_end: u64, offset: u64, len: u64, source: Source },
}

/// Where to read.
pub(super) enum Source {
    /// The file that is being appended to.
    Active(Arc<File>),
    /// A file to be opened.
    Closed,
    /// These bytes.
    Memory(Vec<u8>),
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) segments: VecDeque<Segment>,
    /// Of the newest segment, while it is open for appending.
    pub(super) file: Option<Arc<File>>,
    next_number: u64,
    /// Of all its files, in bytes.
    pub(super) used: u64,
    snapshot: Snapshot,
    last_time: Millis,
    /// The disk has failed: bytes that passed since it was tried last, with headers.
    failing: Option<u64>,
}

impl Chain {
    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    pub(super) fn last_time(&self) -> Millis {
        self.last_time
    }

    /// The sizes of its files in bytes, oldest first.
    pub(super) fn file_sizes(&self) -> Vec<u64> {
        self.segments.iter().filter(|segment| segment.is_file()).map(|segment| segment.len).collect()
    }

    pub(super) fn append(&mut self, home: Home<'_>, time: Millis, stream: Stream, bytes: &[u8]) {
        let Ok(len) = u32::try_from(bytes.len()) else { return };
        self.write(home, Header { kind: Kind::Output(stream), len, time }, bytes);
    }

    /// Ends the unfinished lines, if there are any.
    pub(super) fn cut(&mut self, home: Home<'_>, time: Millis) {
        if self.snapshot.open != PerStream::default() {
            self.write(home, Header { kind: Kind::Cut, len: 0, time }, &[]);
        }
    }

    fn write(&mut self, home: Home<'_>, header: Header, bytes: &[u8]) {
        self.last_time = header.time;
        if self.failing.is_some_and(|passed| passed >= MEMORY) {
            self.retry(home);
        }
        if self.failing.is_none() {
            let Err(error) = self.write_file(home, header, bytes) else { return };
            self.fail(home, &error);
        }
        self.write_memory(home, header, bytes);
    }

    /// From now on output goes to memory.
    fn fail(&mut self, home: Home<'_>, error: &io::Error) {
        self.file = None;
        if self.failing.replace(0).is_none() {
            home.truncated.store(true, Ordering::Relaxed);
            log::warn!("the log of unit {} is kept in memory: {error}", home.unit);
        }
    }

    fn write_file(&mut self, home: Home<'_>, header: Header, bytes: &[u8]) -> io::Result<()> {
        let need = (HEADER + bytes.len()) as u64;
        while self.used + need > home.disk.per_unit && self.drop_oldest(home) {}
        let file = self.writable(home, need)?;
        let Some(segment) = self.segments.back_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(error) = write_record(&file, &header.encode(), bytes) {
            let len = segment.len;
            if len == 0 {
                let number = segment.number;
                self.segments.pop_back();
                let _ = fs::remove_file(home.disk.path(home.unit, number));
            } else {
                let _ = take_back(&file, len);
            }
            return Err(error);
        }
        self.used += need;
        home.disk.used.fetch_add(need, Ordering::Relaxed);
        self.advance(home, header, bytes);
        Ok(())
    }

    /// The record is at the end of the newest segment.
    fn advance(&mut self, home: Home<'_>, header: Header, bytes: &[u8]) {
        let Some(segment) = self.segments.back_mut() else { return };
        let Snapshot { end: place, open } = &mut self.snapshot;
        segment.note(*place, home.disk.index_every);
        segment.len += (HEADER + bytes.len()) as u64;
        match header.kind {
            Kind::Output(stream) => {
                let before = *place.counts.get(stream);
                let after = |newline: usize| before + newline as u64 + 1;
                let open = open.get_mut(stream);
                match memrchr(b'\n', bytes) {
                    Some(last) => {
                        let unfinished = last + 1 < bytes.len();
                        *open = unfinished.then_some(Open { place: *place, from: after(last) });
                        // Once in a segment: the writer looks at no byte twice for this.
                        let whole = segment.whole.get_mut(stream);
                        *whole = whole.or_else(|| memchr(b'\n', bytes).map(after));
                    }
                    None => *open = open.or(Some(Open { place: *place, from: before })),
                }
            }
            Kind::Cut => {
                *open = PerStream::default();
                for stream in [Stream::Stdout, Stream::Stderr] {
                    segment.whole.get_mut(stream).get_or_insert(*place.counts.get(stream));
                }
            }
        }
        *place = place.after(header);
    }

    /// The file to append `need` bytes to: that of the newest segment, or a new one.
    fn writable(&mut self, home: Home<'_>, need: u64) -> io::Result<Arc<File>> {
        self.rescue_removed(home)?;
        if let Some(segment) = self.segments.back()
            && segment.is_file()
            && segment.len + need <= home.disk.segment
        {
            if let Some(file) = &self.file {
                return Ok(Arc::clone(file));
            }
            if let Ok(file) = reopen(home, segment) {
                return Ok(Arc::clone(self.file.insert(Arc::new(file))));
            }
        }
        let number = self.next_number;
        let file = Arc::new(create(home, number)?);
        self.next_number += 1;
        self.segments.push_back(Segment::new(number, self.snapshot, Body::File));
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn write_memory(&mut self, home: Home<'_>, header: Header, bytes: &[u8]) {
        self.failing = self.failing.map(|passed| passed + (HEADER + bytes.len()) as u64);
        let most = MEMORY_SEGMENT_UNPACKED.min(home.disk.segment);
        let longest = MEMORY_SEGMENT.min((most as usize).saturating_sub(HEADER));
        let mut rest = bytes;
        loop {
            let (piece, more) = rest.split_at(rest.len().min(longest));
            let size = (HEADER + piece.len()) as u64;
            let fits = |segment: &Segment| {
                matches!(&segment.body, Body::Memory(packed) if packed.output() + piece.len() <= MEMORY_SEGMENT)
                    && segment.len + size <= most
            };
            if !self.segments.back().is_some_and(fits) {
                if let Some(Segment { body: Body::Memory(packed), .. }) = self.segments.back_mut() {
                    packed.shrink();
                }
                self.segments.push_back(Segment::new(self.next_number, self.snapshot, Body::Memory(Packed::default())));
                self.next_number += 1;
            }
            let header = Header { len: piece.len() as u32, ..header };
            if let Some(Segment { body: Body::Memory(packed), .. }) = self.segments.back_mut() {
                packed.push(header, piece);
            }
            self.advance(home, header, piece);
            self.bound_memory();
            rest = more;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Lets the oldest segments in memory go that the last 64 KiB of whole lines do not need.
    fn bound_memory(&mut self) {
        let end = self.snapshot.end;
        let after = |counts: PerStream<u64>| {
            end.counts.out.saturating_sub(counts.out) + end.counts.err.saturating_sub(counts.err)
        };
        while let Some(first) = self.segments.iter().position(|segment| !segment.is_file())
            && let Some(second) = self.segments.get(first + 1)
        {
            // A line that goes on to the end may lose its beginning, and would be of no use then.
            let lines = |stream| self.first_line(first + 1, stream).unwrap_or(*end.counts.get(stream));
            let lines = PerStream { out: lines(Stream::Stdout), err: lines(Stream::Stderr) };
            if after(lines) < MEMORY && after(second.start.counts) < MEMORY_AT_MOST {
                return;
            }
            self.segments.remove(first);
        }
    }

    /// Tries to bring what is in memory to the disk.
    pub(super) fn retry(&mut self, home: Home<'_>) {
        if self.failing.is_none() {
            return;
        }
        self.failing = Some(0);
        while let Some(first) = self.segments.iter().position(|segment| !segment.is_file()) {
            let Some(Segment { number, len, body: Body::Memory(packed), .. }) = self.segments.get(first) else {
                return;
            };
            let (number, len) = (*number, *len);
            let written = create(home, number).and_then(|file| (&file).write_all(&packed.unpacked()).map(|()| file));
            let Ok(file) = written else {
                self.file = None;
                let _ = fs::remove_file(home.disk.path(home.unit, number));
                return;
            };
            if let Some(segment) = self.segments.get_mut(first) {
                segment.body = Body::File;
            }
            self.file = Some(Arc::new(file));
            self.used += len;
            home.disk.used.fetch_add(len, Ordering::Relaxed);
            while self.used > home.disk.per_unit && self.drop_oldest(home) {}
        }
        self.failing = None;
        log::info!("the log of unit {} is on disk again", home.unit);
    }

    /// Drops the oldest file; false when there is none.
    pub(super) fn drop_oldest(&mut self, home: Home<'_>) -> bool {
        match self.segments.iter().position(Segment::is_file) {
            Some(at) => {
                self.remove(home, at);
                true
            }
            None => false,
        }
    }

    /// The file of this segment is gone or is not what was written: what is left of it is dropped.
    pub(super) fn damaged(&mut self, home: Home<'_>, number: u64) {
        if let Some(at) = self.segments.iter().position(|segment| segment.number == number) {
            // What went with the directory was told once, for all of it.
            let level = if home.disk.remade.load(Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "segment {number} of the log of unit {} was damaged", home.unit);
            self.remove(home, at);
        }
    }

    pub(super) fn remove(&mut self, home: Home<'_>, at: usize) {
        let newest = at + 1 == self.segments.len();
        let Some(segment) = self.segments.remove(at) else { return };
        if newest {
            self.file = None;
        }
        home.truncated.store(true, Ordering::Relaxed);
        if segment.is_file() {
            self.used = self.used.saturating_sub(segment.len);
            home.disk.used.fetch_sub(segment.len, Ordering::Relaxed);
            let _ = fs::remove_file(home.disk.path(home.unit, segment.number));
        }
    }

    /// Removes all files: the log goes.
    pub(super) fn clear(&mut self, home: Home<'_>) {
        self.file = None;
        while self.drop_oldest(home) {}
    }

    pub(super) fn close_file(&mut self, home: Home<'_>) {
        if let Err(error) = self.rescue_unreachable(home) {
            self.fail(home, &error);
        }
        self.file = None;
    }

    /// What there is at `at`, up to `limit`; memory is copied up to `most` bytes.
    pub(super) fn locate(&self, at: u64, limit: Place, most: u64) -> Located {
        if at >= limit.at {
            return Located::AtEnd;
        }
        let Some((i, segment)) = self.find(at).filter(|(_, segment)| segment.start.at < limit.at) else {
            return Located::Dropped(Kept { place: limit, lines: limit.counts });
        };
        let Some(offset) = at.checked_sub(segment.start.at) else {
            return Located::Dropped(self.kept_from(i, segment.start, limit));
        };
        let len = segment.end().min(limit.at).saturating_sub(at).min(most);
        let source = match (&segment.body, &self.file) {
            (Body::Memory(packed), _) => {
                let bytes = packed.unpacked();
                Source::Memory(bytes.get(offset as usize..(offset + len) as usize).unwrap_or_default().to_vec())
            }
            (Body::File, Some(file)) if i + 1 == self.segments.len() => Source::Active(Arc::clone(file)),
            (Body::File, _) => Source::Closed,
        };
        Located::Here { number: segment.number, segment_end: segment.end(), offset, len, source }
    }

    /// The segment that contains `at`, else the next one after it.
    fn find(&self, at: u64) -> Option<(usize, &Segment)> {
        let i = self.segments.partition_point(|segment| segment.end() <= at);
        self.segments.get(i).map(|segment| (i, segment))
    }

    /// The last known start of a record that is not after `at`; None when `at` was dropped or is beyond the end.
    pub(super) fn floor(&self, at: u64) -> Option<Place> {
        let (_, segment) = self.find(at)?;
        (segment.start.at <= at).then(|| segment.floor(at))
    }

    /// The start of the oldest record that is kept.
    pub(super) fn oldest(&self) -> Place {
        self.segments.front().map_or(self.snapshot.end, |segment| segment.start)
    }

    /// What is kept of the log as it was when it ended at `limit`.
    pub(super) fn kept(&self, limit: Place) -> Kept {
        self.kept_from(0, self.oldest(), limit)
    }

    /// The same without what is before `place`, the start of the segment with this index.
    fn kept_from(&self, i: usize, place: Place, limit: Place) -> Kept {
        let line = |stream| {
            let begins = self.first_line(i, stream).filter(|begins| begins < limit.counts.get(stream));
            begins.unwrap_or(*place.counts.get(stream))
        };
        Kept { place, lines: PerStream { out: line(Stream::Stdout), err: line(Stream::Stderr) } }
    }

    /// Bytes of the stream before the first line that begins in the segment with this index or after it.
    fn first_line(&self, i: usize, stream: Stream) -> Option<u64> {
        self.segments.range(i.min(self.segments.len())..).find_map(|segment| *segment.whole.get(stream))
    }

    /// Bytes that are kept in memory.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let size = |segment: &Segment| match &segment.body {
            Body::Memory(packed) => size_of::<Segment>() + packed.size(),
            Body::File => 0,
        };
        self.segments.iter().map(size).sum()
    }
}

/// A new file. What has its name by some accident is removed: the directory is ours alone, and the number was never used.
pub(super) fn create(home: Home<'_>, number: u64) -> io::Result<File> {
    home.disk.ready()?;
    let path = home.disk.path(home.unit, number);
    let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&path).and_then(|()| create()),
        created => created,
    }
}

fn reopen(home: Home<'_>, segment: &Segment) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).open(home.disk.path(home.unit, segment.number))?;
    file.seek(SeekFrom::Start(segment.len))?;
    Ok(file)
}
