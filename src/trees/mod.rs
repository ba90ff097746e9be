//! The trees thread: signals every process of a tree, finds the processes of runs that have no cgroup, and reports of
//! which of these runs all processes have ended.
//!
//! A separate thread does this because a tree can have thousands of processes, so that reading /proc takes
//! milliseconds, and because a hostile process can make reading its environment block for ever. The thread signals
//! through pidfds (`tl_os::send_signal`), because the supervisor thread reaps processes meanwhile.

mod attribute;
mod environ;
mod job;
mod suspend;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

pub use job::{Attribution, Job, Reply, Report, Suspension, Tracking};

use crate::error::Error;
use crate::model::{Pid, RunKey};
use crate::pending::mailbox::{MailReceiver, MailSender, mailbox};
use environ::Environ;
use job::{Kind, Tree};
use tl_os::cgroup::Leaf;
use tl_os::process_tree::{MAX_ROUNDS, Marks, Orphans, with_descendants};
use tl_os::procfs::{self, Identity, Process, Snapshot, adopted, is_alive, shows_this_namespace};
use tl_os::send_signal::{HANG_UP, TERMINATE, signal_all, signal_all_processes, signal_if};
use tl_os::thread;
use tl_os::tree_walk::walk;

/// Maximum number of passes over the orphans when a run is killed again.
const MAX_PASSES: usize = 1_000;
/// After this number of passes in a row that find no new orphan of the run, no more are made.
const MAX_IDLE_PASSES: usize = 20;
/// Maximum number of runs, and of their processes and all orphans together, that are found by a walk down from their
/// leaders. For more, a scan of all of /proc is quicker.
const MAX_WALKED_RUNS: usize = 32;
const MAX_WALKED: usize = 128;
/// Why the processes of a run without a cgroup cannot be found.
const BLIND: &str = "/proc does not show this PID namespace: only the process groups of leaders can be signalled";
/// Number of remembered processes and runs at which /proc is scanned to find those that have ended.
const MAX_KNOWN: usize = 512;

/// A handle to the thread, which ends and is joined on drop.
#[derive(Debug)]
pub struct Trees {
    /// `None` ends the thread.
    jobs: MailSender<Option<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// A job, and the leaders at the time when it was sent.
#[derive(Debug)]
struct Order {
    job: Job,
    /// The leaders of all units that were not reaped.
    leaders: Arc<HashSet<Pid>>,
}

impl Trees {
    /// Starts the thread. It calls `notify` with each report, and `died` if it panics. Neither may block.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(
        notify: impl FnMut(Report) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Trees> {
        let (jobs, inbox) = mailbox();
        let mut actor = Actor {
            inbox,
            notify: Box::new(notify),
            known: HashMap::new(),
            asked: HashSet::new(),
            suspended: HashMap::new(),
            environ: Environ::default(),
            is_blind: false,
        };
        let body = move || {
            actor.run();
            Ok(())
        };
        Ok(Trees { jobs, thread: Some(thread::spawn("trees", body, died)?) })
    }

    /// Sends a job to the thread. `leaders` are the leaders of all units that were not reaped.
    pub fn send(&self, job: Job, leaders: Arc<HashSet<Pid>>) {
        // Dropped only if the thread has died, in which case the supervisor shuts down.
        self.jobs.send(Some(Order { job, leaders }));
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        self.jobs.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Actor {
    inbox: MailReceiver<Option<Order>>,
    notify: Box<dyn FnMut(Report) + Send>,
    /// Processes that were found to belong to a run without a cgroup. They still belong to it after they leave its
    /// session or pipes.
    known: HashMap<RunKey, HashSet<Identity>>,
    /// Live processes that were asked to end, by SIGTERM or SIGHUP.
    asked: HashSet<Identity>,
    /// The processes that [`Job::Suspend`] has stopped, in the order in which they were.
    suspended: HashMap<RunKey, Vec<Identity>>,
    environ: Environ,
    /// The last scan has found nothing, not even this process.
    is_blind: bool,
}

/// The signalling of all processes of a run without a cgroup, which takes several scans. A process that is forked
/// meanwhile gets SIGKILL too, but no other signal: it may have been forked in order to handle that signal.
struct Round<'a> {
    key: RunKey,
    marks: &'a Marks,
    kind: Kind,
    seen: HashSet<Identity>,
}

impl Actor {
    fn run(&mut self) {
        let mut open = true;
        while open && let Some(Some(first)) = self.inbox.recv() {
            let mut orders = vec![first];
            // One scan of /proc serves all jobs that need one.
            while let Some(next) = self.inbox.try_recv() {
                open &= next.is_some();
                orders.extend(next);
            }
            let reports: Vec<Report> = orders.iter().filter_map(|order| order.job.report_if_it_fails()).collect();
            // After a panic these jobs are lost, and the thread continues.
            if catch_unwind(AssertUnwindSafe(|| self.serve(orders))).is_err() {
                reports.into_iter().for_each(|report| (self.notify)(report));
            }
        }
    }

