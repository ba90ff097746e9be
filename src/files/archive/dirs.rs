//! The directories that unpacking has created, and the attributes that they get once all is in them: a file that is created
//! in a directory changes its modification time, and a mode can forbid creating one.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use rustix::fs::RawDir;

use super::place::{Attributes, open_below};

/// Bytes that the waiting directories may take. Some get their attributes early when there are more.
const MAX_BYTES: usize = 1 << 20;

/// Directories that wait for their attributes.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    waiting: Vec<Dir>,
    bytes: usize,
}

#[derive(Debug)]
struct Dir {
    path: Vec<u8>,
    /// Device and inode: another process can put another directory in its place.
    id: (u64, u64),
    attributes: Attributes,
}

impl Dir {
    fn size(&self) -> usize {
        self.path.capacity() + size_of::<Dir>()
    }

    /// Sets the attributes, unless another directory has its name by now.
    fn finish(&self, root: BorrowedFd<'_>) -> nix::Result<()> {
        let components: Vec<&[u8]> = self.path.split(|byte| *byte == b'/').collect();
        let opened = open_below(root, &components)
            .and_then(|dir| openat(&dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()));
        let Ok(dir) = opened else { return Ok(()) };
        let stat = fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) == self.id { self.attributes.set(dir.as_fd()) } else { Ok(()) }
    }
}

impl Dirs {
    /// Adds the directory that was created at `path` below `root`, under this name in `parent`.
    ///
    /// Does nothing if it is not empty: then another process has put another directory in its place, or uses it already.
    /// With the rights of root, the attributes must not be those of a directory of root that another user has renamed.
    ///
    /// # Errors
    /// If it cannot be opened, or one of the other directories cannot get its attributes.
    pub(super) fn add(
        &mut self,
        root: &OwnedFd,
        (parent, name): (&OwnedFd, &OsStr),
        path: Vec<u8>,
        attributes: Attributes,
    ) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let created = openat(parent, name, flags, Mode::empty())?;
        if !is_empty(&created)? {
            return Ok(());
        }
        let stat = fstat(&created)?;
        let dir = Dir { path, id: (stat.st_dev, stat.st_ino), attributes };
        self.bytes += dir.size();
        self.waiting.push(dir);
        if self.bytes > MAX_BYTES { self.finish_some(root.as_fd()) } else { Ok(()) }
    }

    /// Sets the attributes of the directories that the last one is not below: most archives have no more entries for them.
    /// If these are few, also those of the oldest of the others.
    fn finish_some(&mut self, root: BorrowedFd<'_>) -> nix::Result<()> {
        let last = self.waiting.last().map(|dir| dir.path.clone()).unwrap_or_default();
        let is_above = |dir: &Dir| last.strip_prefix(&*dir.path).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
        let (above, finished): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_above);
        self.waiting = above;
        self.finish_all(root, finished)?;
        if self.bytes > MAX_BYTES / 2 {
            let newest = self.waiting.split_off(self.waiting.len() / 2);
            let oldest = std::mem::replace(&mut self.waiting, newest);
            self.finish_all(root, oldest)?;
        }
        Ok(())
    }

    /// Sets the attributes of all directories.
    ///
    /// # Errors
    /// If one cannot get them.
    pub(super) fn finish(mut self, root: &OwnedFd) -> nix::Result<()> {
        let all = std::mem::take(&mut self.waiting);
        self.finish_all(root.as_fd(), all)
    }

    /// Children first: the mode of a directory can forbid reaching what is in it.
    fn finish_all(&mut self, root: BorrowedFd<'_>, dirs: Vec<Dir>) -> nix::Result<()> {
        for dir in dirs.into_iter().rev() {
            self.bytes = self.bytes.saturating_sub(dir.size());
            dir.finish(root)?;
        }
        Ok(())
    }
}

/// Whether a directory has no entries but `.` and `..`.
fn is_empty(dir: &OwnedFd) -> nix::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
