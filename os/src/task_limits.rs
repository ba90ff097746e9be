//! Limits on the number of tasks (processes and threads): those of the kernel and of cgroups, and RLIMIT_NPROC.

use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::cgroup::membership::{self, OwnCgroup};
use crate::kernel_file;

/// The number of PIDs of this PID namespace (`kernel.pid_max`); `u64::MAX` where it cannot be read.
pub fn pid_max() -> u64 {
    limit_in("/proc/sys/kernel/pid_max")
}

/// The number of tasks that the machine can have (`kernel.threads-max`); `u64::MAX` where it cannot be read.
pub fn threads_max() -> u64 {
    limit_in("/proc/sys/kernel/threads-max")
}

/// The lowest `pids.max` of the cgroup of this process and of those above it; `u64::MAX` if none has a limit.
pub fn lowest_pids_max() -> u64 {
    let own = membership::unified().into_iter().chain(membership::version1("pids"));
    own.filter_map(|own| lowest(&own)).min().unwrap_or(u64::MAX)
}

fn limit_in(file: &str) -> u64 {
    read_limit(Path::new(file)).unwrap_or(u64::MAX)
}

/// The lowest `pids.max` of the cgroup and of those above it, up to the topmost one that can be seen.
fn lowest(own: &OwnCgroup) -> Option<u64> {
    let visible = own.dir.ancestors().take_while(|dir| dir.starts_with(&own.top));
    visible.filter_map(|dir| read_limit(&dir.join("pids.max"))).min()
}

/// The limit in a file that holds a number; `None` for `max`, and if the file cannot be read.
fn read_limit(file: &Path) -> Option<u64> {
    kernel_file::read_to_string(file).ok()?.trim().parse().ok()
}

/// RLIMIT_NPROC for children whose user may have `most` tasks: the lower of that and of this process's own. `None` if
/// its own is the lower one, so that there is nothing to set.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn lower_nproc(most: u64) -> io::Result<Option<libc::rlimit>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    let lowered = libc::rlimit { rlim_cur: soft.min(most), rlim_max: hard.min(most) };
    Ok(((lowered.rlim_cur, lowered.rlim_max) != (soft, hard)).then_some(lowered))
}

/// The soft RLIMIT_NPROC of this process.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn nproc() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NPROC)?.0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_lowest_pids_max_from_the_cgroup_upwards_counts() {
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
    fn the_limits_of_the_kernel_are_read_and_nproc_is_only_lowered() {
        assert!(pid_max() < u64::MAX && threads_max() < u64::MAX);
        assert_eq!(lower_nproc(u64::MAX).unwrap().map(|limit| limit.rlim_max), None);
        assert_eq!(lower_nproc(7).unwrap().map(|limit| (limit.rlim_cur, limit.rlim_max)), Some((7, 7)));
    }
}
