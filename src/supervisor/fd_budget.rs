//! How many processes and connections the descriptors carry, and how many of them processes hold.
//!
//! Processes and connections have a share each. What a process holds is counted when it is started and given back one by
//! one: a child in the background can hold a pipe for as long as it likes, and the log of its run with it. Whatever
//! processes do, the connections find their share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::{OutputMode, ProcessSpec, StdinMode, Stdio};

/// Descriptors of one process: stdin, stdout, stderr, its log, and the report of its exec, in whose place a probe of its
/// health comes.
const PER_PROCESS: usize = 5;
/// Descriptors of one connection: its socket, its waker or a directory, a file, and one more on the way to that.
const PER_CONNECTION: usize = 4;
/// The daemon's own, and those of the one process that is being forked.
const OWN: usize = 64;

/// Connections that there are in any case where descriptors are few: a stranger who is slow to send a head must not have
/// the only one.
const FEW: usize = 4;

/// Both numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Processes that run at once.
    pub processes: usize,
    /// Connections that are open at once.
    pub connections: usize,
}

/// Lowers what is wanted to what `descriptors` carry, in proportion; never below 1 of each, and not below a few connections
/// where there is room for these.
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

/// Descriptors that one run may hold at the same time.
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

/// The share of processes, and what is taken of it.
#[derive(Debug)]
pub struct Share {
    size: usize,
    taken: Arc<AtomicUsize>,
}

/// Descriptors that are taken of a [`Share`] for as long as this lives.
#[derive(Debug)]
pub struct Taken {
    count: usize,
    all: Arc<AtomicUsize>,
}

impl Share {
    /// What the connections leave of `descriptors`; always enough for one process.
    pub fn of(descriptors: u64, connections: usize) -> Share {
        let room = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(OWN);
        let left = room.saturating_sub(connections.saturating_mul(PER_CONNECTION));
        Share { size: left.max(PER_PROCESS + 1), taken: Arc::default() }
    }

    /// Takes so many, if they are left. Only one thread takes; others may give back meanwhile.
    pub fn take(&self, count: usize) -> Option<Taken> {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken.saturating_add(count) > self.size {
            return None;
        }
        self.taken.fetch_add(count, Ordering::Relaxed);
        Some(Taken { count, all: Arc::clone(&self.taken) })
    }

    /// How many are taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Taken {
    /// Hands on one of these, to be given back by itself; nothing where none is left.
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
    fn what_fits_is_left_alone_and_what_does_not_is_lowered() {
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
    fn a_share_is_never_more_than_taken() {
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
    fn what_a_run_holds() {
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
            assert!(Share::of(0, 1).take(count).is_some(), "one can always be started");
        }
    }
}
