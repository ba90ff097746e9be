//! The processes of this PID namespace, as /proc shows them (proc_pid_stat(5)).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

use crate::Pid;
use crate::kernel_file;

/// One process, at the time when its entry in /proc was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The PID.
    pub pid: Pid,
    /// The PID of the parent.
    pub parent: Pid,
    /// The process group.
    pub group: Pid,
    /// The session.
    pub session: Pid,
    /// Whether all of its threads have ended. While only the main thread has, the kernel shows the process as a zombie
    /// too.
    pub dead: bool,
    /// Whether its main thread has ended.
    pub headless: bool,
    /// Whether a signal has stopped it.
    pub stopped: bool,
    /// The time of its fork, in clock ticks since the boot.
    pub start: u64,
}

/// Identifies a process, also against one that gets the same PID later: its PID and [`Process::start`].
pub type Identity = (Pid, u64);

impl Process {
    /// Its [`Identity`].
    pub fn identity(&self) -> Identity {
        (self.pid, self.start)
    }
}

/// Whether the process of this identity exists and is not dead.
pub fn is_alive((pid, start): Identity) -> bool {
    look_at(pid).is_some_and(|now| now.start == start && !now.dead)
}

/// Whether /proc is mounted and shows this PID namespace. In the /proc of another namespace, PIDs refer to other
/// processes.
pub fn shows_this_namespace() -> bool {
    let myself = fs::read_link("/proc/self").ok().and_then(|name| name.to_str()?.parse::<u32>().ok());
    myself == Some(std::process::id())
}

/// The path of a process's cgroup v2; empty if there is no such process.
///
/// # Errors
/// When /proc does not show this PID namespace.
pub fn cgroup_of(pid: Pid) -> io::Result<String> {
    match kernel_file::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(cgroups) if shows_this_namespace() => {
            Ok(cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned())
        }
        Err(_) if shows_this_namespace() => Ok(String::new()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Reads all processes of this PID namespace; none if /proc does not show it.
pub fn processes() -> Vec<Process> {
    if !shows_this_namespace() {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Pid>().ok());
    pids.filter_map(look_at).collect()
}

/// The PIDs of the main thread's children: the orphans that this process has adopted, and processes that its main
/// thread has started. Quicker than to read all processes. Empty if the kernel has no CONFIG_PROC_CHILDREN.
pub fn adopted() -> Vec<Pid> {
    let myself = std::process::id();
    // Orphans become children of the main thread.
    children_of_thread(myself as Pid, myself as Pid).unwrap_or_default()
}

/// The PIDs of the children of one thread of a process. None if there is no such thread, or if the kernel has no
/// CONFIG_PROC_CHILDREN. The kernel can skip a child if another one is reaped meanwhile.
pub(crate) fn children_of_thread(pid: Pid, thread: Pid) -> Option<Vec<Pid>> {
    let children = kernel_file::read_to_string(format!("/proc/{pid}/task/{thread}/children")).ok()?;
    Some(children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// Reads the process that has this PID now.
pub fn look_at(pid: Pid) -> Option<Process> {
    parse_stat(&kernel_file::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether the main thread of a process is in state R or D (proc_pid_stat(5)): it runs, or waits for a CPU or,
/// uninterruptibly, for the kernel.
pub(crate) fn is_working(pid: Pid) -> bool {
    let stat = kernel_file::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat_fields(&stat).and_then(|mut fields| fields.next());
    matches!(state, Some("R" | "D")) && shows_this_namespace()
}

/// The name of a process (proc_pid_comm(5)): at most 15 bytes, of which those that are not UTF-8 are replaced. Reading it
/// never blocks, unlike reading the command line, which is memory of the process.
pub fn name_of(pid: Pid) -> Option<String> {
    let name = kernel_file::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned())
}

fn parse_stat(stat: &[u8]) -> Option<Process> {
    let pid = std::str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
    let mut fields = stat_fields(stat)?;
    let state = fields.next()?;
    let (ended, stopped) = (matches!(state, "Z" | "X"), state == "T");
    let mut id = || fields.next()?.parse().ok();
    let (parent, group, session) = (id()?, id()?, id()?);
    // By the manual's numbers, the session is field 6, the number of threads 20, the start 22.
    let threads: u64 = fields.nth(13)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Process { pid, parent, group, session, dead: ended && threads <= 1, headless: ended, stopped, start })
}

/// The fields of `/proc/<pid>/stat` after the name of the process, beginning with the one that the manual numbers 3.
/// The name can contain any characters: it ends at the last closing parenthesis.
pub(crate) fn stat_fields(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace())
}

/// The present time in the unit of [`Process::start`], rounded up.
pub fn ticks_now() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let (Ok(now), Ok(ticks)) = (now, u64::try_from(ticks)) else { return u64::MAX };
    let (seconds, nanos) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    seconds.saturating_mul(ticks).saturating_add(nanos.saturating_mul(ticks) / 1_000_000_000 + 1)
}

/// The directory in /proc that shows the descriptors and the memory of a process: the directory of its main thread, or
/// of another thread if the main thread has ended.
pub(crate) fn dir_of(process: &Process) -> PathBuf {
    let dir = PathBuf::from(format!("/proc/{}", process.pid));
    if !process.headless {
        return dir;
    }
    let main = process.pid.to_string();
    let threads = fs::read_dir(dir.join("task")).into_iter().flatten().flatten();
    let other = threads.map(|thread| thread.file_name()).find(|tid| tid.to_str() != Some(&main));
    other.map_or(dir.clone(), |tid| dir.join("task").join(tid))
}

/// The inode numbers of those of the process's stdout and stderr that are pipes.
pub fn pipes_of(process: &Process) -> Vec<u64> {
    as_its_user(process.pid, || {
        let dir = dir_of(process).join("fd");
        // Reading the name of an open file does not access its disk; reading its metadata would.
        let names = [1, 2].into_iter().filter_map(|fd| fs::read_link(dir.join(fd.to_string())).ok());
        names.filter_map(|name| pipe_of(name.as_os_str().as_encoded_bytes())).collect()
    })
}

/// The inode number in the name that /proc gives to an anonymous pipe, such as `pipe:[4711]`.
pub fn pipe_of(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"pipe:[")?.strip_suffix(b"]")?).ok()?.parse().ok()
}

