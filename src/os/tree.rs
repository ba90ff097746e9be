//! Signals to process groups and trees. Where there is no cgroup, the tree is what /proc shows of it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

use super::wait::{has_children, reap};
use crate::model::Pid;

/// How often /proc is read again for what was forked meanwhile.
const ROUNDS: usize = 8;

/// What asks a process to end: whoever is stopped would not hear the first without the second.
const ASKING: [i32; 2] = [libc::SIGTERM, libc::SIGCONT];

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

/// SIGTERM to the process group of a leader that has not been reaped; SIGCONT, so that what is stopped hears of it.
///
/// # Errors
/// What `kill(2)` says of the SIGTERM.
pub fn ask_group(leader: Pid) -> io::Result<()> {
    let asked = signal_group(leader, libc::SIGTERM);
    // Gone meanwhile is as good.
    let _ = signal_group(leader, libc::SIGCONT);
    asked
}

/// SIGHUP to everything of the session of a leader that has not been reaped, whichever job it belongs to; SIGCONT, so
/// that what is stopped hears of it.
pub fn hang_up(leader: Pid) {
    let members = processes().into_iter().filter(|process| process.session == leader && !process.zombie);
    // The leader by its PID in any case: /proc may not be there, or its session not made yet.
    for pid in members.map(|process| process.pid).filter(|pid| *pid != leader).chain([leader]) {
        // Gone meanwhile is as good.
        let _ = kill(pid, libc::SIGHUP);
        let _ = kill(pid, libc::SIGCONT);
    }
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

/// Only as PID 1: SIGTERM and SIGCONT to everybody else's processes: all but ourselves and those whose process group or
/// session these leaders lead.
pub fn ask_the_rest(leaders: &HashSet<Pid>) {
    if std::process::id() != 1 {
        return;
    }
    let all = processes();
    if all.is_empty() {
        // Without /proc there is no telling them apart.
        return ASKING.into_iter().for_each(signal_everybody);
    }
    ask_all(&rest(&all, leaders));
}

fn rest(all: &[Process], leaders: &HashSet<Pid>) -> Vec<Pid> {
    let spared = |process: &&Process| leaders.contains(&process.group) || leaders.contains(&process.session);
    let live = all.iter().filter(|process| !process.zombie && process.pid != 1);
    live.filter(|process| !spared(process)).map(|process| process.pid).collect()
}

/// What a leader has started, without a cgroup to hold it together: its session, what descends from that, and those that
/// have left it and lost their parents, as far as they hold the leader's output.
///
/// `leaders`, here and below, are those of all units that have not been reaped.
#[derive(Debug)]
pub struct Session {
    leader: Pid,
    /// The pipes that its output goes through, as /proc names them. Their numbers are not given out again while
    /// anybody holds their other ends.
    pipes: Vec<PathBuf>,
    /// Who was sent a SIGKILL, and may need a moment to die.
    doomed: HashSet<Pid>,
}

impl Session {
    /// The session of a leader, with our ends of its output.
    pub fn new(leader: Pid, outputs: [Option<BorrowedFd<'_>>; 2]) -> Session {
        let names = outputs.into_iter().flatten().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let names = names.filter_map(|name| fs::read_link(name).ok());
        // A terminal is none: others may have it open.
        let pipes = names.filter(|name| name.as_os_str().as_encoded_bytes().starts_with(b"pipe:")).collect();
        Session { leader, pipes, doomed: HashSet::new() }
    }

    /// Its leader's PID, while that is its own.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// SIGKILL to all of it. `unreaped`: the leader's PID is still its own. If it is not and a process with that PID
    /// exists, the session has ended long ago: the kernel gives out no PID that is still the id of a session.
    pub fn kill(&mut self, unreaped: bool, leaders: &HashSet<Pid>) {
        // Stopped first, all of them: what dies while others still fork leaves orphans that nothing leads back to.
        let mut stopped = HashSet::new();
        for _ in 0..ROUNDS {
            let members = self.members(&processes(), unreaped, leaders);
            let fresh: Vec<Pid> = members.into_iter().filter(|pid| stopped.insert(*pid)).collect();
            if fresh.is_empty() {
                break;
            }
            signal_all(&fresh, libc::SIGSTOP);
        }
        let doomed: Vec<Pid> = stopped.into_iter().collect();
        signal_all(&doomed, libc::SIGKILL);
        self.doomed.extend(doomed);
    }

    /// Asks all of it to end, as it is now.
    pub fn ask(&self, leaders: &HashSet<Pid>) {
        ask_all(&self.members(&processes(), false, leaders));
    }

    /// Whether nothing of it lives any more.
    pub fn is_gone(&self, leaders: &HashSet<Pid>) -> bool {
        let all = processes();
        let dying = |process: &Process| !process.zombie && self.doomed.contains(&process.pid);
        self.members(&all, false, leaders).is_empty() && !all.iter().any(dying)
    }

    fn members(&self, all: &[Process], unreaped: bool, leaders: &HashSet<Pid>) -> Vec<Pid> {
        session_tree(all, self.leader, unreaped, orphans(all, &self.pipes, leaders))
    }
}

/// The last resort, when there is no supervisor any more: SIGKILL to everything that descends from this process (as
/// PID 1: to everything), and reaps it, for `patience` at most.
pub fn kill_everything(patience: Duration) {
    let deadline = Instant::now() + patience;
    let myself = std::process::id() as Pid;
    loop {
        signal_everybody(libc::SIGKILL);
        signal_all(&session_tree(&processes(), myself, true, Vec::new()), libc::SIGKILL);
        while reap().is_some() {}
        if !has_children() || Instant::now() >= deadline {
            return;
        }
        // There is nothing left that could wake us.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks each to end.
pub fn ask_all(pids: &[Pid]) {
    for signal in ASKING {
        signal_all(pids, signal);
    }
}

/// Sends a signal to each; gone meanwhile is as good.
fn signal_all(pids: &[Pid], signal: i32) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}

/// What `/proc/<pid>/stat` says of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Pid,
    group: Pid,
    session: Pid,
    zombie: bool,
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Pid>().ok());
    pids.filter_map(|pid| parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)).collect()
}

