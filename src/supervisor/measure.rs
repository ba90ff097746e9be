//! Measures what processes use: a tree with a cgroup that counts memory, else the leader.

use tl_os::usage::{self, of_process};

use super::actor::Actor;
use super::context::Member;
use super::usage::{LastUsage, UsagePage, shown};
use crate::error::Error;
use crate::model::{RunKey, Target, UnitId, Usage, UsageScope};
use crate::trees::Tracking;

/// Number of units whose usage is read from the kernel before the next message is handled, which takes some 2 ms.
const READINGS: usize = 64;

/// Number of units that are added up before the next message is handled.
const UNITS: usize = 4096;

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
                if let Some(sums) = page.sums.get_mut(member.unit.status() as usize) {
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
