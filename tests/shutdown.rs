//! The ordered shutdown as PID 1: SIGTERM, the grace, SIGKILL, and what followers receive.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::faults::{HANGING_ETC, hang_etc};
use crate::harness::{
    Daemon, Options, TIMEOUT, bound_command, pid_of, procfs, skip_without_root, start_daemon, start_daemon_with,
    wait_until,
};

/// A script that appends its name to the file `told` on SIGTERM and exits.
fn on_sigterm_append(name: &str) -> String {
    format!("trap 'echo {name} >>told; exit 0' TERM; echo up; while :; do sleep 0.02; done")
}

#[test]
fn a_shutdown_sends_one_sigterm_to_each_process() {
    let mut daemon = start_daemon();
    let scratch = daemon.scratch();
    let mut pids = Vec::new();
    for name in ["plain-1", "first", "second", "plain-2", "third"] {
        let mut body = json!({"command": "bash", "args": ["-c", on_sigterm_append(name)], "working_dir": scratch});
        if !name.starts_with("plain") {
            body["name"] = json!(name);
        }
        pids.push(daemon.start_process(&body)["pid"].as_u64().expect("a PID"));
    }
    wait_until(TIMEOUT, "all are up", || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == ["up"]).then_some(()));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    let told = std::fs::read_to_string(scratch.join("told")).expect("read the file");
    let mut names: Vec<&str> = told.lines().collect();
    assert_eq!(names.len(), 5, "each exactly once: {told}");
    names.sort_unstable();
    assert_eq!(names, ["first", "plain-1", "plain-2", "second", "third"]);
}

#[test]
fn a_shutdown_of_500_processes_that_obey_uses_no_grace() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "3600"]);
    for n in 0..500 {
        let mut body = json!({"command": "sleep", "args": ["5621"]});
        if n % 2 == 0 {
            body["name"] = json!(format!("s{n}"));
            body["stop_grace_ms"] = json!(3_600_000);
        }
        daemon.start_process(&body);
    }
    daemon.signal(Signal::SIGTERM);
    // The goal is 1 s.
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn processes_that_ignore_sigterm_are_killed_after_the_grace_and_followers_get_eof() {
    // Long enough for ten processes to answer the SIGTERM on a busy machine.
    let mut daemon = start_daemon_with(&["--shutdown-grace", "8"]);
    let stubborn = "trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done";
    let pids: Vec<u64> = (0..10).map(|_| daemon.sh(stubborn)).collect();
    let followers: Vec<_> = pids.iter().map(|pid| daemon.follow(*pid, "stdout")).collect();
    wait_until(TIMEOUT, "all are up", || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == ["up"]).then_some(()));
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    for follower in followers {
        // `all_lines` fails without an `eof`.
        assert_eq!(follower.all_lines(), ["up", "heard it"]);
    }
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(7900) && took < Duration::from_secs(50), "{took:?}");
}

#[test]
fn a_second_signal_ends_the_grace() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "3600"]);
    let pid = daemon.sh("trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done");
    let said = |lines: &[&str]| {
        wait_until(TIMEOUT, &format!("stdout is {lines:?}"), || (daemon.lines(pid, "stdout") == lines).then_some(()));
    };
    said(&["up"]);
    daemon.signal(Signal::SIGINT);
    said(&["up", "heard it"]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130), "the first one counts");
}

#[test]
fn each_shutdown_signal_gives_its_grace_and_exit_code_without_a_main_process() {
    // SIGRTMIN is 34.
    for (signal, grace, code) in [
        (15, true, 0),
        (2, true, 130),
        (30, true, 0),
        (10, true, 0),
        (12, true, 0),
        (37, true, 0),
        (38, true, 0),
        (39, true, 0),
        (47, false, 0),
        (48, false, 0),
        (49, false, 0),
    ] {
        let mut daemon = start_daemon();
        let scratch = daemon.scratch();
        let body = json!({"command": "bash", "args": ["-c", on_sigterm_append("asked")], "working_dir": scratch});
        let pid = daemon.start_process(&body)["pid"].as_u64().expect("a PID");
        daemon.wait_for_stdout(pid, &["up"]);
        daemon.signal_number(signal);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(code), "signal {signal}");
        if grace {
            assert!(scratch.join("told").exists(), "signal {signal}: the process got SIGTERM");
        }
    }
}

