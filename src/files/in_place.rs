//! Writes new content into an existing file that cannot be replaced by a new file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::{Mode, fchmod, fstat};

use super::target::Target;
use super::walk::{open_regular, sync};
use super::{attributes, unsigned};

/// Size of the buffer for copying, in bytes.
const BUFFER: usize = 64 << 10;

/// Copies `content`, which is complete, into the target. First reserves the space that it needs, so that on a full disk
/// the target stays unchanged.
pub(super) fn write_in_place(content: &File, target: &Target) -> io::Result<()> {
    let target = open_target(target)?;
    let _lock = FileLock::take(&target)?;
    let length = content.metadata()?.len();
    let before = unsigned(fstat(&target)?.st_size);
    if length > before {
        reserve(&target, length)?;
    }
    // A write drops these bits unless the writer has a privilege; here they are dropped for every user. If this thread
    // may not change the mode, the kernel drops them.
    if let Some(mode) = mode_without_set_id(&target)? {
        let _ = fchmod(&target, mode);
    }
    copy(content, &target)?;
    if length < before {
        match target.set_len(length) {
            // Files in `/proc` and `/sys` cannot be truncated.
            Err(error) if error.kind() != ErrorKind::InvalidInput => return Err(error),
            _ => {}
        }
    }
    Ok(sync(&target)?)
}

/// Opens the existing file for writing.
pub(super) fn open_target(target: &Target) -> nix::Result<File> {
    match open_regular(&target.dir, &target.name, OFlag::O_WRONLY)? {
        Some((file, _)) => Ok(file),
        // It was a regular file before, and has been replaced by something else.
        None => Err(Errno::ENXIO),
    }
}

/// Lets only one upload at a time write a file in place, because two would leave a mixture of both.
#[derive(Debug)]
struct FileLock(FileId);

/// A file's device and inode.
type FileId = (u64, u64);

/// The files that are being written in place.
static LOCKED: Mutex<BTreeSet<FileId>> = Mutex::new(BTreeSet::new());
static RELEASED: Condvar = Condvar::new();

impl FileLock {
    /// Waits until no other upload writes the same file.
    fn take(file: &File) -> io::Result<FileLock> {
        let stat = fstat(file)?;
        let file = (stat.st_dev, stat.st_ino);
        let locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
        let free = RELEASED.wait_while(locked, |locked| locked.contains(&file));
        free.unwrap_or_else(PoisonError::into_inner).insert(file);
        Ok(FileLock(file))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        LOCKED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        RELEASED.notify_all();
    }
}

/// The mode of a file without set-user-id and set-group-id; `None` if it has neither.
fn mode_without_set_id(file: &File) -> nix::Result<Option<Mode>> {
    let mode = fstat(file)?.st_mode & 0o7777;
    Ok((mode & !attributes::MODE != 0).then(|| Mode::from_bits_truncate(mode & attributes::MODE)))
}

/// Reserves space for a file of this length. On a file system without fallocate(2), a lack of space is detected only
/// later.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => Err(errno.into()),
        _ => Ok(()),
    }
}

/// Copies all of `from` to `to`, from its beginning.
fn copy(from: &File, mut to: &File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        match from.read_at(&mut buffer, at) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(buffer.get(..read).unwrap_or_default())?;
                at += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
