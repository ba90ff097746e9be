//! Reads, replaces, removes and lists files with the rights of a user.
//!
//! The rights are those of the calling thread, which `tl_os::impersonation` has set to those of the user. The kernel
//! resolves paths, so symlinks are followed as for the user, with one exception: the magic links in `/proc`
//! (`/proc/self/fd/3`) are not followed. For these, as for all of the daemon's own entries in `/proc`, the kernel
//! checks the process and not the thread's rights (`proc_guard`).
//!
//! At most one buffer of a file's content is held in memory. A file is examined through an `O_PATH` descriptor
//! before it is opened, because opening a FIFO can block, and opening a device can have side effects.
//!
//! - `path`: an absolute path; `walk`: opens and examines files; `magic_link`: the link in `/proc` to an open file;
//! - `read`, `list`, `remove`: one operation each;
//! - `replace`: an upload; `target`: the file that it replaces; `temporary`: the files for its incomplete content;
//!   `in_place`: writes into a file that cannot be replaced; `attributes`: the attributes that a replaced file keeps;
//! - `condition`: the conditions of a request; `proc_guard`: denies access to the daemon's own entries in `/proc`.

mod attributes;
mod condition;
mod in_place;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod list;
mod magic_link;
mod path;
mod proc_guard;
mod read;
mod remove;
mod replace;
mod target;
mod temporary;
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

/// Why a file cannot be read, written, removed or listed.
#[derive(Debug, Error)]
pub enum FileError {
    /// The text is not a valid path.
    #[error("`path` {0}")]
    Invalid(String),
    /// The path has a component `..`.
    #[error("`path` must not contain a component `..`: {0:?}")]
    Traversal(String),
    /// Nothing exists at the path.
    #[error("there is no file or directory {0:?}")]
    NotFound(String),
    /// The path is a directory, but the operation needs a file.
    #[error("{0:?} names a directory, not a file")]
    IsDirectory(String),
    /// The path, or a component of it that must be a directory, is something else.
    #[error("{0:?} is not a directory, or a component of its path is not")]
    NotADirectory(String),
    /// The path is a FIFO, a socket or a device.
    #[error("{0:?} is not a regular file")]
    NotARegularFile(String),
    /// The user does not have the permission.
    #[error("{path:?}: {why}")]
    Denied {
        /// The path.
        path: String,
        /// The kernel's reason.
        why: String,
    },
    /// The disk or the user's quota is full, or the file is too large for the file system.
    #[error("there is no space for {path:?}: {why}")]
    NoSpace {
        /// The path.
        path: String,
        /// The kernel's reason.
        why: String,
    },
    /// The file does not meet a condition of the request.
    #[error("{why}: {path:?}")]
    Unmet {
        /// The path.
        path: String,
        /// The condition that is not met.
        why: Unmet,
    },
    /// The error is not about the path.
    #[error(transparent)]
    Other(#[from] Error),
}

impl FileError {
    /// The error for a failed system call of a request about `path`.
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
            libc::ELOOP => FileError::Invalid(format!(
                "leads through too many symlinks, or through one that is not a path: {shown:?}"
            )),
            libc::ENAMETOOLONG => FileError::Invalid("is too long, or has a component that is".to_owned()),
            libc::EILSEQ => FileError::Invalid(format!("has a name that its file system does not support: {shown:?}")),
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

/// A size or a time as the kernel reports it; 0 if it is negative.
fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
