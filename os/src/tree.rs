//! Signals to process groups and trees. Where no cgroup holds a tree together, it is what /proc shows of it.
//!
//! A process that is found in /proc or in a cgroup can have ended, and its PID can be another's, before a signal is sent:
//! such processes are signalled through a descriptor, after a second look at who they are.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::Pid;
use crate::pidfd::PidFd;
use crate::procfs::{Identity, Process, Snapshot, is_still_there, pipe_of, pipes_of, ticks_now};
use crate::wait::{has_children, next_event};

/// How often we look again for what was forked while the others were signalled.
pub const ROUNDS: usize = 8;

/// The signals that ask a process to end. A stopped process acts on SIGTERM only after SIGCONT.
pub const TERMINATE: [i32; 2] = [libc::SIGTERM, libc::SIGCONT];

/// The signals that tell a process that its terminal has gone. A stopped process acts on SIGHUP only after SIGCONT.
pub const HANG_UP: [i32; 2] = [libc::SIGHUP, libc::SIGCONT];

/// Sends a signal, 1..=64, to the process group of a leader that has not been reaped.
///
/// # Errors
/// What `kill(2)` says.
pub fn signal_group(leader: Pid, signal: i32) -> io::Result<()> {
    match kill(-leader, signal) {
        // Forked and not in its own group yet.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => kill(leader, signal),
        result => result,
    }
}

/// Sends signals to a leader that has not been reaped, and to nobody else.
///
/// # Errors
/// What `kill(2)` says of the first that fails.
pub fn signal_leader(leader: Pid, signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| kill(leader, *signal))
}

/// SIGTERM to the process group of a leader that has not been reaped; SIGCONT, so that what is stopped hears of it.
///
/// # Errors
/// What `kill(2)` says of the SIGTERM.
pub fn terminate_group(leader: Pid) -> io::Result<()> {
    let asked = signal_group(leader, libc::SIGTERM);
    // Gone meanwhile is as good.
    let _ = signal_group(leader, libc::SIGCONT);
    asked
}

fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory involved.
    Errno::result(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Only as PID 1: a signal to all processes in our namespace but ourselves (kill(2)). As any other process it would
/// reach all that we may signal, wherever they come from.
pub fn signal_everybody(signal: i32) {
    if std::process::id() == 1
        && let Err(error) = kill(-1, signal)
        && error.raw_os_error() != Some(libc::ESRCH)
    {
        log::warn!("signal {signal} to everybody: {error}");
    }
}

/// Opens a pidfd, calls `is_it` to confirm that it refers to the intended process, then sends the signals. Says whether
/// that process was there.
pub fn signal_if(pid: Pid, signals: &[i32], is_it: impl FnOnce() -> bool) -> bool {
    match PidFd::open(pid) {
        // From here on the descriptor means one process. If that is not the right one, the PID is not the right one's.
        Ok(process) => is_it() && signals.iter().all(|signal| process.signal(*signal).is_ok()),
        // The kernel is older than 5.3, or no descriptor is left: signal by PID, directly after the check.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            is_it() && signals.iter().all(|signal| kill(pid, *signal).is_ok())
        }
        Err(_) => false,
    }
}

/// Sends signals to each of these processes that is still there.
pub fn signal_all<'a>(processes: impl IntoIterator<Item = &'a Process>, signals: &[i32]) {
    for process in processes {
        signal_if(process.pid, signals, || is_still_there(process.identity()));
    }
}

/// What tells the processes of one run apart where no cgroup holds them together.
#[derive(Clone, Debug)]
pub struct Marks {
    leader: Pid,
    /// The leader was forked at this time or before; see [`Process::start`]. A younger process with its PID is another one.
    forked_by: u64,
    /// The inode numbers of the pipes that its output goes through. They are not given out again while anybody holds
    /// their other ends.
    pipes: Vec<u64>,
    /// The value of `INVOCATION_ID` in the environment of its processes.
    invocation: String,
}

impl Marks {
    /// Those of a leader that has just been forked, with our ends of its output.
    pub fn new(leader: Pid, invocation: &str, outputs: [Option<BorrowedFd<'_>>; 2]) -> Marks {
        let names = outputs.into_iter().flatten().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let names = names.filter_map(|name| fs::read_link(name).ok());
        // A terminal is not among them: others may have it open.
        let pipes = names.filter_map(|name| pipe_of(name.as_os_str().as_encoded_bytes())).collect();
        Marks { leader, forked_by: ticks_now(), pipes, invocation: invocation.to_owned() }
    }

    /// Those of a leader that has not been reaped, as far as its session tells.
    pub fn of_session(leader: Pid) -> Marks {
        Marks { leader, forked_by: ticks_now(), pipes: Vec::new(), invocation: String::new() }
    }

    /// The members of the session of the leader, as long as that has not been reaped.
    pub fn session<'a>(&self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Process> {
        let is_ours = snapshot.get(self.leader).is_some_and(|leader| leader.start <= self.forked_by);
        snapshot.session(self.leader).filter(move |_| is_ours)
    }

    /// The leader's PID, as long as it has not been reaped.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// The live processes of the run: the session and the process group of its leader; the orphans that hold its output or
    /// carry its `INVOCATION_ID`; those that were `known` to be of it before; and all that descends from these. Never this
    /// process itself.
    ///
    /// `invocation_of` gives the `INVOCATION_ID` of a process, where that can be found out.
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

    /// Whether an orphan is of the run.
    pub fn match_orphan(&self, orphan: &Process, invocation_of: impl FnOnce(&Process) -> Option<String>) -> bool {
        orphan.session == self.leader
            || pipes_of(orphan).iter().any(|pipe| self.pipes.contains(pipe))
            || invocation_of(orphan).is_some_and(|id| id == self.invocation)
    }

