//! Conditions of a request that a file must meet before it is read, replaced or removed (RFC 9110, section 13.1).
//!
//! Files have no entity tags here, so a tag never matches. Modification times are compared in whole seconds, which is
//! the resolution of an HTTP date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use thiserror::Error;

use super::walk::open;
use super::{FileError, FilePath, is, unsigned};

/// The conditions of one request. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `If-Match: *`.
    pub exists: bool,
    /// `If-Match` with entity tags.
    pub has_tag: bool,
    /// `If-None-Match: *`.
    pub is_absent: bool,
    /// `If-Unmodified-Since`.
    pub unmodified_since: Option<SystemTime>,
}

/// A condition that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unmet {
    /// [`Condition::exists`].
    #[error("`If-Match: *` requires a file that exists")]
    Exists,
    /// [`Condition::has_tag`].
    #[error("`If-Match`: files have no entity tags here, so only `*` can match")]
    HasTag,
    /// [`Condition::is_absent`].
    #[error("`If-None-Match: *` requires a path where nothing exists")]
    IsAbsent,
    /// [`Condition::unmodified_since`].
    #[error("`If-Unmodified-Since`: the file was modified after that")]
    UnmodifiedSince,
}

impl Condition {
    /// Whether it has no conditions.
    pub fn is_empty(&self) -> bool {
        *self == Condition::default()
    }

    /// The first condition that the file `found` does not meet, in the order of RFC 9110, section 13.2.2. `None` as
    /// `found` means that there is no file.
    pub(super) fn unmet(&self, found: Option<&FileStat>) -> Option<Unmet> {
        match found {
            None if self.exists => Some(Unmet::Exists),
            _ if self.has_tag => Some(Unmet::HasTag),
            Some(found) if self.unmodified_since.is_some_and(|time| modified(found) > whole_seconds(time)) => {
                Some(Unmet::UnmodifiedSince)
            }
            Some(_) if self.is_absent => Some(Unmet::IsAbsent),
            _ => None,
        }
    }

    /// The first condition that the file at `path` does not meet. With `follow`, a symlink at the end of the path is
    /// followed.
    ///
    /// # Errors
    /// If there is no file, or it cannot be examined.
    pub fn unmet_at(&self, path: &FilePath, follow: bool) -> Result<Option<Unmet>, FileError> {
        if self.is_empty() {
            return Ok(None);
        }
        let flags = if follow { OFlag::O_PATH } else { OFlag::O_PATH | OFlag::O_NOFOLLOW };
        let found = open(AT_FDCWD, path.as_os_str(), flags, Mode::empty()).and_then(fstat);
        let found = found.map_err(|errno| FileError::of(path, &errno.into()))?;
        // A directory meets all conditions here, because the error to report is that it is not a file.
        Ok(if is(&found, SFlag::S_IFDIR) { None } else { self.unmet(Some(&found)) })
    }
}

/// The modification time in seconds since the epoch.
fn modified(found: &FileStat) -> u64 {
    unsigned(found.st_mtime)
}

fn whole_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time: Duration| time.as_secs())
}
