//! Lists a directory.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::walk::{examine_name, open, open_path};
use super::{FileError, FilePath, is, proc_guard, unsigned};

/// Maximum number of entries in a listing. If a directory has more, the file system decides which are listed.
pub const MAX_ENTRIES: usize = 200_000;

/// A directory's entries, directories first, then by name. All names are in one allocation, one after another.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    records: Vec<Record>,
    /// Whether the directory has more than [`MAX_ENTRIES`].
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Offset and length of the name in `names`, in bytes.
    name: (usize, u16),
    is_dir: bool,
    size: Option<u64>,
    modified_at: Option<i64>,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry<'l> {
    /// The name, with U+FFFD in place of bytes that are not UTF-8.
    pub name: Cow<'l, str>,
    /// Whether it is a directory or a symlink to one.
    pub is_dir: bool,
    /// Size in bytes, for a symlink that of its target; `None` for a directory, or if it cannot be determined.
    pub size: Option<u64>,
    /// Modification time in milliseconds since the epoch; `None` if it cannot be determined.
    pub modified_at: Option<i64>,
}

/// Lists the directory at `path`, without `.` and `..`.
///
/// # Errors
/// If it cannot be listed.
pub fn list(path: &FilePath) -> Result<Listing, FileError> {
    list_up_to(path, MAX_ENTRIES).map_err(|errno| FileError::of(path, &errno.into()))
}

fn list_up_to(path: &FilePath, most: usize) -> nix::Result<Listing> {
    let fd = open(AT_FDCWD, path.as_os_str(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    proc_guard::check(&fd, false)?;
    let mut listing = Listing::default();
    // A second descriptor, because the iterator over the names borrows the first.
    let dir = fd.try_clone().map_err(|_| Errno::EMFILE)?;
    for entry in Dir::from_fd(fd)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if listing.records.len() >= most {
            listing.truncated = true;
            break;
        }
        if let Some(record) = examine(&dir, name, entry.file_type(), listing.names.len()) {
            listing.names.extend_from_slice(name);
            listing.records.push(record);
        }
    }
    listing.sort();
    listing.names.shrink_to_fit();
    listing.records.shrink_to_fit();
    Ok(listing)
}

/// Examines one entry; `None` if it no longer exists.
fn examine(dir: &OwnedFd, name: &[u8], kind: Option<Type>, at: usize) -> Option<Record> {
    let record = Record { name: (at, u16::try_from(name.len()).ok()?), is_dir: false, size: None, modified_at: None };
    let os_name = OsStr::from_bytes(name);
    let stat = match examine_name(dir, os_name) {
        Ok(stat) if is(&stat, SFlag::S_IFLNK) => stat_target(dir, os_name).unwrap_or(stat),
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return None,
        // The user may read the names in the directory but not examine the files.
        Err(_) => return Some(Record { is_dir: kind == Some(Type::Directory), ..record }),
    };
    let is_dir = is(&stat, SFlag::S_IFDIR);
    let size = (!is_dir).then(|| unsigned(stat.st_size));
    let modified_at = Some(stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec / 1_000_000));
    Some(Record { is_dir, size, modified_at, ..record })
}

/// The `fstat` of the target of a symlink.
fn stat_target(dir: impl AsFd, name: &OsStr) -> nix::Result<FileStat> {
    fstat(open_path(dir, name)?)
}

impl Listing {
    fn sort(&mut self) {
        let names = &self.names;
        self.records.sort_unstable_by(|a, b| (!a.is_dir, bytes(names, a)).cmp(&(!b.is_dir, bytes(names, b))));
    }

    /// The memory that it uses, in bytes.
    pub fn size(&self) -> usize {
        self.names.capacity() + self.records.capacity() * size_of::<Record>()
    }

    /// The entry at this index.
    pub fn get(&self, at: usize) -> Option<DirEntry<'_>> {
        let record = self.records.get(at)?;
        let name = String::from_utf8_lossy(bytes(&self.names, record));
        Some(DirEntry { name, is_dir: record.is_dir, size: record.size, modified_at: record.modified_at })
    }
}

/// The name of an entry.
fn bytes<'n>(names: &'n [u8], record: &Record) -> &'n [u8] {
    let (from, length) = record.name;
    names.get(from..from + usize::from(length)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn path(dir: &std::path::Path) -> FilePath {
        FilePath::parse(dir.as_os_str().as_bytes(), "/").unwrap()
    }

    #[test]
    fn a_listing_has_directories_first_and_is_sorted_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
        fs::create_dir(at(b"z-dir")).unwrap();
        fs::create_dir(at(b"B-dir")).unwrap();
        for name in [&b"b"[..], b"a", b"C", b"\xff", b"new\nline", b".hidden"] {
            fs::write(at(name), name).unwrap();
        }
        symlink("z-dir", at(b"to-dir")).unwrap();
        symlink("new\nline", at(b"to-file")).unwrap();
        symlink("nowhere", at(b"dangling")).unwrap();
        symlink("itself", at(b"itself")).unwrap();
        nix::unistd::mkfifo(&at(b"fifo"), Mode::S_IRWXU).unwrap();
        let listing = list(&path(dir.path())).unwrap();
        let names: Vec<_> = (0..listing.records.len()).map(|at| listing.get(at).unwrap().name.into_owned()).collect();
        let expected = [
            "B-dir",
            "to-dir",
            "z-dir",
            ".hidden",
            "C",
            "a",
            "b",
            "dangling",
            "fifo",
            "itself",
            "new\nline",
            "to-file",
            "\u{fffd}",
        ];
        assert_eq!(names, expected);
        let sizes: Vec<_> = (0..listing.records.len()).map(|at| listing.get(at).unwrap().size).collect();
        assert_eq!(sizes[..4], [None, None, None, Some(7)]);
        assert_eq!(sizes[11], Some(8), "a symlink has the size of its target");
        assert!((0..listing.records.len()).all(|at| listing.get(at).unwrap().modified_at > Some(1_500_000_000_000)));
        assert!(!listing.truncated && listing.get(13).is_none());
    }

    #[test]
    fn the_modification_time_is_in_milliseconds() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("x")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_999_999);
        file.set_modified(time).unwrap();
        assert_eq!(list(&path(dir.path())).unwrap().get(0).unwrap().modified_at, Some(1_234_567_890_123));
    }

    #[test]
    fn a_listing_is_truncated_at_the_maximum() {
        let dir = tempfile::tempdir().unwrap();
        (0..10).for_each(|n| fs::write(dir.path().join(n.to_string()), "").unwrap());
        let listed = |most| {
            list_up_to(&path(dir.path()), most).map(|listing| (listing.records.len(), listing.truncated)).unwrap()
        };
        assert_eq!((listed(9), listed(10), listed(11)), ((9, true), (10, false), (10, false)));
    }

    #[test]
    fn anything_but_a_directory_cannot_be_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for name in ["file", "fifo", "file/x"] {
            assert!(matches!(list(&path(&dir.path().join(name))), Err(FileError::NotADirectory(_))), "{name}");
        }
        assert!(matches!(list(&path(&dir.path().join("nothing"))), Err(FileError::NotFound(_))));
        assert!(list(&path(dir.path())).unwrap().get(2).is_none());
    }
}
