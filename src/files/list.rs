//! Lists a directory, and the directories in it down to a depth.
//!
//! Directories are opened by name in the descriptor of the one above, and never through a symlink (`descent`). So a
//! listing contains only what was in the tree, whatever other processes rename meanwhile.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use rustix::fs::FileType;

use super::descent::{Descent, Found, Mounts, is_of_kernel};
use super::walk::{examine_name, open, open_path};
use super::{FileError, FilePath, is, modified_at, proc_guard, unsigned};

/// Maximum number of entries in a listing. If a directory has more, the file system decides which are listed.
pub const MAX_ENTRIES: usize = 200_000;

/// Maximum length of all names in a listing, in bytes: [`MAX_ENTRIES`] of the longest names that a directory can have. A
/// name with directories can be longer.
const MAX_NAMES: usize = MAX_ENTRIES * 255;

/// Maximum depth of a listing. So deep, all directories of a walk can be open.
pub const MAX_DEPTH: usize = 32;

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
    /// The name, with U+FFFD in place of bytes that are not UTF-8. With the names of the directories that it is in, each
    /// followed by `/`.
    pub name: Cow<'l, str>,
    /// Whether it is a directory or a symlink to one.
    pub is_dir: bool,
    /// Size in bytes, for a symlink that of its target; `None` for a directory, or if it cannot be determined.
    pub size: Option<u64>,
    /// Modification time in milliseconds since the epoch; `None` if it cannot be determined.
    pub modified_at: Option<i64>,
}

/// Lists the directory at `path`, without `.` and `..`, and with a depth of more than 1 the directories in it. A directory
/// that the user may not read is listed without its entries, as are a symlink to a directory, and a directory of a file
/// system of the kernel, such as procfs. If that is what `path` is, its own entries are listed.
///
/// # Errors
/// If it cannot be listed.
pub fn list(path: &FilePath, depth: usize) -> Result<Listing, FileError> {
    list_up_to(path, depth.min(MAX_DEPTH), MAX_ENTRIES, MAX_NAMES).map_err(|errno| FileError::of(path, &errno.into()))
}

