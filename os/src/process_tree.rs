//! Finds the processes of a run in /proc, where no cgroup holds them together.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::Pid;
use crate::procfs::{Identity, Process, Snapshot, pipe_of, pipes_of, ticks_now};
use crate::send_signal::{signal_all, signal_all_processes};
use crate::spawn::is_fork_server;
use crate::wait::{has_children, next_event};

/// Maximum number of looks at /proc for processes that were forked while others were signalled.
pub const MAX_ROUNDS: usize = 8;

/// What identifies the processes of one run.
#[derive(Clone, Debug)]
pub struct Marks {
    leader: Pid,
    /// The leader was forked at this time or before, in the unit of [`Process::start`]. A later process with its PID is
    /// another one.
    forked_by: u64,
    /// The inode numbers of the pipes of its stdout and stderr. The kernel does not reuse them while an end is open.
    pipes: Vec<u64>,
    /// The value of `INVOCATION_ID` that its processes have in their environment.
    invocation: String,
}

impl Marks {
    /// The marks of a leader that was just forked. `outputs` are this process's ends of its stdout and stderr.
    pub fn new(leader: Pid, invocation: &str, outputs: [Option<BorrowedFd<'_>>; 2]) -> Marks {
        let names = outputs.into_iter().flatten().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let names = names.filter_map(|name| fs::read_link(name).ok());
        // Only pipes count: a terminal can be open in processes of other runs.
        let pipes = names.filter_map(|name| pipe_of(name.as_os_str().as_encoded_bytes())).collect();
        Marks { leader, forked_by: ticks_now(), pipes, invocation: invocation.to_owned() }
    }

    /// The marks of a leader that was not reaped, by its session alone.
    pub fn of_session(leader: Pid) -> Marks {
        Marks { leader, forked_by: ticks_now(), pipes: Vec::new(), invocation: String::new() }
    }

    /// The members of the leader's session. None if the leader was reaped.
    pub fn session<'a>(&self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Process> {
        let is_ours = snapshot.get(self.leader).is_some_and(|leader| leader.start <= self.forked_by);
        snapshot.session(self.leader).filter(move |_| is_ours)
    }

    /// The leader's PID. After the leader was reaped, it can be another process's.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// The live processes of the run: the session and the process group of its leader, the orphans that hold its output
    /// pipes or have its `INVOCATION_ID`, those that were `known` to belong to it before, and all their descendants.
    /// Never includes this process.
    ///
    /// `invocation_of` returns the `INVOCATION_ID` of a process, if it can be determined.
    pub fn members<'a>(
        &self,
        snapshot: &'a Snapshot,
        orphans: &Orphans<'a>,
        known: &HashSet<Identity>,
        mut invocation_of: impl FnMut(&Process) -> Option<String>,
    ) -> Vec<&'a Process> {
        let mut found: Vec<&Process> = self.by_session(snapshot, &mut invocation_of);
        found.extend(self.pipes.iter().filter_map(|pipe| orphans.by_pipe.get(pipe)).flatten());
        found.extend(orphans.by_invocation.get(&self.invocation).into_iter().flatten());
        found.extend(known.iter().filter_map(|(pid, start)| snapshot.get(*pid).filter(|it| it.start == *start)));
        with_descendants(snapshot, found, std::process::id() as Pid)
    }

    /// Whether an orphan belongs to the run.
    pub fn match_orphan(&self, orphan: &Process, invocation_of: impl FnOnce(&Process) -> Option<String>) -> bool {
        orphan.session == self.leader
            || pipes_of(orphan).iter().any(|pipe| self.pipes.contains(pipe))
            || invocation_of(orphan).is_some_and(|id| id == self.invocation)
    }

    /// Like [`Marks::match_orphan`], with the [`pipes_of`] the orphan and its `INVOCATION_ID`, if that is known.
    pub fn fits(&self, orphan: &Process, pipes: &[u64], invocation: Option<&str>) -> bool {
        orphan.session == self.leader
            || pipes.iter().any(|pipe| self.pipes.contains(pipe))
            || invocation.is_some_and(|id| id == self.invocation)
    }

    /// Whether the process is the leader, and not a later process with its PID.
    pub fn is_leader(&self, process: &Process) -> bool {
        process.pid == self.leader && process.start <= self.forked_by
    }

    fn by_session<'a>(
        &self,
        snapshot: &'a Snapshot,
        invocation_of: &mut impl FnMut(&Process) -> Option<String>,
    ) -> Vec<&'a Process> {
        let all = || snapshot.session(self.leader).chain(snapshot.group(self.leader));
        match snapshot.get(self.leader) {
            // The leader itself is added: it may not have made its session yet.
            Some(leader) if leader.start <= self.forked_by => all().chain([leader]).collect(),
            // The kernel reuses no PID that is the number of a session or a group: this run's have no members left.
            Some(_) => Vec::new(),
            // Another process can have had the PID after the leader, and have left a session of this number.
            None => all().filter(|it| invocation_of(it).is_none_or(|id| id == self.invocation)).collect(),
        }
    }
}

