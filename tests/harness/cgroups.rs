//! Where cgroups of version 2 are, as the test and as a shell sees them.

use std::path::PathBuf;

/// A line of shell that sets `$cgroup` to the cgroup directory of the shell.
pub const SET_CGROUP: &str = "cgroup=$(awk '$3 == \"cgroup2\" { print $2; exit }' /proc/mounts)$(sed -n 's/^0:://p' \
                              /proc/self/cgroup)";

/// The cgroup directory of a process, given as `self` or a PID; none where no cgroup of version 2 is mounted.
pub fn cgroup_of(process: impl std::fmt::Display) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("read /proc/mounts");
    let mounted = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?;
    let own = std::fs::read_to_string(format!("/proc/{process}/cgroup")).expect("read the cgroup of the process");
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(format!("{mounted}{}", own.trim_end_matches('/'))))
}
