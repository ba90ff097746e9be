//! Runs to completion: exact exits, complete output, and the end of whole trees.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TIMEOUT, check_times, pid_of, skip_without_root, start_daemon, wait_until};

/// Calls `job` with the numbers from 0 to `count - 1` on `clients` threads.
fn run_on_threads(clients: usize, count: u64, job: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    job(number);
                }
            });
        }
    });
}

fn check_exit_codes(daemon: &Daemon, count: u64) {
    run_on_threads(8, count, |number| {
        let code = number % 256;
        let body = json!({"command": "sh", "args": ["-c", format!("exit {code}")]});
        if number % 2 == 0 {
            let run = daemon.run(&body);
            assert_eq!(run.code(), Some(code), "{}", run.last);
            assert_eq!(run.last["reason"], "exited");
        } else {
            let pid = pid_of(&daemon.start_process(&body));
            let info = daemon.wait_for_end(pid);
            assert_eq!(info["status"], "exited", "{info}");
            assert_eq!(info["exit_code"], code, "{info}");
            assert_eq!(info["signal"], Value::Null, "{info}");
        }
    });
}

#[test]
fn every_exit_code_is_reported_by_pid_1() {
    check_exit_codes(&start_daemon(), 2_000);
}

#[test]
fn every_exit_code_is_reported_by_a_subreaper() {
    check_exit_codes(&Options::subreaper().start(), 400);
}

#[test]
fn a_death_by_signal_is_reported_with_its_number() {
    let daemon = start_daemon();
    for signal in [1, 2, 6, 9, 11, 15, 34, 64] {
        let run = daemon.run_sh(&format!("kill -{signal} $$"));
        assert_eq!(run.last["signal"], signal, "{}", run.last);
        assert_eq!(run.last["reason"], "signaled", "{}", run.last);
        let info = daemon.info(run.pid());
        assert_eq!(info["status"], "signaled", "{info}");
        assert_eq!(info["signal"], signal, "{info}");
        assert_eq!(info["exit_code"], Value::Null, "{info}");
        assert_eq!(info["oom_killed"], false, "{info}");
    }
}

#[test]
fn output_is_complete_in_order_and_without_repeats() {
    let daemon = start_daemon();
    let expected: Vec<String> = (1..=2000).map(|number| number.to_string()).collect();
    let body = json!({"command": "seq", "args": ["1", "2000"]});
    run_on_threads(4, 500, |number| {
        let lines = match number % 3 {
            0 => daemon.run(&body).lines("stdout"),
            1 => {
                let pid = pid_of(&daemon.start_process(&body));
                let lines = daemon.follow(pid, "stdout").all_lines();
                // When the follow ends, the process is already shown as ended.
                assert_eq!(daemon.info(pid)["status"], "exited");
                lines
            }
            _ => {
                let pid = pid_of(&daemon.start_process(&body));
                daemon.wait_for_end(pid);
                daemon.lines(pid, "output")
            }
        };
        assert!(lines == expected, "{} lines instead of 2,000", lines.len());
    });
}

#[test]
fn reused_pids_mix_up_neither_output_nor_exit_codes() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().pid_max(400).start();
    run_on_threads(4, 900, |number| {
        let code = number % 200;
        let script = format!("echo {number}; read x; echo {number} >&2; exit {code}");
        if number % 2 == 0 {
            let run = daemon.run(&json!({"command": "sh", "args": ["-c", script]}));
            assert_eq!(
                (run.lines("stdout"), run.lines("stderr")),
                (vec![number.to_string()], vec![number.to_string()])
            );
            assert_eq!(run.code(), Some(code));
        } else {
            // The process runs until the follower is attached; after its end, another process may get its PID.
            let start = json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"});
            let pid = pid_of(&daemon.start_process(&start));
            let follower = daemon.follow(pid, "output");
            daemon.request("POST", &format!("/processes/{pid}/stdin/close"), Some(b"")).expect(204);
            assert_eq!(follower.all_lines(), vec![number.to_string(); 2]);
        }
    });
    let mut pids = std::collections::BTreeSet::new();
    let list = daemon.list();
    for info in &list {
        let script = info["args"][1].as_str().expect("the script");
        let code: u64 = script.rsplit(' ').next().and_then(|code| code.parse().ok()).expect("its exit code");
        assert_eq!(info["exit_code"], code, "{info}");
        pids.insert(info["pid"].as_u64());
        // Whoever had its PID last, its handle leads to its own output.
        let number = script.split([' ', ';']).nth(1).expect("its number");
        let (pid, view) = (pid_of(info), format!("output?handle={}", info["handle"]));
        let mut lines = daemon.lines(pid, &view);
        lines.sort();
        assert_eq!(lines, [number; 2], "{info}");
    }
    assert!(pids.len() < list.len(), "no PID was reused, so the test shows nothing");
    for (handle, status, code, part) in
        [("9999999", 404, "NOT_FOUND", "handle"), ("x", 400, "INVALID_REQUEST", "handle")]
    {
        daemon.get(&format!("/processes/1/stdout?handle={handle}")).expect_error(status, code, part);
    }
}

#[test]
fn a_background_child_does_not_delay_the_end_of_a_run() {
    let daemon = start_daemon();
    // The limit is 50 ms; the margin is for a busy machine. The first noisy child writes less than the limit of
    // the log, so that nothing is dropped before it is followed.
    let noisy = ["sh -c 'yes noise | head -c 100000000; sleep 300'", "sh -c 'while :; do echo noise; done'"];
    for (child, most) in [("sleep 300", 900), (noisy[0], 10_000), (noisy[1], 10_000)] {
        let time = || {
            let begun = Instant::now();
            let run = daemon.run_sh(&format!("{child} >&2 & seq 1 5000; exit 4"));
            let took = begun.elapsed();
            assert_eq!(run.code(), Some(4));
            assert_eq!(run.lines("stdout").len(), 5_000, "{child}");
            daemon.delete(&format!("/processes/{}", run.pid())).expect(204);
            took
        };
        check_times(Duration::from_millis(most), std::iter::repeat_with(time).take(5).collect());
        for word in ["noise", "sleep 300"] {
            daemon.wait_until_gone(TIMEOUT, word);
        }
    }
}

