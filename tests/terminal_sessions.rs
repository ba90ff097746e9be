//! Terminal sessions: the terminal of the program, and the messages that clients get.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::websocket::{Session, SessionEnd, client_frame};
use crate::harness::{Daemon, Options, TIMEOUT, is_root, procfs, start_daemon, start_daemon_with, wait_until};

fn is_gone(daemon: &Daemon, session: &Session) {
    wait_until(TIMEOUT, "the session ends", || (daemon.pty_info(session)["is_alive"] == false).then_some(()));
}

/// Waits until this command is in the foreground of its terminal, so that it gets input and Ctrl-C.
fn await_foreground(daemon: &Daemon, words: &str) {
    wait_until(TIMEOUT, &format!("{words:?} is in the foreground"), || {
        daemon.pids_executing(words).into_iter().any(procfs::is_in_foreground).then_some(())
    });
}

#[test]
fn a_program_has_a_controlling_terminal_of_its_own() {
    let daemon = start_daemon();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM; \
                  ps -o sid=,tpgid= -p $$ | tr -s ' '; echo $$; exec 3</dev/tty && echo controlling; \
                  ls /proc/self/fd | wc -l; stat -c %u $(tty); id -u";
    let session = daemon.open_pty(&json!({"command": "sh", "args": ["-c", script], "rows": 40, "cols": 132}));
    let mut terminal = daemon.watch(&session);
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let text = terminal.text();
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r').trim()).collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text:?}");
    assert_eq!(lines[1..4], ["40 132", "all", "xterm-256color"], "{text:?}");
    assert_eq!(lines[4], format!("{0} {0}", lines[5]), "it leads the session and is in the foreground: {text:?}");
    assert_eq!(lines[6..8], ["controlling", "5"], "0 to 2, the one just opened and the one of `ls`: {text:?}");
    assert_eq!(lines[8], lines[9], "the terminal is its user's: {text:?}");
    let info = daemon.pty_info(&session);
    for (field, right) in
        [("is_alive", json!(false)), ("exit_code", json!(0)), ("rows", json!(40)), ("cols", json!(132))]
    {
        assert_eq!(info[field], right, "{info}");
    }
    assert!(info["ended_at"].as_u64() >= info["created_at"].as_u64(), "{info}");
}

#[test]
fn a_session_uses_the_requested_user_directory_and_environment() {
    let daemon = start_daemon();
    let mut body = json!({"command": "sh", "args": ["-c", "echo \"$(id -u) $PWD $TERM $ONE\""], "working_dir": "/usr",
        "env": {"TERM": "dumb", "ONE": "ünï"}});
    if is_root() {
        body["user"] = json!("12345:12346");
    }
    let session = daemon.open_pty(&body);
    let mut terminal = daemon.watch(&session);
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let text = terminal.text();
    assert!(text.ends_with(" /usr dumb ünï\r\n"), "{text}");
    assert!(body.get("user").is_none() || text.starts_with("12345 "), "{text}");
    let info = daemon.pty_info(&session);
    assert_eq!((&info["command"], &info["args"]), (&body["command"], &body["args"]));
}

#[test]
fn sizes_are_clamped_and_resizes_reach_the_program() {
    let daemon = start_daemon();
    let script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.01; done";
    let open = |rows: u32, cols: u32| {
        daemon.open_pty(&json!({"command": "sh", "args": ["-c", script], "rows": rows, "cols": cols}))
    };
    for (asked, right) in [((0, 0), (24, 80)), ((1, 1), (1, 1)), ((9_999, 70_000), (500, 1000))] {
        let info = daemon.pty_info(&open(asked.0, asked.1));
        assert_eq!((info["rows"].as_u64(), info["cols"].as_u64()), (Some(right.0), Some(right.1)), "{info}");
    }
    let session = open(24, 80);
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.resize(50, 200);
    terminal.expect("50 200");
    daemon.post(&format!("/pty/{}/resize", session.id), &json!({"rows": 7, "cols": 2_000})).expect(204);
    terminal.expect("7 1000");
    terminal.resize(0, 0);
    terminal.expect("24 80");
    let info = daemon.pty_info(&session);
    assert_eq!((info["rows"].as_u64(), info["cols"].as_u64()), (Some(24), Some(80)), "{info}");
}

