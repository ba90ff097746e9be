//! Reads a file.

use std::fs::File;
use std::io::{ErrorKind, Read};

use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl};

use super::walk::open_regular;
use super::{FileError, FilePath, unsigned};

/// Maximum size in bytes of a file that is read at once.
pub const WHOLE: usize = 64 << 10;

/// The content of a file.
#[derive(Debug)]
pub enum Content {
    /// All of it. Such files are read at once because the reported size of files in `/proc` and `/sys` is 0 or wrong.
    Whole(Vec<u8>),
    /// A longer file, and its length in bytes.
    Long(File, u64),
    /// The first [`WHOLE`] bytes of a file of unknown length, and the file, positioned after them.
    Unmeasured(Vec<u8>, File),
}

/// Opens the file at `path`, and reads it if it is small.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &FilePath) -> Result<Content, FileError> {
    let failed = |errno: nix::Error| FileError::of(path, &errno.into());
    let opened = open_regular(AT_FDCWD, path.as_os_str(), OFlag::O_RDONLY).map_err(failed)?;
    let (file, stat) = opened.ok_or_else(|| FileError::NotARegularFile(path.shown()))?;
    let length = unsigned(stat.st_size);
    if length > WHOLE as u64 {
        return Ok(Content::Long(file, length));
    }
    // Reading some files of the kernel blocks until there is an event. O_NONBLOCK is set only now: an open with it
    // fails if another process has a lease on the file.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    let most = if length == 0 { WHOLE as u64 } else { length };
    let mut begin = Vec::new();
    match (&file).take(most).read_to_end(&mut begin) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(FileError::of(path, &error)),
        _ if length == 0 && begin.len() == WHOLE => Ok(Content::Unmeasured(begin, file)),
        _ => Ok(Content::Whole(begin)),
    }
}