/// The children of this process that lead no unit, such as adopted orphans, by what identifies their runs.
#[derive(Debug, Default)]
pub struct Orphans<'a> {
    by_pipe: HashMap<u64, Vec<&'a Process>>,
    by_invocation: HashMap<String, Vec<&'a Process>>,
}

impl<'a> Orphans<'a> {
    /// Finds them in `snapshot`. `leaders` are the leaders of all units that were not reaped; `invocation_of` is as in
    /// [`Marks::members`].
    pub fn find(
        snapshot: &'a Snapshot,
        leaders: &HashSet<Pid>,
        mut invocation_of: impl FnMut(&Process) -> Option<String>,
    ) -> Orphans<'a> {
        let mut found = Orphans::default();
        let children = snapshot.children(std::process::id() as Pid);
        // The fork server holds the pipes of a run while it forks its leader.
        let children = children.filter(|process| !is_fork_server(process.pid));
        for orphan in children.filter(|process| !process.dead && !leaders.contains(&process.pid)) {
            for pipe in pipes_of(orphan) {
                found.by_pipe.entry(pipe).or_default().push(orphan);
            }
            if let Some(invocation) = invocation_of(orphan) {
                found.by_invocation.entry(invocation).or_default().push(orphan);
            }
        }
        found
    }
}

/// The live ones among `found` and all their descendants, each once and without `myself`.
pub fn with_descendants<'a>(snapshot: &'a Snapshot, found: Vec<&'a Process>, myself: Pid) -> Vec<&'a Process> {
    let (mut seen, mut members, mut queue) = (HashSet::new(), Vec::new(), found);
    while let Some(process) = queue.pop() {
        if process.pid != myself && seen.insert(process.pid) {
            queue.extend(snapshot.children(process.pid));
            if !process.dead {
                members.push(process);
            }
        }
    }
    members
}

