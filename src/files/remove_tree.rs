//! Removes a directory with all that is in it.
//!
//! Every entry is removed by its name in the descriptor of its directory, and every directory is opened by its name in
//! that of the directory above it: never through a symlink, and never across a mount point. So other processes can
//! rename directories and swap them for symlinks meanwhile, and nothing is removed that was not in the tree.
//!
//! At most [`MAX_OPEN`] directories are open, whatever the depth. In a deeper tree some of those in between are closed,
//! the more of them the farther up. There is no way back to a closed one, because what `..` leads to may have been moved:
//! the nearest open directory above it is read again, and what is still in it leads there. With directories that get
//! farther apart towards the top, this opens each directory only a few times.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::unistd::{UnlinkatFlags, Whence, lseek, unlinkat};
use rustix::fs::FileType;

use super::descent::{BATCH, Batch, Mounts, open_dir};
use super::path::split;
use super::walk::{open_path, open_path_dir};
use super::{FileError, FilePath};

/// Maximum number of directories that are open at a time. With the directory that contains the tree, and the one that is
/// about to be entered, they are 32.
const MAX_OPEN: usize = 30;

/// How often a directory is read again because new entries have been created in it meanwhile.
const MAX_AGAIN: u32 = 100;

/// Number of entries after which the caller is asked whether to go on.
const ENTRIES_BETWEEN_CHECKS: u32 = 256;

/// Length up to which the path of an entry is kept for messages, in bytes.
const MAX_PATH: usize = 4096;

/// Removes the directory at `path` with all that is in it, or a file of any type. A symlink itself is removed, not its
/// target. Stops at the first entry that cannot be removed; what was removed before that is gone.
///
/// Calls `go_on` now and then, and stops if it returns false. Returns whether everything was removed.
///
/// # Errors
/// If the path, or an entry below it, cannot be removed. The error names it.
pub fn remove_tree(path: &FilePath, go_on: &mut dyn FnMut() -> bool) -> Result<bool, FileError> {
    let failed = |errno: Errno| failure(path, errno);
    let (dir, name) = split(path.as_os_str());
    let Some(name) = name else {
        // If there is no such directory, the kernel's error says so.
        open_path(AT_FDCWD, path.as_os_str()).map_err(failed)?;
        return Err(FileError::Invalid(format!(
            "must end in the name of what is removed, and not in `/` or `.`: {:?}",
            path.shown()
        )));
    };
    let dir = open_path_dir(AT_FDCWD, dir).map_err(failed)?;
    let mut again = 0;
    let mut first = match remove_entry(&dir, name, FileType::Unknown).map_err(failed)? {
        Entry::Removed => return Ok(true),
        Entry::Missing => return Err(FileError::NotFound(path.shown())),
        Entry::Directory(first) => first,
    };
    let mut removal = Removal::new(path, go_on);
    loop {
        if !removal.empty(first)? {
            return Ok(false);
        }
        match unlinkat(&dir, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(errno) if !is_changed(errno) || again >= MAX_AGAIN => return Err(failed(errno)),
            Err(_) => again += 1,
        }
        first = match remove_entry(&dir, name, FileType::Unknown).map_err(failed)? {
            Entry::Removed | Entry::Missing => return Ok(true),
            Entry::Directory(first) => first,
        };
    }
}

/// What has become of an entry that was to be removed.
enum Entry {
    Removed,
    /// There was none.
    Missing,
    /// It is a directory, which must be emptied first.
    Directory(OwnedFd),
}

