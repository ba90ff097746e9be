//! The budget of file descriptors: how many processes and connections it allows, and how many descriptors are in use by
//! processes.
//!
//! Processes and connections have a share each, so that processes can never take the descriptors of connections. The
//! descriptors of a run are counted at its start and returned one by one, since a child in the background can keep a
//! pipe and the log of its run open after the end of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::{OutputMode, ProcessSpec, StdinMode, Stdio};

/// Number of descriptors of one process: stdin, stdout, stderr, its log, and the report of its exec or, after that, a
/// health probe.
const PER_PROCESS: usize = 5;
/// Number of descriptors of one connection: its socket, its waker or a directory, a file, and one to resolve the path
/// of the file.
const PER_CONNECTION: usize = 4;
/// Number of descriptors of the daemon itself, and of the process that is being forked.
const OWN: usize = 64;

/// Minimum number of connections even if descriptors are few, so that one slow client cannot occupy the only
/// connection.
const FEW: usize = 4;

/// Numbers of processes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Maximum number of processes that run at the same time.
    pub processes: usize,
    /// Maximum number of connections that are open at the same time.
    pub connections: usize,
}

/// Reduces both numbers in proportion until `descriptors` suffice. Never reduces either below 1, nor connections below
/// [`FEW`] if there are enough descriptors for these.
pub fn fit(wanted: Budget, descriptors: u64) -> Budget {
    let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN);
    let processes = wanted.processes.saturating_mul(PER_PROCESS);
    let needed = processes.saturating_add(wanted.connections.saturating_mul(PER_CONNECTION));
    if needed <= room {
        return wanted;
    }
    let share = |count: usize| usize::try_from(count as u128 * room as u128 / needed as u128).unwrap_or(count).max(1);
    let mut connections = share(wanted.connections);
    if room >= FEW * PER_CONNECTION + PER_PROCESS {
        connections = connections.max(FEW.min(wanted.connections));
    }
    let left = room.saturating_sub(connections * PER_CONNECTION) / PER_PROCESS;
    Budget { processes: share(wanted.processes).min(left).max(1), connections }
}

/// Maximum number of descriptors that one run holds at the same time.
pub fn needs(spec: &ProcessSpec) -> usize {
    let pipes = match spec.stdio {
        // The master of the terminal, once for each direction.
        Stdio::Terminal(_) => 2,
        Stdio::Inherit => 0,
        Stdio::Pipes(pipes) => {
            let captured = |mode| usize::from(mode == OutputMode::Capture);
            usize::from(pipes.stdin == StdinMode::Pipe) + captured(pipes.stdout) + captured(pipes.stderr)
        }
    };
    let checked = spec.managed.as_ref().is_some_and(|managed| managed.health.is_some());
    let (report, log, probe) = (1, 1, usize::from(checked));
    pipes + report + log + probe
}

/// The share of descriptors for processes, and how many of them are taken.
#[derive(Debug)]
pub struct Share {
    size: usize,
    taken: Arc<AtomicUsize>,
}

/// Descriptors taken from a [`Share`]. Dropping this returns them.
#[derive(Debug)]
pub struct Taken {
    count: usize,
    all: Arc<AtomicUsize>,
}

impl Share {
    /// The part of `descriptors` that is not reserved for connections; always enough for one process.
    pub fn of(descriptors: u64, connections: usize) -> Share {
        let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN);
        let left = room.saturating_sub(connections.saturating_mul(PER_CONNECTION));
        Share { size: left.max(PER_PROCESS + 1), taken: Arc::default() }
    }

    /// Takes `count` descriptors, if that many are free. Only one thread may take; any thread may return.
    pub fn take(&self, count: usize) -> Option<Taken> {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken.saturating_add(count) > self.size {
            return None;
        }
        self.taken.fetch_add(count, Ordering::Relaxed);
        Some(Taken { count, all: Arc::clone(&self.taken) })
    }

    /// Number of descriptors that are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Taken {
    /// Splits off one descriptor, which is returned separately; an empty [`Taken`] if none remains.
    pub fn one(&mut self) -> Taken {
        let count = self.count.min(1);
        self.count -= count;
        Taken { count, all: Arc::clone(&self.all) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HealthCheck, ManagedSpec, Pipes, Policy, TerminalSize};

    #[test]
    fn requested_numbers_that_fit_are_kept_and_others_are_reduced() {
        let wanted = Budget { processes: 4_096, connections: 1_024 };
        assert_eq!(fit(wanted, 1 << 20), wanted);
        for descriptors in [0, 64, 100, 1_024, 20_000] {
            let fitted = fit(wanted, descriptors);
            let used = fitted.processes * PER_PROCESS + fitted.connections * PER_CONNECTION;
            assert!(
                used as u64 + OWN as u64 <= descriptors.max((OWN + PER_PROCESS + PER_CONNECTION) as u64),
                "{descriptors}: {fitted:?}"
            );
            assert!(fitted.processes >= 1 && fitted.connections >= 1);
        }
        assert_eq!(fit(wanted, 100), Budget { processes: 4, connections: 4 });
        let endless = Budget { processes: usize::MAX, connections: usize::MAX };
        assert!(fit(endless, 1_024).processes < 1_024);
    }

    #[test]
    fn no_more_descriptors_are_taken_than_the_share_has() {
        let share = Share::of(OWN as u64 + 100 + 10, 25);
        assert!(share.take(11).is_none());
        let mut first = share.take(6).unwrap();
        let one = first.one();
        assert!(share.take(5).is_none());
        let second = share.take(4).unwrap();
        assert!(share.take(1).is_none());
        drop(first);
        assert_eq!(share.taken(), 5);
        drop((one, second));
        assert_eq!(share.taken(), 0);
        let mut none = share.take(0).unwrap();
        drop((none.one(), none));
        assert_eq!(share.taken(), 0);
    }

    #[test]
    fn each_stream_and_health_check_of_a_spec_needs_a_descriptor() {
        let plain = || ProcessSpec::command("x");
        let checked = ManagedSpec { health: Some(HealthCheck::tcp(1)), ..ManagedSpec::new(Policy::Always) };
        let with_stdin = Pipes { stdin: StdinMode::Pipe, ..Pipes::default() };
        let silent = Pipes { stdout: OutputMode::Discard, stderr: OutputMode::Discard, ..Pipes::default() };
        for (spec, count) in [
            (plain(), 4),
            (plain().stdio(with_stdin), 5),
            (plain().stdio(silent), 2),
            (plain().stdio(Stdio::Inherit), 2),
            (plain().stdio(TerminalSize::default()), 4),
            (plain().managed(ManagedSpec::new(Policy::Always)), 4),
            (plain().stdio(with_stdin).managed(checked), 6),
        ] {
            let spec = spec.build().unwrap();
            assert_eq!(needs(&spec), count, "{spec:?}");
            assert!(Share::of(0, 1).take(count).is_some(), "one process can always be started");
        }
    }
}
