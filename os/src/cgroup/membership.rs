//! The directory of this process's own cgroup, in every mounted hierarchy that shows it (cgroups(7)).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::kernel_file;
use crate::mountinfo::{self, Mount};

/// The cgroup of this process, as one mount shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCgroup {
    /// The directory of the cgroup.
    pub dir: PathBuf,
    /// The mount point above it: the topmost cgroup that can be seen.
    pub top: PathBuf,
}

/// The cgroup v2 of this process, once for each mount that shows it, in the order of the mounts.
pub fn unified() -> Vec<OwnCgroup> {
    find(&mountinfo::read(), &memberships(), None)
}

/// The cgroup of this process in the cgroup v1 hierarchy that has this controller, once for each mount that shows it.
pub fn version1(controller: &str) -> Vec<OwnCgroup> {
    find(&mountinfo::read(), &memberships(), Some(controller))
}

fn memberships() -> Vec<u8> {
    kernel_file::read("/proc/self/cgroup").unwrap_or_default()
}

/// `memberships` is the text of `/proc/self/cgroup`. A `controller` selects its hierarchy of version 1, `None` selects
/// version 2.
fn find(mounts: &[Mount], memberships: &[u8], controller: Option<&str>) -> Vec<OwnCgroup> {
    let has = |list: &str| controller.is_some_and(|controller| list.split(',').any(|word| word == controller));
    let own = memberships.split(|byte| *byte == b'\n').find_map(|line| {
        // `hierarchy:controllers:path`.
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let meant = match controller {
            None => hierarchy == b"0" && controllers.is_empty(),
            Some(_) => has(&String::from_utf8_lossy(controllers)),
        };
        meant.then(|| PathBuf::from(OsStr::from_bytes(path)))
    });
    let Some(own) = own else { return Vec::new() };
    let shows = |mount: &&Mount| match controller {
        None => mount.kind == "cgroup2",
        Some(_) => mount.kind == "cgroup" && has(&mount.options),
    };
    let dirs = mounts.iter().filter(shows).filter_map(|mount| {
        // The mount shows the part of the hierarchy that is below `root`.
        let below = own.strip_prefix(&mount.root).ok()?;
        // A `..` leads above the root of this cgroup namespace, which no mount in the namespace shows.
        let visible = !below.components().any(|part| part == Component::ParentDir);
        let dir = if below == Path::new("") { mount.point.clone() } else { mount.point.join(below) };
        visible.then(|| OwnCgroup { dir, top: mount.point.clone() })
    });
    dirs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          31 29 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                          32 29 0:28 /a /my\\040cgroups rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    fn dirs(mountinfo: &str, cgroup: &str, controller: Option<&str>) -> Vec<String> {
        let found = find(&mountinfo::parse(mountinfo.as_bytes()), cgroup.as_bytes(), controller);
        found.into_iter().map(|own| own.dir.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_mount_that_shows_the_own_cgroup_is_found() {
        let own = "12:cpu,memory:/x\n0::/a/b:c d\n";
        assert_eq!(dirs(HYBRID, own, None), ["/sys/fs/cgroup/unified/a/b:c d", "/my cgroups/b:c d"]);
        assert_eq!(dirs(HYBRID, own, Some("memory")), ["/sys/fs/cgroup/memory/x"]);
        assert_eq!(dirs(HYBRID, own, Some("pids")), [] as [&str; 0]);
        assert_eq!(dirs(HYBRID, "0::/\n", None), ["/sys/fs/cgroup/unified"]);
        assert_eq!(dirs(HYBRID, "1:name=systemd:/\n", None), [] as [&str; 0]);
        assert_eq!(dirs("garbage\n\n", own, None), [] as [&str; 0]);
    }

    #[test]
    fn a_cgroup_outside_of_the_mounted_part_is_not_found() {
        let mounts = "31 29 0:28 / /mnt/cgroups rw - cgroup2 cgroup2 rw\n";
        assert_eq!(dirs(mounts, "0::/../else\n", None), [] as [&str; 0]);
        let bound = "31 29 0:28 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(dirs(bound, "0::/a/b\n", None), ["/sys/fs/cgroup/b"]);
        assert_eq!(dirs(bound, "0::/else\n", None), [] as [&str; 0]);
    }
}
