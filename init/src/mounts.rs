//! The file systems that a running system has, and how they go again (mount(8), file-hierarchy(7)).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};
use tl_os::mountinfo::{self, Mount as Mounted};

use crate::role::Role;

/// A file system that is to be there.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// What shows that this directory does its work already, whatever is mounted there.
    works: Works,
}

/// How a directory shows that nothing is to be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Works {
    /// In a container this file is there.
    With(&'static str),
    /// In a container it can be written.
    Writable,
    /// It can be written, on a machine too.
    WritableAnywhere,
}

const NOTHING_RUNS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const fn new(target: &'static str, kind: &'static str, flags: MsFlags, data: &'static str, works: Works) -> Mount {
    Mount { target, kind, flags, data, works }
}

/// First of all: it tells where we are.
pub(crate) const PROC: Mount = new("/proc", "proc", NOTHING_RUNS, "", Works::With("/proc/self/stat"));
/// Before anything that needs a device.
pub(crate) const DEV: Mount = new("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755", Works::With("/dev/null"));
/// The others, in order.
pub(crate) const SYS: Mount = new("/sys", "sysfs", NOTHING_RUNS, "", Works::With("/sys/kernel"));
pub(crate) const PTS: Mount = new(
    "/dev/pts",
    "devpts",
    MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
    "mode=0620,gid=5,ptmxmode=666",
    Works::With("/dev/pts/ptmx"),
);
pub(crate) const SHM: Mount = new("/dev/shm", "tmpfs", NO_DEVICES, "mode=1777", Works::Writable);
pub(crate) const MQUEUE: Mount = new("/dev/mqueue", "mqueue", NOTHING_RUNS, "", Works::With("/dev/mqueue"));
pub(crate) const RUN: Mount = new("/run", "tmpfs", NO_DEVICES, "mode=0755", Works::Writable);
pub(crate) const TMP: Mount = new("/tmp", "tmpfs", NO_DEVICES, "mode=1777", Works::WritableAnywhere);
pub(crate) const CGROUP: Mount =
    new("/sys/fs/cgroup", "cgroup2", NOTHING_RUNS, "nsdelegate", Works::With("/sys/fs/cgroup"));

impl Mount {
    /// Mounts it where it is not there yet, and says what was done.
    ///
    /// # Errors
    /// What `mkdir(2)` or `mount(2)` says.
    pub(crate) fn provide(&self, place: Role) -> io::Result<String> {
        if self.is_there(place, kind_at(&mountinfo::read(), self.target)) {
            return Ok("there already".to_owned());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(self.target)?;
        match mount(Some(self.kind), self.target, Some(self.kind), self.flags, Some(self.data)) {
            Ok(()) => Ok(format!("{} mounted", self.kind)),
            Err(Errno::EBUSY) => Ok("there already".to_owned()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_there(&self, place: Role, mounted: Option<&str>) -> bool {
        let writable = || access(self.target, AccessFlags::W_OK).is_ok();
        match self.works {
            Works::WritableAnywhere => writable(),
            _ if mounted == Some(self.kind) => true,
            _ if place == Role::Machine => false,
            Works::With(file) => mounted.is_some() || Path::new(file).exists(),
            Works::Writable => writable(),
        }
    }
}

/// What is mounted at `target`, the last mount winning (proc_pid_mountinfo(5)).
fn kind_at<'a>(mounted: &'a [Mounted], target: &str) -> Option<&'a str> {
    let last = mounted.iter().rev().find(|mount| mount.point == Path::new(target));
    last.map(|mount| mount.kind.as_str())
}

/// Makes `/` writable where the kernel has mounted it read-only, as it does unless told otherwise.
///
/// # Errors
/// What `mount(2)` says: the device may be read-only.
pub(crate) fn make_root_writable() -> io::Result<String> {
    if !statvfs("/")?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok("writable already".to_owned());
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>)?;
    Ok("remounted".to_owned())
}

/// Unmounts everything that holds data, in reverse order; what is busy, and `/`, becomes read-only, so that it is whole
/// on the disk.
pub(crate) fn unmount_all() {
    for Mounted { point, kind, .. } in holding_data(mountinfo::read()) {
        if point != Path::new("/") && umount(&point).is_ok() {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(errno) = mount(None::<&str>, &point, None::<&str>, flags, None::<&str>) {
            log::warn!("{} ({kind}) stays writable: {errno}", point.display());
        }
    }
}

/// The mounts that are to go, the last one first. Those of the kernel's own make, and in memory, hold nothing that lasts.
fn holding_data(mounted: Vec<Mounted>) -> impl Iterator<Item = Mounted> {
    const NOTHING_LASTS: [&str; 12] = [
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "tmpfs",
        "ramfs",
        "rootfs",
        "mqueue",
        "cgroup2",
        "securityfs",
        "debugfs",
        "bpf",
    ];
    mounted.into_iter().rev().filter(|mount| !NOTHING_LASTS.contains(&mount.kind.as_str()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;

    const MOUNTS: &[u8] = b"20 1 259:0 / / ro,relatime - ext4 /dev/root ro\n\
                          21 20 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw\n\
                          22 20 0:21 / /proc rw - proc proc rw\n\
                          23 20 0:22 / /data rw shared:1 - tmpfs tmpfs rw\n\
                          24 23 259:1 / /data rw - ext4 /dev/nvme1n1 rw\n\
                          25 20 259:2 / /my\\040disk\\134\xff rw shared:2 master:3 - ext4 /dev/nvme2n1 rw\n\
                          garbage\n";

    #[test]
    fn the_last_mount_at_a_point_counts() {
        let mounted = mountinfo::parse(MOUNTS);
        assert_eq!(kind_at(&mounted, "/data"), Some("ext4"));
        assert_eq!(kind_at(&mounted, "/proc"), Some("proc"));
        assert_eq!(kind_at(&mounted, "/run"), None);
        assert_eq!(kind_at(&[], "/"), None);
    }

    #[test]
    fn what_holds_data_goes_in_reverse() {
        let points: Vec<PathBuf> = holding_data(mountinfo::parse(MOUNTS)).map(|mount| mount.point).collect();
        let odd = OsString::from_vec(b"/my disk\\\xff".to_vec());
        assert_eq!(points, [odd.into(), PathBuf::from("/data"), PathBuf::from("/")]);
    }

    #[test]
    fn a_container_gets_what_is_missing() {
        let there = |mount: &Mount, mounted| mount.is_there(Role::Container, mounted);
        assert!(there(&PROC, None), "by its file");
        assert!(there(&CGROUP, Some("tmpfs")), "whatever it is");
        let missing = new("/nowhere", "tmpfs", NO_DEVICES, "", Works::Writable);
        assert!(!there(&missing, None));
        assert!(!missing.is_there(Role::Machine, Some("ext4")));
        assert!(missing.is_there(Role::Machine, Some("tmpfs")));
    }
}