#[test]
fn control_characters_reach_the_program() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("trap 'echo interrupted' INT; echo up; cat; cat; echo over; exit 5");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.ask("first", "first\r\nfirst");
    // On Ctrl-C the kernel discards pending input, so the second `cat` must run before more is typed.
    terminal.type_in("\x03");
    terminal.expect("interrupted");
    terminal.ask("second", "second\r\nsecond");
    terminal.type_in("\x04");
    terminal.expect("over");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(5));
}

#[test]
fn job_control_works_in_an_interactive_shell() {
    let daemon = start_daemon();
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "$ "}}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("$ ");
    terminal.ask("sleep 4711", "sleep 4711");
    await_foreground(&daemon, "sleep 4711");
    terminal.type_in("\x1a");
    terminal.expect("Stopped");
    terminal.expect("$ ");
    assert!(
        procfs::status(daemon.pids_executing("sleep 4711")[0], "State").is_some_and(|state| state.starts_with('T'))
    );
    terminal.ask("bg", "sleep 4711 &");
    terminal.ask("jobs", "Running");
    terminal.expect("$ ");
    terminal.ask("fg", "sleep 4711\r\n");
    // The shell prints the command before it moves it to the foreground.
    await_foreground(&daemon, "sleep 4711");
    terminal.type_in("\x03");
    terminal.expect("$ ");
    terminal.ask("echo $?", "130");
    terminal.type_in("exit 3\n");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(3));
    assert!(daemon.pids_executing("sleep 4711").is_empty());
}

#[test]
fn all_byte_values_pass_in_both_directions() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; head -c 300 | od -An -v -tu1; printf 'ünï ✓ \\377\\000.'");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    let bytes: Vec<u8> = (0..300).map(|number| (number % 256) as u8).collect();
    // Pieces of 7 bytes split multi-byte characters between messages.
    bytes.chunks(7).for_each(|piece| terminal.type_in(piece));
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let tail = "ünï ✓ ".as_bytes().iter().chain(b"\xff\0.").copied().collect::<Vec<u8>>();
    assert!(terminal.output.ends_with(&tail), "{:?}", terminal.text());
    let shown = &terminal.output[..terminal.output.len() - tail.len()];
    let numbers: Vec<u8> =
        String::from_utf8_lossy(shown).split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers, bytes);
}

/// An interactive shell with line editing, driven prompt by prompt.
#[test]
fn two_hundred_prompts_lose_and_repeat_no_byte() {
    let daemon = start_daemon();
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "<$> "},
        "cols": 500}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("<$> ");
    // Bracketed paste would add control sequences to each prompt.
    terminal.ask("bind 'set enable-bracketed-paste off' 2>/dev/null", "<$> ");
    let begin = terminal.output.len();
    let mut right = String::new();
    for number in 0..200 {
        let line = format!("echo {number} {}", "é".repeat(number));
        terminal.type_in(format!("{line}\n"));
        terminal.expect("<$> ");
        right += &format!("{line}\r\n{number} {}\r\n<$> ", "é".repeat(number));
    }
    // `echo` prints no space for an empty word.
    let right = right.replace("echo 0 \r\n0 \r\n", "echo 0 \r\n0\r\n");
    assert_eq!(String::from_utf8_lossy(&terminal.output[begin..]), right);
    terminal.type_in("\x04");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
}

