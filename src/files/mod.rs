//! Files as a user sees them: read, replaced whole, removed, listed.
//!
//! All of it is done with the rights of the calling thread, which `os::fsuser` makes the user's. Paths are followed by the
//! kernel, so a symlink leads where it leads the user, with one exception: never through the links in `/proc` that are
//! no paths (`/proc/self/fd/3`): there the kernel trusts every thread of the daemon, as it does with all of the daemon's
//! own entries in `/proc` (`own`).
//!
//! Nothing here holds more than a buffer of a file's content. What is opened is first looked at without opening it
//! (`O_PATH`): a FIFO would block and a device may act on it.

mod attributes;
mod condition;
mod list;
mod path;
mod proc_guard;
mod read;
mod remove;
mod replace;
#[cfg(test)]
mod tests;
mod walk;

use std::io;

use nix::sys::stat::{FileStat, SFlag};
use thiserror::Error;

pub use condition::{Condition, Unmet};
pub use list::{Listing, list};
pub use path::FilePath;
pub use read::{Content, read};
pub use remove::remove;
pub use replace::Upload;

use crate::error::Error;

/// Why a file is not read, written, removed or listed.
#[derive(Debug, Error)]
pub enum FileError {
    /// The path cannot be one.
    #[error("`path` {0}")]
    Invalid(String),
    /// A component is `..`.
    #[error("`path` must have no component `..`: {0:?}")]
    Traversal(String),
    /// Nothing is there.
    #[error("there is no file or directory {0:?}")]
    NotFound(String),
    /// A directory where a file is wanted.
    #[error("{0:?} is a directory, not a file")]
    IsDirectory(String),
    /// Something else where a directory is wanted, at the end or on the way.
    #[error("{0:?} is not a directory, or something on the way there is not")]
    NotADirectory(String),
    /// A FIFO, a socket or a device.
    #[error("{0:?} is not a regular file")]
    NotARegularFile(String),
    /// The user may not.
    #[error("{path:?}: {why}")]
    Denied {
        /// As it was asked for.
        path: String,
        /// The kernel's reason.
        why: String,
    },
    /// The disk or the user's quota is full, or the file system takes no file of that size.
    #[error("there is no space for {path:?}: {why}")]
    NoSpace {
        /// As it was asked for.
        path: String,
        /// The kernel's reason.
        why: String,
    },
    /// The file does not meet a condition of the request.
    #[error("{why}: {path:?}")]
    Unmet {
        /// As it was asked for.
        path: String,
        /// The condition.
        why: Unmet,
    },
    /// Nothing to do with the path.
    #[error(transparent)]
    Other(#[from] Error),
}

impl FileError {
    /// What a system call's failure means for the one who asked for `path`.
    fn of(path: &FilePath, error: &io::Error) -> FileError {
        let shown = path.shown();
        let Some(errno) = error.raw_os_error() else {
            return FileError::Other(Error::from_io(&shown, error));
        };
        match errno {
            libc::ENOENT => FileError::NotFound(shown),
            libc::EISDIR => FileError::IsDirectory(shown),
            libc::ENOTDIR => FileError::NotADirectory(shown),
            libc::ENXIO | libc::ENODEV => FileError::NotARegularFile(shown),
            libc::ELOOP => {
                FileError::Invalid(format!("leads through too many links, or one that is no path: {shown:?}"))
            }
            libc::ENAMETOOLONG => {
                FileError::Invalid("is longer than the kernel takes, or has a name that is".to_owned())
            }
            libc::EILSEQ => FileError::Invalid(format!("has a name that its file system does not take: {shown:?}")),
            libc::EACCES | libc::EPERM | libc::EROFS | libc::EBUSY | libc::ETXTBSY => {
                FileError::Denied { path: shown, why: error.to_string() }
            }
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => FileError::NoSpace { path: shown, why: error.to_string() },
            _ => FileError::Other(Error::from_io(&shown, error)),
        }
    }
}

/// Whether `stat` is of this type.
fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

/// A size or length of the kernel's, which is never negative.
fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
