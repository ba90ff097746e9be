//! How many tasks (processes and threads) units may have, so that the last ones that the kernel allows are left for the daemon.

/// The daemon's own threads, and children that it starts.
const OWN: u64 = 64;
/// A PID namespace smaller than this, whose users count processes elsewhere as well, gets no limit of its own accord.
const SMALLEST: u64 = 1_024;

/// What the kernel allows, in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// PIDs of our namespace (`kernel.pid_max`).
    pub pids: u64,
    /// Tasks of the machine (`kernel.threads-max`).
    pub threads: u64,
    /// The lowest `pids.max` of our cgroup and of those above it.
    pub cgroup: u64,
    /// Whether our users have no processes elsewhere, because the user namespace is not the machine's.
    pub own_users: bool,
}

impl Kernel {
    /// Tasks of all units together, where a cgroup limits them (`pids.max`). `connections`: each takes a thread.
    pub fn for_all(self, connections: usize) -> u64 {
        less_reserve(self.pids.min(self.threads).min(self.cgroup), connections)
    }

    /// Tasks of each user, where only RLIMIT_NPROC can limit them. This counts what the user has anywhere in the user
    /// namespace, other containers included. So a limit that is only our container's is left out of account, unless
    /// the namespace is the container's too: a busy neighbour would use it up.
    pub fn for_each_user(self, connections: usize) -> Option<u64> {
        let all = self.pids.min(self.threads);
        match self.own_users {
            true => Some(self.for_all(connections)),
            false => (all >= SMALLEST).then(|| less_reserve(all, connections)),
        }
    }
}

/// The reserve is a thread for each connection and what the daemon needs besides, but never more than a quarter.
fn less_reserve(all: u64, connections: usize) -> u64 {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OWN);
    (all - wanted.min(all / 4)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Kernel = Kernel { pids: 4_194_304, threads: 60_000, cgroup: u64::MAX, own_users: false };

    #[test]
    fn a_reserve_is_left() {
        assert_eq!(MACHINE.for_all(1_024), 60_000 - 1_088);
        assert_eq!(Kernel { pids: 1_500, ..MACHINE }.for_all(1_024), 1_125);
        assert_eq!(Kernel { cgroup: 100, ..MACHINE }.for_all(10), 75);
        for tiny in 0..8 {
            assert!(Kernel { cgroup: tiny, ..MACHINE }.for_all(1_024) >= 1);
        }
        assert_eq!(MACHINE.for_all(usize::MAX), 45_000);
    }

    #[test]
    fn a_user_who_is_elsewhere_too_is_not_limited_by_what_our_container_has() {
        let busy = Kernel { cgroup: 500, ..MACHINE };
        assert_eq!(busy.for_each_user(1_024), Some(60_000 - 1_088));
        assert_eq!(Kernel { own_users: true, ..busy }.for_each_user(1_024), Some(375));
        assert_eq!(Kernel { pids: 1_500, ..MACHINE }.for_each_user(1_024), Some(1_125));
        let small = Kernel { pids: 400, ..MACHINE };
        assert_eq!(small.for_each_user(1_024), None);
        assert_eq!(Kernel { own_users: true, ..small }.for_each_user(1_024), Some(300));
    }
}
