//! Rescues a segment whose file was removed, or moved away with its directory, while it was being written.
//!
//! The bytes can still be read through the descriptor. They are copied into a new file of the same name, so a log
//! survives the removal of its directory. If no file can be created, a segment of up to 64 KiB is kept in memory, and a
//! longer one is lost. A segment of more than 4 MiB is always lost, because the copy would delay the thread that writes
//! all logs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::Packed;
use super::record::{HEADER, Header};
use super::segments::{MEMORY_SEGMENT_UNPACKED, Newest};
use super::writer::{LogContext, Writer, close_active, set_active};

/// Maximum size of a segment that is copied, in bytes.
const LONGEST: u64 = 4 << 20;
/// Size of the copy buffer, in bytes.
const BUFFER: usize = 64 << 10;

impl Writer {
    /// Rescues the newest segment if its file was unlinked. Called before each write, so it makes only one system call.
    ///
    /// # Errors
    /// If no new file can be created.
    pub(super) fn rescue_removed(&self, log: LogContext<'_>) -> io::Result<()> {
        match log.state.with(|contents| contents.segments.active()) {
            Some(file) if file.metadata().is_ok_and(|meta| meta.nlink() == 0) => rescue(log, &file),
            _ => Ok(()),
        }
    }

    /// Rescues the newest segment if its file could not be opened again by its name after it is closed.
    ///
    /// # Errors
    /// If no new file can be created.
    pub(super) fn rescue_unreachable(&self, log: LogContext<'_>) -> io::Result<()> {
        let (newest, active) = log.state.with(|contents| (contents.segments.newest(), contents.segments.active()));
        let (Some(file), Some(segment)) = (active, newest) else { return Ok(()) };
        let path = log.disk.path(log.state.unit, segment.number);
        let (Ok(open), named) = (file.metadata(), fs::symlink_metadata(path)) else { return Ok(()) };
        match named {
            Ok(named) if (named.dev(), named.ino()) == (open.dev(), open.ino()) => Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::NotADirectory => Ok(()),
            _ => rescue(log, &file),
        }
    }
}

fn rescue(log: LogContext<'_>, old: &File) -> io::Result<()> {
    log.state.note_truncation();
    let newest = log.state.with(|contents| contents.segments.newest());
    let Some(Newest { number, len, is_file: true, .. }) = newest else {
        close_active(log);
        return Ok(());
    };
    let unit = log.state.unit;
    if len > LONGEST {
        discard(log, number);
        return Ok(());
    }
    match log.disk.create(unit, number).and_then(|new| copy(old, &new, len).map(|()| new)) {
        Ok(new) => {
            set_active(log, number, &Arc::new(new));
            Ok(())
        }
        Err(error) => {
            log.disk.remove(unit, number);
            let kept = packed(old, len)
                .is_some_and(|packed| log.state.with(|contents| contents.segments.file_to_memory(number, packed)));
            if kept {
                log.disk.used.fetch_sub(len, Ordering::Relaxed);
                close_active(log);
            } else {
                discard(log, number);
            }
            Err(error)
        }
    }
}

fn discard(log: LogContext<'_>, number: u64) {
    if let Some(removed) = log.state.with(|contents| contents.segments.remove(number)) {
        log.state.discard(log.disk, removed);
    }
}

fn copy(from: &File, mut to: &File, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(BUFFER).min(BUFFER);
        let piece = buffer.get_mut(..most).unwrap_or_default();
        from.read_exact_at(piece, at)?;
        to.write_all(piece)?;
        at += most as u64;
    }
    Ok(())
}

/// The records of a segment, packed; None if it is too large for memory or its file is damaged.
fn packed(file: &File, len: u64) -> Option<Packed> {
    let len = usize::try_from(len).ok().filter(|len| *len as u64 <= MEMORY_SEGMENT_UNPACKED)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (mut packed, mut rest) = (Packed::default(), &bytes[..]);
    while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
        let header = Header::decode(header)?;
        let (payload, after) = after.split_at_checked(header.len as usize)?;
        packed.push(header, payload);
        rest = after;
    }
    packed.shrink();
    rest.is_empty().then_some(packed)
}
