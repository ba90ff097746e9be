//! Captured output, byte for byte, in every view.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, start_daemon, wait_until};

/// The lines of these bytes, with U+FFFD for invalid UTF-8.
fn decode_lines(bytes: &[u8]) -> Vec<String> {
    let mut pieces: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    if pieces.last().is_some_and(|piece| piece.is_empty()) {
        pieces.pop();
    }
    pieces.into_iter().map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
}

/// Runs a script and checks every view of its stdout against the bytes that it writes.
fn check_every_view(daemon: &Daemon, script: &str, bytes: &[u8]) {
    let expected = decode_lines(bytes);
    let run = daemon.run_sh(script);
    assert_eq!(run.code(), Some(0), "{script}: {}", run.last);
    assert_eq!(run.lines("stdout"), expected, "run: {script}");
    let pid = run.pid();
    assert_eq!(daemon.lines(pid, "stdout"), expected, "GET stdout: {script}");
    assert_eq!(daemon.lines(pid, "output"), expected, "GET output: {script}");
    assert_eq!(daemon.lines(pid, "stderr"), [""; 0], "GET stderr: {script}");
    assert_eq!(daemon.raw_output(pid, "stdout"), bytes, "raw: {script}");
    assert_eq!(daemon.raw_output(pid, "output"), bytes, "raw output: {script}");
    for view in ["stdout", "output"] {
        assert_eq!(daemon.follow(pid, view).all_lines(), expected, "follow {view}: {script}");
    }
}

#[test]
fn unusual_output_is_kept_byte_for_byte_in_every_view() {
    let daemon = start_daemon();
    let cases: &[(&str, &[u8])] = &[
        ("true", b""),
        ("printf 'a\\nb\\n'", b"a\nb\n"),
        ("printf 'a\\nunterminated'", b"a\nunterminated"),
        ("printf '\\n\\na\\n\\n'", b"\n\na\n\n"),
        ("printf '\\n'", b"\n"),
        ("printf 'a\\rb\\r\\n'", b"a\rb\r\n"),
        ("printf 'nul \\000 byte\\n'", b"nul \0 byte\n"),
        ("printf '\\377\\376 odd\\n'", b"\xff\xfe odd\n"),
        ("printf '\\360\\237\\n\\230'", b"\xf0\x9f\n\x98"),
        ("printf '\\303'; sleep 0.05; printf '\\251t\\303\\251\\n'", "été\n".as_bytes()),
        ("printf 'data: x\\nevent: eof\\nid: 1\\n: c\\n'", b"data: x\nevent: eof\nid: 1\n: c\n"),
        ("printf 'quote \" back \\\\ tab \\t esc \\033[0m\\n'", b"quote \" back \\ tab \t esc \x1b[0m\n"),
        ("printf '\\342\\200\\250 \\357\\277\\277 \\177\\n'", "\u{2028} \u{ffff} \u{7f}\n".as_bytes()),
    ];
    for (script, bytes) in cases {
        check_every_view(&daemon, script, bytes);
    }
}

#[test]
fn a_line_longer_than_1_mib_is_sent_in_partial_pieces() {
    let daemon = start_daemon();
    const MIB: usize = 1 << 20;
    let run = daemon.run_sh("head -c 67108864 /dev/zero | tr '\\0' x; echo tail; printf short");
    let pieces = &run.events;
    assert_eq!(pieces.len(), 66, "64 pieces, the rest of the line, one more line");
    for (number, event) in pieces.iter().enumerate() {
        let line = event["line"].as_str().expect("a line");
        let partial = event.get("partial").is_some_and(|partial| partial == true);
        match number {
            0..64 => assert!(partial && line.len() == MIB && line.bytes().all(|b| b == b'x'), "piece {number}"),
            64 => assert!(!partial && line == "tail", "{line}"),
            _ => assert!(!partial && line == "short", "{line}"),
        }
    }
    let raw = daemon.raw_output(run.pid(), "stdout");
    assert_eq!(raw.len(), 64 * MIB + 10);
    assert!(raw[..64 * MIB].iter().all(|&byte| byte == b'x') && &raw[64 * MIB..] == b"tail\nshort");
}