    fn serve(&mut self, orders: Vec<Order>) {
        let leaders = orders.last().map(|order| Arc::clone(&order.leaders)).unwrap_or_default();
        for order in &orders {
            if let Some((_, Tracking::Leaf(leaf), kind)) = order.job.signals() {
                self.signal_leaf(leaf, kind);
            }
        }
        let rounds = self.signal_rounds(orders.iter().filter_map(|order| Round::of(&order.job)).collect(), &leaders);
        for Round { key, seen, .. } in rounds {
            self.remember(key, seen);
        }
        let needs_scan = |job: &Job| matches!(job, Job::HangUp(_) | Job::Scan(_) | Job::TerminateRest);
        let snapshot = match orders.iter().any(|order| needs_scan(&order.job)) {
            true => {
                let trees: Option<Vec<_>> = orders.iter().map(|order| order.job.trees()).collect();
                self.look(trees.map(|trees| trees.concat()), &leaders)
            }
            false => Snapshot::default(),
        };
        for order in orders {
            match order.job {
                Job::Terminate(..) => {}
                Job::Kill { key, .. } => (self.notify)(Report::Killed(key)),
                Job::Signal(_, Tracking::Marks(_), _, reply) if !shows_this_namespace() => {
                    reply.send(Err(Error::internal(BLIND)));
                }
                Job::Signal(.., reply) => reply.send(Ok(())),
                Job::Suspend { key, tracking, request } => {
                    let suspension = self.suspend(key, &tracking, &leaders);
                    (self.notify)(Report::Suspended(request, suspension));
                }
                Job::Continue { key, tracking, all } => self.let_continue(key, &tracking, all, &leaders),
                Job::Reply(Reply(reply)) => reply(),
                Job::Attribute(attribution) => self.attribute(*attribution),
                Job::HangUp(marks) => self.hang_up(&snapshot, &marks),
                Job::TerminateRest => self.terminate_rest(&snapshot, &leaders),
                Job::Scan(runs) => self.find_gone(&snapshot, &runs, &leaders),
            }
        }
    }

    /// Reads the processes that can belong to these runs or, if they are many or `trees` is None, all processes. Forgets
    /// processes of the runs that have ended.
    fn look(&mut self, trees: Option<Vec<Tree>>, leaders: &HashSet<Pid>) -> Snapshot {
        let is_crowded = self.asked.len() + self.known.len() + self.environ.len() > MAX_KNOWN;
        let trees = trees.filter(|trees| !is_crowded && trees.len() <= MAX_WALKED_RUNS);
        let Some((snapshot, trees)) = trees.and_then(|trees| Some((self.walk(&trees, leaders)?, trees))) else {
            return self.scan();
        };
        self.environ.forget_those_without();
        for key in trees.into_iter().filter_map(|tree| tree.key) {
            if let Entry::Occupied(mut known) = self.known.entry(key) {
                known.get_mut().retain(|identity| lives(&snapshot, identity));
                if known.get().is_empty() {
                    known.remove();
                }
            }
        }
        snapshot
    }

