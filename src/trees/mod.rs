//! The trees thread: signals every process of a tree, finds the processes of runs that no cgroup holds together, and says
//! which of these runs have none left.
//!
//! A tree can have thousands of processes, a look at /proc takes milliseconds then, and a hostile process can make the
//! look at its environment take for ever: nobody else waits for that. The thread signals through descriptors of
//! processes (`os::tree::signal_if`), so that it does not matter that another thread reaps.

mod environ;

use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::model::{Pid, RunKey};
use crate::pending::ReplySender;
use environ::Environ;
use tl_os::cgroup::Leaf;
use tl_os::process_tree::{MAX_ROUNDS, Marks, Orphans, with_descendants};
use tl_os::procfs::{self, Identity, Process, Snapshot, adopted, is_still_there};
use tl_os::send_signal::{HANG_UP, TERMINATE, signal_all, signal_everybody, signal_if};
use tl_os::thread;

/// Maximum number of passes over the orphans when a run is killed again.
const CATCHES: usize = 1_000;
/// Passes in a row without a new orphan of the run after which no more are made.
const QUIET: usize = 20;

/// What holds the processes of a run together.
#[derive(Clone, Debug)]
pub enum Hold {
    /// A cgroup.
    Leaf(Leaf),
    /// Without cgroups, these.
    Marks(Marks),
}

/// What the thread is asked. The queue has no bound of its own: the supervisor asks for one look at a time, each unit has
/// a few signals on the way at most, and a client waits for the answer to its own.
#[derive(Debug)]
pub enum Job {
    /// SIGTERM and SIGCONT to the run; not to this process group, which has got them.
    Terminate(RunKey, Hold, Option<Pid>),
    /// SIGKILL to the run. Reported by [`Report::Killed`].
    Kill {
        /// The run.
        key: RunKey,
        /// Its processes.
        hold: Hold,
        /// Whether it has been killed before.
        again: bool,
    },
    /// One signal to the run. Answered when it is sent.
    Signal(RunKey, Hold, i32, ReplySender<()>),
    /// SIGHUP and SIGCONT to the session of a leader, but for the leader, which has got them.
    HangUp(Marks),
    /// Which of these runs have no process left? Reported by [`Report::Looked`].
    Look(Vec<(RunKey, Marks)>),
    /// Only as PID 1: SIGTERM and SIGCONT to everything that has not been asked to end: by a [`Job::Terminate`], by a
    /// [`Job::HangUp`], or in the session or the process group of a leader.
    TerminateRest,
}

/// What the thread has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// All that could be found of the run has got a SIGKILL.
    Killed(RunKey),
    /// Of the runs that were looked for, these have no process left.
    Looked(Vec<RunKey>),
}

/// The thread; ends and is joined on drop.
#[derive(Debug)]
pub struct Trees {
    jobs: Sender<Option<Order>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Order {
    job: Job,
    /// The leaders of all units that have not been reaped.
    leaders: Arc<HashSet<Pid>>,
}

impl Trees {
    /// Starts it. `notify` is called on its thread and must not block.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(
        notify: impl FnMut(Report) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Trees> {
        let (jobs, inbox) = unbounded();
        let mut actor = Actor {
            inbox,
            notify: Box::new(notify),
            known: HashMap::new(),
            asked: HashSet::new(),
            environ: Environ::default(),
        };
        let body = move || {
            actor.run();
            Ok(())
        };
        Ok(Trees { jobs, thread: Some(thread::spawn("trees", body, died)?) })
    }

