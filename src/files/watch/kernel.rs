//! The inotify descriptor of a request, and how directories below its root are opened.
//!
//! A directory is opened by its path from the root, never through a symlink, and its identity is compared with that of
//! the directory which was watched. A watch is added through the link in `/proc` to the open directory. So a directory
//! that is swapped for a symlink, or for another one, is never mistaken for it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, fstat};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tl_os::pipe;

use super::raw;
use super::stop::Stop;
use super::table::FileId;
use crate::error::Error;
use crate::files::descent::is_of_kernel;
use crate::files::magic_link::magic_link;
use crate::files::walk::{has_openat2, open, open_path};
use crate::files::{FileError, FilePath, is, proc_guard};

/// What is watched of a directory.
const DIRECTORY: u32 = raw::ENTRIES | raw::MODIFY | raw::ATTRIB | raw::EXCL_UNLINK | raw::ONLYDIR;

/// What is watched of the root besides.
const ROOT: u32 = raw::DELETE_SELF | raw::MOVE_SELF;

/// What is watched of a root that is not a directory.
const FILE: u32 = raw::MODIFY | raw::ATTRIB | ROOT;

/// What is watched of the directory that contains the root: whether the root is still in it. The kernel does not report
/// the removal of a directory itself as long as a process works in it.
const ABOVE: u32 = raw::DELETE | raw::MOVED_FROM | raw::MOVED_TO | raw::ONLYDIR;

/// The flags with which a directory is opened to be watched and read.
const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An inotify descriptor, and the root.
#[derive(Debug)]
pub(super) struct Kernel {
    inotify: OwnedFd,
    path: FilePath,
    root: Root,
    /// The root, while work goes on. It is closed before each wait, because an open file would keep its file system from
    /// being unmounted.
    open_root: Option<OwnedFd>,
    /// Number of bytes that were read.
    read: u64,
}

/// What the path of the request leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub(super) wd: i32,
    pub(super) id: FileId,
    pub(super) is_dir: bool,
    /// The watch of the directory that contains it.
    pub(super) above: Option<i32>,
}

impl Kernel {
    /// Watches what `path` leads to.
    ///
    /// # Errors
    /// If it does not exist, or the user may not read it, or has no watch left.
    pub(super) fn begin(path: &FilePath) -> Result<Kernel, FileError> {
        let of_path = |errno: Errno| FileError::of(path, &errno.into());
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let inotify = inotify.map_err(|error| no_instance(Errno::from_raw(error.raw_os_error())))?;
        let file = open_path(AT_FDCWD, path.as_os_str()).map_err(of_path)?;
        proc_guard::check(&file, false).map_err(of_path)?;
        let stat = fstat(&file).map_err(of_path)?;
        let root = Root { wd: 0, id: id_of(&file).map_err(of_path)?, is_dir: is(&stat, SFlag::S_IFDIR), above: None };
        let mut kernel = Kernel { inotify, path: path.clone(), root, open_root: None, read: 0 };
        // First, because the watch of a root that contains itself must have all events.
        if root.is_dir {
            kernel.root.above = kernel.watch_above(&file)?;
        }
        let wd = kernel.add(&file, kernel.root_events())?;
        kernel.root.wd = wd.ok_or_else(|| of_path(Errno::EACCES))?;
        Ok(kernel)
    }

    fn root_events(&self) -> u32 {
        if self.root.is_dir { DIRECTORY | ROOT } else { FILE }
    }

    /// Watches the directory that contains the root, if the user may read it.
    fn watch_above(&self, root: &OwnedFd) -> Result<Option<i32>, FileError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match fcntl::openat(root, "..", flags, Mode::empty()) {
            Ok(above) => self.add(&above, ABOVE),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn root(&self) -> Root {
        self.root
    }

    /// Reads events. Returns the number of bytes before them, and their own; none if there are none.
    pub(super) fn read<'b>(&mut self, buffer: &'b mut [u8]) -> Result<(u64, &'b [u8]), Stop> {
        let count = match nix::unistd::read(&self.inotify, buffer) {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(Error::from_io("reading events of inotify", &errno.into()).into()),
        };
        let before = self.read;
        self.read += count as u64;
        Ok((before, buffer.get(..count).unwrap_or_default()))
    }

    /// Whether events can be read.
    pub(super) fn has_events(&self) -> bool {
        pipe::bytes_in(&self.inotify) > 0
    }

    /// Number of bytes of all events so far, those that were not read included.
    pub(super) fn written(&self) -> u64 {
        self.read + pipe::bytes_in(&self.inotify) as u64
    }

    /// Closes the root until it is needed again.
    pub(super) fn rest(&mut self) {
        self.open_root = None;
    }

    /// Checks that the path still leads to the root.
    ///
    /// # Errors
    /// [`Stop::Gone`] if it does not.
    pub(super) fn check_root(&mut self) -> Result<(), Stop> {
        self.open_root = None;
        self.open_root().map(drop)
    }

