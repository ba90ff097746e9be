//! The daemon's own log: one line for each thing that happens, as text and as JSON, and limited for each process.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, TIMEOUT, start_daemon, start_daemon_with, wait_until};

/// The lines of a log in JSON that have an event, in order.
fn events(daemon: &Daemon) -> Vec<Value> {
    let log = daemon.log();
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    let lines = complete.lines().filter(|line| line.starts_with('{'));
    let parsed = lines.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}")));
    parsed.filter(|line| line["event"].is_string()).collect()
}

/// Waits for the first event with this name about this unit.
fn wait_for(daemon: &Daemon, event: &str, handle: &Value) -> Value {
    wait_until(TIMEOUT, &format!("{event} of {handle} is logged"), || {
        events(daemon).into_iter().find(|line| line["event"] == event && line["handle"] == *handle)
    })
}

#[test]
fn each_thing_that_happens_to_a_managed_process_is_one_line_of_json() {
    let daemon = start_daemon_with(&["--log-format", "json"]);
    let name = "a\nname \u{1b}[2J";
    let info = daemon.start_process(&json!({
        "command": "sh", "args": ["-c", "exit 3"], "name": name,
        "restart": {"policy": "always", "initial_backoff_ms": 7, "max_restarts": 1},
    }));
    let handle = &info["handle"];
    let stopped = wait_for(&daemon, "process.stopped", handle);
    let all = events(&daemon);
    let of_unit: Vec<&Value> = all.iter().filter(|line| line["handle"] == *handle).collect();
    let words: Vec<&str> = of_unit.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let right = [
        "process.started",
        "process.ended",
        "process.restarting",
        "process.started",
        "process.ended",
        "process.stopped",
    ];
    assert_eq!(words, right);
    assert!(of_unit.iter().all(|line| line["name"] == name), "{of_unit:?}");
    let (started, ended, restarting, again) = (of_unit[0], of_unit[1], of_unit[2], of_unit[3]);
    assert_eq!(
        (&started["pid"], &started["command"], &started["restart_count"]),
        (&info["pid"], &json!("sh"), &json!(0))
    );
    assert_eq!(
        (&ended["exit_code"], &ended["reason"], &ended["oom_killed"]),
        (&json!(3), &json!("exited"), &json!(false))
    );
    assert!(ended.get("signal").is_none() && ended["duration_ms"].is_u64() && ended["level"] == "info", "{ended}");
    assert_eq!((&restarting["delay_ms"], &restarting["reason"]), (&json!(7), &json!("exited")));
    assert_eq!(again["restart_count"], 1);
    assert!(stopped["level"] == "warn" && stopped["last_error"].as_str().unwrap().contains("gave up"), "{stopped}");
}

