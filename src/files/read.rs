//! Reading a file.

use std::fs::File;
use std::io::{ErrorKind, Read};

use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl};

use super::walk::open_regular;
use super::{FileError, FilePath, unsigned};

/// A file up to this size is read before anything is said about it.
pub const WHOLE: usize = 64 << 10;

/// A file that was opened.
#[derive(Debug)]
pub enum Content {
    /// All of it. What the kernel makes up in `/proc` and `/sys` has a size of 0, or one that is not true.
    Whole(Vec<u8>),
    /// A file of this length.
    Long(File, u64),
    /// The beginning of one that has no length, and the rest.
    Unmeasured(Vec<u8>, File),
}

/// Opens the file at `path` and reads it, if it is a small one.
///
/// # Errors
/// Why it cannot be read.
pub fn read(path: &FilePath) -> Result<Content, FileError> {
    let failed = |errno: nix::Error| FileError::of(path, &errno.into());
    let opened = open_regular(AT_FDCWD, path.as_os_str(), OFlag::O_RDONLY).map_err(failed)?;
    let (file, stat) = opened.ok_or_else(|| FileError::NotARegularFile(path.shown()))?;
    let length = unsigned(stat.st_size);
    if length > WHOLE as u64 {
        return Ok(Content::Long(file, length));
    }
    // Some files of the kernel's wait for news; not by O_NONBLOCK at the opening, which a lease would fail.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    let most = if length == 0 { WHOLE as u64 } else { length };
    let mut begin = Vec::new();
    match (&file).take(most).read_to_end(&mut begin) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(FileError::of(path, &error)),
        _ if length == 0 && begin.len() == WHOLE => Ok(Content::Unmeasured(begin, file)),
        _ => Ok(Content::Whole(begin)),
    }
}