#[test]
fn a_raw_tail_returns_the_bytes_of_the_last_lines() {
    let daemon = start_daemon();
    let pid = daemon.run_sh("printf 'a\\r\\n\\nb\\377\\nlast'; echo x >&2").pid();
    let tails: [&[u8]; 6] =
        [b"", b"last", b"b\xff\nlast", b"\nb\xff\nlast", b"a\r\n\nb\xff\nlast", b"a\r\n\nb\xff\nlast"];
    for (n, bytes) in tails.into_iter().enumerate() {
        assert_eq!(daemon.raw_output(pid, &format!("stdout?tail={n}")), bytes, "{n}");
    }
    assert_eq!(daemon.raw_output(pid, "stderr?tail=1"), b"x\n");
    assert_eq!(daemon.raw_output(pid, "output?tail=10").len(), b"a\r\n\nb\xff\nlastx\n".len());
    let response =
        daemon.open("GET", &format!("/processes/{pid}/stdout?tail=x"), "Accept: application/octet-stream\r\n", b"");
    response.into_response("tail=x").expect_error(400, "INVALID_REQUEST", "tail");
}

#[test]
fn combined_output_keeps_the_order_of_both_streams() {
    let daemon = start_daemon();
    // Each line is written after the previous one was read: lines that are in both pipes at once have no order.
    let scratch = daemon.scratch();
    nix::unistd::mkfifo(&scratch.join("go"), nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("create a FIFO");
    // Opened for reading and writing, so that the open does not wait for the other end.
    let mut go = std::fs::OpenOptions::new().read(true).write(true).open(scratch.join("go")).expect("open the FIFO");
    let script = "exec 3<go; echo 1; read x <&3; echo 2 >&2; read x <&3; echo 3; read x <&3; echo 4 >&2";
    let body = json!({"command": "sh", "args": ["-c", script], "working_dir": scratch});
    let run = std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run(&body));
        for count in 1..4 {
            wait_until(TIMEOUT, "the line is in the log", || {
                let pid = pid_of(daemon.list().first()?);
                (daemon.lines(pid, "output").len() == count).then_some(())
            });
            std::io::Write::write_all(&mut go, b"go\n").expect("release the process");
        }
        run.join().expect("the run")
    });
    let received: Vec<_> = run.events.iter().map(|event| (event["stream"].clone(), event["line"].clone())).collect();
    let expected: Vec<_> = [("stdout", "1"), ("stderr", "2"), ("stdout", "3"), ("stderr", "4")]
        .map(|(stream, line)| (json!(stream), json!(line)))
        .to_vec();
    assert_eq!(received, expected);
    assert_eq!(daemon.lines(run.pid(), "output"), ["1", "2", "3", "4"]);
    let frames = daemon.follow(run.pid(), "output").until_eof();
    let followed: Vec<_> = frames.iter().map(|f| (f.data["stream"].clone(), f.data["line"].clone())).collect();
    assert_eq!(followed, expected);
    // Only combined output names the stream.
    assert!(daemon.follow(run.pid(), "stdout").until_eof().iter().all(|frame| frame.data.get("stream").is_none()));
}

#[test]
fn an_unterminated_line_is_listed_at_once() {
    let daemon = start_daemon();
    let start = json!({"command": "sh", "args": ["-c", "printf prompt; read x; echo \" $x\""], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&start));
    daemon.wait_for_stdout(pid, &["prompt"]);
    daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"answer\n")).expect(204);
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    assert_eq!(daemon.lines(pid, "stdout"), ["prompt answer"]);
}

#[test]
fn discarded_output_goes_to_dev_null_and_is_not_logged() {
    let daemon = start_daemon();
    let start =
        json!({"command": "sh", "args": ["-c", "echo out; echo err >&2; exec sleep 5200"], "stdout_mode": "discard"});
    let pid = pid_of(&daemon.start_process(&start));
    let host = wait_until(TIMEOUT, "the process is up", || daemon.pids_executing("sleep 5200").first().copied());
    wait_until(TIMEOUT, "the other stream is captured", || (daemon.lines(pid, "stderr") == ["err"]).then_some(()));
    assert_eq!(procfs::descriptors(host)[1].1, "/dev/null");
    assert_eq!(daemon.lines(pid, "stdout"), [""; 0]);
}

#[test]
fn output_is_complete_as_soon_as_the_process_is_shown_as_ended() {
    let daemon = start_daemon();
    for _ in 0..100 {
        let begun = Instant::now();
        let pid = daemon.sh("seq 1 3000");
        let mut info = daemon.info(pid);
        // Polls as clients do, without the wait endpoint.
        while info["status"] == "running" {
            info = daemon.info(pid);
        }
        let took = begun.elapsed();
        if daemon.lines(pid, "stdout").len() != 3000 {
            // An end is reported after 1 s even if the log does not accept the output by then. On a busy machine, the
            // thread that writes the log may be suspended for that long.
            assert!(took >= Duration::from_secs(1), "incomplete after {took:?}");
            assert_eq!(daemon.follow(pid, "stdout").all_lines().len(), 3000);
        }
    }
}
