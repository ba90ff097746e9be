//! Walks a directory tree by descriptors.
//!
//! No path is resolved twice: each directory is opened by its name in the descriptor of its parent, and never through a
//! symlink. So other processes can rename directories and swap them for symlinks during the walk, and it still never
//! enters a directory that was outside when it began, unless that is moved into the tree. A directory that is moved out of
//! the tree while the walk is in it is read to its end. If the directory above is still open, the walk then goes on there;
//! else it fails, because `..` does not lead back.
//!
//! At most [`MAX_OPEN`] descriptors are open, whatever the depth: the directories above are closed and opened again
//! through `..`, which must be the same directory as before. The walk takes memory for one batch of entries of each open
//! directory, and a few bytes for each level.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{self, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::unistd::{Whence, lseek};
use rustix::fs::{AtFlags, FileType, RawDir, StatxFlags, statx};

use super::walk::has_openat2;

/// Maximum number of directories that a walk keeps open.
const MAX_OPEN: usize = 32;

/// Maximum depth of a tree. A level takes about a hundred bytes and its name.
const MAX_LEVELS: usize = 100_000;

/// Bytes that one call of getdents64(2) reads.
pub(super) const BATCH: usize = 16 << 10;

/// File systems that hold no files of users, but show the state of the kernel.
const KERNEL_FILE_SYSTEMS: [FsType; 13] = [
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
    statfs::DEVPTS_SUPER_MAGIC,
    statfs::DEBUGFS_MAGIC,
    statfs::TRACEFS_MAGIC,
    statfs::SECURITYFS_MAGIC,
    statfs::SELINUX_MAGIC,
    statfs::SMACK_MAGIC,
    statfs::BPF_FS_MAGIC,
    statfs::NSFS_MAGIC,
    statfs::RDTGROUP_SUPER_MAGIC,
];

/// Which file systems below the first directory a walk enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounts {
    /// None: entering a mount point is the error EXDEV.
    Stay,
    /// All but those that show the state of the kernel, whose directories count as empty.
    Follow,
}

/// What the walk has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The entry [`Descent::name`] of [`Descent::dir`], of this type as far as the directory says.
    Entry(FileType),
    /// The end of the directory [`Descent::name`] of [`Descent::dir`], which was entered before.
    Left,
}

/// A walk.
#[derive(Debug)]
pub(super) struct Descent {
    /// The directories from the first one to that which is being read. The first and the last [`MAX_OPEN`] are open.
    levels: Vec<Level>,
    /// The path of the current entry below the first directory.
    path: Vec<u8>,
    mounts: Mounts,
    buffer: Vec<MaybeUninit<u8>>,
}

#[derive(Debug)]
struct Level {
    /// None while it is closed, which only a directory above the last one is.
    dir: Option<OwnedFd>,
    /// Device and inode.
    id: (u64, u64),
    /// Length of the path of this directory, in bytes.
    path: usize,
    batch: Batch,
    /// The position in the directory after the last entry that was returned.
    position: i64,
}

/// Entries that have been read from a directory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The names, one after another.
    names: Vec<u8>,
    entries: Vec<BatchEntry>,
    /// Index of the next entry.
    next: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BatchEntry {
    pub(super) kind: FileType,
    /// Where its name begins and ends in the names.
    name: (usize, usize),
    /// The position in the directory after it.
    position: i64,
}

impl Batch {
    /// The next entry, and its name.
    pub(super) fn pop(&mut self) -> Option<(BatchEntry, &[u8])> {
        let entry = *self.entries.get(self.next)?;
        self.next += 1;
        Some((entry, self.names.get(entry.name.0..entry.name.1).unwrap_or_default()))
    }

    /// Reads more entries of `dir`. Returns false at its end.
    pub(super) fn fill(&mut self, dir: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> nix::Result<bool> {
        self.names.clear();
        self.entries.clear();
        self.next = 0;
        let mut entries = RawDir::new(dir, buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // The directory has been removed since it was opened.
                Err(rustix::io::Errno::NOENT) => break,
                entry => entry.map_err(errno)?,
            };
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let begin = self.names.len();
                self.names.extend_from_slice(name);
                // The kernel's type of a position is signed; rustix gives its bits.
                let position = entry.next_entry_cookie().cast_signed();
                self.entries.push(BatchEntry { kind: entry.file_type(), name: (begin, self.names.len()), position });
            }
            if entries.is_buffer_empty() && !self.entries.is_empty() {
                return Ok(true);
            }
        }
        Ok(!self.entries.is_empty())
    }
}

