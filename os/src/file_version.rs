//! Tells whether a file that was read is still the same, without reading it again.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::fstatfs;

/// Minimum age of the last change of a file when it is read. The kernel counts time for files in ticks of up to 10 ms,
/// so two changes within a tick can have the same time; some file systems store only seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// Magic numbers (statfs(2)) of file systems that set `ctime` at each change with the clock of this machine, and whose
/// attributes are never read from a cache that another machine can outdate, as those of NFS, 9p, SMB and FUSE are.
const LOCAL: [u64; 11] = [
    0xef53,      // ext2, ext3, ext4
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xe0f5_e1e2, // erofs
    0x7371_7368, // squashfs
    0x9660,      // iso9660
];

/// The identity of a regular file and of its last change. If [`FileVersion::of_settled`] returned it, a file with an
/// equal version has the same content.
///
/// The exception is a file that a process changes through a shared mapping (mmap(2)): the kernel sets the time of such
/// a change only when the process writes to a page for the first time since that page was written to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// Seconds and nanoseconds since 1970. No program can set this time, except by setting the clock.
    changed: (i64, i64),
}

impl FileVersion {
    /// The version of the file at `path`, for a comparison; `None` if there is no file. Symlinks are followed. One
    /// system call.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn at(path: &Path) -> io::Result<Option<FileVersion>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(FileVersion::new(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The version of an open file that is read after this call. `now` is a time before this call. `None` if an equal
    /// version would not prove that the content is the same: the last change is too recent (or in the future, because
    /// the clock was wrong), or the file system is not known to set the time of each change.
    pub fn of_settled(file: &File, now: SystemTime) -> Option<FileVersion> {
        let version = FileVersion::new(&file.metadata().ok()?);
        let kind = fstatfs(file).ok()?.filesystem_type().0 as u64 & 0xffff_ffff;
        (LOCAL.contains(&kind) && version.is_settled(now)).then_some(version)
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let Some(latest) = now.checked_sub(SETTLED).and_then(|time| time.duration_since(UNIX_EPOCH).ok()) else {
            return false;
        };
        self.changed < (latest.as_secs() as i64, i64::from(latest.subsec_nanos()))
    }

    fn new(metadata: &Metadata) -> FileVersion {
        FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_just_changed_has_no_settled_version() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let changed = file.as_file().metadata().unwrap().modified().unwrap();
        assert_eq!(FileVersion::of_settled(file.as_file(), changed + SETTLED / 2), None);
        // As if the clock had been set back since the change.
        assert_eq!(FileVersion::of_settled(file.as_file(), changed - 3_600 * Duration::from_secs(1)), None);
        let later = changed + 2 * SETTLED;
        let version = FileVersion::of_settled(file.as_file(), later).expect("a local file system");
        assert_eq!(FileVersion::at(file.path()).unwrap(), Some(version));
        io::Write::write_all(&mut file, b"x").unwrap();
        assert_ne!(FileVersion::at(file.path()).unwrap(), Some(version));
    }

    #[test]
    fn a_file_of_an_unknown_file_system_has_no_settled_version() {
        let later = SystemTime::now() + 2 * SETTLED;
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(FileVersion::of_settled(&file, later), None);
        assert_eq!(FileVersion::at(Path::new("/nowhere/at/all")).unwrap(), None);
    }
}