/// Sends SIGKILL to all descendants of this process, as PID 1 to all processes, and reaps them, until none is left or
/// `timeout` is over. The last resort when there is no supervisor any more: it takes the exit status of every child.
pub fn kill_everything(timeout: Duration) {
    let began = Instant::now();
    let myself = std::process::id() as Pid;
    loop {
        signal_all_processes(libc::SIGKILL);
        let snapshot = Snapshot::take();
        let children = snapshot.children(myself).collect();
        signal_all(with_descendants(&snapshot, children, myself), &[libc::SIGKILL]);
        while next_event().is_some() {}
        if !has_children() || began.elapsed() >= timeout {
            return;
        }
        // Nothing else is left to wake this thread.
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use nix::unistd::{getegid, geteuid, setfsgid, setfsuid};

    use super::*;
    use crate::testing::wait_until;

    fn process(pid: Pid, parent: Pid, session: Pid) -> Process {
        Process { pid, parent, group: session, session, dead: false, headless: false, stopped: false, start: 10 }
    }

    fn marks(leader: Pid) -> Marks {
        Marks { leader, forked_by: 10, pipes: Vec::new(), invocation: "ours".to_owned() }
    }

    /// The PIDs of the members among these processes, in order. The environment of a process with an odd PID names this
    /// run.
    fn members(all: &[Process], known: &[Pid], leaders: &[Pid]) -> Vec<Pid> {
        let known = known.iter().map(|pid| (*pid, 10)).collect();
        let snapshot = Snapshot::of(all.to_vec());
        let invocation = |process: &Process| Some(if process.pid % 2 == 1 { "ours" } else { "another's" }.to_owned());
        let orphans = Orphans::find(&snapshot, &leaders.iter().copied().collect(), invocation);
        let members = marks(100).members(&snapshot, &orphans, &known, invocation);
        let mut pids: Vec<Pid> = members.into_iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn a_tree_is_the_session_of_the_leader_and_its_descendants() {
        let all = [
            process(100, 1, 100),
            process(101, 100, 100),
            process(102, 101, 102), // its own session
            process(103, 102, 102),
            process(104, 1, 100), // an orphan of the session
            process(200, 1, 200),
            Process { dead: true, ..process(105, 100, 100) },
        ];
        assert_eq!(members(&all, &[], &[]), [100, 101, 102, 103, 104]);
        // The leader has ended and was not reaped.
        let all = [Process { dead: true, ..process(100, 1, 100) }, process(104, 1, 100)];
        assert_eq!(members(&all, &[], &[]), [104]);
        // A leader that was just forked is still in the session of its parent.
        assert_eq!(members(&[process(100, 1, 1), process(104, 1, 1)], &[], &[]), [100]);
    }

    #[test]
    fn a_session_does_not_count_when_another_process_has_the_pid_of_its_leader() {
        let another = Process { start: 11, ..process(100, 1, 100) };
        assert_eq!(members(&[another, process(101, 100, 100)], &[], &[]), [] as [Pid; 0]);
        // Processes that are known to belong to the run by other means still do, and so do their descendants.
        let all = [another, process(102, 1, 102), process(103, 102, 102), process(104, 1, 104)];
        assert_eq!(members(&all, &[102], &[]), [102, 103]);
        assert_eq!(members(&[Process { start: 11, ..process(102, 1, 102) }], &[102], &[]), [] as [Pid; 0]);
    }

    #[test]
    fn a_session_without_its_leader_counts_only_with_the_invocation_id() {
        assert_eq!(members(&[process(101, 1, 100), process(102, 1, 100)], &[], &[]), [101]);
    }

    #[test]
    fn an_orphan_outside_of_session_and_pipes_is_found_by_its_environment() {
        let myself = std::process::id() as Pid;
        let all = [process(7, myself, 7), process(8, 7, 8), process(10, myself, 10), process(9, myself, 9)];
        // 9 leads another unit, 10 belongs to another run, 8 is a child of 7.
        assert_eq!(members(&all, &[], &[9]), [7, 8]);
    }

    /// A container with Docker's defaults has no CAP_SYS_PTRACE.
    #[test]
    fn an_orphan_of_another_user_is_found_without_the_privilege_to_trace() {
        if !geteuid().is_root() {
            return;
        }
        let look = || {
            crate::capabilities::without_ptrace();
            let mut orphan = Command::new("sleep").arg("60").uid(1).gid(1).stdout(Stdio::piped()).spawn().unwrap();
            let pipe = orphan.stdout.take().unwrap();
            let pid = orphan.id() as Pid;
            let marks = Marks::new(Pid::MAX, "none", [Some(pipe.as_fd()), None]);
            let members = |snapshot: &Snapshot, leaders| -> Vec<Pid> {
                let orphans = Orphans::find(snapshot, &leaders, |_| None);
                let members = marks.members(snapshot, &orphans, &HashSet::new(), |_| None);
                members.into_iter().map(|process| process.pid).collect()
            };
            // A child that another test has just forked has the pipe open too, until it executes its program.
            wait_until("the orphan is found, and nothing if it leads another unit", || {
                let snapshot = Snapshot::take();
                let found = [HashSet::new(), HashSet::from([pid])].map(|leaders| members(&snapshot, leaders));
                found == [vec![pid], vec![]]
            });
            orphan.kill().unwrap();
            orphan.wait().unwrap();
            // The file-system ids of this thread are its own again.
            assert_eq!((setfsuid(geteuid()), setfsgid(getegid())), (geteuid(), getegid()));
        };
        std::thread::spawn(look).join().unwrap();
    }
}
