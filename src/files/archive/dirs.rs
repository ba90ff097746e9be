//! The directories that unpacking has created, and the attributes that they get once all is in them: a file that is created
//! in a directory changes its modification time, and a mode can forbid creating one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use super::place::{Attributes, open_below};

/// Bytes that the waiting directories may take. The oldest get their attributes early when there are more.
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
    /// Adds a directory that was created at `path` below `root`.
    ///
    /// # Errors
    /// If one of the oldest directories cannot get its attributes.
    pub(super) fn add(
        &mut self,
        root: &OwnedFd,
        path: Vec<u8>,
        id: (u64, u64),
        attributes: Attributes,
    ) -> nix::Result<()> {
        let dir = Dir { path, id, attributes };
        self.bytes += dir.size();
        self.waiting.push(dir);
        if self.bytes > MAX_BYTES {
            let newest = self.waiting.split_off(self.waiting.len() / 2);
            let oldest = std::mem::replace(&mut self.waiting, newest);
            self.finish_all(root.as_fd(), oldest)?;
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
