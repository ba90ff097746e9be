//! Stress test: many managed processes that crash at random while clients list, restart, signal and kill them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Random, TIMEOUT, procfs, start_daemon_with, wait_until};

/// Duration of the test: `TL_TEST_CHURN` in seconds, 10 by default.
fn duration() -> Duration {
    Duration::from_secs(std::env::var("TL_TEST_CHURN").ok().and_then(|text| text.parse().ok()).unwrap_or(10))
}

const PROCESSES: usize = 200;

/// Starts a process that writes a line, holds a lock while any part of it runs, and crashes within 6 s. If the lock is
/// held, an earlier run still exists: it exits with 99.
fn start_crashing(daemon: &Daemon, name: &str) -> Value {
    let run = "echo run; n=$(($$ % 60)); sleep $((n / 10)).$((n % 10)) 3>&-; kill -$((n % 2 * 9)) $$; exit $((n % 3))";
    let script = format!("echo start; exec flock -F -n -E 99 {}/{name} sh -c '{run}'", daemon.scratch().display());
    daemon.start_process(&json!({
        "command": "sh", "args": ["-c", script], "name": name, "stop_grace_ms": 1_000,
        "restart": {"policy": "always", "initial_backoff_ms": 10, "max_backoff_ms": 200},
    }))
}

fn restart_count(info: &Value) -> u64 {
    info["managed"]["restart_count"].as_u64().unwrap_or_else(|| panic!("no count: {info}"))
}

