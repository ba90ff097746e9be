//! What the user namespace of this process allows and isolates (user_namespaces(7)).

use nix::unistd::geteuid;

use crate::kernel_file;

/// Whether this process may set supplementary groups: it is root, and its user namespace does not deny `setgroups(2)`.
/// Where it may not, the groups of all processes stay what they are.
pub fn may_set_groups() -> bool {
    geteuid().is_root() && !kernel_file::read("/proc/self/setgroups").is_ok_and(|word| word.starts_with(b"deny"))
}

/// Whether only processes in this user namespace count towards the limits of its users: true unless it is the machine's
/// initial one, in which every user is mapped to itself.
pub fn has_own_users() -> bool {
    let map = kernel_file::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && !map.split_whitespace().eq(["0", "0", "4294967295"])
}
