//! Unpacks an archive.
//!
//! Every entry is put below one directory, which is opened once. The directories on its path are opened one by one without
//! following a symlink, so that neither the archive nor another process can lead outside.
//!
//! An entry is put under its name when it is complete. Files are not flushed to the disk: after a crash of the machine the
//! last ones can be missing.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;

use super::compression::{Source, Unreadable, is_corrupt};
use super::dirs::Dirs;
use super::entry::{Entry, EntryKind};
use super::error::{ArchiveError, UnpackError};
use super::name::{components, shown};
use super::place::{Attributes, NewFile, open_below, open_child, put_fifo, put_hard_link, put_symlink};
use super::reader::{EntryReader, ReadError};
use super::{ArchiveLimit, UnpackOptions};
use crate::files::FileError;
use crate::files::descent::is_of_kernel;
use crate::files::target::create_dirs;

/// Bytes of a file that are written at once.
const PIECE: usize = 128 << 10;

/// Bytes after the end of the archive that are read: the program `tar` fills the last 10 KiB.
const MAX_TRAILER: u64 = 1 << 20;

/// Size of a file from which the free space of its file system is checked first.
const LARGE: u64 = 1 << 20;

/// Unpacks `archive` into the directory at `path`, which is created if it is missing.
pub(super) fn unpack(path: &Path, archive: &mut dyn Read, options: UnpackOptions) -> Result<(), UnpackError> {
    let failed = |error| UnpackError { error, unpacked: 0 };
    // Before anything is read: a client that waits for `100 Continue` need not send an archive that cannot be unpacked.
    let mut unpacker = Unpacker::begin(path, options).map_err(failed)?;
    let source = Source::recognise(archive).map_err(|why| failed(unreadable(why)))?;
    unpacker.all(source).map_err(|error| UnpackError { error, unpacked: unpacker.unpacked })
}

fn unreadable(why: Unreadable) -> ArchiveError {
    match why {
        Unreadable::Empty => ArchiveError::Malformed("the archive is empty".to_owned()),
        Unreadable::Compressed(name) => {
            ArchiveError::Malformed(format!("the archive is in the form of {name}, but must be tar or tar.gz"))
        }
        Unreadable::Io(error) => ArchiveError::Input(error),
    }
}

struct Unpacker<'p> {
    path: &'p Path,
    root: OwnedFd,
    options: UnpackOptions,
    /// The directory of the last entry: its path below the root, and its descriptor.
    parent: Option<(Vec<u8>, OwnedFd)>,
    dirs: Dirs,
    /// Number of entries that are unpacked.
    unpacked: u64,
    /// Number of entries and directories, and bytes of content, that have been begun.
    entries: u64,
    bytes: u64,
    piece: Vec<u8>,
}

