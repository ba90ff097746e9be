//! Figures of memory, descriptors and wake-ups.

use std::time::Duration;

use serde_json::json;

use crate::bench::{Bench, daemon_for_many};
use crate::client::{Client, start_until};
use crate::harness::{Daemon, TIMEOUT, procfs, start_daemon, start_daemon_with, wait_until, wait_until_still};
use crate::report::Goal;
use crate::usage::{context_switches, own_processes, settled_memory};

/// How long the memory must not change before it counts. The daemon returns memory to the kernel after 2 s.
const STILL: Duration = Duration::from_secs(3);

/// Ends processes by SIGKILL to the whole set, not by DELETE, so that their records are kept.
fn kill_all(daemon: &Daemon, pids: &[u64]) {
    std::thread::scope(|scope| {
        for share in pids.chunks(pids.len().div_ceil(8).max(1)) {
            scope.spawn(move || {
                let mut client = Client::new(daemon);
                for pid in share {
                    let path = format!("/processes/{pid}/signal");
                    let request = client.prepare("POST", &path, &json!({"signal": 9}));
                    client.exchange(&request, "200");
                }
            });
        }
    });
    wait_until(TIMEOUT, "all processes have ended", || {
        let info = daemon.get("/info").expect(200);
        (info["running_processes"] == 0).then_some(())
    });
}

/// Runs `/bin/true` `count` times with eight clients.
fn run_many(daemon: &Daemon, count: usize) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::new(daemon);
                let request = client.run_true();
                (0..count.div_ceil(8)).for_each(|_| client.run(&request));
            });
        }
    });
}

/// Memory and descriptors: idle, for each running process, and for each retained one.
pub fn memory(bench: &mut Bench) {
    let still = bench.duration(STILL);
    let daemon = start_daemon();
    let idle = settled_memory(daemon.pid, still);
    bench.report.value("memory, idle (VmRSS)", "MiB", idle.resident / 1024.0, Some(Goal::AtMost(3.0)));
    bench.report.value("memory, idle (Pss)", "MiB", idle.proportional / 1024.0, None);
    bench.report.value("memory, idle (RssAnon)", "MiB", idle.anonymous / 1024.0, None);
    drop(daemon);

    // Ten processes first: code that runs for the first time becomes resident, which no further process repeats.
    let daemon = daemon_for_many(100_000).start();
    let descriptors = || own_processes(daemon.pid).into_iter().map(|pid| procfs::descriptors(pid).len()).sum::<usize>();
    let mut pids = Vec::new();
    start_until(&daemon, &mut pids, 10);
    let (before, open) = (settled_memory(daemon.pid, still), descriptors());
    let count = bench.count(1_000, 20);
    start_until(&daemon, &mut pids, 10 + count);
    let (after, open_after) = (settled_memory(daemon.pid, still), descriptors());
    let each = |more: f64| more / count as f64;
    let report = &mut bench.report;
    report.value("memory per running process", "KiB", each(after.resident - before.resident), Some(Goal::AtMost(4.0)));
    let more = open_after as f64 - open as f64;
    report.value("descriptors per running process", "", each(more), Some(Goal::AtMost(3.0)));
    kill_all(&daemon, &pids);
    let before = settled_memory(daemon.pid, still);
    let count = bench.count(5_000, 20);
    run_many(&daemon, count);
    let after = settled_memory(daemon.pid, still);
    let each = (after.resident - before.resident) / count as f64;
    bench.report.value("memory per retained ended process", "KiB", each, Some(Goal::AtMost(1.0)));
}

/// What is left of many runs, and of many processes at once. Only ten ended processes are retained.
pub fn growth_of_memory(bench: &mut Bench) {
    let still = bench.duration(STILL);
    let limit = Some(Goal::AtMost(1.0));
    let daemon = start_daemon_with(&["--keep-ended", "10"]);
    let idle = settled_memory(daemon.pid, still);
    run_many(&daemon, bench.count(500, 16));
    bench.report.value("memory after 500 runs", "MiB", settled_memory(daemon.pid, still).resident / 1024.0, None);
    run_many(&daemon, bench.count(19_500, 16));
    let after = settled_memory(daemon.pid, still);
    let mib = |after: f64, before: f64| (after - before) / 1024.0;
    bench.report.value("memory growth by 20,000 runs", "MiB", mib(after.resident, idle.resident), limit);
    let anonymous = mib(after.anonymous, idle.anonymous);
    bench.report.value("memory growth by 20,000 runs (RssAnon)", "MiB", anonymous, None);
    drop(daemon);

    let daemon = daemon_for_many(10).start();
    let idle = settled_memory(daemon.pid, still);
    let mut pids = Vec::new();
    start_until(&daemon, &mut pids, bench.count(4_000, 16));
    let during = settled_memory(daemon.pid, still);
    kill_all(&daemon, &pids);
    let after = settled_memory(daemon.pid, still);
    bench.report.value("processes at once", "", pids.len() as f64, None);
    bench.report.value("memory with these", "MiB", during.resident / 1024.0, None);
    bench.report.value(
        "memory growth by these, once they have ended",
        "MiB",
        mib(after.resident, idle.resident),
        limit,
    );
    let anonymous = mib(after.anonymous, idle.anonymous);
    bench.report.value("memory growth by these (RssAnon)", "MiB", anonymous, None);
}

/// Wake-ups of a daemon with 1,000 running processes and no client.
pub fn idle(bench: &mut Bench) {
    let daemon = daemon_for_many(10).start();
    start_until(&daemon, &mut Vec::new(), bench.count(1_000, 10));
    // Memory that was freed is returned a few seconds later.
    let switches = || context_switches(daemon.pid);
    let before = wait_until_still(bench.duration(STILL), "no thread of the daemon wakes up", switches);
    std::thread::sleep(bench.options.idle);
    let woken = context_switches(daemon.pid) - before;
    let name = format!("wake-ups in {} s, 1,000 processes", bench.options.idle.as_secs());
    bench.report.value(&name, "", woken as f64, Some(Goal::AtMost(0.0)));
}
