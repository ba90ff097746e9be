//! Reads `/proc` about the daemon and its processes, from outside its namespace.

use std::fs;
use std::time::Duration;

/// PIDs of the children of all threads of a process, without the fork server of a daemon.
pub fn children(pid: i32) -> Vec<i32> {
    all_children(pid).into_iter().filter(|child| !is_fork_server(*child)).collect()
}

/// The PID of the fork server of a daemon, if it waits for a request. Then its only descriptor is 9, the socket; a child
/// that it has forked and that has not executed its program yet has others.
pub fn fork_server(daemon: i32) -> Option<i32> {
    let waits = |pid: &i32| {
        let mut numbers = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        numbers.next().is_some_and(|first| first.file_name() == "9") && numbers.next().is_none()
    };
    all_children(daemon).into_iter().filter(|child| is_fork_server(*child)).find(waits)
}

/// The PID of a process in its own namespace.
pub fn inner_pid(pid: i32) -> i32 {
    let pids = status(pid, "NSpid").expect("its PIDs");
    pids.split_whitespace().last().expect("a PID").parse().expect("a number")
}

/// The PIDs of a daemon and of its fork server.
pub fn with_fork_server(daemon: i32) -> Vec<i32> {
    std::iter::once(daemon).chain(all_children(daemon).into_iter().filter(|child| is_fork_server(*child))).collect()
}

/// PIDs of the children of all threads of a process, the fork server included.
pub fn all_children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Whether a process is the fork server of a daemon, or a child of it that has not executed its program yet.
fn is_fork_server(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "fork-server")
}

/// PIDs of the children, their children and so on.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(children(parent));
        next += 1;
    }
    found
}

/// The command line with a space after each argument; empty for a zombie.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The value of one field of `/proc/PID/status`.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// The value, in KiB, of a memory field of `/proc/PID/status` such as `VmRSS` or `VmHWM`. The kernel counts approximately,
/// so that even a peak can be a little lower later.
pub fn kilobytes(pid: i32, field: &str) -> u64 {
    let text = status(pid, field).unwrap_or_else(|| panic!("no {field} of {pid}"));
    text.trim_end_matches(" kB").parse().unwrap_or_else(|_| panic!("{field} of {pid} is {text:?}"))
}

/// Whether the process is PID 1 of a nested PID namespace.
pub fn is_pid1(pid: i32) -> bool {
    status(pid, "NSpid").is_some_and(|pids| pids.split_whitespace().count() > 1 && pids.ends_with("\t1"))
}

/// Whether the process is a zombie: it has ended and has not been reaped.
pub fn is_zombie(pid: i32) -> bool {
    status(pid, "State").is_some_and(|state| state.starts_with('Z'))
}

/// Whether the process exists and has not ended.
pub fn is_alive(pid: i32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Number of voluntary context switches of all threads of a process. Each wake-up of a thread adds one when it sleeps
/// again.
pub fn wakeups(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads");
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Open descriptors of a process: number and target.
pub fn descriptors(pid: i32) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the descriptors");
    let mut found: Vec<(String, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// Whether the process group of the process is in the foreground of its terminal.
pub fn is_in_foreground(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // Fields after the name: state, parent, group, session, terminal, foreground group of the terminal.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.get(2) == fields.get(5)
}

/// Sorted names of the threads of a process.
pub fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let mut names: Vec<String> = tasks.flatten().filter_map(name).map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

/// The directories in /proc of the threads with this name.
fn tasks_named(pid: i32, name: &str) -> impl Iterator<Item = fs::DirEntry> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let is_named =
        move |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name);
    tasks.flatten().filter(is_named)
}

/// Kernel functions in which the threads of this name wait.
pub fn waiting_threads(pid: i32, name: &str) -> Vec<String> {
    let channel = |task: fs::DirEntry| fs::read_to_string(task.path().join("wchan")).ok();
    tasks_named(pid, name).filter_map(channel).filter(|channel| !matches!(&**channel, "" | "0")).collect()
}

/// CPU time, user and system, that the process has used.
pub fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("the fields").split_whitespace().collect();
    // Fields utime and stime, in ticks of 10 ms (proc_pid_stat(5)); no supported architecture has others.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// Whether a thread of the process runs or waits for a CPU.
pub fn is_runnable(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.flatten().any(|task| stat(task).rsplit(')').next().is_some_and(|rest| rest.starts_with(" R")))
}

/// Time that the thread with this name has waited for a CPU so far; 0 if the kernel does not count it.
pub fn time_without_cpu(pid: i32, thread: &str) -> Duration {
    let waited = |task: fs::DirEntry| {
        // Nanoseconds on a CPU, nanoseconds of waiting for one, number of time slices.
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks_named(pid, thread).filter_map(waited).sum())
}

/// Whether a thread of the process waits in a kernel function with `word` in its name.
pub fn waits_in(pid: i32, word: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let channel = |task: fs::DirEntry| fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
    tasks.flatten().any(|task| channel(task).contains(word))
}

/// The fields of each line of `/proc/net/tcp`.
fn tcp_sockets() -> Vec<Vec<String>> {
    let table = fs::read_to_string("/proc/net/tcp").expect("read the TCP sockets");
    table.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn loopback(port: u16) -> String {
    format!("0100007F:{port:04X}")
}

/// Whether a process holds a connection to this port of 127.0.0.1. The inode of a socket that no process holds is 0.
pub fn has_connection_to(port: u16) -> bool {
    tcp_sockets().iter().any(|fields| fields[2] == loopback(port) && fields[9] != "0")
}

/// Bytes that have arrived and not been read at the socket with this local port of 127.0.0.1.
pub fn unread_bytes(local_port: u16) -> u64 {
    let sockets = tcp_sockets();
    let socket = sockets.iter().find(|fields| fields[1] == loopback(local_port)).expect("the socket");
    let (_, received) = socket[4].split_once(':').expect("two queue lengths");
    u64::from_str_radix(received, 16).expect("a hexadecimal number")
}
