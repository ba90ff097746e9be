//! Whether the engine can limit the size of a container's file system, and how large it is otherwise.

use std::fs;

use nix::sys::statvfs::statvfs;

use super::wire::Info;

/// The drivers `btrfs` and `zfs` can always; `overlay` can on XFS with project quotas.
pub(super) fn limits_disk(info: &Info) -> bool {
    let is_xfs = || info.driver_status.iter().any(|(name, value)| name == "Backing Filesystem" && value == "xfs");
    match info.driver.as_str() {
        "btrfs" | "zfs" => true,
        "overlay" | "overlay2" => {
            is_xfs()
                && fs::read_to_string("/proc/self/mounts")
                    .is_ok_and(|mounts| has_quotas(&mounts, &info.docker_root_dir))
        }
        _ => false,
    }
}

/// Size of the file system in which the engine has its containers, in MiB.
pub(super) fn disk_mb(info: &Info) -> Option<u64> {
    let file_system = statvfs(info.docker_root_dir.as_str()).ok()?;
    Some(file_system.blocks().saturating_mul(file_system.fragment_size()) >> 20)
}

/// Whether the file system of `directory` is mounted with project quotas.
fn has_quotas(mounts: &str, directory: &str) -> bool {
    let holds = |mount_point: &str| {
        let rest = directory.strip_prefix(mount_point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (mount_point, _, options) = (fields.next()?, fields.next()?, fields.next()?);
            holds(mount_point).then_some((mount_point.len(), options))
        })
        .max_by_key(|(length, _)| *length);
    mount.is_some_and(|(_, options)| options.split(',').any(|option| matches!(option, "prjquota" | "pquota")))
}

#[cfg(test)]
mod tests {
    use super::has_quotas;

    #[test]
    fn the_mount_of_the_directory_decides() {
        let mounts =
            "/dev/a / ext4 rw 0 0\n/dev/b /var/lib xfs rw,attr2,prjquota 0 0\n/dev/c /var/lib/other xfs rw 0 0\n";
        assert!(has_quotas(mounts, "/var/lib/containers/storage"));
        assert!(has_quotas(mounts, "/var/lib"));
        assert!(!has_quotas(mounts, "/var/library"));
        assert!(!has_quotas(mounts, "/var/lib/other/storage"));
        assert!(!has_quotas(mounts, "/home"));
        assert!(!has_quotas("", "/home"));
    }
}
