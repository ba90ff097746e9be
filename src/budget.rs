//! How many processes and connections the descriptors carry.

/// Pipes of one process: stdin, stdout, stderr, and the report of its exec.
pub const PIPES: usize = 4;
/// Descriptors of one process: its pipes and its log.
const PER_PROCESS: usize = PIPES + 1;
/// Descriptors of one connection: its socket, its waker, and a file that it reads.
const PER_CONNECTION: usize = 3;
/// The daemon's own.
const OWN: usize = 64;

/// Both numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Processes that run at once.
    pub processes: usize,
    /// Connections that are open at once.
    pub connections: usize,
}

/// Lowers what is wanted to what `descriptors` carry, in proportion; never below 1 of each.
pub fn fit(wanted: Budget, descriptors: u64) -> Budget {
    let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN);
    let processes = wanted.processes.saturating_mul(PER_PROCESS);
    let needed = processes.saturating_add(wanted.connections.saturating_mul(PER_CONNECTION));
    if needed <= room {
        return wanted;
    }
    let share = |count: usize| usize::try_from(count as u128 * room as u128 / needed as u128).unwrap_or(count).max(1);
    Budget { processes: share(wanted.processes), connections: share(wanted.connections) }
}

/// The pipes that may be open at once: all descriptors that connections do not need, and a log for each process.
pub fn pipes(descriptors: u64, connections: usize) -> usize {
    let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN);
    let left = room.saturating_sub(connections.saturating_mul(PER_CONNECTION));
    (left / PER_PROCESS).max(1).saturating_mul(PIPES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_left_alone_and_what_does_not_is_lowered() {
        let wanted = Budget { processes: 4_096, connections: 1_024 };
        assert_eq!(fit(wanted, 1 << 20), wanted);
        for descriptors in [0, 64, 100, 1_024, 20_000] {
            let fitted = fit(wanted, descriptors);
            let used = fitted.processes * PER_PROCESS + fitted.connections * PER_CONNECTION;
            assert!(used as u64 + OWN as u64 <= descriptors.max(OWN as u64 + 8), "{descriptors}: {fitted:?}");
            assert!(fitted.processes >= 1 && fitted.connections >= 1);
        }
        let endless = Budget { processes: usize::MAX, connections: usize::MAX };
        assert!(fit(endless, 1_024).processes < 1_024);
    }
}