    fn open_root(&mut self) -> Result<BorrowedFd<'_>, Stop> {
        if self.open_root.is_none() {
            let file = open_path(AT_FDCWD, self.path.as_os_str()).map_err(|errno| self.of_root(errno))?;
            let is_same = id_of(&file).is_ok_and(|id| id == self.root.id);
            // Some file systems give a file another identity when it is written for the first time.
            if !is_same && (self.root.is_dir || self.add(&file, FILE)? != Some(self.root.wd)) {
                return Err(Stop::Gone);
            }
            self.open_root = Some(file);
        }
        self.open_root.as_ref().map(AsFd::as_fd).ok_or(Stop::Gone)
    }

    /// What an error about the path of the root means.
    fn of_root(&self, errno: Errno) -> Stop {
        if is_shortage(errno) { FileError::of(&self.path, &errno.into()).into() } else { Stop::Gone }
    }

    /// Opens a watched directory for reading: that with this path below the root, if it is the one with this identity.
    pub(super) fn open_dir(&mut self, path: &[u8], id: FileId) -> Result<Option<OwnedFd>, Stop> {
        let root = self.open_root()?;
        let opened = match path {
            [] => fcntl::openat(root, ".", OPEN, Mode::empty()),
            path => open_below(root, path),
        };
        let opened = self.unless_short(opened)?;
        Ok(opened.filter(|dir| id_of(dir).is_ok_and(|found| found == id)))
    }

    /// Opens the directory with this name in another one, which is on the device `device`, for reading. None if there is no
    /// such directory, or it is not one to be watched: one that the user may not read, or one of a file system that shows
    /// the state of the kernel.
    pub(super) fn open_child(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        device: u64,
    ) -> Result<Option<(OwnedFd, FileId)>, Stop> {
        let opened = fcntl::openat(dir, OsStr::from_bytes(name), OPEN, Mode::empty());
        let Some(child) = self.unless_short(opened)? else { return Ok(None) };
        let Ok(id) = id_of(&child) else { return Ok(None) };
        let is_refused = id.0 != device && is_of_kernel(&child).unwrap_or(true);
        if is_refused || proc_guard::check(&child, false).is_err() {
            return Ok(None);
        }
        Ok(Some((child, id)))
    }

    /// What was opened; None if it cannot be.
    fn unless_short(&self, opened: nix::Result<OwnedFd>) -> Result<Option<OwnedFd>, Stop> {
        match opened {
            Err(errno) if is_shortage(errno) => Err(FileError::of(&self.path, &errno.into()).into()),
            opened => Ok(opened.ok()),
        }
    }

    /// Watches an open directory below the root. Returns its watch, which is the same as before if there is one; None if
    /// the user may not read it.
    pub(super) fn add_dir(&self, dir: &OwnedFd) -> Result<Option<i32>, FileError> {
        self.add(dir, DIRECTORY)
    }

    fn add(&self, file: &OwnedFd, events: u32) -> Result<Option<i32>, FileError> {
        let Some(link) = magic_link(file) else {
            return Err(Error::internal("watching needs /proc, which does not show this process").into());
        };
        match inotify::add_watch(&self.inotify, &*link, WatchFlags::from_bits_retain(events)) {
            Ok(wd) => Ok(Some(wd)),
            Err(rustix::io::Errno::NOSPC) => Err(Error::out_of_resources(format!(
                "the user has no watch left for {:?}: raise the sysctl fs.inotify.max_user_watches",
                self.path.shown()
            ))
            .into()),
            Err(error) if is_shortage(Errno::from_raw(error.raw_os_error())) => {
                Err(FileError::of(&self.path, &error.into()))
            }
            Err(_) => Ok(None),
        }
    }

    /// Removes a watch. It may be gone already, with what was watched. That of the directory above the root stays, also if a
    /// mount point below the root shows that directory.
    pub(super) fn remove(&self, wd: i32) {
        if Some(wd) != self.root.above {
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    /// The error for a root that contains too many directories.
    pub(super) fn too_many(&self) -> FileError {
        FileError::TooManyDirectories(self.path.shown())
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Opens the directory with a relative path for reading, and not through a symlink.
fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> nix::Result<OwnedFd> {
    if has_openat2() {
        let how = OpenHow::new().flags(OPEN).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        return fcntl::openat2(root, OsStr::from_bytes(path), how);
    }
    let mut dir: Option<OwnedFd> = None;
    for name in path.split(|byte| *byte == b'/') {
        let within = dir.as_ref().map_or(root, AsFd::as_fd);
        dir = Some(fcntl::openat(within, OsStr::from_bytes(name), OPEN, Mode::empty())?);
    }
    dir.ok_or(Errno::ENOENT)
}

fn id_of(file: &OwnedFd) -> nix::Result<FileId> {
    fstat(file).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Whether an error is about neither the file nor its path.
fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// The error for a descriptor of inotify that cannot be had.
fn no_instance(errno: Errno) -> FileError {
    // The same number says that the process has no descriptor left.
    let is_limit = errno == Errno::EMFILE && open(AT_FDCWD, OsStr::new("/"), OFlag::O_PATH, Mode::empty()).is_ok();
    if is_limit {
        return Error::out_of_resources(
            "the user has no inotify instance left: raise the sysctl fs.inotify.max_user_instances",
        )
        .into();
    }
    Error::from_io("an inotify instance", &errno.into()).into()
}