    /// Hands it a job. `leaders`: those of all units that have not been reaped.
    pub fn send(&self, job: Job, leaders: Arc<HashSet<Pid>>) {
        // Without the thread everything ends.
        let _ = self.jobs.send(Some(Order { job, leaders }));
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        let _ = self.jobs.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Actor {
    inbox: Receiver<Option<Order>>,
    notify: Box<dyn FnMut(Report) + Send>,
    /// Processes that were found to belong to a run without a cgroup. They still do when they leave its session or pipes.
    known: HashMap<RunKey, HashSet<Identity>>,
    /// Live processes that have been asked to end, by a SIGTERM or a hang-up.
    asked: HashSet<Identity>,
    environ: Environ,
}

/// A signal to every process of a run without a cgroup. A process that is forked meanwhile gets a SIGKILL too, but no
/// other signal: a process may have forked it to handle that signal.
struct Round<'a> {
    key: RunKey,
    marks: &'a Marks,
    kind: Kind,
    seen: HashSet<Identity>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// But for this process group.
    Terminate(Option<Pid>),
    Kill {
        again: bool,
    },
    Signal(i32),
}

impl Actor {
    fn run(&mut self) {
        let mut open = true;
        while open && let Ok(Some(first)) = self.inbox.recv() {
            let mut orders = vec![first];
            // One look at /proc serves all that wait for one.
            while let Ok(next) = self.inbox.try_recv() {
                open &= next.is_some();
                orders.extend(next);
            }
            let reports: Vec<Report> = orders.iter().filter_map(|order| order.job.if_it_fails()).collect();
            // A panic costs these jobs their effect, not the thread.
            if catch_unwind(AssertUnwindSafe(|| self.serve(orders))).is_err() {
                reports.into_iter().for_each(|report| (self.notify)(report));
            }
        }
    }

    fn serve(&mut self, orders: Vec<Order>) {
        let leaders = orders.last().map(|order| Arc::clone(&order.leaders)).unwrap_or_default();
        for order in &orders {
            if let Some((Hold::Leaf(leaf), kind)) = order.job.signals() {
                self.signal_leaf(leaf, kind);
            }
        }
        let rounds = self.signal_rounds(orders.iter().filter_map(|order| Round::of(&order.job)).collect(), &leaders);
        for Round { key, seen, .. } in rounds {
            self.known.entry(key).or_default().extend(seen);
        }
        let needs_look = |job: &Job| matches!(job, Job::HangUp(_) | Job::Look(_) | Job::TerminateRest);
        let snapshot = match orders.iter().any(|order| needs_look(&order.job)) {
            true => self.look(),
            false => Snapshot::default(),
        };
        for order in orders {
            match order.job {
                Job::Terminate(..) => {}
                Job::Kill { key, .. } => (self.notify)(Report::Killed(key)),
                Job::Signal(.., reply) => reply.send(Ok(())),
                Job::HangUp(marks) => self.hang_up(&snapshot, &marks),
                Job::TerminateRest => self.terminate_rest(&snapshot, &leaders),
                Job::Look(runs) => self.find_gone(&snapshot, &runs, &leaders),
            }
        }
    }