/// Removes an entry of a directory, or opens it if it is a directory itself. `kind` is what the directory says that the
/// entry is.
fn remove_entry(dir: impl AsFd, name: &OsStr, kind: FileType) -> nix::Result<Entry> {
    if kind != FileType::Directory {
        match unlinkat(dir.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => {}
            Err(Errno::ENOENT) => return Ok(Entry::Missing),
            result => return result.map(|()| Entry::Removed),
        }
    }
    let how = match open_dir(dir.as_fd(), name, Mounts::Stay) {
        Ok(opened) => return Ok(Entry::Directory(opened)),
        Err(Errno::ENOENT) => return Ok(Entry::Missing),
        // Another file has got the name meanwhile.
        Err(Errno::ENOTDIR | Errno::ELOOP) => UnlinkatFlags::NoRemoveDir,
        // The user may remove an empty directory that it cannot read.
        Err(Errno::EACCES) => UnlinkatFlags::RemoveDir,
        Err(errno) => return Err(errno),
    };
    match unlinkat(dir, name, how) {
        Ok(()) => Ok(Entry::Removed),
        Err(Errno::ENOENT) => Ok(Entry::Missing),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Err(Errno::EACCES),
        Err(errno) => Err(errno),
    }
}

/// Whether the removal of a directory that was empty has failed because another process has changed it.
fn is_changed(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR)
}

/// The error about the file at `path`.
fn failure(path: &FilePath, errno: Errno) -> FileError {
    match errno {
        Errno::EXDEV | Errno::EBUSY => FileError::MountPoint(path.shown()),
        Errno::ENOTEMPTY | Errno::EEXIST => FileError::NotEmpty(path.shown()),
        errno => FileError::of(path, &errno.into()),
    }
}

/// The removal of all that is in a directory.
struct Removal<'r> {
    base: &'r FilePath,
    go_on: &'r mut dyn FnMut() -> bool,
    entries: u32,
    /// The open directories, from the first one to the one that is being emptied.
    levels: Vec<Level>,
    /// The path of the last open directory below the first one, as far as it is kept.
    path: Vec<u8>,
    buffer: Vec<MaybeUninit<u8>>,
}

/// A directory that is open.
struct Level {
    dir: OwnedFd,
    /// Its name in the directory above it.
    name: OsString,
    /// Number of directories above it, open or not.
    depth: usize,
    /// Length of its path in bytes, as far as it is kept.
    path: usize,
    /// Whether its path is longer than what is kept.
    is_cut: bool,
    batch: Batch,
    /// How often it has been read again because it has changed.
    again: u32,
}

impl Level {
    /// Reads the directory from its beginning: what was removed is no longer in it.
    fn rewind(&mut self) -> nix::Result<()> {
        self.batch = Batch::default();
        lseek(&self.dir, 0, Whence::SeekSet).map(drop)
    }
}