#[test]
fn a_background_child_can_write_after_the_end_of_the_run() {
    let daemon = start_daemon();
    let script = "(read x <fifo; echo late; echo later) & echo early";
    let scratch = daemon.scratch();
    let fifo = scratch.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("create a FIFO");
    // Opened for reading and writing, so that the open does not wait for the other end.
    let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(fifo).expect("open the FIFO");
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", script], "working_dir": scratch}));
    assert_eq!(run.stdout(), "early");
    std::io::Write::write_all(&mut fifo, b"go\n").expect("release the process");
    wait_until(TIMEOUT, "the late lines are in the log", || {
        (daemon.lines(run.pid(), "stdout") == ["early", "late", "later"]).then_some(())
    });
}

fn check_timeout_kills_the_tree(daemon: &Daemon) {
    let script = "setsid sleep 4201 & setsid sh -c 'setsid sleep 4201 & sleep 4201' & sleep 4201 & echo up; wait";
    let begun = Instant::now();
    // Long enough for a busy machine to start all of them.
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", script], "timeout": 6.0}));
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    // The limit is 1 s after the timeout; the margin is for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
    assert_eq!(run.last, json!({"exit_code": null, "signal": 9, "oom_killed": false, "reason": "timed_out"}));
    assert_eq!(run.lines("stdout"), ["up"]);
    daemon.wait_until_gone(Duration::from_secs(10), "4201");
    assert_eq!(daemon.info(run.pid())["status"], "signaled");
}

#[test]
fn a_timeout_kills_the_whole_tree() {
    check_timeout_kills_the_tree(&start_daemon());
}

#[test]
fn a_timeout_kills_the_whole_tree_without_a_cgroup() {
    check_timeout_kills_the_tree(&Options::default().without_cgroup().start());
}

#[test]
fn a_timeout_kills_the_whole_tree_under_a_subreaper() {
    check_timeout_kills_the_tree(&Options::subreaper().start());
}

#[test]
fn a_timeout_that_is_not_reached_changes_nothing() {
    let daemon = start_daemon();
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", "echo x; exit 3"], "timeout": 30.5}));
    assert_eq!((run.code(), run.last["reason"].as_str()), (Some(3), Some("exited")));
}

#[test]
fn a_client_that_disconnects_ends_its_run() {
    let daemon = start_daemon();
    for script in ["sleep 4202 & setsid sleep 4202 & wait", "setsid sleep 4202 & yes 4202"] {
        let stream = daemon.open_run(&json!({"command": "sh", "args": ["-c", script]}));
        wait_until(TIMEOUT, "the run is up", || {
            (daemon.pids_executing("sleep 4202").len() == script.matches("sleep").count()).then_some(())
        });
        drop(stream);
        // The limit is 1 s; the margin is for a busy machine.
        daemon.wait_until_gone(Duration::from_secs(10), "4202");
    }
}

#[test]
fn a_run_ignores_the_stream_modes() {
    let daemon = start_daemon();
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", "cat; echo out; echo err >&2"], "stdin_mode": "pipe",
        "stdout_mode": "discard", "stderr_mode": "discard", "unknown": [1]}));
    assert_eq!((run.lines("stdout"), run.lines("stderr")), (vec!["out".to_owned()], vec!["err".to_owned()]));
}

#[test]
fn a_run_is_not_delayed_by_delayed_acknowledgements() {
    let daemon = start_daemon();
    // Several writes in each response: the events of the start, of the output and of the end. On a new connection Linux
    // acknowledges at once (tcp(7), TCP_QUICKACK), so all runs have the same one.
    let mut client = daemon.connect();
    let body = json!({"command": "sh", "args": ["-c", "echo 1; sleep 0.003; echo 2"]}).to_string();
    let request = daemon.request_head("POST", "/processes/run", &format!("Content-Length: {}\r\n", body.len())) + &body;
    // Nagle's algorithm with delayed acknowledgements adds 40 ms to each run; even a busy machine runs some faster.
    wait_until(TIMEOUT, "six of ten runs take less than 35 ms each", || {
        let mut fast = 0;
        for _ in 0..10 {
            let begun = Instant::now();
            client.write_all(request.as_bytes()).expect("send the request");
            let mut response = Vec::new();
            while !response.ends_with(b"\r\n0\r\n\r\n") {
                let mut buffer = [0; 4096];
                let count = client.read(&mut buffer).expect("read the response");
                assert!(count > 0, "the response ends: {}", String::from_utf8_lossy(&response));
                response.extend_from_slice(&buffer[..count]);
            }
            fast += u32::from(begun.elapsed() < Duration::from_millis(35));
        }
        (fast >= 6).then_some(())
    });
}

#[test]
fn a_connection_serves_several_runs_in_turn() {
    let daemon = start_daemon();
    let body = json!({"command": "echo", "args": ["x"]}).to_string();
    let head = daemon.request_head("POST", "/processes/run", &format!("Content-Length: {}\r\n", body.len()));
    let request = head + &body;
    let mut socket = daemon.connect();
    for _ in 0..20 {
        let mut stream = crate::harness::response::ResponseStream::send(socket, request.as_bytes()).expect_status(200);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).expect("the whole body");
        assert!(text.contains("\"reason\":\"exited\""), "{text}");
        socket = stream.into_socket();
    }
}