    fn look(&mut self) -> Snapshot {
        let snapshot = Snapshot::take();
        let lives = |(pid, start): &Identity| snapshot.get(*pid).is_some_and(|now| now.start == *start && !now.dead);
        self.asked.retain(lives);
        self.environ.forget_all_but(lives);
        self.known.retain(|_, processes| {
            processes.retain(lives);
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
        let known = self.known.entry(key).or_default();
        let members = marks.members(snapshot, orphans, known, |process| self.environ.invocation_of(process));
        // What has been found once is found again, also when the process that led to it has ended.
        known.extend(members.iter().map(|process| process.identity()));
        members
    }

    /// Signals all that are in a cgroup now.
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

    /// Signals all members of these runs; those of the runs that are killed until no member is new.
    fn signal_rounds<'a>(&mut self, mut rounds: Vec<Round<'a>>, leaders: &HashSet<Pid>) -> Vec<Round<'a>> {
        let mut fresh = !rounds.is_empty();
        for n in 0..MAX_ROUNDS {
            if !std::mem::take(&mut fresh) {
                break;
            }
            let snapshot = self.look();
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
        // All of them are stopped now: none has died before the others and left orphans that nothing leads back to.
        let killed = rounds.iter().filter(|round| round.kind.is_kill()).flat_map(|round| &round.seen);
        for (pid, start) in killed {
            signal_if(*pid, &[libc::SIGKILL], || is_still_there((*pid, *start)));
        }
        rounds
    }

    /// Stops orphans of runs that have been killed before and live on. Where each process forks and ends at once, a look at
    /// all processes comes too late for each of them. As soon as the one before it has ended, such a process is a child of
    /// this process: it is stopped for the moment in which it is looked at, which nobody but its parent is told.
    fn catch_orphans(&mut self, rounds: &mut [Round<'_>], leaders: &HashSet<Pid>) {
        let (mut others, mut quiet) = (HashSet::new(), 0);
        for _ in 0..CATCHES {
            if quiet >= QUIET || !rounds.iter().any(|round| round.kind == Kind::Kill { again: true }) {
                return;
            }
            quiet += 1;
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
                        quiet = 0;
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
            // Without /proc they cannot be told apart.
            return TERMINATE.into_iter().for_each(signal_everybody);
        }
        let led = |process: &Process| leaders.contains(&process.session) || leaders.contains(&process.group);
        let has_it = |process: &&Process| led(process) || self.asked.contains(&process.identity());
        // With what they have started since: that may be what they do about the signal.
        let roots = snapshot.all.iter().filter(has_it).collect();
        let spared: HashSet<Pid> =
            with_descendants(snapshot, roots, 1).into_iter().map(|process| process.pid).collect();
        let rest = snapshot.all.iter().filter(|process| process.pid != 1 && !process.dead);
        signal_all(rest.filter(|process| !spared.contains(&process.pid)), &TERMINATE);
    }

    fn find_gone(&mut self, snapshot: &Snapshot, runs: &[(RunKey, Marks)], leaders: &HashSet<Pid>) {
        let orphans = self.orphans(snapshot, leaders);
        let is_gone = |(key, marks): &&(RunKey, Marks)| self.members(snapshot, &orphans, *key, marks).is_empty();
        let gone: Vec<RunKey> = runs.iter().filter(is_gone).map(|(key, _)| *key).collect();
        (self.notify)(Report::Looked(gone));
    }
}

impl Job {
    /// The report that the supervisor waits for, if serving this job panics.
    fn if_it_fails(&self) -> Option<Report> {
        match self {
            Job::Kill { key, .. } => Some(Report::Killed(*key)),
            Job::Look(_) => Some(Report::Looked(Vec::new())),
            Job::Terminate(..) | Job::Signal(..) | Job::HangUp(_) | Job::TerminateRest => None,
        }
    }

    /// What is to be signalled as a whole, and how.
    fn signals(&self) -> Option<(&Hold, Kind)> {
        match self {
            Job::Terminate(_, hold, but) => Some((hold, Kind::Terminate(*but))),
            Job::Kill { hold, again, .. } => Some((hold, Kind::Kill { again: *again })),
            Job::Signal(_, hold, signal, _) => Some((hold, Kind::Signal(*signal))),
            Job::HangUp(_) | Job::Look(_) | Job::TerminateRest => None,
        }
    }

    fn key(&self) -> Option<RunKey> {
        match self {
            Job::Terminate(key, ..) | Job::Kill { key, .. } | Job::Signal(key, ..) => Some(*key),
            Job::HangUp(_) | Job::Look(_) | Job::TerminateRest => None,
        }
    }
}

impl Kind {
    fn is_kill(self) -> bool {
        matches!(self, Kind::Kill { .. })
    }

    fn signals(&self) -> &[i32] {
        match self {
            Kind::Terminate(_) => &TERMINATE,
            Kind::Kill { .. } => &[libc::SIGKILL],
            Kind::Signal(signal) => std::slice::from_ref(signal),
        }
    }
}

impl<'a> Round<'a> {
    fn of(job: &'a Job) -> Option<Round<'a>> {
        let (Hold::Marks(marks), kind) = job.signals()? else { return None };
        Some(Round { key: job.key()?, marks, kind, seen: HashSet::new() })
    }
}
