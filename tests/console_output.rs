//! `--console-output`: the output of managed processes on the daemon's own stdout.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Daemon, Options, TIMEOUT, start_daemon_with, wait_until};

fn start() -> Daemon {
    start_daemon_with(&["--console-output", "--log-level", "error"])
}

/// The copied lines of a process.
fn copied(daemon: &Daemon, name: &str) -> Vec<String> {
    let log = daemon.log();
    log.lines().filter_map(|line| line.strip_prefix(&format!("{name} | "))).map(str::to_owned).collect()
}

#[test]
fn both_streams_of_managed_processes_are_copied_over_restarts_and_nothing_else() {
    let daemon = start();
    daemon.run_sh("echo a plain process");
    let script = "echo out; echo err >&2; printf unfinished; exit 1";
    let managed = |name: Option<&str>, policy: &str| {
        daemon.start_process(&json!({
            "command": "sh", "args": ["-c", script], "name": name,
            "restart": {"policy": policy, "initial_backoff_ms": 0, "max_restarts": 1},
        }))
    };
    managed(Some("web"), "always");
    let three = ["err", "out", "unfinished"];
    let sorted = |name: &str, count: usize| {
        wait_until(TIMEOUT, "the lines are copied", || {
            let mut lines = copied(&daemon, name);
            lines.sort();
            (lines.len() == count).then_some(lines)
        })
    };
    assert_eq!(sorted("web", 6), ["err", "err", "out", "out", "unfinished", "unfinished"]);
    // A process that is started later, one without a name, and one whose name could be taken for a line.
    managed(Some("later"), "never");
    assert_eq!(sorted("later", 3), three);
    let unnamed = managed(None, "never");
    assert_eq!(sorted(&format!("process-{}", unnamed["handle"]), 3), three);
    managed(Some("two\nlines"), "never");
    assert_eq!(sorted("two\\nlines", 3), three);
    // After its end a restart goes on where the copy has stopped.
    wait_until(TIMEOUT, "it is stopped", || {
        (daemon.get("/processes/later").expect(200)["managed"]["status"] == "stopped").then_some(())
    });
    daemon.post("/processes/later/restart", &json!({})).expect(200);
    assert_eq!(sorted("later", 6).len(), 6);
    assert!(!daemon.log().contains("a plain process"));
}

#[test]
fn a_long_line_is_copied_as_several_and_what_is_written_last_is_copied_before_the_daemon_ends() {
    let mut daemon = start();
    let script = "head -c 10000 /dev/zero | tr '\\0' x; echo; trap 'echo bye; exit' TERM; echo up; sleep 6041 & wait";
    daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "name": "long"}));
    wait_until(TIMEOUT, "it is up", || copied(&daemon, "long").contains(&"up".to_owned()).then_some(()));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    let lines = copied(&daemon, "long");
    let piece = 4096 - "long | ".len() - 1;
    assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [piece, piece, 10_000 - 2 * piece, 2, 3]);
    assert_eq!(lines[4], "bye");
}

#[test]
fn a_stdout_that_is_not_read_holds_nothing_up_and_the_lines_that_are_dropped_are_counted() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let daemon = Options::default().args(&["--console-output"]).stdout(OwnedFd::from(writer)).start();
    let lines = 20_000;
    let script = format!("seq {lines}; exec sleep 6042");
    let info = daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "name": "chatty"}));
    let last = lines.to_string();
    wait_until(TIMEOUT, "all lines are in the log", || {
        (daemon.lines(info["pid"].as_u64().unwrap(), "stdout").last() == Some(&last)).then_some(())
    });
    assert_eq!(daemon.run_sh("echo other commands work").stdout(), "other commands work");
    // The lines grow older than 10 s while nobody reads them.
    daemon.wait_until_idle(Duration::from_millis(10_500));
    let read = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&read);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    let text = wait_until(TIMEOUT, "the dropped lines are counted", || {
        Some(read.lock().unwrap().clone()).filter(|text| text.ends_with("lines of this output were dropped\n"))
    });
    let kept: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("chatty | ")).map(|line| line.parse().unwrap()).collect();
    assert!(kept.iter().copied().eq(1..=kept.len() as u64), "the first lines are whole and in order");
    let dropped = text.lines().last().and_then(|line| line.split(' ').nth(1)?.parse::<usize>().ok()).unwrap();
    assert_eq!(kept.len() + dropped, lines);
    // What comes now is copied again.
    daemon.start_process(&json!({"command": "echo", "args": ["fresh"], "name": "next"}));
    wait_until(TIMEOUT, "it is copied", || read.lock().unwrap().ends_with("next | fresh\n").then_some(()));
}

#[test]
fn a_stdout_without_a_reader_is_no_problem_and_an_idle_daemon_does_not_wake_up() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let daemon = Options::default().args(&["--console-output"]).stdout(OwnedFd::from(writer)).start();
    drop(reader);
    for n in 0..20 {
        let body = json!({"command": "sh", "args": ["-c", "echo x; exec sleep 6043"], "name": format!("n{n}")});
        daemon.start_process(&body);
    }
    daemon.wait_until_idle(Duration::from_secs(2));
    assert_eq!(daemon.run_sh("echo works").stdout(), "works");
}

#[test]
fn a_log_that_cannot_be_opened_is_not_read_again_at_once() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let args = ["--console-output", "--log-limit", "8M"];
    let daemon = Options::default().args(&args).stdout(OwnedFd::from(writer)).start();
    // Several files of a log, most of which are not open when the copy gets to them.
    let script = "seq -f '%0100g' 60000; echo end; exec sleep 6044";
    let info = daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "name": "long"}));
    wait_until(TIMEOUT, "all lines are in the log", || {
        let path = format!("/processes/{}/stdout?tail=1", info["pid"]);
        (daemon.get(&path).expect(200)["lines"] == json!(["end"])).then_some(())
    });
    let limit_descriptors = |most: u32| {
        let args = [format!("--pid={}", daemon.pid), format!("--nofile={most}:")];
        assert!(std::process::Command::new("prlimit").args(args).status().expect("run prlimit").success());
    };
    limit_descriptors(3);
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            count.fetch_add(length, Ordering::SeqCst);
        }
    });
    daemon.wait_until_idle(Duration::from_millis(500));
    let before = read.load(Ordering::SeqCst);
    assert!(before < 60_000 * 100, "nothing is missing: the descriptors were not needed");
    limit_descriptors(1024);
    wait_until(TIMEOUT, "the copy goes on", || (read.load(Ordering::SeqCst) > before).then_some(()));
}

#[test]
fn a_wrong_value_is_refused_in_one_line() {
    let output = std::process::Command::new(crate::harness::options::program())
        .env("TL_INIT_CONSOLE_OUTPUT", "perhaps")
        .output()
        .expect("run the program");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("TL_INIT_CONSOLE_OUTPUT") && stderr.contains("true, false, 1 or 0"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
