//! The writing side of one log: records go to the file of the newest segment, or to memory while the disk fails.
//!
//! Files are created, written and removed without the log's lock; each result is published under it. A failed write
//! loses no earlier output: readers see only what has been published, and the record that failed goes to memory. The
//! last 64 KiB of output are kept in memory, and written to files as soon as the disk permits.

use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::Disk;
use super::record::{HEADER, Header, RecordKind};
use super::segments::{MEMORY, Newest};
use super::state::LogState;
use crate::model::{Millis, Stream};

/// The log that a writer writes.
#[derive(Clone, Copy)]
pub(super) struct LogContext<'a> {
    pub(super) disk: &'a Disk,
    pub(super) state: &'a LogState,
}

/// The state that only the writer uses.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The number of the next segment.
    next_number: u64,
    /// The time of the last record.
    last_time: Millis,
    /// While the disk fails: the number of bytes, with headers, since the last attempt to write to it.
    failing: Option<u64>,
}

impl Writer {
    pub(super) fn last_time(&self) -> Millis {
        self.last_time
    }

    pub(super) fn append(&mut self, log: LogContext<'_>, time: Millis, stream: Stream, bytes: &[u8]) {
        let Ok(len) = u32::try_from(bytes.len()) else { return };
        self.write(log, Header { kind: RecordKind::Output(stream), len, time }, bytes);
    }

    /// Ends the unfinished lines, if there are any.
    pub(super) fn cut(&mut self, log: LogContext<'_>, time: Millis) {
        if log.state.with(|contents| contents.segments.has_open_line()) {
            self.write(log, Header { kind: RecordKind::Cut, len: 0, time }, &[]);
        }
    }

    fn write(&mut self, log: LogContext<'_>, header: Header, bytes: &[u8]) {
        self.last_time = header.time;
        if self.failing.is_some_and(|passed| passed >= MEMORY) {
            self.retry(log);
        }
        if self.failing.is_none() {
            let Err(error) = self.write_file(log, header, bytes) else { return };
            self.fail(log, &error);
        }
        self.failing = self.failing.map(|passed| passed + (HEADER + bytes.len()) as u64);
        let (size, every) = (log.disk.segment, log.disk.index_every);
        log.state.with(|contents| {
            contents.segments.append_in_memory(&mut self.next_number, header, bytes, size, every);
        });
    }

    /// Switches to keeping output in memory.
    fn fail(&mut self, log: LogContext<'_>, error: &io::Error) {
        close_active(log);
        if self.failing.replace(0).is_none() {
            log.state.note_truncation();
            let level = if log.disk.may_warn(self.last_time) { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "the log of unit {} is kept in memory: {error}", log.state.unit);
        }
    }

    fn write_file(&mut self, log: LogContext<'_>, header: Header, bytes: &[u8]) -> io::Result<()> {
        let need = (HEADER + bytes.len()) as u64;
        drop_excess(log, need);
        let (number, file) = self.writable(log, need)?;
        if let Err(error) = write_record(&file, &header.encode(), bytes) {
            undo_write(log, number, &file);
            return Err(error);
        }
        if log.state.with(|contents| contents.segments.written(number, header, bytes, log.disk.index_every)) {
            log.disk.used.fetch_add(need, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The segment to append `need` bytes to, and its file: the newest segment, or a new one.
    fn writable(&mut self, log: LogContext<'_>, need: u64) -> io::Result<(u64, Arc<File>)> {
        self.rescue_removed(log)?;
        let (newest, active) = log.state.with(|contents| (contents.segments.newest(), contents.segments.active()));
        if let Some(Newest { number, len, is_file: true, is_end: true }) = newest
            && len + need <= log.disk.segment
        {
            if let Some(file) = active {
                return Ok((number, file));
            }
            if let Ok(file) = log.disk.reopen(log.state.unit, number, len) {
                let file = Arc::new(file);
                set_active(log, number, &file);
                return Ok((number, file));
            }
        }
        let number = self.next_number;
        let file = Arc::new(log.disk.create(log.state.unit, number)?);
        self.next_number += 1;
        drop(log.state.with(|contents| contents.segments.push_file(number, Arc::clone(&file))));
        Ok((number, file))
    }

    /// Tries to write the segments in memory to the disk.
    pub(super) fn retry(&mut self, log: LogContext<'_>) {
        if self.failing.is_none() {
            return;
        }
        self.failing = Some(0);
        let unit = log.state.unit;
        while let Some((number, records)) = log.state.with(|contents| contents.segments.oldest_in_memory()) {
            let written = log.disk.create(unit, number).and_then(|file| (&file).write_all(&records).map(|()| file));
            let Ok(file) = written else {
                close_active(log);
                return log.disk.remove(unit, number);
            };
            if log.state.with(|contents| contents.segments.memory_written(number)) {
                log.disk.used.fetch_add(records.len() as u64, Ordering::Relaxed);
                set_active(log, number, &Arc::new(file));
            } else {
                log.disk.remove(unit, number);
            }
            drop_excess(log, 0);
        }
        self.failing = None;
        log::info!("the log of unit {unit} is on disk again");
    }

    /// Closes the file of the newest segment.
    pub(super) fn close(&mut self, log: LogContext<'_>) {
        if let Err(error) = self.rescue_unreachable(log) {
            self.fail(log, &error);
        }
        close_active(log);
    }
}

/// Drops the oldest files until the log stays within its limit with `need` more bytes.
fn drop_excess(log: LogContext<'_>, need: u64) {
    while log.state.with(|contents| contents.segments.used()) + need > log.disk.per_unit
        && log.state.drop_oldest(log.disk)
    {}
}

pub(super) fn close_active(log: LogContext<'_>) {
    // Dropped here, so that the file is closed without the lock.
    drop(log.state.with(|contents| contents.segments.set_active(None)));
}

/// Publishes `file` as the open file of segment `number`, if that is still the newest segment.
pub(super) fn set_active(log: LogContext<'_>, number: u64, file: &Arc<File>) {
    let old = log.state.with(|contents| {
        let is_newest = contents.segments.newest().is_some_and(|newest| newest.number == number);
        contents.segments.set_active(is_newest.then(|| Arc::clone(file)))
    });
    drop(old);
}

/// Undoes a failed write to free its space; readers never see the bytes. Truncates the file to its published records,
/// or removes it if it has none.
fn undo_write(log: LogContext<'_>, number: u64, mut file: &File) {
    let emptied = log.state.with(|contents| match contents.segments.newest() {
        Some(newest) if newest.number == number && newest.len == 0 => Err(contents.segments.remove(number)),
        Some(newest) if newest.number == number => Ok(newest.len),
        _ => Err(None),
    });
    match emptied {
        Ok(len) => {
            if let Err(error) = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)).map(drop)) {
                log::debug!("the log of unit {} contains a partial record: {error}", log.state.unit);
            }
        }
        Err(Some(removed)) => log.state.discard(log.disk, removed),
        Err(None) => {}
    }
}

/// Writes one record at the position of `file`, with one `writev(2)` unless that writes only a part.
fn write_record(mut file: &File, header: &[u8; HEADER], bytes: &[u8]) -> io::Result<()> {
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
