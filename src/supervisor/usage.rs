//! What processes have used, as it is kept and added up.

use std::time::Duration;

use tl_os::usage;
use tl_os::wait::ExitUsage;

use crate::model::{UnitId, Usage, UsageScope};

/// What was measured when the current or last run of a unit ended.
#[derive(Debug, Default)]
pub(super) enum LastUsage {
    /// Nothing.
    #[default]
    None,
    /// The usage of the leader when it was reaped.
    Leader(ExitUsage),
    /// The usage of the whole tree, just before its cgroup was given back.
    Tree(Box<usage::Usage>),
}

/// Sums of the usage of processes with the same status. What could not be measured of a process is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UsageSums {
    pub(crate) cpu_user_ms: u64,
    pub(crate) cpu_system_ms: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) oom_kills: u64,
}

/// A part of the processes: the sums of their usage, by their status.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsagePage {
    pub(crate) sums: [UsageSums; 4],
    /// The last one of this part; None if no other part follows.
    pub(crate) last: Option<UnitId>,
}

impl UsageSums {
    /// Adds the usage of a process.
    pub(super) fn add(&mut self, usage: &Usage) {
        for (sum, more) in [
            (&mut self.cpu_user_ms, usage.cpu_user_ms),
            (&mut self.cpu_system_ms, usage.cpu_system_ms),
            (&mut self.memory_bytes, usage.memory_bytes),
            (&mut self.processes, usage.processes),
            (&mut self.read_bytes, usage.read_bytes),
            (&mut self.written_bytes, usage.written_bytes),
            (&mut self.oom_kills, usage.oom_kills),
        ] {
            *sum = sum.saturating_add(more.unwrap_or(0));
        }
    }

    /// Adds the sums of other processes.
    pub(crate) fn merge(&mut self, other: &UsageSums) {
        for (sum, more) in [
            (&mut self.cpu_user_ms, other.cpu_user_ms),
            (&mut self.cpu_system_ms, other.cpu_system_ms),
            (&mut self.memory_bytes, other.memory_bytes),
            (&mut self.processes, other.processes),
            (&mut self.read_bytes, other.read_bytes),
            (&mut self.written_bytes, other.written_bytes),
            (&mut self.oom_kills, other.oom_kills),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// The usage as clients see it.
pub(super) fn shown(usage: &usage::Usage, scope: UsageScope) -> Usage {
    let ms = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Usage {
        cpu_user_ms: ms(usage.cpu_user),
        cpu_system_ms: ms(usage.cpu_system),
        memory_bytes: usage.memory,
        memory_peak_bytes: usage.memory_peak,
        processes: usage.tasks,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
        oom_kills: usage.oom_kills,
        scope,
    }
}
