//! What `/proc` says about the daemon and its processes, seen from outside its namespace.

use std::fs;
use std::time::Duration;

/// The children of all threads of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Children, their children and so on.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(children(parent));
        next += 1;
    }
    found
}

/// The command line with blanks between the words; empty for a zombie.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// One line of `/proc/PID/status`, without its name.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// A number of kilobytes in `/proc/PID/status`, such as `VmRSS` or `VmHWM`.
pub fn kilobytes(pid: i32, field: &str) -> u64 {
    let text = status(pid, field).unwrap_or_else(|| panic!("no {field} of {pid}"));
    text.trim_end_matches(" kB").parse().unwrap_or_else(|_| panic!("{field} of {pid} is {text:?}"))
}

/// Whether it is PID 1 of a namespace of its own.
pub fn is_pid1(pid: i32) -> bool {
    status(pid, "NSpid").is_some_and(|pids| pids.split_whitespace().count() > 1 && pids.ends_with("\t1"))
}

/// Whether it has ended and nobody has asked for its exit yet.
pub fn is_zombie(pid: i32) -> bool {
    status(pid, "State").is_some_and(|state| state.starts_with('Z'))
}

/// How often the threads of a process went to sleep of their own accord: each wake-up ends in one more.
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

/// Open descriptors of a process.
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

/// Whether it is in the foreground of its terminal.
pub fn is_in_foreground(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // After the name: state, parent, group, session, terminal, and the group in the foreground of that.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.get(2) == fields.get(5)
}

/// The names of its threads.
pub fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let mut names: Vec<String> = tasks.flatten().filter_map(name).map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

/// Where in the kernel the threads of this name wait.
pub fn waiting_threads(pid: i32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let is_named =
        |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name);
    let channel = |task: fs::DirEntry| fs::read_to_string(task.path().join("wchan")).ok();
    tasks.flatten().filter(is_named).filter_map(channel).filter(|channel| !matches!(&**channel, "" | "0")).collect()
}

/// The time that it has been on a processor.
pub fn cpu_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("the fields").split_whitespace().collect();
    // utime and stime, in ticks of 10 ms on every architecture that we know (proc_pid_stat(5)).
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// Whether a thread of a process waits in a function of the kernel's with `word` in its name.
pub fn waits_in(pid: i32, word: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
    let channel = |task: fs::DirEntry| fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
    tasks.flatten().any(|task| channel(task).contains(word))
}
