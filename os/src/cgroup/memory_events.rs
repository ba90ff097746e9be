//! The text of a `memory.events`, the file of a cgroup that counts what happened for lack of memory.

use crate::usage::value;

/// The number of kills by the out-of-memory killer in the text of a `memory.events`; 0 if it has none.
pub fn oom_kills(events: &str) -> u64 {
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or(0)
}

/// The number of times that the out-of-memory killer has killed all processes of a cgroup (`memory.oom.group`), in the
/// text of its `memory.events.local`; 0 if the kernel does not count it (before Linux 5.17).
pub(super) fn oom_group_kills(events: &str) -> u64 {
    value(events, "oom_group_kill").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_are_counted_among_the_memory_events() {
        assert_eq!(oom_kills("low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"), 4);
        assert_eq!(oom_group_kills("oom_kill 4\noom_group_kill 5\n"), 5);
        assert_eq!((oom_kills("oom 3\n"), oom_group_kills("oom_kill 4\n")), (0, 0));
        assert_eq!(oom_kills(""), 0);
    }
}
