//! What /proc tells of all processes (proc_pid_stat(5)).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

use crate::Pid;

/// One process as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its PID.
    pub pid: Pid,
    /// The PID of its parent.
    pub parent: Pid,
    /// Its process group.
    pub group: Pid,
    /// Its session.
    pub session: Pid,
    /// Whether all of its threads have ended. A process whose main thread has ended is shown as a zombie while other
    /// threads of it run.
    pub dead: bool,
    /// Whether its main thread has ended.
    pub headless: bool,
    /// Whether a signal has stopped it.
    pub stopped: bool,
    /// When it was forked, in clock ticks since the boot.
    pub start: u64,
}

/// Tells a process from any other, also from one that gets the same PID later: its PID and its start.
pub type Identity = (Pid, u64);

impl Process {
    /// See [`Identity`].
    pub fn identity(&self) -> Identity {
        (self.pid, self.start)
    }
}

/// Whether the process that has this PID now is the one that was started then, and lives.
pub fn is_still_there((pid, start): Identity) -> bool {
    look_at(pid).is_some_and(|now| now.start == start && !now.dead)
}

/// Whether /proc is there and shows this PID namespace: in that of another the numbers mean other processes.
fn is_ours() -> bool {
    let myself = fs::read_link("/proc/self").ok().and_then(|name| name.to_str()?.parse::<u32>().ok());
    myself == Some(std::process::id())
}

/// The cgroup v2 of a process; empty where there is no such process.
///
/// # Errors
/// Where there is no /proc of ours.
pub fn cgroup_of(pid: Pid) -> io::Result<String> {
    match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(cgroups) if is_ours() => {
            Ok(cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned())
        }
        Err(_) if is_ours() => Ok(String::new()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// All processes of this PID namespace; none without a /proc of ours.
pub fn processes() -> Vec<Process> {
    if !is_ours() {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Pid>().ok());
    pids.filter_map(look_at).collect()
}

/// The orphans that have become children of this process, and what its main thread has started itself: quicker than a
/// look at all processes. None where the kernel does not show them (CONFIG_PROC_CHILDREN).
pub fn adopted() -> Vec<Pid> {
    let myself = std::process::id();
    // Orphans become children of the main thread.
    let children = fs::read_to_string(format!("/proc/self/task/{myself}/children")).unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process that has this PID now.
pub fn look_at(pid: Pid) -> Option<Process> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &[u8]) -> Option<Process> {
    let pid = std::str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
    let mut fields = stat_fields(stat)?;
    let state = fields.next()?;
    let (ended, stopped) = (matches!(state, "Z" | "X"), state == "T");
    let mut id = || fields.next()?.parse().ok();
    let (parent, group, session) = (id()?, id()?, id()?);
    // The fields are counted from 1; the session is the 6th, the number of threads the 20th, the start the 22nd.
    let threads: u64 = fields.nth(13)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Process { pid, parent, group, session, dead: ended && threads <= 1, headless: ended, stopped, start })
}

/// The fields of `/proc/<pid>/stat` after the name, the third of the manual first. The name may hold anything,
/// parentheses included: what counts is after the last one.
pub(super) fn stat_fields(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace())
}

/// The time now as [`Process::start`] counts it, rounded up.
pub fn ticks_now() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let (Ok(now), Ok(ticks)) = (now, u64::try_from(ticks)) else { return u64::MAX };
    let (seconds, nanos) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    seconds.saturating_mul(ticks).saturating_add(nanos.saturating_mul(ticks) / 1_000_000_000 + 1)
}

/// Where /proc shows the descriptors and the memory of a process: those of its main thread, or of another where that has
/// ended, and has given them up.
fn dir_of(process: &Process) -> PathBuf {
    let dir = PathBuf::from(format!("/proc/{}", process.pid));
    if !process.headless {
        return dir;
    }
    let main = process.pid.to_string();
    let threads = fs::read_dir(dir.join("task")).into_iter().flatten().flatten();
    let other = threads.map(|thread| thread.file_name()).find(|tid| tid.to_str() != Some(&main));
    other.map_or(dir.clone(), |tid| dir.join("task").join(tid))
}

/// The inode numbers of the pipes that stdout and stderr of the process are, as far as they are pipes.
pub fn pipes_of(process: &Process) -> Vec<u64> {
    as_its_user(process.pid, || {
        let dir = dir_of(process).join("fd");
        // The name of what is open asks no disk, as its metadata would.
        let names = [1, 2].into_iter().filter_map(|fd| fs::read_link(dir.join(fd.to_string())).ok());
        names.filter_map(|name| pipe_of(name.as_os_str().as_encoded_bytes())).collect()
    })
}

/// The inode number in the name of a pipe, as /proc shows it: `pipe:[4711]`.
pub fn pipe_of(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"pipe:[")?.strip_suffix(b"]")?).ok()?.parse().ok()
}

/// The value of a variable in the environment that a process was started with. It reads the memory of the process, and
/// waits for whatever that waits for: a hostile process can let it wait for ever.
///
/// # Errors
/// What the kernel says; EACCES where the process may not be looked into.
pub fn variable(process: &Process, name: &str) -> io::Result<Option<String>> {
    as_its_user(process.pid, || find_variable(File::open(dir_of(process).join("environ"))?, name))
}