#[test]
fn plain_processes_are_not_logged_unless_the_level_is_debug() {
    let daemon = start_daemon_with(&["--log-format", "json", "--log-level", "debug"]);
    daemon.run_sh("true");
    let ended = wait_until(TIMEOUT, "the run is logged", || {
        events(&daemon).into_iter().find(|line| line["event"] == "process.ended")
    });
    assert_eq!((&ended["level"], &ended["exit_code"]), (&json!("debug"), &json!(0)));
    let daemon = start_daemon_with(&["--log-format", "json"]);
    daemon.run_sh("true");
    let managed = daemon.start_process(&json!({"command": "true", "name": "m"}));
    wait_for(&daemon, "process.stopped", &managed["handle"]);
    let others: Vec<Value> = events(&daemon)
        .into_iter()
        .filter(|line| !line["handle"].is_null() && line["handle"] != managed["handle"])
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn health_terminals_and_the_shutdown_are_logged() {
    let mut daemon = start_daemon_with(&["--log-format", "json", "--shutdown-grace", "1"]);
    let checked = daemon.start_process(&json!({
        "command": "sleep", "args": ["6021"], "name": "web", "restart": {"policy": "never"},
        "health_check": {"type": "tcp", "port": daemon.addr.port(), "initial_delay_ms": 0, "interval_ms": 50},
    }));
    let healthy = wait_for(&daemon, "process.health", &checked["handle"]);
    assert_eq!((&healthy["health_status"], &healthy["level"]), (&json!("healthy"), &json!("info")));
    let session = daemon.post("/pty", &json!({"command": "sh", "args": ["-c", "exit 4"]})).expect(201);
    let ended = wait_until(TIMEOUT, "the end of the session is logged", || {
        events(&daemon).into_iter().find(|line| line["event"] == "pty.ended")
    });
    assert_eq!((&ended["session_id"], &ended["exit_code"]), (&session["session_id"], &json!(4)));
    assert!(events(&daemon).iter().any(|line| line["event"] == "pty.opened"));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    let all = events(&daemon);
    let of = |event: &str| all.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(of("daemon.listening").len(), 1);
    assert_eq!(of("daemon.shutdown").iter().map(|line| &line["grace_ms"]).collect::<Vec<_>>(), [&json!(1000)]);
    assert_eq!(of("daemon.shutdown_done").iter().map(|line| &line["all_ended"]).collect::<Vec<_>>(), [&json!(true)]);
}

#[test]
fn a_restart_after_a_failed_health_check_is_a_sentence() {
    let daemon = start_daemon();
    daemon.start_process(&json!({
        "command": "sleep", "args": ["6023"], "name": "sick", "restart": {"policy": "always", "initial_backoff_ms": 7},
        "health_check": {"type": "tcp", "port": 1, "initial_delay_ms": 0, "failure_threshold": 1},
    }));
    let line = wait_until(TIMEOUT, "the restart is logged", || {
        daemon.log().lines().find(|line| line.contains("(sick) restarts")).map(str::to_owned)
    });
    assert!(line.contains("(sick) restarts in 7 ms: it was unhealthy: "), "{line}");
}

#[test]
fn names_and_errors_are_one_line_of_text_without_control_characters() {
    let daemon = start_daemon();
    let name = "x\ntl-init 0.000 ERROR forged\u{1b}[31m";
    daemon.start_process(&json!({"command": "true", "name": name}));
    let log = wait_until(TIMEOUT, "the end is logged", || Some(daemon.log()).filter(|log| log.contains("is stopped")));
    assert!(log.contains("(x\\ntl-init 0.000 ERROR forged\\u{1b}[31m) has started"), "{log}");
    assert!(!log.contains('\u{1b}') && !log.lines().any(|line| line.starts_with("tl-init 0.000")), "{log}");
}

#[test]
fn lines_that_were_left_out_are_counted_when_the_daemon_ends() {
    let mut daemon = start_daemon();
    daemon.start_process(&json!({
        "command": "false", "name": "crashes", "restart": {"policy": "always", "initial_backoff_ms": 0},
    }));
    wait_until(TIMEOUT, "lines are left out", || {
        (daemon.get("/processes/crashes").expect(200)["managed"]["restart_count"].as_u64() > Some(20)).then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("(crashes): ") && line.contains(" more lines")), "{log}");
}

#[test]
fn a_process_that_crashes_in_a_loop_does_not_fill_the_log() {
    let daemon = start_daemon();
    daemon.start_process(&json!({
        "command": "false", "name": "crashes", "restart": {"policy": "always", "initial_backoff_ms": 0},
    }));
    let left_out = wait_until(TIMEOUT, "the lines that were left out are counted", || {
        let log = daemon.log();
        log.lines()
            .find(|line| line.contains("(crashes): ") && line.ends_with(" more lines within 10 s were left out"))
            .map(str::to_owned)
    });
    let number = left_out.split(' ').rev().nth(8).and_then(|word| word.parse::<u64>().ok());
    assert!(number.is_some_and(|number| number > 20), "{left_out}");
    // 20 lines at once, and two each second until the count was written; the margin is for a busy machine.
    let lines = daemon.log().lines().filter(|line| line.contains("(crashes)")).count();
    assert!(lines < 20 + 2 * 30, "{lines} lines");
    // The last line about it says what has become of it.
    daemon.delete("/processes/crashes").expect(204);
    wait_until(Duration::from_secs(20), "its stop is logged", || {
        let log = daemon.log();
        let last = log.lines().rfind(|line| line.contains("(crashes) "))?;
        last.ends_with("(crashes) is stopped").then_some(())
    });
    // Another process has limits of its own.
    daemon.start_process(&json!({"command": "sleep", "args": ["6022"], "name": "other"}));
    wait_until(Duration::from_secs(20), "it is logged", || daemon.log().contains("(other) has started").then_some(()));
}

#[test]
fn the_lines_that_were_left_out_are_counted_before_a_shutdown_ends() {
    let mut daemon = start_daemon_with(&["--log-format", "json"]);
    for number in 0..150 {
        daemon.start_process(&json!({"command": "sleep", "args": ["6023"], "name": format!("p{number}")}));
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    let all = events(&daemon);
    let logged = all.iter().filter(|line| line["event"].as_str().unwrap().starts_with("process.")).count() as u64;
    let left_out: u64 =
        all.iter().filter(|line| line["event"] == "log.left_out").filter_map(|line| line["count"].as_u64()).sum();
    assert!(left_out > 0 && logged + left_out == 150 * 3, "{logged} and {left_out}");
}
