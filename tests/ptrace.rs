//! Traced processes: by the daemon, which a child can make its tracer, and by other processes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, start_daemon, wait_until};

/// Makes the parent of the program its tracer, then sends itself signals, each of which stops a tracee.
const TRACE_ME: &str = r#"
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
heard = []
for number in (10, 17, 40):
    signal.signal(number, lambda number, frame: heard.append(number))
assert libc.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()
for number in (10, 17, 40):
    os.kill(os.getpid(), number)
print("alive after", heard, flush=True)
"#;

#[test]
fn a_stop_of_a_tracee_of_the_daemon_is_not_an_exit() {
    let daemon = start_daemon();
    let run = daemon.run(&json!({"command": "python3", "args": ["-c", format!("{TRACE_ME}sys.exit(7)")]}));
    assert_eq!(run.code(), Some(7), "{run:?}");
    assert_eq!(run.lines("stdout"), ["alive after [10, 17, 40]"]);
}

#[test]
fn a_signal_ends_a_tracee_of_the_daemon() {
    let daemon = start_daemon();
    let run = daemon.run(&json!({"command": "python3", "args": ["-c", format!("{TRACE_ME}os.kill(os.getpid(), 15)")]}));
    assert_eq!(run.last["signal"], 15, "{run:?}");
    assert_eq!(run.lines("stdout"), ["alive after [10, 17, 40]"]);
}

/// An exec stops a tracee with SIGTRAP, which kills a process that is not traced.
#[test]
fn a_tracee_of_the_daemon_can_exec() {
    let daemon = start_daemon();
    let exec = "os.execvp('sh', ['sh', '-c', 'echo executed; exit 5'])";
    let run = daemon.run(&json!({"command": "python3", "args": ["-c", format!("{TRACE_ME}{exec}")]}));
    assert_eq!(run.code(), Some(5));
    assert_eq!(run.lines("stdout"), ["alive after [10, 17, 40]", "executed"]);
}

/// SIGCONT continues a stopped tracee like any other process.
#[test]
fn a_stopped_tracee_can_be_continued_and_signalled() {
    let daemon = start_daemon();
    let script = format!("{TRACE_ME}os.kill(os.getpid(), 19); print('continued', flush=True); signal.pause()");
    let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": ["-c", script]})));
    let python = wait_until(TIMEOUT, "the process is stopped", || {
        let found = daemon.pids_executing("python3").first().copied()?;
        procfs::status(found, "State")?.starts_with("T (stopped)").then_some(found)
    });
    assert_eq!(procfs::status(python, "TracerPid").as_deref(), Some("0"), "the tracee is detached");
    assert_eq!(daemon.info(pid)["status"], "running");
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 18})).expect(200);
    wait_until(TIMEOUT, "the process continues", || {
        daemon.lines(pid, "stdout").contains(&"continued".to_owned()).then_some(())
    });
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 15})).expect(200);
    assert_eq!(daemon.wait_for_end(pid)["signal"], 15);
}

/// The parent of an orphan is the main thread of PID 1: no other thread can detach from it.
#[test]
fn an_orphan_that_makes_the_daemon_its_tracer_continues() {
    for options in [Options::default(), Options::subreaper()] {
        let daemon = options.start();
        // The daemon becomes its parent when the shell ends.
        let wait = "import os, time\nparent = os.getppid()\nopen('ready', 'w')\nwhile os.getppid() == parent: time.sleep(0.01)\n";
        let script = "python3 -c \"$0\" & while [ ! -e ready ]; do sleep 0.01; done; exit 0";
        let body = json!({"command": "sh", "args": ["-c", script, format!("{wait}{TRACE_ME}")],
            "working_dir": daemon.scratch()});
        let pid = pid_of(&daemon.start_process(&body));
        daemon.wait_for_end(pid);
        wait_until(TIMEOUT, "the process continues", || {
            (daemon.lines(pid, "stdout") == ["alive after [10, 17, 40]"]).then_some(())
        });
    }
}

/// The container must end with its main process, and not before.
#[test]
fn a_traced_main_process_ends_the_container_only_with_its_exit() {
    let scratch = tempfile::tempdir().expect("create a directory");
    let (up, go) = (scratch.path().join("up"), scratch.path().join("go"));
    let wait =
        "open(sys.argv[1], 'w')\nwhile not os.path.exists(sys.argv[2]): signal.sigtimedwait([], 0.01)\nsys.exit(9)";
    let (script, paths) = (format!("{TRACE_ME}{wait}"), [&up, &go].map(|path| path.to_str().expect("a path")));
    let mut daemon = Options::default()
        .args(&["--default-user", "root", "--", "python3", "-c", &script, paths[0], paths[1]])
        .start();
    wait_until(TIMEOUT, "the main process was stopped and continues", || up.exists().then_some(()));
    assert_eq!(daemon.try_health(), Some(200));
    std::fs::write(&go, "").expect("release the process");
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(9));
}