/// Checks invariants of a listing. `before` maps handles to the restart counts of the previous listing.
fn check_listing(list: &[Value], before: &mut HashMap<u64, u64>) {
    for info in list {
        let managed = &info["managed"];
        let up = info["status"] == "running";
        match managed["status"].as_str() {
            Some("running") => assert!(up, "{info}"),
            Some("backing_off") => assert!(!up && managed["next_restart_at"].is_u64(), "{info}"),
            Some("stopped") => assert!(!up && managed["next_restart_at"].is_null(), "{info}"),
            Some("starting") => {}
            _ => panic!("{info}"),
        }
        assert_ne!(managed["last_exit"]["exit_code"], 99, "two runs of one process at once: {info}");
        let handle = info["handle"].as_u64().expect("a handle");
        let last = before.insert(handle, restart_count(info)).unwrap_or(0);
        assert!(restart_count(info) >= last, "a restart count decreased: {info}");
    }
    let mut pids: Vec<_> = list.iter().filter(|info| info["status"] == "running").map(|info| &info["pid"]).collect();
    let count = pids.len();
    pids.sort_by_key(|pid| pid.as_u64());
    pids.dedup();
    assert_eq!(pids.len(), count, "two processes with one PID");
    let live = list.iter().filter(|info| info["managed"]["status"] != "stopped");
    let mut names: Vec<_> = live.filter_map(|info| info["managed"]["name"].as_str()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two live processes with one name");
}

/// One client: lists all processes, and restarts, signals and kills its own ones. Returns the killed handles with their
/// restart counts.
fn act_as_client(daemon: &Daemon, own: &[String], mut random: Random, over: &AtomicBool) -> HashMap<u64, u64> {
    let (mut before, mut killed) = (HashMap::new(), HashMap::new());
    while !over.load(Ordering::SeqCst) {
        let name = &own[random.below(own.len() as u64) as usize];
        let path = format!("/processes/{name}");
        match random.below(6) {
            0 | 1 => {
                let old = daemon.get(&path).expect(200);
                let new = daemon.post(&format!("{path}/restart"), &json!({})).expect(200);
                assert!(new["handle"] == old["handle"] && restart_count(&new) > restart_count(&old), "{old} {new}");
                assert_eq!(new["status"], "running");
            }
            2 => {
                let old = daemon.get(&path).expect(200);
                daemon.delete(&format!("/processes/{}", old["pid"])).expect(204);
                let stopped = wait_until(TIMEOUT, "the process is stopped", || {
                    let now = daemon.get(&path).expect(200);
                    (now["managed"]["status"] == "stopped").then_some(now)
                });
                killed.insert(stopped["handle"].as_u64().expect("a handle"), restart_count(&stopped));
                start_crashing(daemon, name);
            }
            3 => {
                let signal = [9, 15, 1][random.below(3) as usize];
                let response = daemon.post(&format!("{path}/signal"), &json!({"signal": signal}));
                assert!(response.status == 200 || response.status == 409, "{}", response.status);
            }
            _ => check_listing(&daemon.list(), &mut before),
        }
    }
    killed
}

/// Checks that no zombie exists for more than 2 s, without the time that the supervisor waits for a CPU.
fn check_no_zombie_stays(daemon: &Daemon, over: &AtomicBool) {
    let mut seen: HashMap<i32, (Instant, Duration)> = HashMap::new();
    while !over.load(Ordering::SeqCst) {
        // Taken before the look at the zombies, so that a suspension of this thread does not count.
        let (now, without_cpu) = (Instant::now(), procfs::time_without_cpu(daemon.pid, "supervisor"));
        let zombies: Vec<i32> =
            procfs::children(daemon.pid).into_iter().filter(|pid| procfs::is_zombie(*pid)).collect();
        seen.retain(|pid, _| zombies.contains(pid));
        for pid in zombies {
            let (since, before) = *seen.entry(pid).or_insert_with(|| (Instant::now(), without_cpu));
            let time = now.saturating_duration_since(since).saturating_sub(without_cpu.saturating_sub(before));
            assert!(time < Duration::from_secs(2), "a zombie for {time:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn crashing_processes_are_neither_lost_nor_duplicated_under_concurrent_requests() {
    let daemon = start_daemon_with(&["--keep-ended", "100000"]);
    let names: Vec<String> = (0..PROCESSES).map(|n| format!("s{n}")).collect();
    names.iter().for_each(|name| drop(start_crashing(&daemon, name)));
    // The clients share the second half of the processes; the first half only crashes.
    let (alone, shared) = names.split_at(PROCESSES / 2);
    let over = AtomicBool::new(false);
    let killed: HashMap<u64, u64> = std::thread::scope(|scope| {
        let seeds = 0x9E37_79B9_7F4A_7C15_u64..;
        let clients: Vec<_> = shared
            .chunks(PROCESSES / 8)
            .zip(seeds)
            .map(|(own, seed)| (own, Random(seed)))
            .map(|(own, random)| scope.spawn(|| SetOnPanic(&over).run(|| act_as_client(&daemon, own, random, &over))))
            .collect();
        scope.spawn(|| SetOnPanic(&over).run(|| check_no_zombie_stays(&daemon, &over)));
        let begun = Instant::now();
        while begun.elapsed() < duration() && !over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let list = daemon.list();
    check_listing(&list, &mut HashMap::new());
    assert_eq!(list.len(), PROCESSES + killed.len(), "a process is missing");
    for info in &list {
        let handle = info["handle"].as_u64().expect("a handle");
        assert_eq!(info["managed"]["status"] == "stopped", killed.contains_key(&handle), "{info}");
        if let Some(count) = killed.get(&handle) {
            assert_eq!(restart_count(info), *count, "a killed process restarted: {info}");
        }
    }
    // Each process that was not killed keeps restarting.
    let before: HashMap<_, _> = list.iter().map(|info| (info["handle"].to_string(), restart_count(info))).collect();
    wait_until(TIMEOUT, "each is started again", || {
        let on = |info: &Value| restart_count(info) > before[&info["handle"].to_string()];
        let live = daemon.list();
        live.iter().all(|info| info["managed"]["status"] == "stopped" || on(info)).then_some(())
    });
    names.iter().for_each(|name| drop(daemon.delete(&format!("/processes/{name}")).expect(204)));
    for name in alone {
        // On a busy machine, a DELETE may be answered before the process has ended.
        let info = wait_until(TIMEOUT, "the process is stopped", || {
            let info = daemon.get(&format!("/processes/{name}")).expect(200);
            (info["managed"]["status"] == "stopped").then_some(info)
        });
        let lines = daemon.get(&format!("/processes/{name}/stdout")).expect(200);
        let count = |word: &str| lines["lines"].as_array().expect("lines").iter().filter(|line| *line == word).count();
        let starts = count("start") as u64;
        // SIGTERM may arrive before the first line.
        let early = u64::from(info["signal"] == 15);
        assert!((restart_count(&info)..=restart_count(&info) + 1).contains(&starts), "{info} {lines}");
        assert!(starts + early > restart_count(&info), "{starts} starts: {info}");
        assert!(count("run") as u64 + early >= starts, "two runs at once: {info} {lines}");
    }
    daemon.wait_until_gone(TIMEOUT, "");
}

/// Sets the flag that ends the other threads if this one panics.
struct SetOnPanic<'a>(&'a AtomicBool);

impl SetOnPanic<'_> {
    fn run<T>(self, job: impl FnOnce() -> T) -> T {
        job()
    }
}

impl Drop for SetOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
