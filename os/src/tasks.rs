//! What limits the number of tasks (processes and threads) here: read from the kernel, and set for children.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::own_cgroup::{self, OwnCgroup};

/// The number of PIDs of our namespace (`kernel.pid_max`); `u64::MAX` where it cannot be read.
pub fn pid_max() -> u64 {
    limit_in("/proc/sys/kernel/pid_max")
}

/// The number of tasks of the machine (`kernel.threads-max`); `u64::MAX` where it cannot be read.
pub fn threads_max() -> u64 {
    limit_in("/proc/sys/kernel/threads-max")
}

/// The lowest `pids.max` of our cgroup and of those above it; `u64::MAX` where there is none.
pub fn lowest_pids_max() -> u64 {
    let own = own_cgroup::unified().into_iter().chain(own_cgroup::version1("pids"));
    own.filter_map(|own| lowest(&own)).min().unwrap_or(u64::MAX)
}

/// Whether our users have no processes elsewhere, because the user namespace is not the machine's. In the machine's own
/// namespace every user is mapped to itself (user_namespaces(7)).
pub fn has_own_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn limit_in(file: &str) -> u64 {
    read_limit(Path::new(file)).unwrap_or(u64::MAX)
}

/// The lowest `pids.max` from the cgroup up to the topmost one that can be seen.
fn lowest(own: &OwnCgroup) -> Option<u64> {
    let visible = own.dir.ancestors().take_while(|dir| dir.starts_with(&own.top));
    visible.filter_map(|dir| read_limit(&dir.join("pids.max"))).min()
}

/// A file that holds a number, or `max` for none.
fn read_limit(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// RLIMIT_NPROC for children that may have `most` tasks; never more than this process has been given. None where it is no
/// less than that: then there is nothing to set.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn lower_nproc(most: u64) -> io::Result<Option<libc::rlimit>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    let lowered = libc::rlimit { rlim_cur: soft.min(most), rlim_max: hard.min(most) };
    Ok(((lowered.rlim_cur, lowered.rlim_max) != (soft, hard)).then_some(lowered))
}

/// The soft limit of RLIMIT_NPROC that this process has been given.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn nproc() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NPROC)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_above_us_counts() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a/b");
        fs::create_dir_all(&dir).unwrap();
        let own = OwnCgroup { dir: dir.clone(), top: top.path().to_owned() };
        assert_eq!(lowest(&own), None);
        fs::write(dir.join("pids.max"), "max\n").unwrap();
        fs::write(top.path().join("a/pids.max"), "512\n").unwrap();
        fs::write(top.path().join("pids.max"), "1000\n").unwrap();
        assert_eq!(lowest(&own), Some(512));
    }

    #[test]
    fn the_kernel_says_how_many_there_can_be() {
        assert!(pid_max() < u64::MAX && threads_max() < u64::MAX);
        assert_eq!(lower_nproc(u64::MAX).unwrap().map(|limit| limit.rlim_max), None);
        assert_eq!(lower_nproc(7).unwrap().map(|limit| (limit.rlim_cur, limit.rlim_max)), Some((7, 7)));
    }
}