/// A tracer in another unit that attaches to the process whose PID it reads, and never waits for it.
const TRACER: &str = r#"
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
print("up", flush=True)
assert libc.ptrace(0x4206, int(sys.stdin.readline()), 0, 0) == 0, ctypes.get_errno()
print("attached", flush=True)
time.sleep(600)
"#;

fn start_tracer(daemon: &Daemon) -> u64 {
    let body = json!({"command": "python3", "args": ["-c", TRACER], "stdin_mode": "pipe"});
    let tracer = pid_of(&daemon.start_process(&body));
    daemon.wait_for_stdout(tracer, &["up"]);
    tracer
}

fn attach(daemon: &Daemon, tracer: u64, pid: u64) {
    daemon.request("POST", &format!("/processes/{tracer}/stdin"), Some(format!("{pid}\n").as_bytes())).expect(204);
    wait_until(TIMEOUT, "the tracer is attached", || {
        assert_eq!(daemon.info(tracer)["status"], "running", "{:?}", daemon.lines(tracer, "stderr"));
        (daemon.lines(tracer, "stdout") == ["up", "attached"]).then_some(())
    });
}

fn trace(daemon: &Daemon, pid: u64) {
    attach(daemon, start_tracer(daemon), pid);
}

fn running_processes(daemon: &Daemon) -> Value {
    daemon.get("/info").expect(200)["running_processes"].clone()
}

#[test]
fn a_tracer_does_not_delay_the_end_of_a_run() {
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.args(&["--max-processes", "3"]).start();
        // Started first, because a start of Python may take seconds on a busy machine.
        let tracer = start_tracer(&daemon);
        let begun = Instant::now();
        let mut run = daemon.open_run(&json!({"command": "sleep", "args": ["5801"], "timeout": 6}));
        let first = run.next_frame().expect("the first event");
        let pid = first.data["pid"].as_u64().expect("a PID");
        attach(&daemon, tracer, pid);
        let last = run.next_frame().expect("the last event");
        let took = begun.elapsed();
        assert_eq!((&last.data["reason"], &last.data["signal"]), (&json!("timed_out"), &json!(9)));
        // The limit is 1 s after the timeout; the margin is for a busy machine.
        assert!(took >= Duration::from_secs(6) && took < Duration::from_secs(16), "{took:?}");
        assert_eq!(daemon.info(pid)["status"], "signaled");
        // The process still exists and counts as running.
        assert_eq!(running_processes(&daemon), 1);
        let other = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["5802"]})));
        daemon.post("/processes", &json!({"command": "true"})).expect_error(429, "TOO_MANY_PROCESSES", "3");
        daemon.delete(&format!("/processes/{tracer}")).expect(204);
        for which in ["the tracer", "the process"] {
            wait_until(TIMEOUT, &format!("{which} no longer counts as running"), || {
                (daemon.post("/processes", &json!({"command": "sleep", "args": ["5803"]})).status == 201).then_some(())
            });
        }
        daemon.post("/processes", &json!({"command": "true"})).expect_error(429, "TOO_MANY_PROCESSES", "3");
        assert_eq!(daemon.info(other)["status"], "running");
    }
}

#[test]
fn a_tracer_does_not_delay_delete_restart_or_shutdown() {
    let mut daemon = start_daemon();
    let plain = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["5804"]})));
    trace(&daemon, plain);
    let begun = Instant::now();
    daemon.delete(&format!("/processes/{plain}")).expect(204);
    assert!(begun.elapsed() < Duration::from_secs(20), "after 2 s at most: {:?}", begun.elapsed());
    wait_until(TIMEOUT, "the process has ended", || (daemon.info(plain)["signal"] == 9).then_some(()));
    let web = json!({"command": "sleep", "args": ["5805"], "name": "web", "stop_grace_ms": 100});
    let old = pid_of(&daemon.start_process(&web));
    trace(&daemon, old);
    let new = daemon.post("/processes/web/restart", &json!({})).expect(200);
    assert_ne!(pid_of(&new), old);
    trace(&daemon, pid_of(&new));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
}