#[test]
fn shutdown_over_the_api_validates_its_body_and_ends_the_daemon() {
    let mut daemon = start_daemon();
    for (body, field) in [
        (json!({"action": "poweroff"}), "action"),
        (json!({"action": "reboot"}), "action"),
        (json!({"action": "halt"}), "action"),
        (json!({"action": "explode"}), "action"),
        (json!({}), "action"),
        (json!({"action": "exit", "grace_ms": -1}), "grace_ms"),
    ] {
        daemon.post("/shutdown", &body).expect_error(400, "INVALID_REQUEST", field);
    }
    let pid = daemon.sh("trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done");
    let mut follower = daemon.follow(pid, "stdout");
    assert!(follower.next_frame().is_some());
    daemon.post("/shutdown", &json!({"action": "exit", "grace_ms": 100})).expect(202);
    follower.until_eof();
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn a_second_shutdown_request_does_not_extend_the_grace() {
    for options in [Options::default(), Options::default().without_cgroup(), Options::subreaper()] {
        let mut daemon = options.args(&["--shutdown-grace", "120"]).start();
        let stubborn = "trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done";
        let body = json!({"command": "sh", "args": ["-c", stubborn], "name": "managed", "stop_grace_ms": 60_000});
        let pids = [daemon.sh(stubborn), pid_of(&daemon.start_process(&body))];
        let said = |right: &[&str]| {
            let all = || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == right);
            wait_until(TIMEOUT, &format!("stdout of both is {right:?}"), || all().then_some(()));
        };
        said(&["up"]);
        let begun = Instant::now();
        daemon.post("/shutdown", &json!({"action": "exit", "grace_ms": 6000})).expect(202);
        said(&["up", "heard it"]);
        daemon.post("/shutdown", &json!({"action": "exit"})).expect(202);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(6) && took < Duration::from_secs(60), "{took:?}");
    }
}

/// A stopped process handles SIGTERM only after SIGCONT, so the shutdown must send both.
#[test]
fn stopped_processes_are_continued_to_receive_sigterm() {
    for options in [Options::default(), Options::default().without_cgroup(), Options::subreaper()] {
        let mut daemon = options.args(&["--shutdown-grace", "3600"]).start();
        let managed =
            |name: &str| json!({"command": "sleep", "args": [name], "name": name, "stop_grace_ms": 3_600_000});
        daemon.start_process(&managed("5631s"));
        daemon.start_process(&managed("5632s"));
        daemon.sh("exec sleep 5633s");
        // An orphan in a session of its own, whose leader has ended.
        daemon.sh("setsid sleep 5634s >/dev/null 2>&1 & exit 0");
        let seconds = ["5631s", "5632s", "5633s", "5634s"];
        for words in seconds.map(|seconds| format!("sleep {seconds}")) {
            let pid = wait_until(TIMEOUT, &words, || daemon.pids_executing(&words).first().copied());
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop the process");
            wait_until(TIMEOUT, "the process is stopped", || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
                status.contains("State:\tT").then_some(())
            });
        }
        daemon.delete("/processes/5631s").expect(204);
        daemon.wait_until_gone(TIMEOUT, "sleep 5631s");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
    }
}

/// The kernel refuses most of these signals; the daemon ignores the rest by their sender.
#[test]
fn signals_of_other_users_are_ignored() {
    let daemon = start_daemon();
    let run =
        daemon.run_sh("for s in 1 2 3 10 12 15 30 37 38 39 47 48 49; do kill -$s 1 2>/dev/null && echo $s; done; true");
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), ""));
    assert_eq!(daemon.run_sh("echo still here").stdout(), "still here");
}

/// Makes lookups in /etc hang, and waits until a request hangs in one.
fn make_etc_hang(daemon: &Daemon) {
    hang_etc(daemon);
    // The response to this request is not awaited: it never comes.
    let body = json!({"command": "true"}).to_string();
    let head = daemon.request_head("POST", "/processes", &format!("Content-Length: {}\r\n", body.len()));
    let mut stream = daemon.connect();
    stream.write_all((head + &body).as_bytes()).expect("send the request");
    wait_until(TIMEOUT, "the request waits for the disk", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("its threads");
        tasks.flatten().find(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            read("comm") == "http-conn\n" && read("wchan").contains("fuse")
        })
    });
}