impl Descent {
    /// Begins in `dir`, which must be open for reading.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub(super) fn begin(dir: OwnedFd, mounts: Mounts) -> nix::Result<Descent> {
        let mut descent =
            Descent { levels: Vec::new(), path: Vec::new(), mounts, buffer: vec![MaybeUninit::uninit(); BATCH] };
        descent.push(dir)?;
        Ok(descent)
    }

    /// The next entry, or the end of a directory that was entered; None at the end of the first directory.
    ///
    /// # Errors
    /// The kernel's; ESTALE if a directory was moved, so that `..` does not lead back to where the walk came from.
    pub(super) fn next(&mut self) -> nix::Result<Option<Found>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if let Some((entry, name)) = level.batch.pop() {
                self.path.truncate(level.path);
                if level.path > 0 {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name);
                level.position = entry.position;
                return Ok(Some(Found::Entry(entry.kind)));
            }
            let dir = level.dir.as_ref().ok_or(Errno::EBADF)?;
            if !level.batch.fill(dir.as_fd(), &mut self.buffer)? {
                return self.leave();
            }
        }
    }

    /// Enters the directory that is the current entry. Returns false if it counts as empty: it will not be left either.
    ///
    /// # Errors
    /// The kernel's: ENOTDIR or ELOOP if it is no directory by now; EXDEV if it is a mount point and the walk
    /// [stays](Mounts::Stay); ENAMETOOLONG if the tree is too deep.
    pub(super) fn enter(&mut self) -> nix::Result<bool> {
        if self.levels.len() >= MAX_LEVELS {
            return Err(Errno::ENAMETOOLONG);
        }
        let dir = open_dir(self.dir()?, self.name(), self.mounts)?;
        if self.mounts == Mounts::Follow {
            let parent = self.levels.last().map(|level| level.id.0);
            if Some(fstat(&dir)?.st_dev) != parent && is_of_kernel(&dir)? {
                return Ok(false);
            }
        }
        self.push(dir)?;
        Ok(true)
    }

    /// The directory of the current entry.
    ///
    /// # Errors
    /// EBADF before the first entry of all.
    pub(super) fn dir(&self) -> nix::Result<BorrowedFd<'_>> {
        self.levels.last().and_then(|level| level.dir.as_ref()).map(AsFd::as_fd).ok_or(Errno::EBADF)
    }

    /// The name of the current entry.
    pub(super) fn name(&self) -> &OsStr {
        let begin = memchr::memrchr(b'/', &self.path).map_or(0, |slash| slash + 1);
        OsStr::from_bytes(self.path.get(begin..).unwrap_or_default())
    }

    /// The path of the current entry below the first directory.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Number of directories from the first one to that of the current entry, at least 1.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    fn push(&mut self, dir: OwnedFd) -> nix::Result<()> {
        let stat = fstat(&dir)?;
        let (id, path) = ((stat.st_dev, stat.st_ino), self.path.len());
        self.levels.push(Level { dir: Some(dir), id, path, batch: Batch::default(), position: 0 });
        let closed = self.levels.len().checked_sub(MAX_OPEN).filter(|index| *index > 0);
        if let Some(level) = closed.and_then(|index| self.levels.get_mut(index)) {
            level.dir = None;
            level.batch = Batch::default();
        }
        Ok(())
    }

    /// Returns to the directory above the last one, also before the end of that.
    ///
    /// # Errors
    /// See [`Descent::next`].
    pub(super) fn leave(&mut self) -> nix::Result<Option<Found>> {
        let (Some(left), Some(parent)) = (self.levels.pop(), self.levels.last_mut()) else { return Ok(None) };
        self.path.truncate(left.path);
        if parent.dir.is_none() {
            let left = left.dir.ok_or(Errno::EBADF)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let dir = fcntl::openat(&left, "..", flags, Mode::empty())?;
            let stat = fstat(&dir)?;
            if (stat.st_dev, stat.st_ino) != parent.id {
                return Err(Errno::ESTALE);
            }
            lseek(&dir, parent.position, Whence::SeekSet)?;
            parent.dir = Some(dir);
        }
        Ok(Some(Found::Left))
    }
}

/// Opens a directory for reading by its name in `parent`, and not through a symlink.
pub(super) fn open_dir(parent: BorrowedFd<'_>, name: &OsStr, mounts: Mounts) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if mounts == Mounts::Follow {
        return fcntl::openat(parent, name, flags, Mode::empty());
    }
    if has_openat2() {
        return fcntl::openat2(parent, name, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_XDEV));
    }
    let dir = fcntl::openat(parent, name, flags, Mode::empty())?;
    if mount(&dir)? == mount(parent)? { Ok(dir) } else { Err(Errno::EXDEV) }
}

/// What tells a mount from others: its number from Linux 5.8 on, else the device, which the mounts of one file system
/// share.
fn mount(file: impl AsFd) -> nix::Result<(u64, u32, u32)> {
    let wanted = StatxFlags::MNT_ID;
    let found = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, wanted).map_err(errno)?;
    let has_number = StatxFlags::from_bits_retain(found.stx_mask).contains(wanted);
    Ok((if has_number { found.stx_mnt_id } else { 0 }, found.stx_dev_major, found.stx_dev_minor))
}