#[test]
fn all_output_comes_before_the_exit() {
    let daemon = start_daemon();
    for round in 0..20 {
        let session = daemon.pty_sh("seq 1 20000; exit 9");
        let mut terminal = daemon.watch(&session);
        assert_eq!(terminal.wait_for_end(), SessionEnd::exited(9));
        let text = terminal.text();
        let tail: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(tail.last(), Some(&"20000"), "round {round}");
        assert!(tail.windows(2).skip(1).all(|two| two[1].parse::<u32>().ok() > two[0].parse().ok()), "round {round}");
    }
}

#[test]
fn a_background_child_does_not_delay_the_end_of_a_session() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("trap '' HUP; (while :; do echo noise; done) & sleep 0.05; echo last; exit 4");
    let mut terminal = daemon.watch(&session);
    let begun = Instant::now();
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(4));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(terminal.text().contains("last"));
}

#[test]
fn a_hundred_mib_arrive_complete_while_another_session_echoes_quickly() {
    const SIZE: usize = 100 << 20;
    let daemon = start_daemon();
    // Writes 5 MiB at a time, each after the previous one was read: on a busy machine the reader may be late by a
    // second.
    let script = "#!/bin/sh\nstty raw -echo; echo up; n=1\nwhile [ $n -lt 6553600 ]; do\nread -r line\n\
                  seq -f %015.0f $n $((n + 327679)) | cat\nn=$((n + 327680))\ndone\n";
    let source = daemon.script("print", script);
    let large = daemon.open_pty(&json!({"command": source}));
    let echo = daemon.pty_sh("stty raw -echo; echo up; exec cat");
    let mut terminal = daemon.watch(&echo);
    terminal.expect("up");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let begun = Instant::now();
            let mut terminal = daemon.watch(&large);
            terminal.expect("up\n");
            for part in 1..=20 {
                terminal.ask("go", &format!("{:015}\n", part * 327_680));
            }
            assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
            (terminal.output.split_off(3), begun.elapsed())
        });
        let mut times = Vec::new();
        while !reader.is_finished() {
            let begun = Instant::now();
            terminal.type_in("x");
            terminal.expect("x");
            times.push(begun.elapsed());
        }
        times.sort();
        let (shown, took) = reader.join().expect("the reader");
        assert_eq!(shown.len(), SIZE);
        assert!(shown.chunks(16).zip(1..).all(|(line, number): (&[u8], u32)| {
            std::str::from_utf8(line).is_ok_and(|line| line.trim_end().parse() == Ok(number))
        }));
        let p99 = times[(times.len() - 1) * 99 / 100];
        eprintln!("100 MiB in {took:?}; {} echoes, p50 {:?}, p99 {p99:?}", times.len(), times[times.len() / 2]);
        // The goal is 5 ms for p99, which the benchmark measures; on a busy machine some echoes wait for a CPU.
        let p50 = times[times.len() / 2];
        assert!(p50 < Duration::from_millis(50) && p99 < Duration::from_secs(1), "{p50:?}, {p99:?} of {}", times.len());
    });
}

#[test]
fn input_is_kept_until_the_program_reads_it() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line </dev/null; sleep 0.3; head -c 3000000 | wc -c");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    for _ in 0..30 {
        terminal.type_in([b'x'; 100_000]);
    }
    terminal.expect("3000000");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
}

#[test]
fn an_overlong_line_of_input_does_not_block_the_session() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo; echo up; exec cat");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    // In canonical mode the kernel keeps 4 KiB of a line and drops the rest.
    terminal.type_in([b'x'; 500_000]);
    terminal.type_in("\nnext\n");
    terminal.expect("next\r\n");
}