fn parse_stat(stat: &[u8]) -> Option<Process> {
    // The name may hold anything, parentheses included: what counts is after the last one (proc_pid_stat(5)).
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
    let mut fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok();
    Some(Process { pid, zombie, parent: number()?, group: number()?, session: number()? })
}

/// The children of ours that lead no unit and have one of these pipes as their stdout or stderr. They keep their PIDs
/// until this thread reaps them.
fn orphans(all: &[Process], pipes: &[PathBuf], leaders: &HashSet<Pid>) -> Vec<Pid> {
    let myself = std::process::id() as Pid;
    let ours = all.iter().filter(|process| process.parent == myself && !process.zombie && !pipes.is_empty());
    let orphans = ours.map(|process| process.pid).filter(|pid| !leaders.contains(pid));
    orphans.filter(|pid| holds(*pid, pipes)).collect()
}

fn holds(pid: Pid, pipes: &[PathBuf]) -> bool {
    let Ok(owner) = fs::metadata(format!("/proc/{pid}")) else { return false };
    // A container's root mostly may not look into others' processes; their own users may. For this thread only.
    setfsgid(Gid::from_raw(owner.gid()));
    setfsuid(Uid::from_raw(owner.uid()));
    // The name of what is open asks no disk, as its metadata would.
    let name = |fd: u8| fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    let holds = [1, 2].into_iter().any(|fd| name(fd).is_ok_and(|name| pipes.contains(&name)));
    setfsuid(geteuid());
    setfsgid(getegid());
    holds
}

