//! Writes a directory tree as an archive.
//!
//! A regular file, a directory, a symlink and a FIFO become entries. Sockets and devices are left out, and so is what is
//! below the mount point of a file system that shows the state of the kernel. A file with several names is an entry under
//! the first one, and a hard link under the others, as long as there is memory to remember the first. What vanishes
//! meanwhile is left out. A file that grows meanwhile is cut at the size that it had; one that shrinks ends the archive with
//! an error, since its size has been written already.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use rustix::fs::FileType;

use super::entry::{BLOCK, Entry, EntryKind, Time, pad};
use super::error::ArchiveError;
use super::{ArchiveFormat, compression};
use crate::files::descent::{Descent, Found, Mounts, is_of_kernel};
use crate::files::magic_link::magic_link;
use crate::files::path::split;
use crate::files::walk::{examine_name, open, open_path, open_regular};
use crate::files::{FileError, is, unsigned};

/// Bytes of a file that are read at once, and bytes that are collected before they are written.
const PIECE: usize = 128 << 10;

/// Bytes that the names of files with several names may take.
const MAX_LINK_NAMES: usize = 1 << 20;

/// A tree that is about to be packed.
#[derive(Debug)]
pub(crate) struct Packing {
    /// The path, for messages.
    path: Vec<u8>,
    root: Root,
}

#[derive(Debug)]
enum Root {
    Directory(OwnedFd),
    /// A single file, and its name.
    File(File, FileStat, Vec<u8>),
}

impl Packing {
    /// Opens the directory or the regular file at `path`. Follows symlinks.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn begin(path: &Path) -> Result<Packing, FileError> {
        let path = path.as_os_str();
        let shown = || String::from_utf8_lossy(path.as_bytes()).into_owned();
        let failed = |errno: Errno| FileError::at(shown(), &errno.into());
        let held = open_path(AT_FDCWD, path).map_err(failed)?;
        if is_of_kernel(&held).map_err(failed)? {
            return Err(FileError::NotARegularFile(shown()));
        }
        let stat = fstat(&held).map_err(failed)?;
        let root = if is(&stat, SFlag::S_IFDIR) {
            Root::Directory(
                open(&held, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?,
            )
        } else {
            let opened = open_regular(AT_FDCWD, path, OFlag::O_RDONLY).map_err(failed)?;
            let (file, stat) = opened.ok_or_else(|| FileError::NotARegularFile(shown()))?;
            let name = split(path).1.unwrap_or(OsStr::new("file"));
            Root::File(file, stat, name.as_bytes().to_vec())
        };
        Ok(Packing { path: path.as_bytes().to_vec(), root })
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// If a file cannot be read, or the archive not be written.
    pub(crate) fn write(self, format: ArchiveFormat, out: &mut dyn Write) -> Result<(), ArchiveError> {
        self.write_as(None, format, out)
    }

    /// Writes the archive; with a name, of which the tree or the file is the entry.
    ///
    /// # Errors
    /// As [`Packing::write`].
    pub(super) fn write_as(
        mut self,
        name: Option<&OsStr>,
        format: ArchiveFormat,
        out: &mut dyn Write,
    ) -> Result<(), ArchiveError> {
        let prefix = match (&mut self.root, name) {
            (Root::File(_, _, own), Some(name)) => {
                *own = name.as_bytes().to_vec();
                Vec::new()
            }
            (Root::Directory(_), Some(name)) => [name.as_bytes(), b"/"].concat(),
            (_, None) => Vec::new(),
        };
        match format {
            ArchiveFormat::Tar => self.write_tar(prefix, out)?,
            ArchiveFormat::TarGz => {
                let mut encoder = compression::encoder(&mut *out);
                self.write_tar(prefix, &mut encoder)?;
                encoder.finish().map_err(ArchiveError::Output)?;
            }
        }
        out.flush().map_err(ArchiveError::Output)
    }

    fn write_tar(self, prefix: Vec<u8>, out: &mut dyn Write) -> Result<(), ArchiveError> {
        let mut packer = Packer { out, pending: Vec::with_capacity(2 * PIECE), links: Links::default(), prefix };
        match self.root {
            Root::File(mut file, stat, name) => {
                let entry = entry_of(EntryKind::File, &stat, name);
                packer.content(entry, &mut file).map_err(|error| error.about(&self.path, b""))?;
            }
            Root::Directory(dir) => {
                let failed = |errno: Errno| PackError::from(errno).about(&self.path, b"");
                packer.root(&dir).map_err(|error| error.about(&self.path, b""))?;
                let mut descent = Descent::begin(dir, Mounts::Follow).map_err(failed)?;
                loop {
                    match packer.step(&mut descent) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) => return Err(error.about(&self.path, descent.path())),
                    }
                }
            }
        }
        packer.end().map_err(ArchiveError::Output)
    }
}