#[test]
fn a_session_survives_its_clients_and_replays_its_last_output() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo -onlcr; echo up; while read -r n; do seq -f %015.0f 1 $n; echo done; done");
    let mut terminal = daemon.watch(&session);
    terminal.ask("10", "done");
    terminal.disconnect();
    wait_until(TIMEOUT, "nobody is there", || (daemon.pty_info(&session)["client_count"] == 0).then_some(()));
    let mut terminal = daemon.watch(&session);
    assert_eq!(terminal.expect("done\n").lines().count(), 11, "all of it is replayed");
    terminal.type_in("200000\n");
    // Disconnects without a Close while output is being sent.
    drop(terminal);
    let mut terminal = wait_until(TIMEOUT, "it has written all", || {
        let mut terminal = daemon.watch(&session);
        while terminal.output.len() < 1 << 20 && !terminal.output.ends_with(b"done\n") {
            terminal.expect("\n");
        }
        terminal.output.ends_with(b"200000\ndone\n").then_some(terminal)
    });
    let text = terminal.text();
    let numbers: Vec<u32> = text.lines().rev().skip(1).filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.len() > 65_000 && numbers[0] == 200_000, "{}", numbers.len());
    assert!(numbers[..65_000].windows(2).all(|two| two[0] == two[1] + 1));
    terminal.output.clear();
    let mut terminal = daemon.watch(&session);
    terminal.type_in("3\n\x04");
    terminal.expect("000000000000003\ndone\n");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let mut late = daemon.watch(&session);
    assert_eq!(late.wait_for_end(), SessionEnd::exited(0), "an ended session tells its exit for a while");
    assert!(late.text().ends_with("000000000000003\ndone\n"));
}

#[test]
fn several_clients_see_all_output_and_can_all_type() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo; echo up; cat");
    let mut terminals: Vec<_> = (0..5).map(|_| daemon.watch(&session)).collect();
    terminals.iter_mut().for_each(|terminal| drop(terminal.expect("up")));
    assert_eq!(daemon.pty_info(&session)["client_count"], 5);
    for number in 0..5 {
        terminals[number].type_in(format!("line {number}\n"));
        let line = format!("line {number}\r\n");
        terminals
            .iter_mut()
            .for_each(|terminal| assert_eq!(terminal.expect(&line), if number == 0 { "\r\n" } else { "" }));
    }
    terminals.remove(0).disconnect();
    wait_until(TIMEOUT, "one has gone", || (daemon.pty_info(&session)["client_count"] == 4).then_some(()));
    terminals[0].type_in("\x04");
    for terminal in &mut terminals {
        assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    }
}

#[test]
fn a_death_by_signal_is_reported_as_128_plus_the_signal() {
    let daemon = start_daemon();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let session = daemon.pty_sh(&format!("kill -{signal} $$"));
        assert_eq!(daemon.watch(&session).wait_for_end(), SessionEnd::exited(code));
        assert_eq!(daemon.pty_info(&session)["exit_code"], code);
    }
}

fn terminated() -> SessionEnd {
    SessionEnd { exit: None, close: Some((1001, "session terminated".to_owned())) }
}

#[test]
fn delete_hangs_up_and_then_kills_the_whole_tree() {
    let daemon = start_daemon();
    delete_hangs_up(&daemon);
    // The process in a session of its own does not get the hang-up, but the kill.
    daemon.wait_until_gone(TIMEOUT, "sleep 4713");
}

#[test]
fn delete_hangs_up_without_a_cgroup() {
    delete_hangs_up(&Options::default().without_cgroup().start());
}

fn delete_hangs_up(daemon: &Daemon) {
    let session = daemon.pty_sh(
        "trap 'exit 0' HUP; set -m; sleep 4712 & setsid sleep 4713 & echo up; \
                                 while :; do sleep 0.01; done",
    );
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    // A forked shell that has not executed `sleep` yet would still have the trap.
    for words in ["sleep 4712", "sleep 4713"] {
        daemon.wait_for_processes(words, 1);
    }
    daemon.delete(&format!("/pty/{}", session.id)).expect(204);
    assert_eq!(terminal.wait_for_end(), terminated());
    is_gone(daemon, &session);
    assert_eq!(daemon.pty_info(&session)["exit_code"], 0, "it had its chance to end well");
    daemon.wait_until_gone(Duration::from_secs(10), "sleep 4712");
    daemon.delete(&format!("/pty/{}", session.id)).expect(204);
    assert_eq!(daemon.watch(&session).wait_for_end(), terminated());
}