/// The longest environment that is looked through, in bytes: the kernel takes 6 MiB (execve(2)).
const LONGEST: u64 = 8 << 20;

fn find_variable(environ: impl Read, name: &str) -> io::Result<Option<String>> {
    let prefix = format!("{name}=").into_bytes();
    let variables = io::BufRead::split(io::BufReader::new(environ.take(LONGEST)), 0);
    for variable in variables {
        if let Some(value) = variable?.strip_prefix(&prefix[..]) {
            return Ok(Some(String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(None)
}

/// Does something with the file-system identity of a process's user, on this thread only: in a container, root mostly
/// may not look into the processes of others, but their own users may.
fn as_its_user<T>(pid: Pid, look: impl FnOnce() -> T) -> T {
    if let Ok(owner) = fs::metadata(format!("/proc/{pid}")) {
        setfsgid(Gid::from_raw(owner.gid()));
        setfsuid(Uid::from_raw(owner.uid()));
    }
    let result = look();
    setfsuid(geteuid());
    setfsgid(getegid());
    result
}

/// All processes, to be found by who has started them and by their sessions and groups.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// All of them.
    pub all: Vec<Process>,
    by_pid: HashMap<Pid, usize>,
    by_parent: HashMap<Pid, Vec<usize>>,
    by_session: HashMap<Pid, Vec<usize>>,
    by_group: HashMap<Pid, Vec<usize>>,
}

impl Snapshot {
    /// Looks at all processes.
    pub fn take() -> Snapshot {
        Snapshot::of(processes())
    }

    /// These processes.
    pub fn of(all: Vec<Process>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (at, process) in all.iter().enumerate() {
            snapshot.by_pid.insert(process.pid, at);
            snapshot.by_parent.entry(process.parent).or_default().push(at);
            snapshot.by_session.entry(process.session).or_default().push(at);
            snapshot.by_group.entry(process.group).or_default().push(at);
        }
        Snapshot { all, ..snapshot }
    }

    /// The process that has this PID.
    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.all.get(*self.by_pid.get(&pid)?)
    }

    /// The children of a process.
    pub fn children(&self, parent: Pid) -> impl Iterator<Item = &Process> {
        self.at(self.by_parent.get(&parent))
    }

    /// The members of a session.
    pub fn session(&self, session: Pid) -> impl Iterator<Item = &Process> {
        self.at(self.by_session.get(&session))
    }

    /// The members of a process group.
    pub fn group(&self, group: Pid) -> impl Iterator<Item = &Process> {
        self.at(self.by_group.get(&group))
    }

    fn at<'a>(&'a self, places: Option<&'a Vec<usize>>) -> impl Iterator<Item = &'a Process> {
        places.into_iter().flatten().filter_map(|at| self.all.get(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_may_hold_any_name() {
        let rest = "1 305 305 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 8 9";
        let right = Process {
            pid: 305,
            parent: 1,
            group: 305,
            session: 305,
            dead: false,
            headless: false,
            stopped: false,
            start: 4711,
        };
        assert_eq!(parse_stat(format!("305 (a) b (c)) S {rest}").as_bytes()), Some(right));
        let name = [b"305 (\xff\xfe) Z ", rest.as_bytes()].concat();
        assert_eq!(parse_stat(&name), Some(Process { dead: true, headless: true, ..right }));
        let stopped = format!("305 (a) T {rest}");
        assert_eq!(parse_stat(stopped.as_bytes()), Some(Process { stopped: true, ..right }));
        for broken in [&b""[..], b"305", b"x (a) S 1 2 3", b"305 (a) S 1", b")", b"305 (a) S 1 305 305 0 -1"] {
            assert_eq!(parse_stat(broken), None);
        }
    }

    #[test]
    fn a_process_whose_main_thread_has_ended_is_not_dead() {
        let stat = "305 (a) Z 1 305 305 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 4711 8 9";
        let process = parse_stat(stat.as_bytes()).unwrap();
        assert!(process.headless && !process.dead);
    }

    #[test]
    fn this_process_is_found_and_was_started_before_now() {
        let snapshot = Snapshot::take();
        let myself = snapshot.get(std::process::id() as Pid).unwrap();
        assert!(myself.start <= ticks_now() && ticks_now() < myself.start + 100 * 3_600, "{myself:?}");
        assert!(is_still_there(myself.identity()));
        assert!(!is_still_there((myself.pid, myself.start + 1)));
        assert!(snapshot.session(myself.session).any(|process| process == myself));
    }

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let environ = b"XID=1\0ID=2\0ID=3\0\0EMPTY=\0LAST=\xff";
        let find = |name| find_variable(&environ[..], name).unwrap();
        assert_eq!(find("ID").as_deref(), Some("2"));
        assert_eq!(find("EMPTY").as_deref(), Some(""));
        assert_eq!(find("LAST").as_deref(), Some("\u{fffd}"));
        assert_eq!(find("D"), None);
        assert_eq!(find_variable(&b""[..], "ID").unwrap(), None);
    }

    #[test]
    fn the_names_of_pipes() {
        assert_eq!(pipe_of(b"pipe:[4711]"), Some(4711));
        for other in [&b"socket:[4711]"[..], b"/dev/pts/0", b"pipe:[]", b"pipe:[1", b""] {
            assert_eq!(pipe_of(other), None);
        }
    }
}
