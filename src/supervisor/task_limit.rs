//! The limit on the tasks (processes and threads) of units, which leaves a reserve for the daemon.

/// Number of tasks reserved for the daemon's own threads, other than those of connections, and for children being
/// started.
const OWN: u64 = 64;
/// A PID namespace with fewer PIDs than this, in a user namespace that it shares with others, gets no limit by default.
const SMALLEST: u64 = 1_024;

/// The limits of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Number of PIDs of this PID namespace (`kernel.pid_max`).
    pub pids: u64,
    /// Number of tasks of the machine (`kernel.threads-max`).
    pub threads: u64,
    /// The lowest `pids.max` of this process's cgroup and of those above it.
    pub cgroup: u64,
    /// Whether the users of this container have no processes outside of it, because it has its own user namespace.
    pub own_users: bool,
}

impl Kernel {
    /// Limit for all units together, where a cgroup can enforce it (`pids.max`). Each of the `connections` uses a
    /// thread.
    pub fn for_all(self, connections: usize) -> u64 {
        less_reserve(self.pids.min(self.threads).min(self.cgroup), connections)
    }

    /// Limit for each user, where only RLIMIT_NPROC can enforce it. The kernel counts the tasks of a user in the whole
    /// user namespace, including other containers. So the limits of this container's cgroups are ignored unless it has
    /// a user namespace of its own: otherwise a busy neighbour would use them up.
    pub fn for_each_user(self, connections: usize) -> Option<u64> {
        let all = self.pids.min(self.threads);
        match self.own_users {
            true => Some(self.for_all(connections)),
            false => (all >= SMALLEST).then(|| less_reserve(all, connections)),
        }
    }
}

/// `all` less the reserve: one thread for each connection and [`OWN`], at most a quarter of `all`.
fn less_reserve(all: u64, connections: usize) -> u64 {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OWN);
    (all - wanted.min(all / 4)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Kernel = Kernel { pids: 4_194_304, threads: 60_000, cgroup: u64::MAX, own_users: false };

    #[test]
    fn a_reserve_is_left_for_the_daemon() {
        assert_eq!(MACHINE.for_all(1_024), 60_000 - 1_088);
        assert_eq!(Kernel { pids: 1_500, ..MACHINE }.for_all(1_024), 1_125);
        assert_eq!(Kernel { cgroup: 100, ..MACHINE }.for_all(10), 75);
        for tiny in 0..8 {
            assert!(Kernel { cgroup: tiny, ..MACHINE }.for_all(1_024) >= 1);
        }
        assert_eq!(MACHINE.for_all(usize::MAX), 45_000);
    }

    #[test]
    fn the_limit_of_each_user_ignores_the_cgroup_in_a_shared_user_namespace() {
        let busy = Kernel { cgroup: 500, ..MACHINE };
        assert_eq!(busy.for_each_user(1_024), Some(60_000 - 1_088));
        assert_eq!(Kernel { own_users: true, ..busy }.for_each_user(1_024), Some(375));
        assert_eq!(Kernel { pids: 1_500, ..MACHINE }.for_each_user(1_024), Some(1_125));
        let small = Kernel { pids: 400, ..MACHINE };
        assert_eq!(small.for_each_user(1_024), None);
        assert_eq!(Kernel { own_users: true, ..small }.for_each_user(1_024), Some(300));
    }
}
