//! Why a tree cannot be packed, or an archive not be unpacked.

use std::fmt;
use std::io;

use thiserror::Error;

use super::reader::ReadError;
use crate::files::FileError;

/// Why a tree cannot be packed, or an archive not be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive is malformed, cut off, or in a form that is not supported.
    #[error("{0}")]
    Malformed(String),
    /// An entry would write outside of the directory, or is not supported.
    #[error("the entry {entry:?} {why}")]
    BadEntry {
        /// The path of the entry, with U+FFFD in place of bytes that are not UTF-8.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// The archive holds more than the [limit](super::ArchiveLimit).
    #[error("the archive has more than {0}")]
    TooLarge(String),
    /// Only root can give files to other users.
    #[error("only root can keep the owners of an archive's entries")]
    OwnersNeedRoot,
    /// The archive cannot be read.
    #[error("the archive cannot be read: {0}")]
    Input(io::Error),
    /// The archive cannot be written.
    #[error("the archive cannot be written: {0}")]
    Output(io::Error),
}

impl From<ReadError> for ArchiveError {
    fn from(error: ReadError) -> ArchiveError {
        match error {
            ReadError::Io(error) => ArchiveError::Input(error),
            wrong => ArchiveError::Malformed(format!("this is not a valid archive: {wrong}")),
        }
    }
}

/// Why an archive cannot be unpacked to its end. The entries before are unpacked.
#[derive(Debug, Error)]
pub struct UnpackError {
    /// The reason.
    #[source]
    pub error: ArchiveError,
    /// Number of entries that are unpacked.
    pub unpacked: u64,
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = &self.error;
        match self.unpacked {
            0 => write!(f, "{error}; nothing has been unpacked"),
            1 => write!(f, "{error}; one entry before it has been unpacked"),
            n => write!(f, "{error}; {n} entries before it have been unpacked"),
        }
    }
}
