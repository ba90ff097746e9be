//! What the machine has: the upper bounds of limits.

use nix::sys::sysinfo::sysinfo;
use nix::unistd::{SysconfVar, sysconf};

use crate::task_limits::{pid_max, threads_max};

/// Bytes of memory; `u64::MAX` if that cannot be known.
pub fn memory() -> u64 {
    sysinfo().map_or(u64::MAX, |info| info.ram_total())
}

/// Number of CPUs that are online, at least 1.
pub fn cpus() -> u64 {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|count| u64::try_from(count).ok()).unwrap_or(1).max(1)
}

/// Number of tasks, processes and threads, that can exist at the same time.
pub fn tasks() -> u64 {
    pid_max().min(threads_max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_a_cpu_and_tasks() {
        assert!((1 << 20..u64::MAX).contains(&memory()));
        assert!((1..1 << 16).contains(&cpus()));
        assert!((100..1 << 32).contains(&tasks()));
    }
}
