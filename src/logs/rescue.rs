//! A segment whose file was removed, or moved away with its directory, while it was being written.
//!
//! What is in it can still be read through the descriptor, and is copied into a new file of the same name: so a log outlives
//! the removal of its directory. Where no file can be made, a short segment is kept in memory, a longer one is lost. So is
//! one of more than 4 MiB, because the copy is made by a thread that others wait for.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::Packed;
use super::record::{HEADER, Header};
use super::segment::{Body, Segment};
use crate::logs::segments::{Chain, Home, MEMORY_SEGMENT_UNPACKED, create};

/// The longest segment that is copied, in bytes.
const LONGEST: u64 = 4 << 20;
/// Bytes that are copied at once.
const BUFFER: usize = 64 << 10;

impl Chain {
    /// Rescues the newest segment if its file has no name any more. Asked before each write, so it has to be quick.
    ///
    /// # Errors
    /// When no new file can be made.
    pub(super) fn rescue_removed(&mut self, home: Home<'_>) -> io::Result<()> {
        match &self.file {
            Some(file) if file.metadata().is_ok_and(|meta| meta.nlink() == 0) => self.rescue(home),
            _ => Ok(()),
        }
    }

    /// Rescues it if its file is not where it will be looked for once it is closed.
    ///
    /// # Errors
    /// When no new file can be made.
    pub(super) fn rescue_unreachable(&mut self, home: Home<'_>) -> io::Result<()> {
        let (Some(file), Some(segment)) = (&self.file, self.segments.back()) else { return Ok(()) };
        let (Ok(open), there) = (file.metadata(), fs::symlink_metadata(home.disk.path(home.unit, segment.number)))
        else {
            return Ok(());
        };
        match there {
            Ok(there) if (there.dev(), there.ino()) == (open.dev(), open.ino()) => Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound && error.kind() != ErrorKind::NotADirectory => Ok(()),
            _ => self.rescue(home),
        }
    }

    fn rescue(&mut self, home: Home<'_>) -> io::Result<()> {
        let Some(old) = self.file.take() else { return Ok(()) };
        home.truncated.store(true, Ordering::Relaxed);
        let Some(Segment { number, len, body: Body::File, .. }) = self.segments.back() else { return Ok(()) };
        let (number, len) = (*number, *len);
        let newest = self.segments.len() - 1;
        if len > LONGEST {
            self.remove(home, newest);
            return Ok(());
        }
        match create(home, number).and_then(|new| copy(&old, &new, len).map(|()| new)) {
            Ok(new) => {
                self.file = Some(Arc::new(new));
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(home.disk.path(home.unit, number));
                match self.segments.back_mut().zip(packed(&old, len)) {
                    Some((segment, packed)) => {
                        segment.body = Body::Memory(packed);
                        self.used = self.used.saturating_sub(len);
                        home.disk.used.fetch_sub(len, Ordering::Relaxed);
                    }
                    None => self.remove(home, newest),
                }
                Err(error)
            }
        }
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

/// The records of a segment that is no longer than one in memory may be.
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
