//! The trees thread: finds the processes of runs that no cgroup holds together, signals them, and says which runs have
//! none left.
//!
//! A look at /proc takes milliseconds with some thousand processes, and a hostile process can make the look at its
//! environment take for ever: nobody else waits for that. It signals through descriptors of processes only, never by
//! a PID (`os::tree`), so that it does not matter that another thread reaps.

mod environ;

use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::model::{Pid, RunNo, UnitId};
use crate::os::procfs::{Identity, Process, Snapshot, is_still_there};
use crate::os::tree::{HANG_UP, Marks, ROUNDS, TERMINATE, signal_all, signal_everybody, signal_if, with_descendants};
use crate::pending::Reply;
use crate::worker;
use environ::Environ;

/// One run of one unit.
pub type RunKey = (UnitId, RunNo);

/// What the thread is asked. The queue has no bound of its own: the supervisor asks for one look at a time, each unit has
/// a few signals on the way at most, and a client waits for the answer to its own.
#[derive(Debug)]
pub enum Job {
    /// SIGTERM and SIGCONT to the run, but for the process group of its leader, which has got them.
    Terminate(RunKey, Marks),
    /// SIGKILL to the run. Reported by [`Report::Killed`].
    Kill(RunKey, Marks),
    /// One signal to the run. Answered when it is sent.
    Signal(RunKey, Marks, i32, Reply<()>),
    /// SIGHUP and SIGCONT to the session of a leader, but for the leader, which has got them.
    HangUp(Marks),
    /// Which of these runs have no process left? Reported by [`Report::Looked`].
    Look(Vec<(RunKey, Marks)>),
    /// Only as PID 1: SIGTERM and SIGCONT to everything that has not been asked to end: by a [`Job::Terminate`], by a
    /// [`Job::HangUp`], as one of these PIDs, or in the session or the process group of a leader.
    TerminateRest(HashSet<Pid>),
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
        Ok(Trees { jobs, thread: Some(worker::spawn("trees", body, died)?) })
    }

    /// Hands it a job. `leaders`: those of all units that have not been reaped.
    pub fn send(&self, job: Job, leaders: Arc<HashSet<Pid>>) {
        // A thread that is gone is replaced or has ended everything.
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
    /// Processes that were found to be of a run that has not been seen to be gone: they stay so, whatever they leave.
    known: HashMap<RunKey, HashSet<Identity>>,
    /// Live processes that have been asked to end, by a SIGTERM or a hang-up.
    asked: HashSet<Identity>,
    environ: Environ,
}