/// The value of a variable in the environment that a process was started with. Reads the memory of the process, which
/// can block: a hostile process can make it block for ever.
///
/// # Errors
/// What the kernel says: EACCES if this process may not read the other's memory.
pub fn variable(process: &Process, name: &str) -> io::Result<Option<String>> {
    as_its_user(process.pid, || find_variable(File::open(dir_of(process).join("environ"))?, name))
}

/// How much of an environment is searched, in bytes. The kernel accepts up to 6 MiB (execve(2)).
const MAX_ENVIRON: u64 = 8 << 20;

fn find_variable(environ: impl Read, name: &str) -> io::Result<Option<String>> {
    let prefix = format!("{name}=").into_bytes();
    let variables = io::BufRead::split(io::BufReader::new(environ.take(MAX_ENVIRON)), 0);
    for variable in variables {
        if let Some(value) = variable?.strip_prefix(&prefix[..]) {
            return Ok(Some(String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(None)
}

/// Calls `look` with the file-system ids of the user of a process, on the calling thread only. In a container, root
/// often may not read the entries of other users' processes in /proc, while these users may.
pub(crate) fn as_its_user<T>(pid: Pid, look: impl FnOnce() -> T) -> T {
    /// Restores the file-system ids of the calling thread, also when `look` panics.
    struct Restore;

    impl Drop for Restore {
        fn drop(&mut self) {
            setfsuid(geteuid());
            setfsgid(getegid());
        }
    }

    let _restore = Restore;
    if let Ok(owner) = fs::metadata(format!("/proc/{pid}")) {
        setfsgid(Gid::from_raw(owner.gid()));
        setfsuid(Uid::from_raw(owner.uid()));
    }
    look()
}

/// All processes at one time, indexed by PID, parent, session and process group.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The processes.
    pub all: Vec<Process>,
    by_pid: HashMap<Pid, usize>,
    by_parent: HashMap<Pid, Vec<usize>>,
    by_session: HashMap<Pid, Vec<usize>>,
    by_group: HashMap<Pid, Vec<usize>>,
}

impl Snapshot {
    /// Reads all processes from /proc.
    pub fn take() -> Snapshot {
        Snapshot::of(processes())
    }

    /// A snapshot of these processes.
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

    fn at<'a>(&'a self, indices: Option<&'a Vec<usize>>) -> impl Iterator<Item = &'a Process> {
        indices.into_iter().flatten().filter_map(|at| self.all.get(*at))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::wait_until;

    #[test]
    fn a_stat_line_is_parsed_whatever_name_it_has() {
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
    fn a_process_works_unless_it_sleeps_is_stopped_or_has_ended() {
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let mut asleep = Command::new("sleep").arg("60").spawn().unwrap();
        let (busy_pid, asleep_pid) = (busy.id() as Pid, asleep.id() as Pid);
        wait_until("one works and one sleeps", || is_working(busy_pid) && !is_working(asleep_pid));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(busy_pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        wait_until("it is stopped", || !is_working(busy_pid));
        for child in [&mut busy, &mut asleep] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!is_working(busy_pid));
    }

    #[test]
    fn a_process_whose_main_thread_has_ended_is_not_dead() {
        let stat = "305 (a) Z 1 305 305 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 4711 8 9";
        let process = parse_stat(stat.as_bytes()).unwrap();
        assert!(process.headless && !process.dead);
    }

    #[test]
    fn a_snapshot_has_this_process_with_a_start_in_the_past() {
        let snapshot = Snapshot::take();
        let myself = snapshot.get(std::process::id() as Pid).unwrap();
        assert!(myself.start <= ticks_now() && ticks_now() < myself.start + 100 * 3_600, "{myself:?}");
        assert!(is_alive(myself.identity()));
        assert!(!is_alive((myself.pid, myself.start + 1)));
        assert!(snapshot.session(myself.session).any(|process| process == myself));
    }

    #[test]
    fn variables_are_found_by_their_full_name() {
        let environ = b"XID=1\0ID=2\0ID=3\0\0EMPTY=\0LAST=\xff";
        let find = |name| find_variable(&environ[..], name).unwrap();
        assert_eq!(find("ID").as_deref(), Some("2"));
        assert_eq!(find("EMPTY").as_deref(), Some(""));
        assert_eq!(find("LAST").as_deref(), Some("\u{fffd}"));
        assert_eq!(find("D"), None);
        assert_eq!(find_variable(&b""[..], "ID").unwrap(), None);
    }

    #[test]
    fn only_anonymous_pipes_have_an_inode_number_in_their_name() {
        assert_eq!(pipe_of(b"pipe:[4711]"), Some(4711));
        for other in [&b"socket:[4711]"[..], b"/dev/pts/0", b"pipe:[]", b"pipe:[1", b""] {
            assert_eq!(pipe_of(other), None);
        }
    }
}