/// Whether a file is on a file system that shows the state of the kernel.
pub(super) fn is_of_kernel(file: impl AsFd) -> nix::Result<bool> {
    Ok(KERNEL_FILE_SYSTEMS.contains(&fstatfs(file.as_fd())?.filesystem_type()))
}

pub(super) fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use nix::fcntl::AT_FDCWD;
    use nix::sys::stat::mkdirat;

    use super::*;

    fn begin(dir: &Path) -> Descent {
        Descent::begin(File::open(dir).unwrap().into(), Mounts::Follow).unwrap()
    }

    /// Enters every directory. Returns the paths in the order in which they are found, and those of the directories again
    /// when they are left.
    fn walk(descent: &mut Descent) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(step) = descent.next().unwrap() {
            let path = String::from_utf8(descent.path().to_vec()).unwrap();
            match step {
                Found::Left => found.push(format!("{path}/")),
                Found::Entry(kind) => {
                    assert!(path.ends_with(descent.name().to_str().unwrap()));
                    found.push(path);
                    if kind == FileType::Directory {
                        assert!(descent.enter().unwrap());
                    }
                }
            }
        }
        found
    }

    #[test]
    fn every_entry_is_found_once_and_symlinks_are_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "").unwrap();
        fs::write(dir.path().join("d"), "").unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        let mut found = walk(&mut begin(dir.path()));
        assert_eq!(
            found.iter().position(|path| path == "a/b/c").unwrap() + 1,
            found.iter().position(|path| path == "a/b/").unwrap()
        );
        found.sort();
        assert_eq!(found, ["a", "a/", "a/b", "a/b/", "a/b/c", "d", "link"]);
    }

    #[test]
    fn a_directory_with_more_than_a_batch_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let right: BTreeSet<_> = (0..5_000).map(|n| format!("a rather long name, number {n}")).collect();
        right.iter().for_each(|name| drop(File::create(dir.path().join(name)).unwrap()));
        let found = walk(&mut begin(dir.path()));
        assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (right.len(), right));
    }

    #[test]
    fn a_deep_tree_needs_few_descriptors_and_loses_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let mut parent: OwnedFd = File::open(dir.path()).unwrap().into();
        let levels = 1_000;
        for level in 0..levels {
            for name in ["a", "d", "z"] {
                mkdirat(&parent, name, Mode::S_IRWXU).unwrap();
            }
            if level % 100 == 0 {
                (0..300).for_each(|n| mkdirat(&parent, format!("{n:060}").as_str(), Mode::S_IRWXU).unwrap());
            }
            parent = open_dir(parent.as_fd(), OsStr::new("d"), Mounts::Stay).unwrap();
        }
        let mut descent = begin(dir.path());
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let (before, mut most, mut entries) = (open(), 0, 0);
        while let Some(step) = descent.next().unwrap() {
            if let Found::Entry(_) = step {
                entries += 1;
                descent.enter().unwrap();
                if entries % 500 == 0 {
                    most = most.max(open());
                }
            }
        }
        assert_eq!(entries, levels * 3 + levels / 100 * 300);
        // Other tests open files at the same time.
        assert!(most < before + MAX_OPEN + 500, "{before} {most}");
        fs::remove_dir_all(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_was_moved_does_not_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("tree").join("d/".repeat(MAX_OPEN + 5))).unwrap();
        fs::create_dir_all(at("outside/victim")).unwrap();
        let mut descent = begin(&at("tree"));
        while let Some(Found::Entry(_)) = descent.next().unwrap() {
            descent.enter().unwrap();
        }
        // The directories near the top are closed by now.
        fs::rename(at("tree/d/d"), at("outside/d")).unwrap();
        let end = loop {
            match descent.next() {
                Ok(Some(Found::Left)) => {}
                other => break other,
            }
        };
        assert_eq!(end, Err(Errno::ESTALE));
    }

    #[test]
    fn a_mount_point_is_entered_only_if_asked_for() {
        for (name, mounts, right) in [
            ("proc", Mounts::Stay, Err(Errno::EXDEV)),
            ("proc", Mounts::Follow, Ok(false)),
            ("etc", Mounts::Follow, Ok(true)),
        ] {
            let mut descent = Descent::begin(File::open("/").unwrap().into(), mounts).unwrap();
            while descent.next().unwrap().is_some() && descent.name() != name {}
            assert_eq!(descent.enter(), right, "{name}");
        }
        let root: OwnedFd = File::open("/").unwrap().into();
        let proc = fcntl::openat(AT_FDCWD, "/proc", OFlag::O_RDONLY, Mode::empty()).unwrap();
        assert_ne!(mount(&root).unwrap(), mount(&proc).unwrap());
    }
}
