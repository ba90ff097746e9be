//! What all groups of figures share: the options, the report, and rounds in which the daemon and its floor take turns.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::beacon::Programs;
use crate::harness::options::{Options as DaemonOptions, program};
use crate::options::Options;
use crate::report::{Pair, Report};

/// A run of the benchmarks.
pub struct Bench {
    pub options: Options,
    pub report: Report,
    pub programs: Programs,
}

impl Bench {
    /// A number of repetitions: `full`, or `quick` with `--quick`.
    pub fn count(&self, full: usize, quick: usize) -> usize {
        if self.options.quick { quick } else { full }
    }

    /// A duration: `full`, or a twentieth of it with `--quick`.
    pub fn duration(&self, full: Duration) -> Duration {
        if self.options.quick { full / 20 } else { full }
    }

    /// Measures the daemon and its floor alternately, so that a change of the machine's speed affects both.
    pub fn rounds(&self, mut ours: impl FnMut() -> Vec<f64>, mut floor: impl FnMut() -> Vec<f64>) -> Pair {
        let mut pair = Pair::default();
        for round in 0..self.options.rounds {
            // Each comes first in every other round.
            if round % 2 == 0 {
                pair.ours.push(ours());
            }
            pair.floor.push(floor());
            if round % 2 == 1 {
                pair.ours.push(ours());
            }
        }
        pair
    }

    /// Measures each of the two `count` times in each round. A job returns the time that counts, in milliseconds.
    pub fn latencies(&self, count: usize, mut ours: impl FnMut() -> f64, mut floor: impl FnMut() -> f64) -> Pair {
        let batch = |job: &mut dyn FnMut() -> f64| (0..count).map(|_| job()).collect();
        self.rounds(|| batch(&mut ours), || batch(&mut floor))
    }
}

/// The time of a job in milliseconds, without the time to drop its result.
pub fn milliseconds<T>(job: impl FnOnce() -> T) -> f64 {
    let begun = Instant::now();
    let _result = job();
    begun.elapsed().as_secs_f64() * 1e3
}

/// Runs a job on a thread that stays on one CPU, as do the threads and processes that the job starts.
pub fn on_one_cpu<T: Send>(job: impl FnOnce() -> T + Send) -> T {
    let pinned = || {
        let this_thread = Pid::from_raw(0);
        let allowed = sched_getaffinity(this_thread).expect("the allowed CPUs");
        let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("a CPU");
        let mut one = CpuSet::new();
        one.set(first).and_then(|()| sched_setaffinity(this_thread, &one)).expect("stay on one CPU");
        job()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join().expect("the job"))
}

/// Runs `count` jobs in all, one thread for each element of `jobs`; jobs per second.
pub fn rate<J: FnMut() + Send>(count: usize, jobs: impl IntoIterator<Item = J>) -> f64 {
    let jobs: Vec<J> = jobs.into_iter().collect();
    let each = count.div_ceil(jobs.len());
    let done = each * jobs.len();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for mut job in jobs {
            scope.spawn(move || (0..each).for_each(|_| job()));
        }
    });
    done as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes in a time in milliseconds, as MB/s.
pub fn megabytes_per_second(bytes: usize, milliseconds: f64) -> f64 {
    bytes as f64 / 1e3 / milliseconds
}

/// What the figures are measured on.
pub fn machine(options: &Options) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let output = |command: &mut std::process::Command| {
        let output = command.output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let git = |args: &[&str]| output(std::process::Command::new("git").args(args));
    let program = program();
    let bytes = std::fs::read(&program).unwrap_or_default();
    let linkage = if has_interpreter(&bytes) { "dynamic" } else { "static" };
    let dirty = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    vec![
        ("version", output(std::process::Command::new(&program).arg("--version"))),
        ("commit", format!("{}{dirty}", git(&["rev-parse", "--short=12", "HEAD"]))),
        ("program", format!("{linkage}, {} bytes", bytes.len())),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("cpu", field(&read("/proc/cpuinfo"), "model name")),
        ("cpus", std::thread::available_parallelism().map_or(String::new(), |cpus| cpus.to_string())),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("rustc", output(std::process::Command::new("rustc").arg("--version"))),
        ("rounds", options.rounds.to_string()),
        ("quick", options.quick.to_string()),
    ]
}

/// Whether a 64-bit little-endian ELF program names an interpreter (PT_INTERP), which loads its shared libraries.
fn has_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|entry| number(table + entry * size, 4) == 3)
}

/// A daemon for many processes, which keeps `kept` ended ones. It accepts fewer if it may open too few descriptors.
pub fn daemon_for_many(kept: usize) -> DaemonOptions {
    DaemonOptions::default().args(&["--max-processes", "4096", "--keep-ended", &kept.to_string()])
}
