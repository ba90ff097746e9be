//! A stretch of one log: a file, or a little memory while the disk is full.

use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};

use super::memory::Packed;
use super::record::{HEADER, PerStream, Place};
use crate::logs::segments::Snapshot;
use crate::model::Stream;

/// Where the bytes of a segment are.
#[derive(Debug)]
pub(super) enum Body {
    /// In the file `<unit>.<number>`.
    File,
    /// Here.
    Memory(Packed),
}

/// Whole records from `start` on.
#[derive(Debug)]
pub(super) struct Segment {
    /// Counts the segments of one log; never reused.
    pub(super) number: u64,
    /// The place of its first record.
    pub(super) start: Place,
    /// Its size in bytes, headers included.
    pub(super) len: u64,
    pub(super) body: Body,
    /// Bytes of each stream before the first line that begins in here; None while the line that it began with goes on.
    pub(super) whole: PerStream<Option<u64>>,
    index: Vec<Entry>,
}

/// The start of a record, relative to that of the segment (segments are at most 1 GiB).
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u32,
    counts: PerStream<u32>,
    cuts: u32,
}

impl Segment {
    /// An empty one that will begin where the log ends now.
    pub(super) fn new(number: u64, log: Snapshot, body: Body) -> Segment {
        let whole = |stream| match log.open.get(stream) {
            Some(_) => None,
            None => Some(*log.end.counts.get(stream)),
        };
        let whole = PerStream { out: whole(Stream::Stdout), err: whole(Stream::Stderr) };
        Segment { number, start: log.end, len: 0, body, whole, index: Vec::new() }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.body, Body::File)
    }

    /// The position after its last record.
    pub(super) fn end(&self) -> u64 {
        self.start.at + self.len
    }

    /// A record begins at `place`, which is the end of the segment so far: remember it if the last one is far back.
    pub(super) fn note(&mut self, place: Place, every: u64) {
        let last = self.index.last().map_or(0, |entry| u64::from(entry.at));
        if self.len < last + every {
            return;
        }
        let near = |to: u64, from: u64| u32::try_from(to.saturating_sub(from)).ok();
        let start = self.start;
        let entry = || {
            Some(Entry {
                at: near(place.at, start.at)?,
                counts: PerStream {
                    out: near(place.counts.out, start.counts.out)?,
                    err: near(place.counts.err, start.counts.err)?,
                },
                cuts: near(place.cuts, start.cuts)?,
            })
        };
        self.index.extend(entry());
    }

    /// The last known start of a record that is not after `at`.
    pub(super) fn floor(&self, at: u64) -> Place {
        let relative = at.saturating_sub(self.start.at);
        let after = self.index.partition_point(|entry| u64::from(entry.at) <= relative);
        let Some(entry) = after.checked_sub(1).and_then(|i| self.index.get(i)) else { return self.start };
        Place {
            at: self.start.at + u64::from(entry.at),
            counts: PerStream {
                out: self.start.counts.out + u64::from(entry.counts.out),
                err: self.start.counts.err + u64::from(entry.counts.err),
            },
            cuts: self.start.cuts + u64::from(entry.cuts),
        }
    }
}

/// Writes one record at the place of `file`: one `writev(2)`, unless the kernel takes less than all of it.
pub(super) fn write_record(mut file: &File, header: &[u8; HEADER], bytes: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(header), IoSlice::new(bytes)];
    let mut slices = &mut slices[..];
    let mut left = header.len() + bytes.len();
    while left > 0 {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                left = left.saturating_sub(n);
                if left > 0 {
                    IoSlice::advance_slices(&mut slices, n);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes back what a failed write left behind `len`. Readers never look there, so that this is only about the space.
pub(super) fn take_back(mut file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    file.seek(SeekFrom::Start(len)).map(drop)
}