impl<'r> Removal<'r> {
    fn new(base: &'r FilePath, go_on: &'r mut dyn FnMut() -> bool) -> Removal<'r> {
        let buffer = vec![MaybeUninit::uninit(); BATCH];
        Removal { base, go_on, entries: 0, levels: Vec::with_capacity(MAX_OPEN + 1), path: Vec::new(), buffer }
    }

    /// Removes all that is in a directory. Returns false if the caller wants it to stop.
    fn empty(&mut self, first: OwnedFd) -> Result<bool, FileError> {
        self.path.clear();
        self.enter(OsString::new(), first);
        while let Some(level) = self.levels.last_mut() {
            let Some((entry, name)) = level.batch.pop() else {
                let filled = level.batch.fill(level.dir.as_fd(), &mut self.buffer);
                // The directory itself may have been removed.
                if !filled.or_else(ignore_missing).map_err(|errno| self.failure(OsStr::new(""), errno))? {
                    self.leave()?;
                }
                continue;
            };
            self.entries += 1;
            if self.entries >= ENTRIES_BETWEEN_CHECKS {
                self.entries = 0;
                if !(self.go_on)() {
                    return Ok(false);
                }
            }
            let name = OsStr::from_bytes(name);
            match remove_entry(&level.dir, name, entry.kind) {
                Ok(Entry::Removed | Entry::Missing) => {}
                Ok(Entry::Directory(dir)) => {
                    let name = name.to_owned();
                    self.enter(name, dir);
                }
                Err(errno) => {
                    let name = name.to_owned();
                    return Err(self.failure(&name, errno));
                }
            }
        }
        Ok(true)
    }

    /// Makes a directory of the last open one the last open one.
    fn enter(&mut self, name: OsString, dir: OwnedFd) {
        let (depth, is_cut) = match self.levels.last() {
            None => (0, false),
            Some(above) => (above.depth + 1, above.is_cut || self.path.len() + name.len() >= MAX_PATH),
        };
        if depth > 0 && !is_cut {
            self.path.push(b'/');
            self.path.extend_from_slice(name.as_bytes());
        }
        if self.levels.len() >= MAX_OPEN {
            let depths: Vec<usize> = self.levels.iter().map(|level| level.depth).collect();
            self.levels.remove(least_needed(&depths, depth));
        }
        let path = self.path.len();
        self.levels.push(Level { dir, name, depth, path, is_cut, batch: Batch::default(), again: 0 });
    }

    /// Removes the last open directory, which is empty, from the one above it, if that is open.
    fn leave(&mut self) -> Result<(), FileError> {
        let Some(left) = self.levels.pop() else { return Ok(()) };
        let Some(above) = self.levels.last_mut() else { return Ok(()) };
        self.path.truncate(above.path);
        if above.depth + 1 != left.depth {
            return above.rewind().map_err(|errno| self.failure(OsStr::new(""), errno));
        }
        match unlinkat(&above.dir, &*left.name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) if is_changed(errno) && above.again < MAX_AGAIN => {
                above.again += 1;
                above.rewind().map_err(|errno| self.failure(&left.name, errno))
            }
            Err(errno) => Err(self.failure(&left.name, errno)),
        }
    }

    /// The error about an entry of the last open directory; with an empty name, about that directory.
    fn failure(&self, name: &OsStr, errno: Errno) -> FileError {
        let cut = if self.levels.last().is_some_and(|level| level.is_cut) { "/..." } else { "" };
        let slash = if name.is_empty() { "" } else { "/" };
        failure(&self.base.below(&[&self.path, cut.as_bytes(), slash.as_bytes(), name.as_bytes()].concat()), errno)
    }
}

/// A directory that was removed has no entries.
fn ignore_missing(errno: Errno) -> nix::Result<bool> {
    if errno == Errno::ENOENT { Ok(false) } else { Err(errno) }
}

