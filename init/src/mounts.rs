//! Mounts the file systems of a running system, and unmounts them at power-off (mount(8), file-hierarchy(7)).

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

/// A file system to be mounted.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// When the mount is not needed, whatever is at the target.
    satisfied: Satisfied,
}

/// When a directory needs no mount, even if its file system is not of the kind that would be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Satisfied {
    /// In a container, if this file exists or anything is mounted at the target.
    Exists(&'static str),
    /// In a container, if the directory is writable.
    Writable,
    /// In a container and on a machine, if the directory is writable.
    WritableAnywhere,
}

/// No programs, devices or set-user-id files are used from it.
const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// No devices or set-user-id files are used from it.
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const fn new(
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
    satisfied: Satisfied,
) -> Mount {
    Mount { target, kind, flags, data, satisfied }
}

/// Mounted first: [`Role::find`] needs it.
pub(crate) const PROC: Mount = new("/proc", "proc", NO_EXEC, "", Satisfied::Exists("/proc/self/stat"));
/// Mounted before anything that needs a device.
pub(crate) const DEV: Mount = new("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755", Satisfied::Exists("/dev/null"));
pub(crate) const SYS: Mount = new("/sys", "sysfs", NO_EXEC, "", Satisfied::Exists("/sys/kernel"));
pub(crate) const PTS: Mount = new(
    "/dev/pts",
    "devpts",
    MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
    "mode=0620,gid=5,ptmxmode=666",
    Satisfied::Exists("/dev/pts/ptmx"),
);
pub(crate) const SHM: Mount = new("/dev/shm", "tmpfs", NO_DEVICES, "mode=1777", Satisfied::Writable);
pub(crate) const MQUEUE: Mount = new("/dev/mqueue", "mqueue", NO_EXEC, "", Satisfied::Exists("/dev/mqueue"));
pub(crate) const RUN: Mount = new("/run", "tmpfs", NO_DEVICES, "mode=0755", Satisfied::Writable);
pub(crate) const TMP: Mount = new("/tmp", "tmpfs", NO_DEVICES, "mode=1777", Satisfied::WritableAnywhere);
pub(crate) const CGROUP: Mount =
    new("/sys/fs/cgroup", "cgroup2", NO_EXEC, "nsdelegate", Satisfied::Exists("/sys/fs/cgroup"));

impl Mount {
    /// Mounts it if it is not mounted yet. Returns what was done.
    ///
    /// # Errors
    /// What `mkdir(2)` or `mount(2)` says.
    pub(crate) fn provide(&self, role: Role, table: &mut MountTable) -> io::Result<String> {
        if self.is_mounted(role, table.kind_at(self.target)) {
            return Ok("there already".to_owned());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(self.target)?;
        table.forget();
        match mount(Some(self.kind), self.target, Some(self.kind), self.flags, Some(self.data)) {
            Ok(()) => Ok(format!("{} mounted", self.kind)),
            Err(Errno::EBUSY) => Ok("there already".to_owned()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_mounted(&self, role: Role, mounted: Option<&str>) -> bool {
        let writable = || access(self.target, AccessFlags::W_OK).is_ok();
        match self.satisfied {
            Satisfied::WritableAnywhere => writable(),
            _ if mounted == Some(self.kind) => true,
            _ if role == Role::Machine => false,
            Satisfied::Exists(file) => mounted.is_some() || Path::new(file).exists(),
            Satisfied::Writable => writable(),
        }
    }
}

/// All mounts of this namespace. They are read when they are first needed, and again after a mount.
#[derive(Default)]
pub(crate) struct MountTable(Option<Vec<Mounted>>);

impl MountTable {
    /// The type of the file system at `target`: that of the last mount there, which hides the others.
    fn kind_at(&mut self, target: &str) -> Option<&str> {
        let mounted = self.0.get_or_insert_with(mountinfo::read);
        let last = mounted.iter().rev().find(|mount| mount.point == Path::new(target));
        last.map(|mount| mount.kind.as_str())
    }

    fn forget(&mut self) {
        self.0 = None;
    }
}

/// Remounts `/` writable if it is read-only, as the kernel mounts it by default.
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

/// Unmounts all file systems that hold data, in reverse order. Those that are busy, and `/`, are made read-only
/// instead, so that their data is complete on the disk.
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

/// The mounts that hold data, the last one first: all except kernel interfaces and file systems in memory.
fn holding_data(mounted: Vec<Mounted>) -> impl Iterator<Item = Mounted> {
    const WITHOUT_DATA: [&str; 12] = [
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
    mounted.into_iter().rev().filter(|mount| !WITHOUT_DATA.contains(&mount.kind.as_str()))
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
    fn the_mounts_are_read_again_after_a_mount() {
        let mut table = MountTable(Some(Vec::new()));
        assert_eq!(table.kind_at("/proc"), None);
        table.forget();
        assert_eq!(table.kind_at("/proc"), Some("proc"));
    }

    #[test]
    fn the_last_mount_at_a_target_counts() {
        let mut table = MountTable(Some(mountinfo::parse(MOUNTS)));
        assert_eq!(table.kind_at("/data"), Some("ext4"));
        assert_eq!(table.kind_at("/proc"), Some("proc"));
        assert_eq!(table.kind_at("/run"), None);
        assert_eq!(MountTable(Some(Vec::new())).kind_at("/"), None);
    }

    #[test]
    fn file_systems_with_data_are_unmounted_in_reverse_order() {
        let points: Vec<PathBuf> = holding_data(mountinfo::parse(MOUNTS)).map(|mount| mount.point).collect();
        let odd = OsString::from_vec(b"/my disk\\\xff".to_vec());
        assert_eq!(points, [odd.into(), PathBuf::from("/data"), PathBuf::from("/")]);
    }

    #[test]
    fn a_container_gets_only_the_mounts_that_it_lacks() {
        let there = |mount: &Mount, mounted| mount.is_mounted(Role::Container, mounted);
        assert!(there(&PROC, None), "its file exists");
        assert!(there(&CGROUP, Some("tmpfs")), "of any type");
        let missing = new("/nowhere", "tmpfs", NO_DEVICES, "", Satisfied::Writable);
        assert!(!there(&missing, None));
        assert!(!missing.is_mounted(Role::Machine, Some("ext4")));
        assert!(missing.is_mounted(Role::Machine, Some("tmpfs")));
    }
}