#[test]
fn delete_kills_a_session_that_ignores_the_hang_up_after_5_s() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("trap '' HUP; echo up; while :; do sleep 4714; done");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    let begun = Instant::now();
    daemon.delete(&format!("/pty/{}", session.id)).expect(204);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(terminal.wait_for_end(), terminated());
    is_gone(&daemon, &session);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(40), "{took:?}");
    assert_eq!(daemon.pty_info(&session)["exit_code"], 137);
    daemon.wait_until_gone(Duration::from_secs(10), "sleep 4714");
}

#[test]
fn a_session_without_a_client_ends_after_pty_idle_secs() {
    let daemon = start_daemon_with(&["--pty-idle-secs", "4"]);
    let left = daemon.pty_sh("echo up; sleep 4715");
    let never = daemon.pty_sh("sleep 4716");
    let watched = daemon.pty_sh("sleep 4717");
    let _terminal = daemon.watch(&watched);
    daemon.watch(&left).disconnect();
    is_gone(&daemon, &left);
    is_gone(&daemon, &never);
    assert_eq!(daemon.pty_info(&watched)["is_alive"], true);
    assert_eq!(daemon.pty_info(&never)["exit_code"], 129);
}

#[test]
fn ended_sessions_are_kept_for_60_s_and_then_release_their_memory() {
    let daemon = start_daemon();
    let other = daemon.pty_sh("exec sleep 4718");
    let before = procfs::kilobytes(daemon.pid, "VmRSS");
    let sessions: Vec<_> = (0..40).map(|_| daemon.pty_sh("head -c 1500000 /dev/zero; exit 7")).collect();
    for session in &sessions {
        wait_until(TIMEOUT, "it has ended", || (daemon.pty_info(session)["exit_code"] == 7).then_some(()));
    }
    let full = procfs::kilobytes(daemon.pid, "VmRSS");
    assert!(full > before + (40 << 10), "{full} KiB after {before}, with replays of 1 MiB");
    wait_until(Duration::from_secs(60) + TIMEOUT, "all are forgotten", || {
        daemon.get("/pty").expect(200)["sessions"].as_array().is_some_and(|all| all.len() == 1).then_some(())
    });
    assert_eq!(daemon.pty_info(&other)["is_alive"], true);
    wait_until(TIMEOUT, &format!("{full} KiB are about {before} again"), || {
        (procfs::kilobytes(daemon.pid, "VmRSS") < before + (10 << 10)).then_some(())
    });
}

#[test]
fn sessions_are_limited_and_listed_separately_from_processes() {
    let daemon = start_daemon_with(&["--max-pty-sessions", "3", "--max-processes", "2"]);
    let sessions: Vec<Session> = (0..3).map(|number| daemon.pty_sh(&format!("sleep 472{number}"))).collect();
    let refused = daemon.post("/pty", &json!({"command": "true"}));
    refused.expect_error(429, "TOO_MANY_SESSIONS", "3");
    let _processes = [daemon.sh("sleep 4730"), daemon.sh("sleep 4731")];
    let list = daemon.get("/pty").expect(200);
    let ids: Vec<&str> =
        list["sessions"].as_array().expect("a list").iter().filter_map(|s| s["session_id"].as_str()).collect();
    assert_eq!(ids, sessions.iter().map(|session| &*session.id).collect::<Vec<_>>());
    assert!(sessions.iter().all(|session| !list.to_string().contains(&session.token)), "{list}");
    assert_eq!(daemon.list().len(), 2, "no sessions among the processes");
    let pid = list["sessions"][0]["pid"].as_u64().expect("a PID");
    daemon.get(&format!("/processes/{pid}")).expect_error(404, "NOT_FOUND", "");
    let info = daemon.get("/info").expect(200);
    assert_eq!((info["running_processes"].as_u64(), info["total_processes"].as_u64()), (Some(2), Some(2)));
    daemon.delete(&format!("/pty/{}", sessions[0].id)).expect(204);
    is_gone(&daemon, &sessions[0]);
    daemon.open_pty(&json!({"command": "true"}));
}