impl<'p> Unpacker<'p> {
    fn begin(path: &'p Path, options: UnpackOptions) -> Result<Unpacker<'p>, ArchiveError> {
        if options.preserve_owner && !geteuid().is_root() {
            return Err(ArchiveError::OwnersNeedRoot);
        }
        let shown = || path.to_string_lossy().into_owned();
        let failed = |errno: Errno| FileError::at(shown(), &errno.into());
        let root = create_dirs(AT_FDCWD, path.as_os_str()).map_err(failed)?;
        if is_of_kernel(&root).map_err(failed)? {
            return Err(FileError::at(shown(), &Errno::EROFS.into()).into());
        }
        let dirs = Dirs::default();
        Ok(Unpacker {
            path,
            root,
            options,
            parent: None,
            dirs,
            unpacked: 0,
            entries: 0,
            bytes: 0,
            piece: vec![0; PIECE],
        })
    }

    fn all(&mut self, source: Source<'_>) -> Result<(), ArchiveError> {
        let mut reader = EntryReader::new(source);
        let result = self.entries(&mut reader);
        // Also after an error: what is whole is left with its attributes.
        let dirs = std::mem::take(&mut self.dirs);
        let finished = dirs.finish(&self.root).map_err(|errno| self.failed(b"", &errno.into()));
        result.and(finished)
    }

    fn entries(&mut self, reader: &mut EntryReader<Source<'_>>) -> Result<(), ArchiveError> {
        while let Some(entry) = reader.next().map_err(input_error)? {
            self.count(1, entry.size)?;
            self.entry(&entry, reader)?;
            self.unpacked += 1;
        }
        // To the end of a compressed stream, where its checksum stands.
        let mut trailer = reader.input().take(MAX_TRAILER);
        io::copy(&mut trailer, &mut io::sink()).map(drop).map_err(|error| input_error(error.into()))
    }

    fn count(&mut self, entries: u64, bytes: u64) -> Result<(), ArchiveError> {
        let ArchiveLimit { entries: max_entries, bytes: max_bytes } = self.options.limit;
        self.entries = self.entries.saturating_add(entries);
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(max) = max_entries.filter(|max| self.entries > *max) {
            return Err(ArchiveError::TooLarge(format!("{max} entries, which is the limit (--max-archive)")));
        }
        if let Some(max) = max_bytes.filter(|max| self.bytes > *max) {
            return Err(ArchiveError::TooLarge(format!("{max} bytes of content, which is the limit (--max-archive)")));
        }
        Ok(())
    }

    /// Unpacks one entry.
    fn entry(&mut self, entry: &Entry, reader: &mut EntryReader<Source<'_>>) -> Result<(), ArchiveError> {
        let bad = |why: &str| bad(&entry.path, why);
        let path = components(&entry.path).map_err(|wrong| bad(wrong.why()))?;
        let Some((name, above)) = path.split_last() else {
            // The directory that the archive is unpacked into. It keeps its attributes.
            return if entry.kind == EntryKind::Directory { Ok(()) } else { Err(bad("has no name")) };
        };
        match entry.kind {
            EntryKind::Device => return Err(bad("is a device")),
            EntryKind::Sparse => {
                return Err(bad("is a sparse file, which is not supported: create the archive without holes"));
            }
            EntryKind::Other(flag) => return Err(bad(&format!("has the unknown type {:?}", char::from(flag)))),
            _ => {}
        }
        self.open_parent(above, &entry.path)?;
        let name = OsStr::from_bytes(name);
        let attributes = Attributes::of(entry, self.options.preserve_owner);
        let Some((_, dir)) = self.parent.take() else { return Err(bad("has no directory")) };
        let result = match entry.kind {
            EntryKind::Directory => self.directory(&dir, name, &path, attributes),
            EntryKind::Symlink => put_symlink(dir.as_fd(), name, OsStr::from_bytes(&entry.link), &attributes)
                .map_err(|error| self.failed(&entry.path, &error)),
            EntryKind::HardLink => self.hard_link(&dir, name, entry),
            EntryKind::Fifo => {
                put_fifo(dir.as_fd(), name, &attributes).map_err(|error| self.failed(&entry.path, &error))
            }
            _ => self.file(&dir, name, entry, &attributes, reader),
        };
        self.parent = Some((above.join(&b'/'), dir));
        result
    }

    /// Opens the directory of an entry, which is created if it is missing.
    fn open_parent(&mut self, above: &[&[u8]], entry: &[u8]) -> Result<(), ArchiveError> {
        let wanted = above.join(&b'/');
        let (mut dir, missing) = match self.parent.take() {
            Some((path, dir)) if path == wanted => {
                self.parent = Some((path, dir));
                return Ok(());
            }
            // It is below the last one.
            Some((path, dir))
                if !path.is_empty() && wanted.strip_prefix(&*path).is_some_and(|rest| rest.first() == Some(&b'/')) =>
            {
                (dir, above.get(path.split(|byte| *byte == b'/').count()..).unwrap_or_default())
            }
            _ => (self.root.try_clone().map_err(|error| self.failed(entry, &error))?, above),
        };
        for name in missing {
            let name = OsStr::from_bytes(name);
            let opened = match open_child(dir.as_fd(), name) {
                Err(Errno::ENOENT) => {
                    self.count(1, 0)?;
                    match mkdirat(&dir, name, Mode::from_bits_truncate(0o777)) {
                        Ok(()) | Err(Errno::EEXIST) => open_child(dir.as_fd(), name),
                        Err(errno) => Err(errno),
                    }
                }
                result => result,
            };
            dir = opened.map_err(|errno| match errno {
                Errno::ELOOP => bad(entry, &format!("leads through the symlink {:?}", name.to_string_lossy())),
                errno => self.failed(entry, &errno.into()),
            })?;
        }
        self.parent = Some((wanted, dir));
        Ok(())
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &[&[u8]],
        attributes: Attributes,
    ) -> Result<(), ArchiveError> {
        let joined = path.join(&b'/');
        // Until all is in it, its owner may write there.
        let made = mkdirat(dir, name, (attributes.mode() | Mode::S_IRWXU) & Mode::from_bits_truncate(0o777));
        match made {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                return open_child(dir.as_fd(), name).map(drop).map_err(|errno| match errno {
                    Errno::ELOOP => bad(&joined, "is a directory where there is a symlink"),
                    Errno::ENOTDIR => FileError::AlreadyExists(self.shown(&joined)).into(),
                    errno => self.failed(&joined, &errno.into()),
                });
            }
            Err(errno) => return Err(self.failed(&joined, &errno.into())),
        }
        let added = match self.dirs.add(&self.root, (dir, name), joined.clone(), attributes) {
            // Another process has removed or replaced it meanwhile.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            added => added,
        };
        added.map_err(|errno| self.failed(&joined, &errno.into()))
    }

