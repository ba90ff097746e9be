//! Standard input over the API: any amount, with bounded memory, without delay for other requests.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::response::{CompletedRun, ResponseStream};
use crate::harness::{Daemon, Response, TIMEOUT, check_most_take_less, pid_of, procfs, start_daemon, wait_until};

fn start_with_stdin_pipe(daemon: &Daemon, script: &str) -> u64 {
    pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"})))
}

fn write(daemon: &Daemon, pid: u64, bytes: &[u8]) -> Response {
    daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(bytes))
}

fn close(daemon: &Daemon, pid: u64) -> Response {
    daemon.request("POST", &format!("/processes/{pid}/stdin/close"), Some(b""))
}

#[test]
fn written_bytes_arrive_in_order_until_stdin_is_closed() {
    let daemon = start_daemon();
    let pid = start_with_stdin_pipe(&daemon, "cat");
    assert_eq!(daemon.info(pid)["stdin_writable"], true);
    for bytes in [b"one\n".as_slice(), b"", b"two \xff\0\n", b"three"] {
        assert_eq!(write(&daemon, pid, bytes).expect(204), Value::Null);
    }
    close(&daemon, pid).expect(204);
    let info = daemon.wait_for_end(pid);
    assert_eq!((info["exit_code"].as_u64(), &info["stdin_writable"]), (Some(0), &json!(false)));
    assert_eq!(daemon.raw_output(pid, "stdout"), b"one\ntwo \xff\0\nthree");
    write(&daemon, pid, b"x").expect_error(409, "STDIN_CLOSED", "");
    close(&daemon, pid).expect(204);
}

#[test]
fn a_write_to_a_closed_stdin_is_409() {
    let daemon = start_daemon();
    let pid = start_with_stdin_pipe(&daemon, "cat; sleep 4300");
    close(&daemon, pid).expect(204);
    close(&daemon, pid).expect(204);
    assert_eq!(daemon.info(pid)["stdin_writable"], false);
    write(&daemon, pid, b"x").expect_error(409, "STDIN_CLOSED", "");
    // The process closes its stdin itself.
    let pid = start_with_stdin_pipe(&daemon, "exec <&-; echo closed; sleep 4300");
    daemon.wait_for_stdout(pid, &["closed"]);
    write(&daemon, pid, b"x").expect_error(409, "STDIN_CLOSED", "");
}

#[test]
fn stdin_of_a_process_without_a_pipe_is_400() {
    let daemon = start_daemon();
    let pid = daemon.sh("sleep 4301");
    assert_eq!(daemon.info(pid)["stdin_writable"], false);
    write(&daemon, pid, b"x").expect_error(400, "STDIN_NOT_WRITABLE", "stdin_mode");
    close(&daemon, pid).expect_error(400, "STDIN_NOT_WRITABLE", "stdin_mode");
}

#[test]
fn a_body_of_64_mib_is_streamed_with_bounded_memory() {
    let daemon = start_daemon();
    let pid = start_with_stdin_pipe(&daemon, "cat");
    let block: Vec<u8> = (0..1_u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let before = procfs::kilobytes(daemon.pid, "VmHWM");
    let length = format!("Content-Length: {}\r\n", 64 << 20);
    let head = daemon.request_head("POST", &format!("/processes/{pid}/stdin"), &length);
    let mut socket = daemon.connect();
    socket.write_all(head.as_bytes()).expect("the head");
    for _ in 0..64 {
        socket.write_all(&block).expect("a block");
    }
    assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
    close(&daemon, pid).expect(204);
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    let raw = daemon.raw_output(pid, "stdout");
    assert!(raw.len() == 64 << 20 && raw.chunks(1 << 20).all(|chunk| chunk == block), "{} bytes", raw.len());
    let after = procfs::kilobytes(daemon.pid, "VmHWM");
    assert!(after < before + 8 * 1024, "memory rose from {before} to {after} kB");
}

#[test]
fn a_chunked_body_is_passed_on_chunk_by_chunk() {
    let daemon = start_daemon();
    let pid = start_with_stdin_pipe(&daemon, "cat");
    let mut socket = daemon.connect();
    let path = format!("/processes/{pid}/stdin");
    let head = daemon.request_head("POST", &path, "Transfer-Encoding: chunked\r\n");
    socket.write_all(head.as_bytes()).expect("the head");
    socket.write_all(b"6\r\nfirst\n\r\n").expect("a chunk");
    daemon.wait_for_stdout(pid, &["first"]);
    socket.write_all(b"7;x=y\r\nsecond\n\r\n0\r\n\r\n").expect("the rest");
    assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
    daemon.wait_for_stdout(pid, &["first", "second"]);
}

#[test]
fn a_process_that_never_reads_delays_only_its_writer() {
    let daemon = start_daemon();
    let deaf = start_with_stdin_pipe(&daemon, "exec sleep 4302");
    let cat = start_with_stdin_pipe(&daemon, "cat");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| daemon.post_refused(&format!("/processes/{deaf}/stdin"), &vec![b'x'; 4 << 20]));
        check_most_take_less(Duration::from_secs(3), 200, || {
            write(&daemon, cat, b"x\n").expect(204);
            assert_eq!(daemon.run_sh("echo x").stdout(), "x");
            assert_eq!(daemon.info(deaf)["status"], "running");
        });
        assert!(!writer.is_finished(), "the pipe holds less than that");
        daemon.delete(&format!("/processes/{deaf}")).expect(204);
        writer.join().expect("the writer").expect_error(409, "STDIN_CLOSED", "");
    });
}

