//! Processes that close their standard streams, exchange them, or change how their pipes work.

use serde_json::{Value, json};

use crate::harness::baseline::{Baseline, check_others_are_served};
use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, start_daemon, wait_until};

fn sh(daemon: &Daemon, script: &str) -> (Option<u64>, Vec<String>, Vec<String>) {
    let run = daemon.run_sh(script);
    (run.code(), run.lines("stdout"), run.lines("stderr"))
}

#[test]
fn a_process_can_close_and_exchange_its_streams() {
    let daemon = start_daemon();
    let before = Baseline::of(&daemon);
    for (script, code, stdout, stderr) in [
        ("echo a; echo b >&2; exec <&- >&- 2>&-; exit 3", 3, "a", "b"),
        ("exec 3>&1 1>&2 2>&3 3>&-; echo a; echo b >&2", 0, "b", "a"),
        ("exec 2>&1; echo a; exec >&-; echo b >&2", 0, "a b", ""),
        ("exec >&2; echo a; exec 2>&-; echo b", 0, "", "a b"),
        ("exec 0>&1 1>&-; echo a >&0", 0, "a", ""),
        ("exec 1<&0; echo a 2>/dev/null; exit 5", 5, "", ""),
        ("exec 9>&1 1>&-; (sleep 0.2; echo late >&9) & exec 9>&-; wait", 0, "late", ""),
    ] {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(sh(&daemon, script), (Some(code), words(stdout), words(stderr)), "{script}");
    }
    before.check_restored(&daemon);
}

/// Its pipes are closed, it runs on, and it can be killed like any other.
#[test]
fn a_process_without_streams_runs_until_it_is_killed() {
    let daemon = start_daemon();
    let before = Baseline::of(&daemon);
    let body = json!({"command": "sh", "args": ["-c", "echo a; exec <&- >&- 2>&-; exec sleep 4790"],
        "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&body));
    let sleep = daemon.wait_for_processes("sleep 4790", 1)[0];
    // While it starts, it opens its libraries.
    wait_until(TIMEOUT, "it has no descriptor", || procfs::descriptors(sleep).is_empty().then_some(()));
    let mut follower = daemon.follow(pid, "stdout");
    assert_eq!(follower.next_frame().expect("an event").data["line"], "a");
    let pipes = || procfs::descriptors(daemon.pid).iter().filter(|(_, target)| target.starts_with("pipe:")).count();
    let pipes_before = pipes();
    let stdin = || daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"x")).status;
    wait_until(TIMEOUT, "a write to its stdin is refused", || (stdin() == 409).then_some(()));
    assert!(pipes() <= pipes_before, "no pipe is opened again");
    assert_eq!(daemon.info(pid)["status"], "running");
    daemon.delete_tree(pid, &["sleep 4790"]);
    follower.until_eof();
    before.check_restored(&daemon);
}

/// Copies stdin to stdout and stderr, a line at a time, and then writes 1 MB to each. Before each write it changes how its
/// pipes work; a write that would block is repeated.
const COPY: &str = r#"
import fcntl, os, select, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
def write(fd, data):
    change()
    while data:
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:
            select.select([], [fd], [])
def read():
    while True:
        try:
            return os.read(0, 65536)
        except BlockingIOError:
            select.select([0], [], [])
change()
while data := read():
    write(1, data)
    write(2, data)
for number in range(10_000):
    write(1, b"%d" % number + b"o" * 94 + b"\n")
    write(2, b"%d" % number + b"e" * 94 + b"\n")
"#;

/// The ways in which pipes are changed: definitions of the function `change`.
const CHANGES: [(&str, &str); 6] = [
    ("non-blocking", "def change():\n    for fd in range(3): os.set_blocking(fd, False)\n"),
    (
        "non-blocking packets, and signals to PID 1 for each",
        "def change():
    for fd in range(3):
        try: fcntl.fcntl(fd, fcntl.F_SETOWN, 1)
        except OSError: pass
        fcntl.fcntl(fd, fcntl.F_SETSIG, 9)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK | os.O_ASYNC)
",
    ),
    ("4 KiB", "def change():\n    for fd in range(3): size(fd, 4096)\n"),
    ("1 MiB", "def change():\n    for fd in range(3): size(fd, 1 << 20)\n"),
    (
        "4 KiB and 1 MiB in turns",
        "turn = 0
def change():
    global turn
    turn += 1
    for fd in range(3): size(fd, 4096 if turn % 2 else 1 << 20)
",
    ),
    (
        "each stream opened again for both directions",
        "held = []
def change():
    if not held: held.extend(os.open('/proc/self/fd/%d' % fd, os.O_RDWR | os.O_NONBLOCK) for fd in (1, 2))
",
    ),
];

/// A pipe that holds more than the new size cannot be changed.
const SIZE: &str = "
def size(fd, bytes):
    try: fcntl.fcntl(fd, 1031, bytes)
    except OSError: pass
";

#[test]
fn a_process_that_changes_its_pipes_loses_no_byte_and_delays_no_other() {
    let daemon = start_daemon();
    let before = Baseline::of(&daemon);
    for (name, change) in CHANGES {
        for user in [Value::Null, json!("root")] {
            let script = COPY.replacen("\ndef write", &format!("{SIZE}{change}\ndef write"), 1);
            let body = json!({"command": "python3", "args": ["-c", script], "stdin_mode": "pipe", "user": user});
            let pid = pid_of(&daemon.start_process(&body));
            let typed: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
            daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(typed.as_bytes())).expect(204);
            check_others_are_served(&daemon);
            daemon.post(&format!("/processes/{pid}/stdin/close"), &json!({})).expect(204);
            assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0, "{name}: {:?}", daemon.lines(pid, "stderr"));
            for (stream, letter) in [("stdout", "o"), ("stderr", "e")] {
                let rest = (0..10_000).map(|number| format!("{number}{}\n", letter.repeat(94)));
                let right: String = std::iter::once(typed.clone()).chain(rest).collect();
                assert!(daemon.raw_output(pid, stream) == right.as_bytes(), "{name}, {user}: {stream}");
            }
            daemon.delete(&format!("/processes/{pid}")).expect(204);
        }
    }
    before.check_restored(&daemon);
}
