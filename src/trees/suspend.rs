//! Pauses a run that has no freezer of cgroups: SIGSTOP to each of its processes, and later SIGCONT.
//!
//! Parents are stopped before their children, and continue after them: so a shell does not see a job of its own stop,
//! and goes on waiting for it as before.

use std::collections::HashSet;

use super::job::{Suspension, Tracking, Tree};
use super::{Actor, BLIND};
use crate::model::{Pid, RunKey};
use tl_os::process_tree::MAX_ROUNDS;
use tl_os::procfs::{self, Identity, Process, is_alive, shows_this_namespace};
use tl_os::send_signal::{signal_all, signal_if};

/// Number of looks in a row that find no process running after which a run counts as suspended. The first of them can
/// miss a child that its parent has made before it was stopped.
const CALM_ROUNDS: usize = 2;

impl Actor {
    /// Stops every process of the run. Looks again until no process runs, but not for long: other jobs wait.
    pub(super) fn suspend(&mut self, key: RunKey, tracking: &Tracking, leaders: &HashSet<Pid>) -> Suspension {
        if matches!(tracking, Tracking::Marks(_)) && !shows_this_namespace() {
            log::warn!("{BLIND}");
            return Suspension::Blind;
        }
        let mut ours = self.suspended.remove(&key).unwrap_or_default();
        let mut known: HashSet<Identity> = ours.iter().copied().collect();
        let (mut calm, mut suspension) = (0, Suspension::Growing);
        for _ in 0..MAX_ROUNDS {
            let (mut is_calm, mut is_new) = (true, false);
            for process in self.oldest_first(key, tracking, leaders) {
                let identity = process.identity();
                // The kernel never shows a process as stopped that has lost its main thread.
                if process.stopped || process.headless && known.contains(&identity) {
                    continue;
                }
                is_calm = false;
                if known.insert(identity) {
                    is_new = true;
                    ours.push(identity);
                }
                signal_all([&process], &[libc::SIGSTOP]);
            }
            suspension = if is_new { Suspension::Growing } else { Suspension::Signalled };
            calm = if is_calm { calm + 1 } else { 0 };
            if calm >= CALM_ROUNDS {
                suspension = Suspension::Complete;
                break;
            }
        }
        self.suspended.insert(key, ours);
        suspension
    }

    /// Lets the processes run on that [`suspend`](Actor::suspend) has stopped and, if `all`, every other one of the run.
    pub(super) fn let_continue(&mut self, key: RunKey, tracking: &Tracking, all: bool, leaders: &HashSet<Pid>) {
        let ours = self.suspended.remove(&key);
        let mut processes = Vec::new();
        // Without a list, an earlier job has panicked.
        if all || ours.is_none() {
            processes.extend(self.oldest_first(key, tracking, leaders).iter().map(Process::identity));
        }
        processes.extend(ours.into_iter().flatten());
        for (pid, start) in processes.into_iter().rev() {
            signal_if(pid, &[libc::SIGCONT], || is_alive((pid, start)));
        }
    }

    /// The live processes of a run, each parent before its children.
    fn oldest_first(&mut self, key: RunKey, tracking: &Tracking, leaders: &HashSet<Pid>) -> Vec<Process> {
        let mut processes: Vec<Process> = match tracking {
            Tracking::Leaf(leaf) => {
                leaf.members().into_iter().filter_map(procfs::look_at).filter(|process| !process.dead).collect()
            }
            Tracking::Marks(marks) => {
                let snapshot = self.look(Some(vec![Tree { key: Some(key), leader: marks.leader() }]), leaders);
                let orphans = self.orphans(&snapshot, leaders);
                self.members(&snapshot, &orphans, key, marks).into_iter().copied().collect()
            }
        };
        processes.sort_unstable_by_key(|process| (process.start, process.pid));
        processes
    }
}