#[test]
fn a_session_that_cannot_start_is_refused_and_not_listed() {
    let daemon = start_daemon();
    for (body, status, code) in [
        (json!({"command": "no-such-program"}), 400, "COMMAND_NOT_FOUND"),
        (json!({"command": "/etc/passwd"}), 400, "NOT_EXECUTABLE"),
        (json!({"command": "sh", "working_dir": "/no/such"}), 400, "WORKING_DIR_NOT_FOUND"),
        (json!({"command": "sh", "user": "nobody-here"}), 400, "USER_NOT_FOUND"),
        (json!({"command": "sh", "rows": -1}), 400, "INVALID_REQUEST"),
        (json!({"rows": 24}), 400, "INVALID_REQUEST"),
        (json!([]), 400, "INVALID_REQUEST"),
    ] {
        daemon.post("/pty", &body).expect_error(status, code, "");
    }
    daemon.request("POST", "/pty", Some(b"{")).expect_error(400, "INVALID_REQUEST", "");
    assert_eq!(daemon.get("/pty").expect(200), json!({"sessions": []}));
}

#[test]
fn a_shutdown_ends_sessions() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "30"]);
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "$ "}}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("$ ");
    let begun = Instant::now();
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    assert!(begun.elapsed() < Duration::from_secs(25), "an interactive shell ignores SIGTERM: {:?}", begun.elapsed());
}

#[test]
fn a_leader_that_closes_its_terminal_is_not_hung_up() {
    let daemon = start_daemon();
    // No process has the terminal open for 0.3 s; it is then opened again, and the exit code is that of the program.
    let script = "exec <&- >&- 2>&-; sleep 0.3; exec </dev/tty >/dev/tty 2>&1; echo back; exit 3";
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["-c", script]}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("back");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(3));
    // A program that never opens the terminal again.
    let script = "exec </dev/null >/dev/null 2>&1; sleep 0.3; exit 4";
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["-c", script]}));
    assert_eq!(daemon.watch(&session).wait_for_end(), SessionEnd::exited(4));
}

#[test]
fn a_client_that_floods_delays_no_request_and_uses_bounded_memory() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("sleep 60");
    let terminal = daemon.watch(&session);
    let before = procfs::kilobytes(daemon.pid, "VmRSS");
    let mut socket = terminal.socket.get_ref().try_clone().expect("a copy");
    socket.set_write_timeout(Some(Duration::from_millis(200))).expect("a limit");
    // Sends resizes and pings as fast as possible and reads nothing.
    let sizes = [[0, 80, 0, 24], [0, 81, 0, 25]];
    let frames: Vec<u8> = sizes.map(|size| client_frame(0x82, &[&[1][..], &size].concat())).concat();
    let flood = [frames, client_frame(0x89, &[b'x'; 125])].concat().repeat(500);
    let begun = Instant::now();
    let flooding = std::thread::spawn(move || {
        while begun.elapsed() < Duration::from_secs(3) {
            if socket.write_all(&flood).is_err() {
                return;
            }
        }
    });
    let mut slowest = Duration::ZERO;
    while !flooding.is_finished() {
        let asked = Instant::now();
        assert_eq!(daemon.run_sh("echo hi").stdout(), "hi");
        slowest = slowest.max(asked.elapsed());
    }
    flooding.join().expect("the flood");
    assert!(slowest < Duration::from_secs(20), "a run took {slowest:?}");
    let grown = procfs::kilobytes(daemon.pid, "VmRSS").saturating_sub(before);
    assert!(grown < 16 << 10, "it has grown by {grown} kB");
}