/// Index of the open directory to close before one of the depth `next` is entered: never the first or the last one, and
/// of the others that which leaves the smallest gap, compared with the distance to `next`.
fn least_needed(depths: &[usize], next: usize) -> usize {
    let gaps = depths.windows(3).map(|around| match *around {
        [before, _, after] => (after - before, next - before),
        _ => (1, 1),
    });
    // A fraction is less than another if the cross product is.
    let less = |(gap, distance): (usize, usize), (other, other_distance): (usize, usize)| {
        gap as u128 * (other_distance as u128) < other as u128 * distance as u128
    };
    let mut least = (1, (1, 1));
    for (at, gap) in (1..).zip(gaps) {
        if less(gap, least.1) {
            least = (at, gap);
        }
    }
    least.0
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    fn remove(path: &Path) -> Result<bool, FileError> {
        remove_tree(&FilePath::parse(path.as_os_str().as_bytes(), "/").unwrap(), &mut || true)
    }

    /// Creates a chain of `levels` directories below `dir`, each with a file.
    fn make_deep(dir: &Path, levels: usize) {
        let mut parent: OwnedFd = File::open(dir).unwrap().into();
        for _ in 0..levels {
            mkdirat(&parent, "d", Mode::S_IRWXU).unwrap();
            let flags = nix::fcntl::OFlag::O_CREAT;
            nix::fcntl::openat(&parent, "file", flags, Mode::S_IRWXU).unwrap();
            parent = open_dir(parent.as_fd(), OsStr::new("d"), Mounts::Stay).unwrap();
        }
    }

    #[test]
    fn a_tree_is_removed_and_what_its_symlinks_lead_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("tree/a/b/c")).unwrap();
        fs::create_dir_all(at("tree/empty")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/file"), "kept").unwrap();
        symlink("../../outside", at("tree/a/link")).unwrap();
        symlink("../outside/file", at("tree/to-file")).unwrap();
        nix::unistd::mkfifo(&at("tree/a/fifo"), Mode::S_IRWXU).unwrap();
        for name in [&b"\xff\xfe"[..], b"new\nline", b" ", b"\\", b"-rf"] {
            fs::write(at("tree/a/b").join(OsStr::from_bytes(name)), "").unwrap();
        }
        assert!(remove(&at("tree")).unwrap());
        assert!(!at("tree").exists() && fs::read(at("outside/file")).unwrap() == b"kept");
        // A symlink and a file themselves.
        symlink("outside", at("link")).unwrap();
        assert!(remove(&at("link")).unwrap() && remove(&at("outside/file")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(remove(&at("absent")), Err(FileError::NotFound(_))));
        assert!(matches!(remove(&at("absent/x")), Err(FileError::NotFound(_))));
        for path in [Path::new("/"), &at("outside/"), &at("outside/.")] {
            let error = remove(path).unwrap_err();
            assert!(matches!(error, FileError::Invalid(_)), "{error}");
        }
    }

    #[test]
    fn a_deep_tree_is_removed_with_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        for levels in [1, MAX_OPEN - 1, MAX_OPEN, MAX_OPEN + 1, 2 * MAX_OPEN, 3_000] {
            let tree = dir.path().join("tree");
            fs::create_dir(&tree).unwrap();
            make_deep(&tree, levels);
            assert!(remove(&tree).unwrap());
            assert!(!tree.exists(), "{levels}");
        }
    }

    #[test]
    fn no_directory_is_opened_often() {
        // The number of openings for a chain of directories, as `Removal` opens and leaves them.
        let openings = |depth: usize| {
            let (mut open, mut count, mut deepest) = (vec![0], 0, depth);
            while deepest > 0 {
                while let Some(next) = open.last().map(|last| last + 1).filter(|next| *next <= deepest) {
                    if open.len() >= MAX_OPEN {
                        let at = least_needed(&open, next);
                        assert!(at > 0 && at < open.len() - 1);
                        open.remove(at);
                    }
                    open.push(next);
                    count += 1;
                }
                while open.last() == Some(&deepest) && deepest > 0 {
                    open.pop();
                    if open.last() != Some(&(deepest - 1)) {
                        break;
                    }
                    deepest -= 1;
                }
            }
            count
        };
        for (depth, most) in [(MAX_OPEN - 1, MAX_OPEN - 1), (1_000, 4_000), (10_000, 50_000), (50_000, 300_000)] {
            assert!(openings(depth) <= most, "{depth}: {}", openings(depth));
        }
    }

    #[test]
    fn a_caller_that_does_not_want_to_go_on_is_asked_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        (0..1000).for_each(|n| drop(File::create(tree.join(n.to_string())).unwrap()));
        let path = FilePath::parse(tree.as_os_str().as_bytes(), "/").unwrap();
        assert!(!remove_tree(&path, &mut || false).unwrap());
        let left = fs::read_dir(&tree).unwrap().count();
        assert!(left > 500 && left < 1000, "{left}");
        let mut asked = 0;
        assert!(
            remove_tree(&path, &mut || {
                asked += 1;
                true
            })
            .unwrap()
        );
        assert!(asked > 0 && !tree.exists());
    }

    #[test]
    fn an_error_names_the_entry() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("an_error_names_the_entry: skipped, it needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let busy = tree.join("a/b/busy");
        fs::create_dir_all(&busy).unwrap();
        let work = || {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
            let outside = dir.path().join("outside");
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("file"), "").unwrap();
            // A part of the same file system.
            mount(Some(&outside), &busy, nothing, MsFlags::MS_BIND, nothing).unwrap();
            for at in [&tree, &busy] {
                let error = remove(at).unwrap_err();
                assert!(matches!(&error, FileError::MountPoint(path) if path == busy.to_str().unwrap()), "{error}");
            }
            assert!(outside.join("file").exists());
        };
        std::thread::scope(|scope| scope.spawn(work).join()).unwrap();
    }
}