/// The start of the main process hangs: it neither succeeds nor fails.
#[test]
fn a_hanging_disk_at_the_start_does_not_prevent_a_shutdown() {
    if skip_without_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("create a directory");
    let dead = HANGING_ETC.replace("rootmode=40000", "rootmode=100000").replace("/etc", "/etc/passwd");
    let mut command = bound_command("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c"]);
    command.arg("mkfifo go; python3 -c \"$HANGING_ETC\" >go & until [ -p go ]; do :; done; read x <go; exec \"$@\"");
    command.args(["sh", env!("CARGO_BIN_EXE_tl-init"), "--listen", "127.0.0.1:0", "--config-dir", "none"]);
    command.args(["--run-dir", "run", "--log-dir", "log", "--", "sleep", "600"]);
    command.env("HANGING_ETC", dead).current_dir(dir.path()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut launcher = command.spawn().expect("start the program");
    let address = dir.path().join("run/address");
    wait_until(TIMEOUT, "the daemon listens", || address.exists().then_some(()));
    let pid = procfs::children(launcher.id() as i32)[0];
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        kill(Pid::from_raw(pid), signal).expect("signal the daemon");
    }
    let end = wait_until(TIMEOUT, "the process ends", || launcher.try_wait().expect("wait for it"));
    // The FUSE server ends during the shutdown, so the start has either failed or been given up.
    assert!(matches!(end.code(), Some(1 | 137)), "{end}");
}

#[test]
fn a_hanging_etc_delays_neither_running_processes_nor_the_shutdown() {
    if skip_without_root() {
        return;
    }
    let mut daemon = Options::default().args(&["--shutdown-grace", "0.1"]).start();
    let restart = json!({"policy": "always", "initial_backoff_ms": 0});
    let service = json!({"command": "sleep", "args": ["600"], "name": "web", "restart": restart});
    let pid = pid_of(&daemon.start_process(&service));
    let plain = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["600"]})));
    make_etc_hang(&daemon);
    let begun = Instant::now();
    // The restart of the service waits for the lookup of its user.
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9})).expect(200);
    wait_until(TIMEOUT, "the service is starting again", || {
        (daemon.info(pid)["managed"]["status"] == "starting").then_some(())
    });
    daemon.delete(&format!("/processes/{plain}")).expect(204);
    assert_eq!(daemon.info(plain)["status"], "signaled");
    assert_eq!(daemon.try_health(), Some(200));
    // A DELETE still stops the service, and can be repeated.
    for _ in 0..3 {
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        assert_eq!(daemon.info(pid)["managed"]["status"], "stopped");
    }
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());

    let mut daemon = Options::default().args(&["--default-user", "0", "--", "sleep", "600"]).start();
    make_etc_hang(&daemon);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(143));
}

/// Attaches to the thread whose id is the argument, which stops it, and waits for its end.
const THREAD_STOPPER: &str = r#"
import ctypes, os, sys
tid, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(16, tid, 0, 0) == 0, ctypes.get_errno()
os.waitpid(tid, 0x40000000)
print("stopped", flush=True)
os.waitpid(tid, 0x40000000)
"#;

/// Stops the supervisor thread of a daemon for good. The returned process ends with that thread.
fn stop_supervisor_thread(daemon: &Daemon) -> Child {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("list the threads");
    let is_supervisor =
        |dir: &PathBuf| std::fs::read_to_string(dir.join("comm")).is_ok_and(|name| name == "supervisor\n");
    let task = tasks.filter_map(|task| Some(task.ok()?.path())).find(is_supervisor).expect("the supervisor thread");
    let mut command = bound_command("python3");
    command.args(["-c", THREAD_STOPPER]).arg(task.file_name().expect("a thread id"));
    let mut stopper = command.stdout(Stdio::piped()).spawn().expect("start python3");
    let mut line = String::new();
    let stdout = stopper.stdout.as_mut().expect("a pipe");
    std::io::BufReader::new(stdout).read_line(&mut line).expect("read its line");
    assert_eq!(line, "stopped\n");
    stopper
}

#[test]
fn a_shutdown_ends_although_the_supervisor_does_not_answer() {
    if skip_without_root() {
        return;
    }
    let mut daemon = Options::default().args(&["--shutdown-grace", "0.1"]).start();
    daemon.start_process(&json!({"command": "sleep", "args": ["600"]}));
    let mut stopper = stop_supervisor_thread(&daemon);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
    assert!(daemon.log().contains("the supervisor does not answer: killing all processes"), "{}", daemon.log());
    stopper.wait().expect("wait for the tracer");

    // The supervisor never forwards the first signal to the main process; the second one begins the shutdown.
    let mut daemon = Options::default().args(&["--default-user", "0", "--", "sleep", "600"]).start();
    let mut stopper = stop_supervisor_thread(&daemon);
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(137));
    stopper.wait().expect("wait for the tracer");
}
