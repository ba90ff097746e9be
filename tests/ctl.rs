//! `tlctl`: the client in the program, run against a real daemon.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::options::program;
use crate::harness::{
    Daemon, Options, TIMEOUT, TOKEN, bound_command, pid_of, reserve_closed_port, skip_without_root, start_daemon,
    wait_until,
};

/// The client, called by a symlink, with the run directory of the daemon and without standard input.
fn tlctl(daemon: &Daemon, args: &[&str]) -> Command {
    let link = daemon.scratch().join("tlctl");
    if !link.exists() {
        std::os::unix::fs::symlink(program(), &link).expect("create the symlink");
    }
    let mut command = bound_command(link);
    command.args(args).env("TL_INIT_RUN_DIR", daemon.state_dir().join("run")).env("TERM", "xterm");
    command.env_remove("NO_COLOR").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end, with a deadline.
fn finish(mut command: Command) -> Output {
    let child = command.spawn().expect("start the client");
    wait_for(child, &format!("{command:?}"))
}

fn wait_for(mut child: Child, what: &str) -> Output {
    // The pipes are read meanwhile: a client that cannot write does not end.
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes).expect("read its output"));
            bytes
        })
    };
    let out = reader(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let err = reader(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(TIMEOUT, &format!("{what} ends"), || child.try_wait().expect("wait"))
    }));
    if ended.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().expect("wait");
    assert!(ended.is_ok(), "{what}");
    Output { status, stdout: out.join().expect("its stdout"), stderr: err.join().expect("its stderr") }
}

fn ctl(daemon: &Daemon, args: &[&str]) -> Output {
    finish(tlctl(daemon, args))
}