/// A signal that goes to all of a run. What is forked meanwhile gets a SIGKILL too, but no other signal: it may be what a
/// process does about that.
struct Round<'a> {
    key: RunKey,
    marks: &'a Marks,
    kind: Kind,
    seen: HashSet<Identity>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Terminate,
    Kill,
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
            let reports: Vec<Report> = orders.iter().filter_map(|order| order.job.fruitless()).collect();
            // A panic costs these jobs their effect, not the thread.
            if catch_unwind(AssertUnwindSafe(|| self.serve(orders))).is_err() {
                reports.into_iter().for_each(|report| (self.notify)(report));
            }
        }
    }

    fn serve(&mut self, orders: Vec<Order>) {
        let leaders = orders.last().map(|order| Arc::clone(&order.leaders)).unwrap_or_default();
        let rounds = self.signal_rounds(orders.iter().filter_map(|order| Round::of(&order.job)).collect(), &leaders);
        for Round { key, kind, seen, .. } in rounds {
            if kind == Kind::Terminate {
                self.asked.extend(&seen);
            }
            self.known.entry(key).or_default().extend(seen);
        }
        let snapshot = self.look();
        for order in orders {
            match order.job {
                Job::Terminate(..) => {}
                Job::Kill(key, _) => (self.notify)(Report::Killed(key)),
                Job::Signal(.., reply) => reply.send(Ok(())),
                Job::HangUp(marks) => self.hang_up(&snapshot, &marks),
                Job::TerminateRest(asked) => self.terminate_rest(&snapshot, &asked, &leaders),
                Job::Look(runs) => self.find_gone(&snapshot, &runs, &leaders),
            }
        }
    }

    fn look(&mut self) -> Snapshot {
        let snapshot = Snapshot::take();
        let lives = |(pid, start): &Identity| snapshot.get(*pid).is_some_and(|now| now.start == *start && !now.dead);
        self.asked.retain(lives);
        self.environ.forget_all_but(lives);
        for processes in self.known.values_mut() {
            processes.retain(lives);
        }
        snapshot
    }

    fn members<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        key: RunKey,
        marks: &Marks,
        leaders: &HashSet<Pid>,
    ) -> Vec<&'a Process> {
        let known = self.known.entry(key).or_default();
        let members = marks.members(snapshot, known, leaders, |process| self.environ.invocation_of(process));
        // What has been found once is found again, also when the process that led to it has ended.
        known.extend(members.iter().map(|process| process.identity()));
        members
    }

    /// Signals all members of these runs; those of the runs that are killed until no member is new.
    fn signal_rounds<'a>(&mut self, mut rounds: Vec<Round<'a>>, leaders: &HashSet<Pid>) -> Vec<Round<'a>> {
        let mut fresh = !rounds.is_empty();
        for n in 0..ROUNDS {
            if !std::mem::take(&mut fresh) {
                break;
            }
            let snapshot = self.look();
            for round in rounds.iter_mut().filter(|round| n == 0 || round.kind == Kind::Kill) {
                for process in self.members(&snapshot, round.key, round.marks, leaders) {
                    if round.seen.insert(process.identity()) {
                        signal_all([process], round.signals(process));
                        fresh |= round.kind == Kind::Kill;
                    }
                }
            }
        }
        // All of them are stopped now: none has died before the others and left orphans that nothing leads back to.
        let killed = rounds.iter().filter(|round| round.kind == Kind::Kill).flat_map(|round| &round.seen);
        for (pid, start) in killed {
            signal_if(*pid, &[libc::SIGKILL], || is_still_there((*pid, *start)));
        }
        rounds
    }

    fn hang_up(&mut self, snapshot: &Snapshot, marks: &Marks) {
        let members = marks.session(snapshot).filter(|process| process.pid != marks.leader());
        let members: Vec<&Process> = members.filter(|process| !process.dead).collect();
        signal_all(members.iter().copied(), &HANG_UP);
        self.asked.extend(marks.session(snapshot).map(Process::identity));
    }

    fn terminate_rest(&mut self, snapshot: &Snapshot, asked: &HashSet<Pid>, leaders: &HashSet<Pid>) {
        if snapshot.all.is_empty() {
            // Without /proc they cannot be told apart.
            return TERMINATE.into_iter().for_each(signal_everybody);
        }
        let led = |process: &Process| leaders.contains(&process.session) || leaders.contains(&process.group);
        let has_it = |process: &&Process| {
            led(process) || asked.contains(&process.pid) || self.asked.contains(&process.identity())
        };
        // With what they have started since: that may be what they do about the signal.
        let roots = snapshot.all.iter().filter(has_it).collect();
        let spared: HashSet<Pid> =
            with_descendants(snapshot, roots, 1).into_iter().map(|process| process.pid).collect();
        let rest = snapshot.all.iter().filter(|process| process.pid != 1 && !process.dead);
        signal_all(rest.filter(|process| !spared.contains(&process.pid)), &TERMINATE);
    }

    fn find_gone(&mut self, snapshot: &Snapshot, runs: &[(RunKey, Marks)], leaders: &HashSet<Pid>) {
        let mut gone = Vec::new();
        for (key, marks) in runs {
            if self.members(snapshot, *key, marks, leaders).is_empty() {
                self.known.remove(key);
                gone.push(*key);
            }
        }
        (self.notify)(Report::Looked(gone));
    }
}

impl Job {
    /// What is reported where the job could not be done.
    fn fruitless(&self) -> Option<Report> {
        match self {
            Job::Kill(key, _) => Some(Report::Killed(*key)),
            Job::Look(_) => Some(Report::Looked(Vec::new())),
            Job::Terminate(..) | Job::Signal(..) | Job::HangUp(_) | Job::TerminateRest(_) => None,
        }
    }
}

impl<'a> Round<'a> {
    fn of(job: &'a Job) -> Option<Round<'a>> {
        let (key, marks, kind) = match job {
            Job::Terminate(key, marks) => (*key, marks, Kind::Terminate),
            Job::Kill(key, marks) => (*key, marks, Kind::Kill),
            Job::Signal(key, marks, signal, _) => (*key, marks, Kind::Signal(*signal)),
            Job::HangUp(_) | Job::Look(_) | Job::TerminateRest(_) => return None,
        };
        Some(Round { key, marks, kind, seen: HashSet::new() })
    }

    /// What a member gets when it is found.
    fn signals(&self, process: &Process) -> &[i32] {
        match &self.kind {
            Kind::Terminate if process.group == self.marks.leader() => &[],
            Kind::Terminate => &TERMINATE,
            Kind::Kill => &[libc::SIGSTOP],
            Kind::Signal(signal) => std::slice::from_ref(signal),
        }
    }
}
