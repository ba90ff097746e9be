//! Directory trees as tar archives, both ways, in flat memory.
//!
//! | file | what |
//! |---|---|
//! | `entry`, `pax`, `name` | an entry and its header blocks; pax records; which names are safe. All three are pure |
//! | `reader` | the entries of an archive from a stream |
//! | `compression` | gzip, and what else an archive can be compressed with |
//! | `pack` | a tree as an archive |
//! | `unpack`, `place`, `dirs` | an archive as a tree; one entry of it; attributes that directories get at the end |
//!
//! Extended attributes and ACLs are not part of an archive.

mod compression;
mod dirs;
mod entry;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod name;
mod pack;
mod pax;
mod place;
mod reader;
#[cfg(test)]
mod tests;
mod unpack;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;

pub use error::{ArchiveError, UnpackError};
pub(crate) use pack::Packing;

/// The form of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// tar in the form of POSIX (pax).
    #[default]
    Tar,
    /// The same, compressed with gzip.
    TarGz,
}

/// What an archive that is unpacked may hold. By default without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveLimit {
    /// Maximum number of entries, and of directories that are created for them.
    pub entries: Option<u64>,
    /// Maximum size of the content of all files, in bytes.
    pub bytes: Option<u64>,
}

/// How an archive is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Files get the owners that the archive names as numbers, instead of the user that unpacks it, and keep set-user-id
    /// and set-group-id. Only root can do that.
    pub preserve_owner: bool,
    /// What the archive may hold.
    pub limit: ArchiveLimit,
}

/// Writes the directory tree at `path`, or the regular file, as an archive. A symlink at `path` is followed; those in the
/// tree become entries. The paths of the entries are those below the directory.
///
/// # Errors
/// If a file cannot be read, or the archive cannot be written. What has been written by then is no whole archive.
///
/// ```
/// use tl_supervisor::archive::{ArchiveFormat, UnpackOptions, pack, unpack};
///
/// let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
/// std::fs::write(from.path().join("file"), "content")?;
/// let mut archive = Vec::new();
/// pack(from.path(), ArchiveFormat::TarGz, &mut archive)?;
/// unpack(&to.path().join("copy"), &mut &archive[..], UnpackOptions::default())?;
/// assert_eq!(std::fs::read_to_string(to.path().join("copy/file"))?, "content");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pack(path: &Path, format: ArchiveFormat, out: &mut dyn Write) -> Result<(), ArchiveError> {
    Packing::begin(path)?.write(format, out)
}

/// Writes the directory tree at `path`, or the regular file, as an archive in which it has this name, with its own mode and
/// time: the paths of what is in the tree begin with the name. A symlink at `path` is followed.
///
/// # Errors
/// As [`pack`].
///
/// ```
/// use tl_supervisor::archive::{ArchiveFormat, UnpackOptions, pack_as, unpack};
///
/// let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
/// std::fs::write(from.path().join("file"), "content")?;
/// let mut archive = Vec::new();
/// pack_as(from.path(), "copy".as_ref(), ArchiveFormat::Tar, &mut archive)?;
/// unpack(to.path(), &mut &archive[..], UnpackOptions::default())?;
/// assert_eq!(std::fs::read_to_string(to.path().join("copy/file"))?, "content");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pack_as(path: &Path, name: &OsStr, format: ArchiveFormat, out: &mut dyn Write) -> Result<(), ArchiveError> {
    Packing::begin(path)?.write_as(Some(name), format, out)
}

/// Unpacks an archive into the directory at `path`, which is created with its parents if it is missing. The archive is tar
/// or tar.gz, recognised by its content.
///
/// Nothing outside of the directory is written, and no symlink below it is followed. An existing file is replaced
/// atomically; an existing directory keeps its attributes. Set-user-id and set-group-id are dropped.
///
/// # Errors
/// If the archive is malformed or cut off, if an entry would write outside of the directory, if it is a device, or if a file
/// cannot be written. The entries before are unpacked then.
pub fn unpack(path: &Path, archive: &mut dyn Read, options: UnpackOptions) -> Result<(), UnpackError> {
    unpack::unpack(path, archive, options)
}