fn list_up_to(path: &FilePath, depth: usize, most: usize, most_bytes: usize) -> nix::Result<Listing> {
    let dir = open(AT_FDCWD, path.as_os_str(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    proc_guard::check(&dir, false)?;
    let depth = if is_of_kernel(&dir)? { 1 } else { depth };
    let mut descent = Descent::begin(dir, Mounts::Follow)?;
    let mut listing = Listing::default();
    loop {
        let kind = match descent.next() {
            Ok(Some(Found::Entry(kind))) => kind,
            Ok(Some(Found::Left)) => continue,
            Ok(None) => break,
            // The directory was removed meanwhile, or its file system has failed.
            Err(errno) if descent.depth() > 1 && !is_exhausted(errno) => {
                descent.leave()?;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        if listing.records.len() >= most || listing.names.len() + descent.path().len() > most_bytes {
            listing.truncated = true;
            break;
        }
        let Some((record, stat)) = examine(&descent, kind, listing.names.len()) else { continue };
        listing.names.extend_from_slice(descent.path());
        listing.records.push(record);
        let is_dir = stat.map_or(kind == FileType::Directory, |stat| is(&stat, SFlag::S_IFDIR));
        if is_dir && descent.depth() < depth {
            descent.enter().or_else(|errno| if is_exhausted(errno) { Err(errno) } else { Ok(false) })?;
        }
    }
    listing.sort();
    listing.names.shrink_to_fit();
    listing.records.shrink_to_fit();
    Ok(listing)
}

/// Whether the daemon has run out of something, and the error says nothing about the directory.
fn is_exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// Examines the current entry of a walk, whose path begins at `at` in the names; `None` if it no longer exists. The second
/// value is about the entry itself, also if that is a symlink; `None` if the user may not examine it.
fn examine(descent: &Descent, kind: FileType, at: usize) -> Option<(Record, Option<FileStat>)> {
    let length = u16::try_from(descent.path().len()).ok()?;
    let record = Record { name: (at, length), is_dir: false, size: None, modified_at: None };
    let (dir, name) = (descent.dir().ok()?, descent.name());
    let own = match examine_name(dir, name) {
        Ok(own) => own,
        Err(Errno::ENOENT) => return None,
        // The user may read the names in the directory but not examine the files.
        Err(_) => return Some((Record { is_dir: kind == FileType::Directory, ..record }, None)),
    };
    let stat = if is(&own, SFlag::S_IFLNK) { stat_target(dir, name).unwrap_or(own) } else { own };
    let is_dir = is(&stat, SFlag::S_IFDIR);
    let size = (!is_dir).then(|| unsigned(stat.st_size));
    Some((Record { is_dir, size, modified_at: Some(modified_at(&stat)), ..record }, Some(own)))
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
    use std::os::unix::ffi::OsStrExt;
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
        let listing = list(&path(dir.path()), 1).unwrap();
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
        assert_eq!(list(&path(dir.path()), 1).unwrap().get(0).unwrap().modified_at, Some(1_234_567_890_123));
    }

    #[test]
    fn a_listing_is_truncated_at_the_maximum() {
        let dir = tempfile::tempdir().unwrap();
        (0..10).for_each(|n| fs::write(dir.path().join(n.to_string()), "").unwrap());
        let listed = |most| {
            list_up_to(&path(dir.path()), 1, most, MAX_NAMES)
                .map(|listing| (listing.records.len(), listing.truncated))
                .unwrap()
        };
        assert_eq!((listed(9), listed(10), listed(11)), ((9, true), (10, false), (10, false)));
    }

    fn names_in(listing: &Listing) -> Vec<String> {
        (0..listing.records.len()).map(|at| listing.get(at).unwrap().name.into_owned()).collect()
    }

    #[test]
    fn a_listing_with_a_depth_has_the_entries_of_directories_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("b/c/d")).unwrap();
        fs::create_dir_all(at("a.x/y")).unwrap();
        fs::create_dir_all(at("a")).unwrap();
        for name in ["a/1", "b/c/d/2", "b/0", "z"] {
            fs::write(at(name), name).unwrap();
        }
        fs::write(dir.path().join(OsStr::from_bytes(b"b/\xff\n")), "").unwrap();
        symlink("b", at("link")).unwrap();
        symlink("..", at("a/up")).unwrap();
        let names = |depth| names_in(&list(&path(dir.path()), depth).unwrap());
        assert_eq!(names(1), ["a", "a.x", "b", "link", "z"]);
        assert_eq!(
            names(2),
            ["a", "a.x", "a.x/y", "a/up", "b", "b/c", "link", "a/1", "b/0", "b/\u{fffd}\n", "z"].as_slice()
        );
        let all =
            ["a", "a.x", "a.x/y", "a/up", "b", "b/c", "b/c/d", "link", "a/1", "b/0", "b/c/d/2", "b/\u{fffd}\n", "z"];
        assert_eq!((names(4), names(MAX_DEPTH)), (all.map(str::to_owned).to_vec(), all.map(str::to_owned).to_vec()));
        // Names that are too long together are left out.
        let cut = list_up_to(&path(dir.path()), 4, MAX_ENTRIES, 20).unwrap();
        assert!(cut.truncated && cut.names.len() <= 20 && cut.names.len() > 10, "{cut:?}");
    }

    #[test]
    fn the_deepest_listing_has_32_levels() {
        let dir = tempfile::tempdir().unwrap();
        let deepest = vec!["d"; MAX_DEPTH + 2].join("/");
        fs::create_dir_all(dir.path().join(&deepest)).unwrap();
        let names = names_in(&list(&path(dir.path()), usize::MAX).unwrap());
        assert_eq!((names.len(), names.last().unwrap().len()), (MAX_DEPTH, MAX_DEPTH * 2 - 1));
    }

    #[test]
    fn a_file_system_of_the_kernel_is_not_entered() {
        let root = list(&path(std::path::Path::new("/")), 2).unwrap();
        let names = names_in(&root);
        assert!(names.iter().any(|name| name == "proc") && names.iter().any(|name| name.starts_with("etc/")));
        assert!(!names.iter().any(|name| name.starts_with("proc/") || name.starts_with("sys/")), "{names:?}");
        let proc = names_in(&list(&path(std::path::Path::new("/proc")), 3).unwrap());
        assert!(proc.iter().any(|name| name == "sys") && !proc.iter().any(|name| name.contains('/')), "{proc:?}");
    }

    #[test]
    fn anything_but_a_directory_cannot_be_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for name in ["file", "fifo", "file/x"] {
            assert!(matches!(list(&path(&dir.path().join(name)), 1), Err(FileError::NotADirectory(_))), "{name}");
        }
        assert!(matches!(list(&path(&dir.path().join("nothing")), 1), Err(FileError::NotFound(_))));
        assert!(list(&path(dir.path()), 1).unwrap().get(2).is_none());
    }
}
