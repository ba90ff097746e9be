//! Directory trees as tar archives.

use std::io::{self, Read, Write};
use std::path::Path;

use thiserror::Error;

use super::FileError;

/// The form of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// tar(5).
    #[default]
    Tar,
    /// tar, compressed with gzip.
    TarGz,
}

/// What an archive that is unpacked may hold at most. By default without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveLimit {
    /// Number of entries.
    pub entries: Option<u64>,
    /// Bytes of the content of all files.
    pub bytes: Option<u64>,
}

/// How an archive is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Files get the owners that the archive names, instead of the user that unpacks it. Only root can do that.
    pub preserve_owner: bool,
    /// What the archive may hold.
    pub limit: ArchiveLimit,
}

/// Why a tree cannot be packed, or an archive not be unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A file of the tree cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive cannot be read.
    #[error("the archive cannot be read: {0}")]
    Input(io::Error),
    /// The archive cannot be written.
    #[error("the archive cannot be written: {0}")]
    Output(io::Error),
}

/// Writes the directory tree at `path`, or the file, as an archive.
///
/// # Errors
/// If a file cannot be read, or the archive not be written.
pub fn pack(path: &Path, format: ArchiveFormat, out: &mut dyn Write) -> Result<(), ArchiveError> {
    let _ = (path, format, out);
    Err(ArchiveError::Output(io::ErrorKind::Unsupported.into()))
}

/// Unpacks an archive into the directory at `path`, which is created if it is missing.
///
/// # Errors
/// If the archive is malformed, or would write outside of the directory, or a file cannot be written.
pub fn unpack(path: &Path, archive: &mut dyn Read, options: UnpackOptions) -> Result<(), ArchiveError> {
    let _ = (path, archive, options);
    Err(ArchiveError::Input(io::ErrorKind::Unsupported.into()))
}
