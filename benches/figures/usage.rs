//! What the daemon uses: memory, CPU time and wake-ups of all its own processes, without those that it runs for clients.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::harness::procfs;

/// PIDs of the daemon's own processes: the daemon, and its descendants that execute the same program.
pub fn own_processes(daemon: i32) -> Vec<i32> {
    let program = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).map(|file| (file.dev(), file.ino())).ok();
    let own = program(daemon);
    let below = procfs::descendants(daemon).into_iter().filter(|pid| program(*pid) == own);
    std::iter::once(daemon).chain(below).collect()
}

/// Memory of processes in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Resident pages (VmRSS).
    pub resident: f64,
    /// Resident pages that no file backs (RssAnon).
    pub anonymous: f64,
    /// Resident pages, where a page that N processes share counts as 1/N (Pss).
    pub proportional: f64,
}

/// Memory of these processes together. A process that has ended has none.
pub fn memory_of(pids: &[i32]) -> Memory {
    let mut all = Memory::default();
    for &pid in pids {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default()
        };
        let status = read("status");
        all.resident += field(&status, "VmRSS:");
        all.anonymous += field(&status, "RssAnon:");
        all.proportional += field(&read("smaps_rollup"), "Pss:");
    }
    all
}

/// Memory of the daemon's own processes, once it has not changed for `still`; as it is after ten times that.
pub fn settled_memory(daemon: i32, still: Duration) -> Memory {
    let own = own_processes(daemon);
    let mut last = memory_of(&own);
    let (begun, mut since) = (Instant::now(), Instant::now());
    while since.elapsed() < still && begun.elapsed() < still * 10 {
        std::thread::sleep(still / 20);
        let now = memory_of(&own);
        if now.anonymous != last.anonymous {
            since = Instant::now();
        }
        last = now;
    }
    last
}

/// CPU time of the daemon, of all processes that it has reaped, and of its own processes that live.
pub fn cpu_with_children(daemon: i32) -> Duration {
    let ticks: u64 = own_processes(daemon)
        .into_iter()
        .map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
            // Fields utime, stime, cutime and cstime, in ticks of 10 ms (proc_pid_stat(5)).
            fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
        })
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Context switches, voluntary or not, of all threads of the daemon's own processes.
pub fn context_switches(daemon: i32) -> u64 {
    let count = |pid: i32| -> u64 {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads");
        let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        texts
            .flat_map(|text| {
                let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
                lines.filter_map(|line| line.rsplit('\t').next()?.trim().parse::<u64>().ok()).collect::<Vec<_>>()
            })
            .sum()
    };
    own_processes(daemon).into_iter().map(count).sum()
}