    fn by_session<'a>(
        &self,
        snapshot: &'a Snapshot,
        invocation_of: &mut impl FnMut(&Process) -> Option<String>,
    ) -> Vec<&'a Process> {
        let all = || snapshot.session(self.leader).chain(snapshot.group(self.leader));
        match snapshot.get(self.leader) {
            // Also before it has made its session.
            Some(leader) if leader.start <= self.forked_by => all().chain([leader]).collect(),
            // The kernel gives out no PID that is still the number of a session or a group: ours is no more.
            Some(_) => Vec::new(),
            // Another can have had the PID and ended, and left a session of that number.
            None => all().filter(|it| invocation_of(it).is_none_or(|id| id == self.invocation)).collect(),
        }
    }
}

/// The children of this process that lead no unit, as orphans become: looked at once, whosever they may be.
#[derive(Debug, Default)]
pub struct Orphans<'a> {
    by_pipe: HashMap<u64, Vec<&'a Process>>,
    by_invocation: HashMap<String, Vec<&'a Process>>,
}

impl<'a> Orphans<'a> {
    /// Looks at them. `leaders` are those of all units that have not been reaped; `invocation_of` as for
    /// [`Marks::members`].
    pub fn find(
        snapshot: &'a Snapshot,
        leaders: &HashSet<Pid>,
        mut invocation_of: impl FnMut(&Process) -> Option<String>,
    ) -> Orphans<'a> {
        let mut found = Orphans::default();
        let children = snapshot.children(std::process::id() as Pid);
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

/// These and all their descendants, as far as they live; each once, and without `myself`.
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

/// The last resort, when there is no supervisor any more: SIGKILL to everything that descends from this process (as
/// PID 1: to everything), and reaps it, for `patience` at most.
pub fn kill_everything(patience: Duration) {
    let deadline = Instant::now() + patience;
    let myself = std::process::id() as Pid;
    loop {
        signal_everybody(libc::SIGKILL);
        let snapshot = Snapshot::take();
        let children = snapshot.children(myself).collect();
        signal_all(with_descendants(&snapshot, children, myself), &[libc::SIGKILL]);
        while next_event().is_some() {}
        if !has_children() || Instant::now() >= deadline {
            return;
        }
        // There is nothing left that could wake us.
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

    fn process(pid: Pid, parent: Pid, session: Pid) -> Process {
        Process { pid, parent, group: session, session, dead: false, headless: false, stopped: false, start: 10 }
    }

    fn marks(leader: Pid) -> Marks {
        Marks { leader, forked_by: 10, pipes: Vec::new(), invocation: "ours".to_owned() }
    }

    /// The members among these processes, in order. The environment of a process names this run where its PID is odd.
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
    fn a_tree_is_the_session_and_what_descends_from_it() {
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
        // A leader that has ended and has not been reaped.
        let all = [Process { dead: true, ..process(100, 1, 100) }, process(104, 1, 100)];
        assert_eq!(members(&all, &[], &[]), [104]);
        // One that has just been forked is still in the session of its parent.
        assert_eq!(members(&[process(100, 1, 1), process(104, 1, 1)], &[], &[]), [100]);
    }

    #[test]
    fn a_leader_whose_pid_is_anothers_has_no_session() {
        let another = Process { start: 11, ..process(100, 1, 100) };
        assert_eq!(members(&[another, process(101, 100, 100)], &[], &[]), [] as [Pid; 0]);
        // What is known to be of it by other means is so all the same, with what descends from that.
        let all = [another, process(102, 1, 102), process(103, 102, 102), process(104, 1, 104)];
        assert_eq!(members(&all, &[102], &[]), [102, 103]);
        assert_eq!(members(&[Process { start: 11, ..process(102, 1, 102) }], &[102], &[]), [] as [Pid; 0]);
    }

    #[test]
    fn a_session_without_its_leader_may_be_anothers() {
        assert_eq!(members(&[process(101, 1, 100), process(102, 1, 100)], &[], &[]), [101]);
    }

    #[test]
    fn an_orphan_that_left_everything_is_found_by_its_environment() {
        let myself = std::process::id() as Pid;
        let all = [process(7, myself, 7), process(8, 7, 8), process(10, myself, 10), process(9, myself, 9)];
        // 9 leads another unit, 10 is of another run, 8 descends from 7.
        assert_eq!(members(&all, &[], &[9]), [7, 8]);
    }

    /// As in a container with Docker's defaults.
    #[test]
    fn an_orphan_of_another_user_is_found_without_the_privilege_to_trace() {
        if !geteuid().is_root() {
            return;
        }
        let look = || {
            crate::fsuser::without_ptrace();
            let mut orphan = Command::new("sleep").arg("60").uid(1).gid(1).stdout(Stdio::piped()).spawn().unwrap();
            let pipe = orphan.stdout.take().unwrap();
            let pid = orphan.id() as Pid;
            let marks = Marks::new(Pid::MAX, "none", [Some(pipe.as_fd()), None]);
            let snapshot = Snapshot::take();
            let members = |leaders| -> Vec<Pid> {
                let orphans = Orphans::find(&snapshot, &leaders, |_| None);
                let members = marks.members(&snapshot, &orphans, &HashSet::new(), |_| None);
                members.into_iter().map(|process| process.pid).collect()
            };
            let found = [members(HashSet::new()), members(HashSet::from([pid]))];
            orphan.kill().unwrap();
            orphan.wait().unwrap();
            assert_eq!(found, [vec![pid], vec![]]);
            // This thread is itself again.
            assert_eq!((setfsuid(geteuid()), setfsgid(getegid())), (geteuid(), getegid()));
        };
        std::thread::spawn(look).join().unwrap();
    }
}
