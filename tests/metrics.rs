//! `GET /metrics`: the counters agree with what happened, their number is bounded, and a scrape is never held up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::faults::{StoppedThread, hang_etc};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, TIMEOUT, skip_without_root, start_daemon, start_daemon_with, wait_until};

/// The samples by their name and labels, without the prefix.
fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    let response = daemon.get("/metrics");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(response.body).expect("UTF-8");
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let name = name.strip_prefix("tl_supervisor_").unwrap_or(name);
        (name.to_owned(), value.parse().expect("a number"))
    });
    let (count, samples) = (samples.clone().count(), samples.collect::<BTreeMap<_, _>>());
    assert_eq!(samples.len(), count, "a sample occurs twice:\n{text}");
    samples
}

/// By how much each sample has grown.
fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> impl Fn(&str) -> f64 + use<> {
    let (before, after) = (before.clone(), after.clone());
    move |name| after.get(name).copied().unwrap_or(0.0) - before.get(name).copied().unwrap_or(0.0)
}

#[test]
fn the_counters_agree_with_what_happened() {
    let daemon = start_daemon();
    let before = scrape(&daemon);
    for _ in 0..3 {
        assert_eq!(daemon.run_sh("printf 12345; printf 678 >&2").stdout(), "12345");
    }
    daemon.run_sh("kill -9 $$");
    daemon.run(&json!({"command": "sleep", "args": ["6031"], "timeout": 0.1}));
    daemon.post("/processes", &json!({"command": "/nowhere/x"})).expect(400);
    let crash = json!({
        "command": "false", "name": "crash", "restart": {"policy": "always", "initial_backoff_ms": 0, "max_restarts": 2},
    });
    daemon.start_process(&crash);
    wait_until(TIMEOUT, "it gives up", || {
        (daemon.get("/processes/crash").expect(200)["managed"]["status"] == "stopped").then_some(())
    });
    daemon.start_process(&json!({"command": "sleep", "args": ["6032"], "name": "up"}));
    daemon.post("/pty", &json!({"command": "sleep", "args": ["6033"]})).expect(201);
    let after = scrape(&daemon);
    let grew = growth(&before, &after);
    for (name, right) in [
        ("starts_total{kind=\"plain\"}", 5.0),
        ("starts_total{kind=\"managed\"}", 4.0),
        ("starts_total{kind=\"terminal\"}", 1.0),
        ("start_failures_total{kind=\"plain\"}", 1.0),
        ("restarts_total{reason=\"exited\"}", 2.0),
        ("ends_total{reason=\"exited\"}", 6.0),
        ("ends_total{reason=\"signaled\"}", 1.0),
        ("ends_total{reason=\"timed_out\"}", 1.0),
        ("output_bytes_total{stream=\"stdout\"}", 15.0),
        ("output_bytes_total{stream=\"stderr\"}", 9.0),
        ("run_duration_seconds_count{kind=\"plain\"}", 5.0),
        ("run_duration_seconds_bucket{kind=\"managed\",le=\"+Inf\"}", 3.0),
        ("processes{status=\"running\"}", 1.0),
        ("processes{status=\"exited\"}", 4.0),
        ("processes{status=\"signaled\"}", 2.0),
        ("managed_processes{status=\"running\"}", 1.0),
        ("managed_processes{status=\"stopped\"}", 1.0),
        ("terminal_sessions{status=\"alive\"}", 1.0),
        ("http_requests_total{route=\"/processes/run\",method=\"POST\",code=\"2xx\"}", 5.0),
        ("http_requests_total{route=\"/processes\",method=\"POST\",code=\"4xx\"}", 1.0),
        ("http_requests_total{route=\"/pty\",method=\"POST\",code=\"2xx\"}", 1.0),
        ("http_requests_total{route=\"/metrics\",method=\"GET\",code=\"2xx\"}", 1.0),
    ] {
        assert_eq!(grew(name), right, "{name}");
    }
    assert!(grew("run_duration_seconds_sum{kind=\"plain\"}") >= 0.1);
    for thread in ["supervisor", "output", "log-writer", "users", "trees", "health", "http-accept"] {
        let labels = format!("{{thread=\"{thread}\"}}");
        assert_eq!((after[&format!("thread_up{labels}")], after[&format!("thread_responsive{labels}")]), (1.0, 1.0));
    }
    assert!(after["process_open_fds"] > 5.0 && after["process_resident_memory_bytes"] > 1e5, "{after:?}");
}