/// Opens a regular file and waits for the end of a lease on it (F_SETLEASE in fcntl(2)), which the kernel ends after 45 s.
fn open_leased(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let held = openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if !is(&fstat(&held)?, SFlag::S_IFREG) {
        return Err(Errno::ENOENT);
    }
    // Without /proc it cannot be opened without its name, which another process can give to a FIFO meanwhile.
    let again = magic_link(&held).ok_or(Errno::EAGAIN)?;
    openat(AT_FDCWD, &*again, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// What went wrong, of which the path is not known yet.
#[derive(Debug)]
enum PackError {
    /// A file cannot be found, examined or opened.
    Open(io::Error),
    /// The content of a file cannot be read.
    Read(io::Error),
    /// The archive cannot be written.
    Write(io::Error),
}

impl From<Errno> for PackError {
    fn from(errno: Errno) -> PackError {
        PackError::Open(errno.into())
    }
}

impl PackError {
    fn about(self, root: &[u8], below: &[u8]) -> ArchiveError {
        match self {
            PackError::Write(error) => ArchiveError::Output(error),
            PackError::Open(error) | PackError::Read(error) => {
                let slash: &[u8] = if below.is_empty() || root.ends_with(b"/") { b"" } else { b"/" };
                let path = [root, slash, below].concat();
                FileError::at(String::from_utf8_lossy(&path).into_owned(), &error).into()
            }
        }
    }
}

/// Writes entries.
struct Packer<'o> {
    out: &'o mut dyn Write,
    /// What is collected for the next write.
    pending: Vec<u8>,
    links: Links,
    /// What the paths of the entries begin with: empty, or the name of the tree and a `/`.
    prefix: Vec<u8>,
}

impl Packer<'_> {
    /// Writes the entry of the tree itself, if it has a name.
    fn root(&mut self, dir: &OwnedFd) -> Result<(), PackError> {
        if self.prefix.is_empty() {
            return Ok(());
        }
        let entry = entry_of(EntryKind::Directory, &fstat(dir)?, self.prefix.clone());
        self.head(&entry)
    }

    /// Writes the next entry of the tree. Returns false at its end.
    fn step(&mut self, descent: &mut Descent) -> Result<bool, PackError> {
        match descent.next()? {
            None => return Ok(false),
            Some(Found::Left) => {}
            Some(Found::Entry(kind)) => match self.entry(descent, kind) {
                // It vanished, or became something else after it was examined. Nothing of it has been written.
                Err(PackError::Open(error)) if is_gone(&error) => {}
                result => result?,
            },
        }
        Ok(true)
    }

    /// Writes the current entry of the tree, which its directory says is of this type.
    fn entry(&mut self, descent: &mut Descent, kind: FileType) -> Result<(), PackError> {
        let path = [&*self.prefix, descent.path()].concat();
        if kind == FileType::RegularFile {
            return self.regular(descent.dir()?, descent.name(), path);
        }
        let stat = examine_name(descent.dir()?, descent.name())?;
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => {
                descent.enter()?;
                self.head(&Entry { path: [&path[..], b"/"].concat(), ..entry_of(EntryKind::Directory, &stat, path) })
            }
            SFlag::S_IFREG => self.regular(descent.dir()?, descent.name(), path),
            SFlag::S_IFLNK => {
                let link = readlinkat(descent.dir()?, descent.name())?.into_encoded_bytes();
                self.head(&Entry { link, ..entry_of(EntryKind::Symlink, &stat, path) })
            }
            SFlag::S_IFIFO => self.head(&entry_of(EntryKind::Fifo, &stat, path)),
            _ => Ok(()),
        }
    }

    /// Writes a regular file.
    fn regular(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: Vec<u8>) -> Result<(), PackError> {
        // Another process can replace it at any time: a FIFO must not block, and a symlink must not be followed.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut file = File::from(match openat(dir, name, flags, Mode::empty()) {
            // Another process holds a lease on it, which only a regular file can have. The open waits for the end of the
            // lease, so the file must be the one that is examined.
            Err(Errno::EAGAIN) => open_leased(dir, name)?,
            opened => opened?,
        });
        let stat = fstat(&file)?;
        if !is(&stat, SFlag::S_IFREG) {
            return Err(Errno::ENOENT.into());
        }
        if let Some(first) = self.links.first(&stat, &path) {
            return self.head(&Entry { link: first, ..entry_of(EntryKind::HardLink, &stat, path) });
        }
        self.content(entry_of(EntryKind::File, &stat, path), &mut file)
    }

    /// Writes the head of a file, and its content.
    fn content(&mut self, mut entry: Entry, file: &mut File) -> Result<(), PackError> {
        if entry.size <= PIECE as u64 {
            return self.small(entry, file);
        }
        let size = entry.size;
        self.head(&entry)?;
        self.flush()?;
        entry.path = Vec::new();
        let mut left = size;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = read_some(file, piece.get_mut(..most).unwrap_or_default())?;
            if read == 0 {
                return Err(PackError::Read(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "it has become shorter meanwhile",
                )));
            }
            self.out.write_all(piece.get(..read).unwrap_or_default()).map_err(PackError::Write)?;
            left -= read as u64;
        }
        pad(size, &mut self.pending);
        Ok(())
    }

    /// Writes a file whose content is read before its size is written.
    fn small(&mut self, mut entry: Entry, file: &mut File) -> Result<(), PackError> {
        let mut content = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(PIECE) + 1);
        file.take(entry.size).read_to_end(&mut content).map_err(PackError::Read)?;
        entry.size = content.len() as u64;
        self.head(&entry)?;
        self.pending.extend_from_slice(&content);
        pad(entry.size, &mut self.pending);
        Ok(())
    }

    /// Writes the header blocks of an entry.
    fn head(&mut self, entry: &Entry) -> Result<(), PackError> {
        entry.write_head(&mut self.pending);
        if self.pending.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), PackError> {
        self.out.write_all(&self.pending).map_err(PackError::Write)?;
        self.pending.clear();
        Ok(())
    }

    /// Writes the end of the archive.
    fn end(mut self) -> io::Result<()> {
        self.pending.resize(self.pending.len() + 2 * BLOCK, 0);
        self.out.write_all(&self.pending)
    }
}