    fn hard_link(&mut self, dir: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), ArchiveError> {
        let shown = shown(&entry.link);
        let target = components(&entry.link)
            .map_err(|wrong| bad(&entry.path, &format!("is a hard link to {shown:?}, which {}", wrong.why())))?;
        let missing = || bad(&entry.path, &format!("is a hard link to {shown:?}, which does not exist"));
        let (target, above) = target.split_last().ok_or_else(missing)?;
        let linked = open_below(self.root.as_fd(), above)
            .map_err(io::Error::from)
            .and_then(|target_dir| put_hard_link(dir.as_fd(), name, target_dir.as_fd(), OsStr::from_bytes(target)));
        linked.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => missing(),
            Some(libc::ELOOP) => {
                bad(&entry.path, &format!("is a hard link to {shown:?}, which leads through a symlink"))
            }
            _ => self.failed(&entry.path, &error),
        })
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        attributes: &Attributes,
        reader: &mut EntryReader<Source<'_>>,
    ) -> Result<(), ArchiveError> {
        if entry.size > LARGE && entry.size > free_space(dir) {
            return Err(self.failed(&entry.path, &Errno::ENOSPC.into()));
        }
        let mut new = NewFile::create(dir.as_fd()).map_err(|errno| self.failed(&entry.path, &errno.into()))?;
        loop {
            let read = reader.read(&mut self.piece).map_err(input_error)?;
            if read == 0 {
                break;
            }
            let written = new.file.write_all(self.piece.get(..read).unwrap_or_default());
            written.map_err(|error| self.failed(&entry.path, &error))?;
        }
        let put = attributes.set(new.file.as_fd()).map_err(io::Error::from).and_then(|()| new.put(name));
        put.map_err(|error| self.failed(&entry.path, &error))
    }

    /// The error about an entry that cannot be written.
    fn failed(&self, entry: &[u8], error: &io::Error) -> ArchiveError {
        FileError::at(self.shown(entry), error).into()
    }

    /// The path of an entry, for messages.
    fn shown(&self, entry: &[u8]) -> String {
        let path = self.path.to_string_lossy();
        if entry.is_empty() { path.into_owned() } else { format!("{}/{}", path.trim_end_matches('/'), shown(entry)) }
    }
}

fn bad(entry: &[u8], why: &str) -> ArchiveError {
    ArchiveError::BadEntry { entry: shown(entry), why: why.to_owned() }
}

fn input_error(error: ReadError) -> ArchiveError {
    match error {
        ReadError::Io(error) if is_corrupt(&error) => {
            ArchiveError::Malformed(format!("the archive cannot be decompressed: {error}"))
        }
        error => error.into(),
    }
}

/// Free space in bytes on the file system of a directory, without regard to quotas.
fn free_space(dir: &OwnedFd) -> u64 {
    match fstatvfs(dir) {
        // A file system that does not count its blocks reports 0 for all of them.
        Ok(stat) if stat.blocks() > 0 => stat.blocks_free().saturating_mul(stat.fragment_size()),
        _ => u64::MAX,
    }
}