#[test]
fn a_scrape_needs_the_token() {
    let daemon = start_daemon();
    let request = "GET /api/v1/metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let response = ResponseStream::send(daemon.connect(), request.as_bytes()).into_response(request);
    response.expect_error(401, "UNAUTHORIZED", "token");
}

#[test]
fn many_paths_and_names_make_no_more_series() {
    let daemon = start_daemon();
    daemon.start_process(&json!({"command": "true", "name": "first"}));
    daemon.get("/processes/none").expect_error(404, "NOT_FOUND", "none");
    daemon.get("/unknown").expect_error(404, "NOT_FOUND", "unknown");
    scrape(&daemon);
    let before = scrape(&daemon);
    for n in 0..1_000 {
        daemon.get(&format!("/unknown/{n}")).expect_error(404, "NOT_FOUND", "unknown");
        daemon.get(&format!("/processes/name-{n}")).expect_error(404, "NOT_FOUND", "name");
        if n < 100 {
            daemon.start_process(&json!({"command": "true", "name": format!("name-{n}")}));
            daemon.delete(&format!("/processes/name-{n}")).expect(204);
        }
    }
    let after = scrape(&daemon);
    let new: Vec<&String> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    let is_new_class = |name: &String| name.contains("DELETE");
    assert!(new.iter().all(|name| is_new_class(name)) && new.len() <= 1, "{new:?}");
    let grew = growth(&before, &after);
    assert_eq!(grew("http_requests_total{route=\"other\",method=\"other\",code=\"4xx\"}"), 1_000.0);
    assert_eq!(grew("http_requests_total{route=\"/processes/{process}\",method=\"GET\",code=\"4xx\"}"), 1_000.0);
}

#[test]
fn a_scrape_that_finds_a_hanging_supervisor_is_answered_and_says_so() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    scrape(&daemon);
    let stopped = StoppedThread::of(&daemon, "supervisor");
    let begun = Instant::now();
    let found = scrape(&daemon);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(found["thread_responsive{thread=\"supervisor\"}"], 0.0);
    assert_eq!(found["thread_up{thread=\"supervisor\"}"], 1.0);
    assert!(!found.keys().any(|name| name.starts_with("processes{")), "only the supervisor knows");
    drop(stopped);
    wait_until(TIMEOUT, "it answers again", || {
        (scrape(&daemon)["thread_responsive{thread=\"supervisor\"}"] == 1.0).then_some(())
    });
}

#[test]
fn a_thread_that_hangs_in_the_kernel_is_not_responsive() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    daemon.start_process(&json!({
        "command": "sleep", "args": ["6034"], "restart": {"policy": "always", "initial_backoff_ms": 0},
    }));
    hang_etc(&daemon);
    for pid in daemon.pids_executing("sleep 6034") {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the process");
    }
    let found = wait_until(TIMEOUT, "the look-up of the user of the restart hangs", || {
        let found = scrape(&daemon);
        (found["thread_responsive{thread=\"users\"}"] == 0.0).then_some(found)
    });
    assert_eq!(found["thread_responsive{thread=\"supervisor\"}"], 1.0);
}

#[test]
fn orphans_truncations_and_connections_are_counted() {
    let daemon = start_daemon_with(&["--log-limit", "4096"]);
    let before = scrape(&daemon);
    daemon.run_sh("(sleep 0.01 &) ; head -c 100000 /dev/zero | tr '\\0' x");
    let after = wait_until(TIMEOUT, "an orphan is reaped", || {
        let after = scrape(&daemon);
        (growth(&before, &after)("reaped_orphans_total") >= 1.0).then_some(after)
    });
    let grew = growth(&before, &after);
    assert!(grew("output_truncations_total") >= 1.0 && grew("output_bytes_total{stream=\"stdout\"}") == 100_000.0);
    let idle = daemon.connect();
    let opened = wait_until(TIMEOUT, "the connection is counted", || {
        let now = scrape(&daemon);
        (now["http_connections_open"] >= 2.0).then_some(now)
    });
    assert!(opened["http_connections_accepted_total"] >= 2.0);
    drop(idle);
}
