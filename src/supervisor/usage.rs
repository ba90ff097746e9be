//! What the processes have used: of a tree with a cgroup that counts memory, else of the leader.

use std::time::Duration;

use tl_os::usage::{self, of_process};
use tl_os::wait::ExitUsage;

use super::actor::Actor;
use super::context::Member;
use crate::error::Error;
use crate::model::{RunKey, Status, Target, UnitId, Usage, UsageScope};
use crate::trees::Tracking;

/// Number of units whose usage is read from the kernel before the next message is handled, which takes some 2 ms.
const READINGS: usize = 64;

/// Number of units that are added up before the next message is handled.
const UNITS: usize = 4096;

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
    fn add(&mut self, usage: &Usage) {
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

impl Actor {
    /// The usage of the current or last run of a process.
    pub(super) fn usage(&self, target: &Target) -> Result<Usage, Error> {
        let (_, member) = self.member(target)?;
        member.unit.shown().ok_or_else(|| Error::NotFound(target.clone()))?;
        Ok(usage_of(member).0)
    }

    /// The sums of the usage of the processes after the unit `after`, sessions aside, as many as can be read quickly.
    pub(super) fn usage_page(&self, after: Option<UnitId>) -> UsagePage {
        let mut page = UsagePage::default();
        let mut readings = 0;
        for (at, (id, member)) in self.parts.fleet.after(after).enumerate() {
            if member.context.pty.is_none() && member.unit.shown().is_some() {
                let (usage, is_read) = usage_of(member);
                readings += usize::from(is_read);
                if let Some(sums) = page.sums.get_mut(index(member.unit.status())) {
                    sums.add(&usage);
                }
            }
            if readings >= READINGS || at + 1 >= UNITS {
                page.last = Some(id);
                break;
            }
        }
        page
    }

    /// Keeps the usage of a tree whose processes have all ended, before its cgroup is given back.
    pub(super) fn keep_tree_usage(&mut self, key: RunKey) {
        let Some(member) = self.parts.fleet.get_mut(key.0).filter(|member| member.unit.run_no() == key.1) else {
            return;
        };
        if let Some(Tracking::Leaf(leaf)) = &member.context.tree
            && leaf.controllers().memory
            && leaf.is_empty()
            && let Some(usage) = leaf.usage()
        {
            // Zombies count as tasks until they are reaped.
            let tasks = usage.tasks.map(|_| 0);
            member.context.last_usage = LastUsage::Tree(Box::new(usage::Usage { tasks, ..usage }));
        }
    }
}

/// The index of a status in [`UsagePage::sums`].
fn index(status: Status) -> usize {
    status as usize
}

/// The usage of the current or last run of a unit, and whether it was read from the kernel.
fn usage_of(member: &Member) -> (Usage, bool) {
    if let Some(Tracking::Leaf(leaf)) = &member.context.tree
        && let Some(usage) = leaf.usage()
    {
        return (shown(&usage, UsageScope::Tree), true);
    }
    match (&member.context.last_usage, member.unit.leader()) {
        (LastUsage::Tree(usage), _) => (shown(usage, UsageScope::Tree), false),
        (LastUsage::Leader(usage), _) => (shown(&usage::Usage::from(*usage), UsageScope::Leader), false),
        // Only this thread reaps it, so the PID is still its own.
        (LastUsage::None, Some(leader)) => (shown(&of_process(leader).unwrap_or_default(), UsageScope::Leader), true),
        (LastUsage::None, None) => (shown(&usage::Usage::default(), UsageScope::Leader), false),
    }
}

fn shown(usage: &usage::Usage, scope: UsageScope) -> Usage {
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
