//! Terminal sessions: the terminal of the program, and the messages that clients get.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::websocket::{Session, SessionEnd};
use crate::harness::{Daemon, Options, TIMEOUT, is_root, procfs, start_daemon, start_daemon_with, wait_until};

/// Waits until this command is in the foreground of its terminal, so that it gets input and Ctrl-C.
fn wait_until_in_foreground(daemon: &Daemon, words: &str) {
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
    // The program hears of the new size before the daemon shows it.
    wait_until(TIMEOUT, "the new size is shown", || {
        let info = daemon.pty_info(&session);
        ((info["rows"].as_u64(), info["cols"].as_u64()) == (Some(24), Some(80))).then_some(())
    });
}

#[test]
fn job_control_works_in_an_interactive_shell() {
    let daemon = start_daemon();
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "$ "}}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("$ ");
    terminal.ask("sleep 4711", "sleep 4711");
    wait_until_in_foreground(&daemon, "sleep 4711");
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
    wait_until_in_foreground(&daemon, "sleep 4711");
    terminal.type_in("\x03");
    terminal.expect("$ ");
    terminal.ask("echo $?", "130");
    terminal.type_in("exit 3\n");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(3));
    assert!(daemon.pids_executing("sleep 4711").is_empty());
}

#[test]
fn a_background_child_does_not_delay_the_end_of_a_session() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("trap '' HUP; (while :; do echo noise; done) & read -r line; echo last; exit 4");
    let mut terminal = daemon.watch(&session);
    // The client is attached before the end: a later one would see only the last MiB, which can be all noise.
    terminal.ask("go", "noise");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(4));
    assert!(terminal.text().contains("last"));
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
    check_delete_hangs_up(&daemon);
    // The process in a session of its own does not get the hang-up, but the kill.
    daemon.wait_until_gone(TIMEOUT, "sleep 4713");
}

#[test]
fn delete_hangs_up_without_a_cgroup() {
    check_delete_hangs_up(&Options::default().without_cgroup().start());
}

fn check_delete_hangs_up(daemon: &Daemon) {
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
    daemon.wait_for_session_end(&session);
    assert_eq!(daemon.pty_info(&session)["exit_code"], 0, "the program exits on SIGHUP");
    daemon.wait_until_gone(TIMEOUT, "sleep 4712");
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
    daemon.wait_for_session_end(&session);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(40), "{took:?}");
    assert_eq!(daemon.pty_info(&session)["exit_code"], 137);
    daemon.wait_until_gone(TIMEOUT, "sleep 4714");
}

#[test]
fn a_session_without_a_client_ends_after_pty_idle_secs() {
    let daemon = start_daemon_with(&["--pty-idle-secs", "4"]);
    let left = daemon.pty_sh("echo up; sleep 4715");
    let never = daemon.pty_sh("sleep 4716");
    let watched = daemon.pty_sh("sleep 4717");
    let _terminal = daemon.watch(&watched);
    daemon.watch(&left).disconnect();
    daemon.wait_for_session_end(&left);
    daemon.wait_for_session_end(&never);
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
        wait_until(TIMEOUT, "the process has ended", || (daemon.pty_info(session)["exit_code"] == 7).then_some(()));
    }
    let full = procfs::kilobytes(daemon.pid, "VmRSS");
    assert!(full > before + (40 << 10), "{full} KiB after {before}, with replays of 1 MiB");
    wait_until(Duration::from_secs(60) + TIMEOUT, "all ended sessions are dropped", || {
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
    daemon.wait_for_session_end(&sessions[0]);
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
    let mut daemon = start_daemon_with(&["--shutdown-grace", "3600"]);
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "$ "}}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("$ ");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    // An interactive shell ignores SIGTERM.
    daemon.wait_for_exit(TIMEOUT);
}

#[test]
fn a_terminal_client_that_stays_connected_does_not_delay_a_shutdown() {
    let time_of_shutdown = || {
        let mut daemon = start_daemon();
        let session = daemon.open_pty(&json!({"command": "cat"}));
        let mut terminal = daemon.watch(&session);
        terminal.ask("hello", "hello\r\nhello\r\n");
        let begun = Instant::now();
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.wait_for_exit(TIMEOUT);
        let took = begun.elapsed();
        // It has read nothing meanwhile, and still gets everything.
        let end = terminal.wait_for_end();
        assert!(end.exit.is_some_and(|code| code > 128) && end.close.is_some_and(|(code, _)| code == 1000));
        took
    };
    // A busy machine delays one shutdown or another, but not each.
    let times: Vec<_> = (0..5).map(|_| time_of_shutdown()).take_while(|time| *time >= Duration::from_secs(1)).collect();
    assert!(times.len() < 5, "{times:?}");
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