/// Runs a script to completion; `more` holds further fields of the body.
fn run_with_fields(daemon: &Daemon, script: &str, more: Value) -> CompletedRun {
    let mut body = json!({"command": "sh", "args": ["-c", script]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    daemon.run(&body)
}

#[test]
fn a_run_gets_its_input_and_then_end_of_file() {
    let daemon = start_daemon();
    // Text without a final newline, empty text, and bytes that are not UTF-8.
    assert_eq!(
        run_with_fields(&daemon, "cat; echo end", json!({"stdin": "one\ntwo"})).lines("stdout"),
        ["one", "twoend"]
    );
    assert_eq!(run_with_fields(&daemon, "cat; echo end", json!({"stdin": ""})).stdout(), "end");
    assert_eq!(run_with_fields(&daemon, "od -An -tx1", json!({"stdin_base64": "/wAKgA=="})).stdout(), " ff 00 0a 80");
    // Nearly as much as a request body may hold, also to a slow reader.
    let text = format!("{}\n", "0123456789abcdef".repeat(60_000));
    let slow = "head -c 1; sleep 0.3; cat";
    for script in ["cat", slow, "wc -c"] {
        let run = run_with_fields(&daemon, script, json!({"stdin": text}));
        let right = if script == "wc -c" { text.len().to_string() } else { text.trim_end().to_owned() };
        assert!(run.stdout() == right, "{script}");
    }
    // A background child gets end-of-file too; after the end stdin is closed.
    assert_eq!(run_with_fields(&daemon, "exec 3<&0; cat <&3 & wait", json!({"stdin": "x"})).stdout(), "x");
    let run = run_with_fields(&daemon, "cat >/dev/null", json!({"stdin": "x"}));
    let info = daemon.info(run.pid());
    assert_eq!((&info["stdin_writable"], &info["status"]), (&json!(false), &json!("exited")));
}

#[test]
fn a_run_that_does_not_read_its_input_ends_normally() {
    let daemon = start_daemon();
    // Counted with the client's keep-alive connection, but before the first run: the end of a run is reported shortly
    // before its pipes are closed.
    daemon.list();
    let before = daemon.threads_and_descriptors();
    let text = "x".repeat(900_000);
    for _ in 0..10 {
        // The command reads nothing, reads a part, or closes stdin.
        for (script, right) in [
            ("seq 50000 | tail -1; exit 3", "50000"),
            ("head -c 2; echo; exit 3", "xx"),
            ("exec <&-; echo closed; exit 3", "closed"),
        ] {
            let run = run_with_fields(&daemon, script, json!({"stdin": text}));
            assert_eq!((run.code(), run.lines("stdout")), (Some(3), vec![right.to_owned()]), "{script}");
        }
    }
    // Other requests cannot write to the stdin of a run, whether it reads or not.
    let mut events = daemon.open_run(&json!({"command": "sleep", "args": ["4303"], "stdin": text}));
    let first = events.next_frame().expect("a first event").data;
    let pid = first["pid"].as_u64().expect("a PID");
    wait_until(TIMEOUT, "the stdin of the run is no longer writable", || {
        (daemon.info(pid)["stdin_writable"] == false).then_some(())
    });
    write(&daemon, pid, b"more").expect_error(409, "STDIN_CLOSED", "");
    close(&daemon, pid).expect(204);
    drop(events);
    daemon.wait_until_gone(TIMEOUT, "sleep 4303");
    let timed_out = run_with_fields(&daemon, "sleep 4304", json!({"stdin": text, "timeout_secs": 0.2}));
    assert_eq!(timed_out.last["reason"], "timed_out");
    daemon.wait_until_released(before);
    for (more, needle) in [
        (json!({"stdin": "a", "stdin_base64": "YQ=="}), "stdin_base64"),
        (json!({"stdin_base64": "***"}), "base64"),
        (json!({"stdin": 5}), "`stdin`"),
        (json!({"timeout": 5, "timeout_secs": 5}), "timeout_secs"),
        (json!({"timeout_secs": 0}), "`timeout_secs`"),
        (json!({"env": {"A B": "1"}}), "`env`"),
    ] {
        let mut body = json!({"command": "true"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        daemon.post("/processes/run", &body).expect_error(400, "INVALID_REQUEST", needle);
    }
}