/// Runs the client, which must succeed; its stdout.
#[track_caller]
fn out_of(daemon: &Daemon, args: &[&str]) -> String {
    let output = ctl(daemon, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json_of(daemon: &Daemon, args: &[&str]) -> Value {
    let text = out_of(daemon, args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
}

/// Checks the exit status and that stderr is one line with this part and without control characters.
#[track_caller]
fn expect_failure(output: &Output, status: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.starts_with("tlctl: ") && stderr.lines().count() == 1 && stderr.ends_with('\n'), "{stderr:?}");
    assert!(stderr.contains(part) && !stderr.trim_end().contains(char::is_control), "no {part:?} in {stderr:?}");
}

fn start_web(daemon: &Daemon) -> u64 {
    let body = json!({"command": "sh", "args": ["-c", "echo up; exec sleep 6000"], "name": "web",
        "restart": {"policy": "always"}});
    crate::harness::pid_of(&daemon.start_process(&body))
}

#[test]
fn ps_lists_running_and_managed_processes_and_all_of_them_with_all() {
    let daemon = start_daemon();
    let web = start_web(&daemon);
    let ended = daemon.sh("exit 3");
    daemon.wait_for_end(ended);
    let plain = daemon.sh("sleep 6001");
    let text = out_of(&daemon, &["ps"]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["PID", "NAME", "STATUS", "SINCE", "RESTARTS", "COMMAND"]);
    assert_eq!(rows[1][..3], [&web.to_string(), "web", "running"]);
    assert_eq!(rows[2][..2], [&plain.to_string(), "running"]);
    assert!(rows.len() == 3 && text.contains(" sh -c 'echo up; exec sleep 6000'\n"), "{text}");
    let all = out_of(&daemon, &["ps", "--all"]);
    assert!(all.lines().count() == 4 && all.contains("exit 3"), "{all}");
    let listing = json_of(&daemon, &["--json", "ps"]);
    assert_eq!(listing["processes"], json!(daemon.list()));
}

#[test]
fn status_exits_as_systemctl_does() {
    let daemon = start_daemon();
    let web = start_web(&daemon);
    let text = out_of(&daemon, &["status", "web"]);
    assert!(text.starts_with("Status:     running\n") && text.contains(&format!("PID:        {web}\n")), "{text}");
    assert!(text.contains("Policy:     always\n") && text.contains("Health:     disabled\n"), "{text}");
    assert_eq!(json_of(&daemon, &["status", "--json", "web"]), daemon.info(web));
    let ended = daemon.sh("kill -9 $$");
    daemon.wait_for_end(ended);
    let output = ctl(&daemon, &["status", &ended.to_string()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Status:     signal 9\n"));
    expect_failure(&ctl(&daemon, &["status", "no such"]), 4, "there is no process with name \"no such\"");
}

#[test]
fn logs_are_the_bytes_that_the_process_has_written_each_on_its_stream() {
    let daemon = start_daemon();
    let pid = daemon.sh("printf 'a\\377\\nb'; sleep 0.1; printf 'e1\\ne2\\n' >&2; sleep 0.1; printf 'c\\n'");
    daemon.wait_for_end(pid);
    let pid = pid.to_string();
    let output = ctl(&daemon, &["logs", &pid]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"a\xff\nbc\n"[..], &b"e1\ne2\n"[..]));
    // In their order, if stdout and stderr are one file.
    let mut command = Command::new("sh");
    let mut client = tlctl(&daemon, &[]);
    client.args(["logs", &pid]);
    command.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(client.get_program()).args(client.get_args());
    command.envs(client.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let merged = command.stdin(Stdio::null()).output().expect("run the client");
    assert_eq!(merged.stdout, b"a\xff\nbe1\ne2\nc\n");
    let output = ctl(&daemon, &["logs", "-n", "1", "--stream=stderr", &pid]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b""[..], &b"e2\n"[..]));
    let listing = json_of(&daemon, &["logs", "--json", &pid]);
    assert_eq!(listing["line_count"], 4, "{listing}");
}

#[test]
fn logs_follow_prints_lines_as_they_come_until_the_end() {
    let daemon = start_daemon();
    let go = daemon.scratch().join("go");
    let pid =
        daemon.sh(&format!("echo one; echo err >&2; until [ -e {} ]; do sleep 0.01; done; printf end", go.display()));
    let mut child = tlctl(&daemon, &["logs", "--follow", &pid.to_string()]).spawn().expect("start the client");
    let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "one\n");
    File::create(&go).expect("release the process");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the rest");
    let output = wait_for(child, "logs --follow");
    assert_eq!((rest.as_str(), &output.stderr[..], output.status.code()), ("end\n", &b"err\n"[..], Some(0)));
}

#[test]
fn run_has_the_output_and_the_exit_status_of_the_command() {
    let daemon = start_daemon();
    let output = ctl(&daemon, &["run", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((&output.stdout[..], &output.stderr[..], output.status.code()), (&b"out\n"[..], &b"err\n"[..], Some(7)));
    assert_eq!(ctl(&daemon, &["run", "--", "sh", "-c", "kill -15 $$"]).status.code(), Some(143));
    expect_failure(&ctl(&daemon, &["run", "no-such-command"]), 127, "no-such-command");
    expect_failure(&ctl(&daemon, &["run", "--", "/"]), 126, "cannot be executed");
    expect_failure(&ctl(&daemon, &["run", "--user", "nobody-at-all", "true"]), 1, "nobody-at-all");
    let script = "echo $A-$B; pwd; id -u";
    let args = ["run", "-e", "A=1", "--env=B=x=y", "-eA=2", "--dir", "/proc", "--user", "root", "sh", "-c", script];
    assert_eq!(out_of(&daemon, &args), "2-x=y\n/proc\n0\n");
    expect_failure(&ctl(&daemon, &["run", "--timeout", "0.2", "sleep", "6002"]), 137, "--timeout");
    daemon.wait_until_gone(TIMEOUT, "sleep 6002");
    let text = out_of(&daemon, &["run", "--json", "echo", "x"]);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(events[1]["line"] == "x" && events[2]["reason"] == "exited", "{text}");
}

#[test]
fn run_passes_standard_input_on() {
    let daemon = start_daemon();
    let input: Vec<u8> = (0..300_000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let path = daemon.scratch().join("input");
    std::fs::write(&path, &input).expect("write the input");
    let mut command = tlctl(&daemon, &["run", "cat"]);
    command.stdin(File::open(&path).expect("open the input"));
    let output = finish(command);
    assert_eq!((output.status.code(), output.stdout == input), (Some(0), true));
    // It is passed on as it comes, and a command that does not read it ends all the same.
    let mut child = tlctl(&daemon, &["run", "sh", "-c", "read x; echo got $x; read y || exit 5"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start the client");
    let mut stdin = child.stdin.take().expect("its stdin");
    let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
    stdin.write_all(b"first\n").expect("write");
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "got first\n");
    drop(stdin);
    assert_eq!(wait_for(child, "run").status.code(), Some(5));
    let mut child =
        tlctl(&daemon, &["run", "sh", "-c", "exec <&-; exit 6"]).stdin(Stdio::piped()).spawn().expect("start");
    let stdin = child.stdin.take().expect("its stdin");
    assert_eq!(wait_for(child, "run with an open stdin").status.code(), Some(6));
    drop(stdin);
    let mut command = tlctl(&daemon, &["run", "--timeout", "0.2", "sleep", "6003"]);
    command.stdin(File::open(&path).expect("open the input"));
    expect_failure(&finish(command), 137, "--timeout");
    daemon.wait_until_gone(TIMEOUT, "sleep 6003");
}

#[test]
fn the_timeout_of_run_is_kept_while_only_comments_come() {
    let daemon = start_daemon();
    // A daemon sends a comment every 15 s; this service does so every few milliseconds.
    let port = crate::harness::tcp_service(|mut socket| {
        let mut request = [0; 4096];
        let length = socket.read(&mut request).unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let json = "HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n{\"pid\":7,\"handle\":1}";
        let _ = match &request {
            _ if request.starts_with("GET ") => socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n"),
            _ if request.starts_with("POST /api/v1/processes ") => socket.write_all(json.as_bytes()),
            _ => socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"),
        };
        while request.starts_with("GET ") && socket.write_all(b": keep-alive\n\n").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let url = format!("http://127.0.0.1:{port}");
    let mut child =
        tlctl(&daemon, &["--url", &url, "run", "--timeout", "0.3", "x"]).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    expect_failure(&wait_for(child, "run"), 137, "--timeout");
    drop(stdin);
}

#[test]
fn an_interrupt_ends_the_command_of_run() {
    let daemon = start_daemon();
    for (input, seconds) in [(Stdio::null(), "6004"), (Stdio::piped(), "6005")] {
        let child = tlctl(&daemon, &["run", "sleep", seconds]).stdin(input).spawn().expect("start the client");
        let words = format!("sleep {seconds}");
        daemon.wait_for_processes(&words, 1);
        // `env` and `setpriv` have become the client by now.
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("interrupt the client");
        let mut child = child;
        let stdin = child.stdin.take();
        let output = wait_for(child, "run");
        assert_eq!((output.status.code(), output.status.signal()), (Some(130), None));
        daemon.wait_until_gone(TIMEOUT, &words);
        drop(stdin);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_of_run() {
    let daemon = start_daemon();
    for input in [Stdio::null(), Stdio::piped()] {
        let mut child = tlctl(&daemon, &["run", "sh", "-c", "while echo x; do sleep 0.01; done; sleep 6008"])
            .stdin(input)
            .spawn()
            .expect("start the client");
        let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
        out.read_line(&mut String::new()).expect("a line");
        drop(out);
        let stdin = child.stdin.take();
        let output = wait_for(child, "run");
        assert_eq!((output.status.signal(), output.stderr.as_slice()), (Some(13), &b""[..]));
        daemon.wait_until_gone(TIMEOUT, "while echo x");
        drop(stdin);
    }
}

#[test]
fn processes_are_started_signalled_restarted_waited_for_and_stopped() {
    let daemon = start_daemon();
    let plain: u64 = out_of(&daemon, &["start", "--", "sh", "-c", "sleep 6006 & wait"]).trim().parse().expect("a PID");
    daemon.wait_for_processes("sleep 6006", 1);
    let waiting = tlctl(&daemon, &["wait", &plain.to_string()]).spawn().expect("start the client");
    out_of(&daemon, &["signal", "--scope", "tree", &plain.to_string(), "sigterm"]);
    assert_eq!(wait_for(waiting, "wait").status.code(), Some(143));
    let endless = daemon.sh("exec sleep 6007").to_string();
    for words in [&["--timeout=0.2"][..], &["--timeout=0.2", "--for=line", "--contains=x"]] {
        let output = ctl(&daemon, &[&["wait", endless.as_str()], words].concat());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("after 0.2 s") && output.status.code() == Some(1), "{message}");
    }
    daemon.wait_until_gone(TIMEOUT, "sleep 6006");
    let script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.01; done";
    let info = json_of(&daemon, &["start", "--json", "--name", "w b", "--restart=never", "--", "sh", "-c", script]);
    assert_eq!((&info["managed"]["name"], &info["managed"]["restart"]["policy"]), (&json!("w b"), &json!("never")));
    daemon.wait_for_stdout(info["pid"].as_u64().expect("a PID"), &["up"]);
    out_of(&daemon, &["signal", "w b", "USR1"]);
    assert_eq!(ctl(&daemon, &["wait", "w b"]).status.code(), Some(9));
    assert_eq!(out_of(&daemon, &["wait", "w b", "--for", "line", "--contains=u"]), "up\n");
    assert_eq!(json_of(&daemon, &["wait", "w b", "--json", "--for=line", "--contains=u"])["met"], true);
    for (words, part) in [
        (&["--for=line", "--contains=down", "--stream=stderr"][..], "has not written such a line and has ended"),
        (&["--for=port", "--port=1"], "does not listen on that port and has ended"),
        (&["--for=healthy"], "`for`"),
        (&["--for=port", "--port=70000"], "`port`"),
        (&["--for=line"], "wait: --for line needs --contains; see"),
        (&["--for=end", "--port=1"], "wait: --port is only for --for port; see"),
    ] {
        let output = ctl(&daemon, &[&["wait", "w b"], words].concat());
        let message = String::from_utf8_lossy(&output.stderr);
        let status = if part.ends_with("; see") { 2 } else { 1 };
        assert!(message.contains(part) && output.status.code() == Some(status), "{words:?}: {message}");
    }
    out_of(&daemon, &["start", "w b"]);
    let first = daemon.info(info["pid"].as_u64().expect("a PID"));
    assert_eq!((&first["status"], &first["managed"]["restart_count"]), (&json!("running"), &json!(1)));
    out_of(&daemon, &["start", "w b"]);
    let second = json_of(&daemon, &["restart", "--json", "w b"]);
    assert_eq!(second["managed"]["restart_count"], 2, "a start of what runs does nothing: {second}");
    assert_eq!(json_of(&daemon, &["pause", "--json", "w b"])["paused"], true);
    assert!(out_of(&daemon, &["status", "w b"]).contains("paused"));
    out_of(&daemon, &["resume", "w b"]);
    assert!(!out_of(&daemon, &["status", "w b"]).contains("paused"));
    out_of(&daemon, &["stop", "w b"]);
    assert_eq!(ctl(&daemon, &["status", "w b"]).status.code(), Some(3));
    expect_failure(&ctl(&daemon, &["pause", "w b"]), 1, "has ended");
    expect_failure(&ctl(&daemon, &["restart", &plain.to_string()]), 1, "not managed");
    expect_failure(&ctl(&daemon, &["signal", &plain.to_string(), "1"]), 1, "has ended");
}

#[test]
fn a_command_of_run_ends_when_nobody_reads_its_output() {
    let daemon = start_daemon();
    for (input, words) in [(Stdio::null(), "yes 6011"), (Stdio::piped(), "yes 6012")] {
        let mut command = tlctl(&daemon, &["run"]);
        let mut child = command.args(words.split(' ')).stdin(input).spawn().expect("start the client");
        let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
        out.read_line(&mut String::new()).expect("a line");
        drop(out);
        let stdin = child.stdin.take();
        let output = wait_for(child, "run");
        assert_eq!(
            (output.status.signal(), output.stderr.len()),
            (Some(Signal::SIGPIPE as i32), 0),
            "as with any other program"
        );
        daemon.wait_until_gone(TIMEOUT, words);
        drop(stdin);
    }
}

/// What the client writes to a terminal with this many columns.
fn on_terminal(daemon: &Daemon, columns: u16, args: &[&str], env: &[(&str, &str)]) -> String {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).expect("open a terminal");
    let mut command = tlctl(daemon, args);
    let slave = |fd: &OwnedFd| Stdio::from(fd.as_fd().try_clone_to_owned().expect("duplicate the descriptor"));
    command.envs(env.iter().copied()).stdout(slave(&terminal.slave)).stderr(slave(&terminal.slave));
    let child = command.spawn().expect("start the client");
    // The command and this process must not keep the terminal open.
    drop((command, terminal.slave));
    let mut bytes = Vec::new();
    // The end of a terminal is an error (EIO).
    let _ = File::from(terminal.master).read_to_end(&mut bytes);
    assert_eq!(wait_for(child, "the client").status.code(), Some(0));
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn tables_fit_the_terminal_and_have_no_control_characters() {
    let daemon = start_daemon();
    let evil = format!("sleep 6007 #\x1b[31m\u{202e}\r\n{}", "ü".repeat(100));
    daemon.sh(&evil);
    let name = "n".repeat(60);
    daemon.start_process(&json!({"command": "sleep", "args": ["6008"], "name": name}));
    for columns in [40_u16, 80, 200] {
        for args in [&["ps"][..], &["status", &name], &["boot"], &["top", "-n", "1"]] {
            let text = on_terminal(&daemon, columns, args, &[("NO_COLOR", "1")]);
            let text = text.strip_prefix("\x1b[H").unwrap_or(&text).replace("\x1b[K", "").replace("\x1b[J", "");
            for line in text.split("\r\n") {
                assert!(line.chars().count() <= columns.into(), "{args:?} {columns}: {line:?}");
                assert!(!line.contains(|letter: char| letter.is_control() || letter == '\u{202e}'), "{line:?}");
            }
            assert!(args[0] != "ps" || text.contains('…') == (columns < 200) || columns == 200, "{text}");
        }
    }
    // Without a terminal nothing is cut off.
    assert!(out_of(&daemon, &["ps"]).contains(&format!("#\\u{{1b}}[31m\\u{{202e}}\\r\\n{}'", "ü".repeat(100))));
}

#[test]
fn colours_are_for_terminals_only_and_can_be_turned_off() {
    let daemon = start_daemon();
    daemon.sh("sleep 6009");
    assert!(on_terminal(&daemon, 80, &["ps"], &[]).contains("\x1b[32mrunning\x1b[0m"));
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        assert!(!on_terminal(&daemon, 80, &["ps"], &[env]).contains('\x1b'), "{env:?}");
    }
    // A terminal that cannot move its cursor is shown the processes once.
    assert!(!on_terminal(&daemon, 80, &["top"], &[("TERM", "dumb")]).contains('\x1b'));
    assert!(!out_of(&daemon, &["ps"]).contains('\x1b'));
}

#[test]
fn usage_shows_what_a_process_has_used() {
    let daemon = start_daemon();
    let pid = daemon.sh("exit 0");
    daemon.wait_for_end(pid);
    let pid = pid.to_string();
    let text = out_of(&daemon, &["usage", &pid]);
    assert!(
        text.starts_with("Scope:      ") && text.contains("User CPU:   0.") && text.contains("Peak:       "),
        "{text}"
    );
    let usage = json_of(&daemon, &["--json", "usage", &pid]);
    assert_eq!(usage, daemon.get(&format!("/processes/{pid}/usage")).expect(200));
    expect_failure(&ctl(&daemon, &["usage", "nothing"]), 1, "nothing");
}

#[test]
fn limits_of_a_command_are_sent_with_it() {
    let daemon = start_daemon();
    let limit = ["run", "--limit", "open-files=99", "--limit=open-files=88", "--", "sh", "-c", "ulimit -n"];
    assert_eq!(out_of(&daemon, &limit), "88\n", "the last one counts");
    let start = ["start", "--json", "--limit", "open-files=77", "--", "sleep", "6011"];
    assert_eq!(json_of(&daemon, &start)["limits"]["open_files"], 77);
    let beyond = ["run", "--limit", "memory=8000000G", "true"];
    expect_failure(&ctl(&daemon, &beyond), 1, "`limits.memory_bytes` must be at most");
    expect_failure(&ctl(&daemon, &["run", "--limit", "memory=x", "true"]), 2, "--limit must have a number of bytes");
}

#[test]
fn top_shows_the_processes_as_often_as_asked() {
    let daemon = start_daemon();
    daemon.sh("sleep 6010");
    let text = out_of(&daemon, &["top", "-n", "2", "-d", "0.01"]);
    assert_eq!(text.matches("tl-init ").count(), 2, "{text}");
    assert_eq!(text.matches("sleep 6010").count(), 2, "{text}");
    assert_eq!(out_of(&daemon, &["top"]).matches("sleep 6010").count(), 1, "without a terminal once");
    let text = out_of(&daemon, &["top", "--json", "--count=2", "--delay=0.01"]);
    assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 2, "{text}");
}

#[test]
fn events_are_printed_one_a_line() {
    let mut daemon = start_daemon();
    daemon.run_sh("exit 3");
    start_web(&daemon);
    let text = out_of(&daemon, &["events"]);
    let lines: Vec<&str> = text.lines().map(|line| line.split_once("Z ").expect("a time").1).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("process.started ") && lines[0].ends_with(": sh, restart_count 0"), "{text}");
    assert!(lines[1].starts_with("process.ended ") && lines[1].ends_with(": exit 3"), "{text}");
    assert!(lines[2].starts_with("process.started web ("), "{text}");
    assert_eq!(out_of(&daemon, &["events", "--process", "web"]).lines().count(), 1);
    let json = out_of(&daemon, &["events", "--json", "--ports"]);
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((json.len(), &json[1]["exit_code"], &json[2]["name"]), (3, &json!(3), &json!("web")));
    let types: Vec<&Value> = json.iter().map(|event| &event["event"]).collect();
    assert_eq!(types, ["process.started", "process.ended", "process.started"]);
    expect_failure(&ctl(&daemon, &["events", "--process", "nothing"]), 1, "\"nothing\"");
    let mut child = tlctl(&daemon, &["events", "-f"]).spawn().expect("start the client");
    let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
    let mut kept = String::new();
    (0..3).for_each(|_| assert!(out.read_line(&mut kept).expect("a line") > 0));
    assert_eq!(kept, text);
    daemon.signal(Signal::SIGTERM);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the rest");
    assert_eq!(wait_for(child, "events -f").status.code(), Some(0), "{rest}");
    let told = ["daemon.shutdown\n", "process.ended web ("].map(|part| rest.find(&format!(" {part}")).expect(part));
    assert!(told[0] < told[1], "{rest}");
    daemon.wait_for_exit(TIMEOUT);
}

#[test]
fn ports_lists_who_listens_and_waits_for_a_port() {
    let daemon = start_daemon();
    let (closed, _reserved) = reserve_closed_port();
    let port = closed.to_string();
    let timed_out = ctl(&daemon, &["ports", "--wait", &port, "--timeout", "0.2"]);
    expect_failure(&timed_out, 1, &format!("nothing listens on port {port} after 0.2 s"));
    let json = ctl(&daemon, &["--json", "ports", "--wait", &port, "--timeout", "0", "--http-path", "/a b?c"]);
    expect_failure(&json, 1, "`http_path`");
    let json = ctl(&daemon, &["--json", "ports", "--wait", &port, "--timeout", "0", "--http-path", "/a?b"]);
    assert_eq!((json.status.code(), &*json.stdout), (Some(1), &b"{\"open\":false,\"port\":null}\n"[..]));
    let waiting =
        tlctl(&daemon, &["ports", "--wait", &port, "--http-path", "/"]).stdout(Stdio::piped()).spawn().unwrap();
    let args = ["-m", "http.server", "--bind", "127.0.0.2", &port];
    let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": args, "name": "web"})));
    let waited = wait_for(waiting, "tlctl ports --wait");
    let row = String::from_utf8(waited.stdout).unwrap().lines().nth(1).map(str::to_owned).unwrap_or_default();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[..4], [&*port, "127.0.0.2", &pid.to_string(), "web"], "{row}");
    let listed = out_of(&daemon, &["ports"]);
    assert!(listed.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words), "{listed}");
    assert_eq!(json_of(&daemon, &["--json", "ports"]), daemon.get("/ports").expect(200));
    expect_failure(&ctl(&daemon, &["ports", "--timeout", "1"]), 2, "--timeout is only for --wait");
    expect_failure(&ctl(&daemon, &["ports", "--wait", "70000"]), 1, "`port`");
}

#[test]
fn boot_shows_the_steps() {
    let daemon = start_daemon();
    let text = out_of(&daemon, &["boot"]);
    assert!(
        text.starts_with("STEP") && text.lines().any(|line| line.starts_with("listening") && line.contains(" ok "))
    );
    // The time of the step, with its fraction.
    let ms = daemon.boot()["steps"].as_array().expect("steps").iter().find(|step| step["name"] == "listening").unwrap()
        ["ms"]
        .to_string();
    assert!(text.contains(&format!(" {ms} ")), "{ms} in {text}");
    assert_eq!(json_of(&daemon, &["boot", "--json"]), daemon.boot());
}

#[test]
fn shutdown_ends_the_daemon_of_a_container() {
    let mut daemon = start_daemon();
    for flag in ["--reboot", "--halt", "--poweroff"] {
        expect_failure(&ctl(&daemon, &["shutdown", flag]), 1, "action");
    }
    expect_failure(&ctl(&daemon, &["shutdown", "--exit", "--halt"]), 2, "--halt and --exit");
    expect_failure(&ctl(&daemon, &["shutdown", "--grace", "86401"]), 2, "--grace must be at most 86400 seconds");
    expect_failure(&ctl(&daemon, &["shutdown", "--grace", "-1"]), 2, "--grace must be a number of seconds");
    daemon.sh("trap '' TERM; while :; do sleep 0.01; done");
    out_of(&daemon, &["shutdown", "--grace", "0"]);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
    // Without a URL, that of port 9501 of this host, which another daemon may have.
    let url = format!("http://{}", daemon.addr);
    expect_failure(&ctl(&daemon, &["--url", &url, "ps"]), 1, &format!("no daemon answers at {url}"));
}

#[test]
fn every_error_is_one_sentence() {
    let daemon = start_daemon();
    let (port, _kept) = reserve_closed_port();
    let closed = format!("http://127.0.0.1:{port}");
    let here = format!("http://{}", daemon.addr);
    let dir = tempfile::tempdir().expect("create a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write the file");
        path.to_str().expect("a path").to_owned()
    };
    let (wrong, empty) = (file("wrong", "wrong-token\n"), file("empty", "\n"));
    let nowhere = dir.path().join("nowhere").to_str().expect("a path").to_owned();
    for (args, part) in [
        (&["--url", &closed, "ps"][..], "start tl-init, or give its address with --url"),
        (&["--token-file", &wrong, "ps"], "refuses the token in"),
        (&["--token-file", &empty, "ps"], "printable ASCII"),
        (&["--token-file", &nowhere, "ps"], "nowhere"),
        (&["--run-dir", &nowhere, "--url", &here, "ps"], "name one with --token-file"),
        (&["logs", "nope"], "there is no process with name \"nope\""),
        (&["logs", "-f", "1"], "tlctl ps --all"),
        (&["wait", "a/b"], "\"a/b\""),
        (&["stop", "nope"], "nope"),
        (&["start", "nope"], "nope"),
        (&["signal", "nope", "1"], "nope"),
        (&["start", "--name", "a/b", "--", "true"], "`name`"),
    ] {
        let output = ctl(&daemon, args);
        expect_failure(&output, 1, part);
        for text in [&output.stdout, &output.stderr] {
            let token = daemon.token.as_bytes();
            assert!(!text.windows(token.len()).any(|window| window == token), "{args:?} prints the token");
        }
    }
    for (args, part) in [
        (&[][..], "the command is missing"),
        (&["fly"], "\"fly\""),
        (&["ps", "--nope"], "--nope"),
        (&["--url", "https://127.0.0.1", "ps"], "--url"),
        (&["--url", "http://no.such.host.invalid", "ps"], "/etc/hosts"),
        (&["logs", "-n", "x", "1"], "-n"),
        (&["run", "--timeout", "soon", "x"], "--timeout"),
        (&["signal", "1", "LOUD"], "LOUD"),
    ] {
        expect_failure(&ctl(&daemon, args), 2, part);
    }
    let mut command = tlctl(&daemon, &["ps"]);
    command.stdout(File::options().write(true).open("/dev/full").expect("a full disk"));
    expect_failure(&finish(command), 1, "cannot write the output");
}

#[test]
fn another_service_is_not_taken_for_the_daemon() {
    let daemon = start_daemon();
    for (response, part) in [
        ("SSH-2.0-OpenSSH\r\n", "not HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "is not a tl-init"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP status 404"),
        ("HTTP/1.1 302 Found\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "early"),
        ("", "early"),
    ] {
        let port = crate::harness::tcp_service(move |mut socket| {
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(response.as_bytes());
        });
        let url = format!("http://127.0.0.1:{port}");
        expect_failure(&ctl(&daemon, &["--url", &url, "ps"]), 1, part);
        if part.contains("status") {
            expect_failure(&ctl(&daemon, &["--url", &url, "signal", "x", "TERM"]), 1, part);
        }
    }
}

#[test]
fn a_user_who_may_not_read_the_token_is_told_what_to_do() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let client = tlctl(&daemon, &["ps"]);
    let mut command = bound_command("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(client.get_args().last().map_or("".into(), |_| daemon.scratch().join("tlctl")));
    command.arg("ps").env("TL_INIT_RUN_DIR", daemon.state_dir().join("run"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    expect_failure(&finish(command), 1, "run tlctl as root or as the user of the daemon");
}

#[test]
fn settings_come_from_the_environment_and_from_init_conf() {
    let dir = tempfile::tempdir().expect("create a directory");
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).expect("write the token");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set the mode");
    let token = token.to_str().expect("a path");
    let daemon = Options::default().args(&["--token-file", token]).start();
    expect_failure(&ctl(&daemon, &["ps"]), 1, "requires a token");
    out_of(&daemon, &["--token-file", token, "ps"]);
    std::fs::write(dir.path().join("init.conf"), format!("TL_INIT_TOKEN_FILE={token}\n")).expect("write init.conf");
    let mut command = tlctl(&daemon, &["ps"]);
    command.env("TL_INIT_CONFIG_DIR", dir.path());
    assert_eq!(finish(command).status.code(), Some(0));
    let mut command = tlctl(&daemon, &["ps"]);
    command.env("TL_INIT_URL", format!("http://localhost:{}/", daemon.addr.port())).env("TL_INIT_TOKEN_FILE", token);
    command.env("TL_INIT_RUN_DIR", "/nowhere");
    assert_eq!(finish(command).status.code(), Some(0));
    let mut command = tlctl(&daemon, &["ps"]);
    command.env("TL_INIT_URL", "nonsense");
    expect_failure(&finish(command), 2, "TL_INIT_URL");
    // A daemon without authentication has no token file.
    let daemon = Options::default().args(&["--no-auth"]).start();
    out_of(&daemon, &["ps"]);
}

#[test]
fn help_and_version_are_the_same_by_both_names() {
    let daemon = start_daemon();
    for args in [&["--help"][..], &["run", "--help"], &["--version"], &["-V"]] {
        let by_name = out_of(&daemon, args);
        let output = Command::new(program()).arg("ctl").args(args).output().expect("run the program");
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout)), (Some(0), by_name.as_str().into()));
    }
    assert_eq!(out_of(&daemon, &["-V"]), format!("tlctl {}\n", env!("CARGO_PKG_VERSION")));
    let mut command = Command::new(program());
    command.args(["ctl", "ps"]).env("TL_INIT_RUN_DIR", daemon.state_dir().join("run"));
    assert_eq!(command.output().expect("run the program").status.code(), Some(0));
}

#[test]
fn the_client_leaves_nothing_behind_in_the_daemon() {
    let daemon = start_daemon();
    daemon.run_sh("true");
    let before = daemon.threads_and_descriptors();
    for _ in 0..20 {
        out_of(&daemon, &["ps"]);
        out_of(&daemon, &["run", "true"]);
    }
    daemon.wait_until_released(before);
    daemon.wait_until_idle(Duration::from_millis(200));
}
