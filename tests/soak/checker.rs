//! What must hold when all clients pause: with their processes running, and when everything has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use serde_json::Value;

use crate::allowed::{MEMORY, RECOVERY, is_unexpected_log};
use crate::client::Shared;
use crate::harness::{procfs, wait_until_ok};

/// A process or a terminal session that must be running.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    pub pid: u64,
    /// None for a terminal session, which is not in the listing.
    pub handle: Option<u64>,
    pub tag: String,
}

/// Time for a condition to become true: that of a recovery, with a margin for a busy machine.
const SOON: Duration = RECOVERY.saturating_mul(2);

/// The state of the daemon that must come back.
pub struct Checker {
    threads_and_descriptors: (usize, usize),
    /// Resident memory in KiB after the first round.
    memory: Option<u64>,
    /// Resident memory after each round, for the report.
    pub memories: Vec<u64>,
    /// Bytes of the daemon's log that were checked.
    log_bytes: u64,
}

impl Checker {
    pub fn new(shared: &Shared) -> Checker {
        let threads_and_descriptors = shared.daemon.threads_and_descriptors();
        Checker { threads_and_descriptors, memory: None, memories: Vec::new(), log_bytes: 0 }
    }

    /// Checks the daemon while exactly these processes run.
    pub fn check_running(&mut self, shared: &Shared, running: &[Running]) {
        let right: BTreeSet<u64> = running.iter().map(|running| running.pid).collect();
        wait_until_ok(SOON, || {
            let children = children(shared)?;
            if children == right {
                Ok(())
            } else {
                Err(format!("the children are {children:?} instead of {running:?}"))
            }
        });
        let listed = listed_as_running(shared);
        let right: BTreeSet<u64> = running.iter().filter_map(|running| running.handle).collect();
        assert_eq!(listed, right, "the listing and the clients disagree about what runs");
        self.check_log(shared);
    }

    /// Checks the daemon after everything has ended.
    pub fn check_ended(&mut self, shared: &Shared) {
        wait_until_ok(SOON, || {
            let children = children(shared)?;
            if children.is_empty() { Ok(()) } else { Err(format!("processes that nobody owns: {children:?}")) }
        });
        assert_eq!(listed_as_running(shared), BTreeSet::new(), "nothing runs any more");
        let sessions = shared.daemon.get("/pty").expect(200);
        let alive =
            sessions["sessions"].as_array().expect("sessions").iter().filter(|one| one["is_alive"] == true).count();
        assert_eq!(alive, 0, "{sessions}");
        wait_until_ok(SOON, || check_metrics(shared));
        // The connection of these requests is closed by the next one, on which the daemon closes it.
        wait_until_ok(SOON, || self.check_released(shared));
        self.check_memory(shared);
        self.check_log(shared);
    }

    fn check_released(&self, shared: &Shared) -> Result<(), String> {
        let (threads, descriptors) = (procfs::threads(shared.daemon.pid), procfs::descriptors(shared.daemon.pid));
        // The prober and the checker itself have a connection each, at times.
        let connections = threads.iter().filter(|name| *name == "http-conn").count();
        let right = self.threads_and_descriptors;
        if connections <= 2 && threads.len() - connections <= right.0 && descriptors.len() <= right.1 + 2 * connections
        {
            return Ok(());
        }
        Err(format!("at most {right:?} threads and descriptors; it has {threads:?} and {descriptors:?}"))
    }

    fn check_memory(&mut self, shared: &Shared) {
        let now = procfs::kilobytes(shared.daemon.pid, "VmRSS");
        self.memories.push(now);
        // The first rounds fill what is kept: ended processes, spare cgroups, stacks of threads.
        let first = *self.memory.get_or_insert(now);
        assert!(now <= first + MEMORY, "resident memory: {now} KiB, {first} KiB after the first round");
    }

    /// Checks the new lines of the daemon's log.
    fn check_log(&mut self, shared: &Shared) {
        let mut file = File::open(shared.daemon.log_file()).expect("open the log of the daemon");
        file.seek(SeekFrom::Start(self.log_bytes)).expect("go to its new lines");
        let mut new = Vec::new();
        file.read_to_end(&mut new).expect("read its new lines");
        // The last line may be unfinished.
        let length = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&new[..length]);
        let wrong = text.lines().find(|line| is_unexpected_log(line));
        assert!(wrong.is_none(), "in the log of the daemon: {wrong:?}");
        self.log_bytes += length as u64;
    }
}

/// PIDs, in the namespace of the daemon, of its children without the fork server; an error while there are zombies, or
/// several fork servers.
fn children(shared: &Shared) -> Result<BTreeSet<u64>, String> {
    let mut found = BTreeSet::new();
    for child in procfs::children(shared.daemon.pid) {
        if procfs::is_zombie(child) {
            return Err(format!("the child {child} is a zombie"));
        }
        let pids = procfs::status(child, "NSpid").ok_or("a child has just ended")?;
        let inside = pids.split_whitespace().last().and_then(|pid| pid.parse().ok());
        found.insert(inside.ok_or("no PID in the namespace")?);
    }
    // One that was killed is replaced when the next process starts.
    match procfs::all_children(shared.daemon.pid).len() - procfs::children(shared.daemon.pid).len() {
        0 | 1 => Ok(found),
        count => Err(format!("{count} fork servers")),
    }
}

fn listed_as_running(shared: &Shared) -> BTreeSet<u64> {
    let listing: Vec<Value> = shared.daemon.list();
    let running = listing.iter().filter(|info| info["status"] == "running");
    running.filter_map(|info| info["handle"].as_u64()).collect()
}

/// The samples by their name and labels, without the prefix.
fn scrape(shared: &Shared) -> BTreeMap<String, f64> {
    let text = String::from_utf8(shared.daemon.get("/metrics").body).expect("UTF-8");
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.strip_prefix("tl_supervisor_").unwrap_or(name).to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

/// Compares the counters of the daemon with what the clients have counted.
fn check_metrics(shared: &Shared) -> Result<(), String> {
    let metrics = scrape(shared);
    let value = |name: &str| metrics.get(name).copied().unwrap_or(0.0);
    let mut wrong = String::new();
    for (name, bounds) in shared.tally.counters() {
        let range = bounds.sure as f64..=(bounds.sure + bounds.unsure) as f64;
        if !range.contains(&value(&name)) {
            let _ = write!(wrong, "{name} is {} instead of {bounds:?}; ", value(&name));
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{wrong}all: {:?}, {metrics:?}", shared.tally.counters()));
    }
    let nothing = [
        "processes{status=\"running\"}",
        "terminal_sessions{status=\"alive\"}",
        "terminal_clients",
        "tunnels_open",
        "ends_total{reason=\"oom_killed\"}",
        "start_failures_total{kind=\"managed\"}",
        "start_failures_total{kind=\"terminal\"}",
        "restarts_total{reason=\"start_failed\"}",
        "restarts_total{reason=\"unhealthy\"}",
        "http_connections_refused_total",
    ];
    if let Some(name) = nothing.iter().find(|name| value(name) != 0.0) {
        return Err(format!("{name} is {}", value(name)));
    }
    // The thread `oom` runs only where there is a memory controller.
    let is_watched = |name: &str| name.starts_with("thread_") && !name.contains("\"oom\"");
    let down = metrics.iter().find(|(name, value)| is_watched(name) && **value != 1.0);
    down.map_or(Ok(()), |(name, value)| Err(format!("{name} is {value}")))
}