/// The members of the session, these orphans and all their descendants, zombies aside. Never this process itself.
fn session_tree(all: &[Process], leader: Pid, unreaped: bool, orphans: Vec<Pid>) -> Vec<Pid> {
    let myself = std::process::id() as Pid;
    let mut members: HashSet<Pid> = orphans.into_iter().collect();
    if unreaped || !all.iter().any(|process| process.pid == leader) {
        let ours = |process: &&Process| [process.session, process.group, process.pid].contains(&leader);
        members.extend(all.iter().filter(ours).map(|process| process.pid));
    }
    loop {
        let before = members.len();
        for process in all {
            if members.contains(&process.parent) {
                members.insert(process.pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    let live = all.iter().filter(|process| !process.zombie && process.pid != myself);
    live.map(|process| process.pid).filter(|pid| members.contains(pid)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn process(pid: Pid, parent: Pid, session: Pid) -> Process {
        Process { pid, parent, group: session, session, zombie: false }
    }

    #[test]
    fn a_stat_line_may_hold_any_name() {
        let stat = b"305 (a) b (c)) S 1 305 305 0 -1 4194560";
        assert_eq!(parse_stat(stat), Some(process(305, 1, 305)));
        assert_eq!(parse_stat(b"305 (\xff\xfe) Z 1 305 305 0").map(|process| process.zombie), Some(true));
        for broken in [&b""[..], b"305", b"x (a) S 1 2 3", b"305 (a) S 1", b")"] {
            assert_eq!(parse_stat(broken), None);
        }
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
            Process { zombie: true, ..process(105, 100, 100) },
        ];
        let mut tree = session_tree(&all, 100, true, Vec::new());
        tree.sort_unstable();
        assert_eq!(tree, [100, 101, 102, 103, 104]);
    }

    /// As in a container with Docker's defaults.
    #[test]
    fn an_orphan_of_another_user_is_found_without_the_privilege_to_trace() {
        if !geteuid().is_root() {
            return;
        }
        let look = || {
            crate::os::fsuser::without_ptrace();
            let mut orphan = Command::new("sleep").arg("60").uid(1).gid(1).stdout(Stdio::piped()).spawn().unwrap();
            let pipe = orphan.stdout.take().unwrap();
            let pid = orphan.id() as Pid;
            let session = Session::new(Pid::MAX, [Some(pipe.as_fd()), None]);
            let members = |leaders| session.members(&processes(), false, &leaders);
            let found = [members(HashSet::new()), members(HashSet::from([pid]))];
            orphan.kill().unwrap();
            orphan.wait().unwrap();
            assert_eq!(found, [vec![pid], vec![]]);
            // This thread is itself again.
            assert_eq!((setfsuid(geteuid()), setfsgid(getegid())), (geteuid(), getegid()));
        };
        std::thread::spawn(look).join().unwrap();
    }

    #[test]
    fn the_rest_are_those_that_nobody_leads() {
        let all = [
            process(1, 0, 0),
            process(100, 1, 100),
            Process { group: 101, ..process(101, 100, 100) }, // a job of the session
            process(102, 100, 102),                           // left the session
            process(200, 1, 200),
            Process { zombie: true, ..process(300, 1, 300) },
        ];
        assert_eq!(rest(&all, &HashSet::from([100])), [102, 200]);
    }

    #[test]
    fn a_recycled_leader_has_no_tree() {
        let all = [process(100, 1, 100), process(101, 100, 100)];
        assert_eq!(session_tree(&all, 100, false, Vec::new()), [] as [Pid; 0]);
        assert_eq!(session_tree(&all[1..], 100, false, Vec::new()), [101]);
        // What is known to be of it by other means is so all the same, with what descends from that.
        let all = [process(100, 1, 100), process(102, 1, 102), process(103, 102, 103), process(104, 1, 104)];
        assert_eq!(session_tree(&all, 100, false, vec![102]), [102, 103]);
    }
}