    /// Reads the processes that can belong to these runs: see [`walk`].
    fn walk(&self, trees: &[Tree], leaders: &HashSet<Pid>) -> Option<Snapshot> {
        let known = trees.iter().filter_map(|tree| self.known.get(&tree.key?)).flatten().map(|(pid, _)| *pid);
        walk(trees.iter().map(|tree| tree.leader).chain(known), leaders, MAX_WALKED)
    }

    /// Scans /proc, and forgets processes that have ended.
    fn scan(&mut self) -> Snapshot {
        let snapshot = Snapshot::take();
        if !std::mem::replace(&mut self.is_blind, snapshot.all.is_empty()) && self.is_blind {
            log::warn!("{BLIND}");
        }
        self.asked.retain(|identity| lives(&snapshot, identity));
        self.environ.forget_all_but(|identity| lives(&snapshot, identity));
        self.known.retain(|_, processes| {
            processes.retain(|identity| lives(&snapshot, identity));
            !processes.is_empty()
        });
        snapshot
    }

    fn orphans<'a>(&mut self, snapshot: &'a Snapshot, leaders: &HashSet<Pid>) -> Orphans<'a> {
        Orphans::find(snapshot, leaders, |process| self.environ.invocation_of(process))
    }

    fn members<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        orphans: &Orphans<'a>,
        key: RunKey,
        marks: &Marks,
    ) -> Vec<&'a Process> {
        let (none, environ) = (HashSet::new(), &mut self.environ);
        let known = self.known.get(&key).unwrap_or(&none);
        let members = marks.members(snapshot, orphans, known, |process| environ.invocation_of(process));
        // A process that was found once is found again, even if the process that led to it has ended.
        self.remember(key, members.iter().map(|process| process.identity()));
        members
    }

    fn remember(&mut self, key: RunKey, processes: impl IntoIterator<Item = Identity>) {
        let mut processes = processes.into_iter().peekable();
        if processes.peek().is_some() {
            self.known.entry(key).or_default().extend(processes);
        }
    }

    /// Signals the processes that are in a cgroup now.
    fn signal_leaf(&mut self, leaf: &Leaf, kind: Kind) {
        for pid in leaf.members() {
            let process = procfs::look_at(pid);
            if let (Kind::Terminate(but), Some(process)) = (kind, &process) {
                self.asked.insert(process.identity());
                if Some(process.group) == but {
                    continue;
                }
            }
            signal_if(pid, kind.signals(), || leaf.holds(pid));
        }
    }

    /// Signals all members of these runs. For runs that are killed, repeats this until no new member is found.
    fn signal_rounds<'a>(&mut self, mut rounds: Vec<Round<'a>>, leaders: &HashSet<Pid>) -> Vec<Round<'a>> {
        let mut fresh = !rounds.is_empty();
        for n in 0..MAX_ROUNDS {
            if !std::mem::take(&mut fresh) {
                break;
            }
            let trees = rounds.iter().map(|round| Tree { key: Some(round.key), leader: round.marks.leader() });
            let snapshot = self.look(Some(trees.collect()), leaders);
            let orphans = self.orphans(&snapshot, leaders);
            for round in rounds.iter_mut().filter(|round| n == 0 || round.kind.is_kill()) {
                for process in self.members(&snapshot, &orphans, round.key, round.marks) {
                    if round.seen.insert(process.identity()) {
                        fresh |= round.kind.is_kill();
                        self.signal_member(process, round.kind);
                    }
                }
            }
        }
        self.catch_orphans(&mut rounds, leaders);
        // All members are stopped now, and are killed together: a member that died while others still forked could
        // leave orphans that nothing identifies.
        let killed = rounds.iter().filter(|round| round.kind.is_kill()).flat_map(|round| &round.seen);
        for (pid, start) in killed {
            signal_if(*pid, &[libc::SIGKILL], || is_alive((*pid, *start)));
        }
        rounds
    }

    /// Stops orphans of runs that were killed before and still have processes. If each process forks and ends at once,
    /// it has ended before a scan of all of /proc reaches it. But when its parent ends, it becomes a child of this
    /// process, and the list of children is short. It is stopped while it is checked; the kernel reports that only to
    /// its parent, this process.
    fn catch_orphans(&mut self, rounds: &mut [Round<'_>], leaders: &HashSet<Pid>) {
        let (mut others, mut idle) = (HashSet::new(), 0);
        for _ in 0..MAX_PASSES {
            if idle >= MAX_IDLE_PASSES || !rounds.iter().any(|round| round.kind == Kind::Kill { again: true }) {
                return;
            }
            idle += 1;
            for pid in adopted() {
                if leaders.contains(&pid) || others.contains(&pid) {
                    continue;
                }
                let Some(orphan) = procfs::look_at(pid).filter(|orphan| !orphan.dead) else { continue };
                let identity = orphan.identity();
                if rounds.iter().any(|round| round.seen.contains(&identity)) {
                    continue;
                }
                signal_all([&orphan], &[libc::SIGSTOP]);
                let killed = rounds.iter_mut().filter(|round| round.kind.is_kill());
                let owner =
                    killed.into_iter().find(|it| it.marks.match_orphan(&orphan, |it| self.environ.invocation_of(it)));
                match owner {
                    Some(round) => {
                        round.seen.insert(identity);
                        idle = 0;
                    }
                    None => {
                        if !orphan.stopped {
                            signal_all([&orphan], &[libc::SIGCONT]);
                        }
                        others.insert(pid);
                    }
                }
            }
        }
    }

    fn signal_member(&mut self, process: &Process, kind: Kind) {
        match kind {
            Kind::Terminate(but) => {
                self.asked.insert(process.identity());
                if Some(process.group) != but {
                    signal_all([process], &TERMINATE);
                }
            }
            Kind::Kill { .. } => signal_all([process], &[libc::SIGSTOP]),
            Kind::Signal(_) => signal_all([process], kind.signals()),
        }
    }

    fn hang_up(&mut self, snapshot: &Snapshot, marks: &Marks) {
        let members = marks.session(snapshot).filter(|process| process.pid != marks.leader() && !process.dead);
        signal_all(members, &HANG_UP);
        self.asked.extend(marks.session(snapshot).map(Process::identity));
    }

    fn terminate_rest(&mut self, snapshot: &Snapshot, leaders: &HashSet<Pid>) {
        if snapshot.all.is_empty() {
            // Without /proc, the processes to exclude cannot be identified, so all are signalled.
            return TERMINATE.into_iter().for_each(signal_all_processes);
        }
        let is_led = |process: &Process| leaders.contains(&process.session) || leaders.contains(&process.group);
        let was_asked = |process: &&Process| is_led(process) || self.asked.contains(&process.identity());
        // Their descendants are excluded too: they may have been forked in order to handle the signal.
        let roots = snapshot.all.iter().filter(was_asked).collect();
        let excluded: HashSet<Pid> =
            with_descendants(snapshot, roots, 1).into_iter().map(|process| process.pid).collect();
        let rest = snapshot.all.iter().filter(|process| process.pid != 1 && !process.dead);
        signal_all(rest.filter(|process| !excluded.contains(&process.pid)), &TERMINATE);
    }

    fn find_gone(&mut self, snapshot: &Snapshot, runs: &[(RunKey, Marks)], leaders: &HashSet<Pid>) {
        let orphans = self.orphans(snapshot, leaders);
        let is_gone = |(key, marks): &&(RunKey, Marks)| self.members(snapshot, &orphans, *key, marks).is_empty();
        let gone: Vec<RunKey> = runs.iter().filter(is_gone).map(|(key, _)| *key).collect();
        (self.notify)(Report::Scanned(gone));
    }
}

/// Whether the process exists in the snapshot and is not dead.
fn lives(snapshot: &Snapshot, (pid, start): &Identity) -> bool {
    snapshot.get(*pid).is_some_and(|now| now.start == *start && !now.dead)
}

impl<'a> Round<'a> {
    fn of(job: &'a Job) -> Option<Round<'a>> {
        let (key, Tracking::Marks(marks), kind) = job.signals()? else { return None };
        Some(Round { key, marks, kind, seen: HashSet::new() })
    }
}
