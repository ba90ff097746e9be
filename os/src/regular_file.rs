//! Reads a whole file of limited size that must be a regular one. Anything else in its place could block the reader for
//! ever, as a FIFO without a writer does.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug)]
pub enum ReadError {
    /// It is a directory, a FIFO, a socket or a device.
    NotRegular,
    /// It is longer than this many bytes.
    TooLong(u64),
    /// A system call failed.
    Io(io::Error),
}

impl ReadError {
    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::NotRegular => f.write_str("it is not a regular file"),
            ReadError::TooLong(limit) if limit % MIB == 0 => write!(f, "it is longer than {} MiB", limit / MIB),
            ReadError::TooLong(limit) => write!(f, "it is longer than {limit} bytes"),
            ReadError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReadError::Io(error) => Some(error),
            ReadError::NotRegular | ReadError::TooLong(_) => None,
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> io::Error {
        match error {
            ReadError::Io(error) => error,
            other => io::Error::other(other),
        }
    }
}

/// Reads the regular file at `path`, which may be up to `limit` bytes long. Symlinks are followed.
///
/// # Errors
/// When the file is not a regular one, is longer than that, or cannot be opened or read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    read_open(open(path)?, limit)
}

/// Opens the regular file at `path` for reading, without waiting for anything but a disk.
///
/// # Errors
/// When the file is not a regular one or cannot be opened.
pub fn open(path: &Path) -> Result<File, ReadError> {
    // O_NONBLOCK: opening a FIFO would wait for a writer. O_NOCTTY: a terminal would become the controlling one.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ReadError::NotRegular);
    }
    Ok(file)
}

/// Reads the rest of an open file, which may be up to `limit` bytes long.
///
/// # Errors
/// When it is longer than that or cannot be read.
pub fn read_open(file: File, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    // Room for the whole file, so that it is not read in small pieces. Its size is that of now, and 0 in /proc.
    let size = file.metadata()?.len().min(limit);
    bytes
        .try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // One byte more than the limit tells a file that is too long from one that just fits.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLong(limit));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(ReadError::TooLong(4))));
        assert_eq!(read(&path, u64::MAX).unwrap(), b"12345");
        assert!(read(&dir.path().join("nothing"), 5).unwrap_err().is_not_found());
    }

    #[test]
    fn a_file_without_a_size_is_read() {
        assert!(read(Path::new("/proc/self/status"), 1 << 20).unwrap().starts_with(b"Name:"));
    }

    #[test]
    fn anything_but_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&*fifo, dir.path(), Path::new("/dev/null")] {
            assert!(matches!(read(path, 5), Err(ReadError::NotRegular)), "{path:?}");
        }
    }
}