/// The first names of the files that have several.
#[derive(Debug, Default)]
struct Links {
    /// By device and inode: the name, and the number of names that have not been found.
    names: HashMap<(u64, u64), (Vec<u8>, libc::nlink_t)>,
    bytes: usize,
}

impl Links {
    /// The name under which the file has been packed already, if it has.
    fn first(&mut self, stat: &FileStat, path: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let id = (stat.st_dev, stat.st_ino);
        if let Some((name, left)) = self.names.get_mut(&id) {
            *left = left.saturating_sub(1);
            if *left > 0 {
                return Some(name.clone());
            }
            let name = self.names.remove(&id).map(|(name, _)| name)?;
            self.bytes -= size_of_link(&name);
            return Some(name);
        }
        let size = size_of_link(path);
        if self.bytes + size <= MAX_LINK_NAMES {
            self.bytes += size;
            let others = stat.st_nlink - 1;
            self.names.insert(id, (path.to_vec(), others));
        }
        None
    }
}

/// Bytes that a remembered name takes, with its place in the map.
fn size_of_link(name: &[u8]) -> usize {
    name.len() + 100
}

fn entry_of(kind: EntryKind, stat: &FileStat, path: Vec<u8>) -> Entry {
    Entry {
        kind,
        path,
        link: Vec::new(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        size: if kind == EntryKind::File { unsigned(stat.st_size) } else { 0 },
    }
}

/// Whether an error means that a file is no longer what it was when its directory was read.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO))
}

fn read_some(file: &mut File, out: &mut [u8]) -> Result<usize, PackError> {
    loop {
        match file.read(out) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.map_err(PackError::Read),
        }
    }
}
