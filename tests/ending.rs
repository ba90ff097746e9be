//! The ordered end as PID 1: who is asked when, who is killed when, and what followers hear of it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Daemon, Options, PATIENCE, daemon, daemon_with, die_with_us, machine, pid_of, root, wait_until};

/// Answers SIGTERM by writing its name, then ends.
fn tells(name: &str) -> String {
    format!("trap 'echo {name} >>told; exit 0' TERM; echo up; while :; do sleep 0.02; done")
}

#[test]
fn everybody_is_asked_once() {
    let mut daemon = daemon();
    let scratch = daemon.scratch();
    let mut pids = Vec::new();
    for name in ["plain-1", "first", "second", "plain-2", "third"] {
        let mut body = json!({"command": "bash", "args": ["-c", tells(name)], "working_dir": scratch});
        if !name.starts_with("plain") {
            body["name"] = json!(name);
        }
        pids.push(daemon.start_process(&body)["pid"].as_u64().expect("a pid"));
    }
    wait_until(PATIENCE, "all are up", || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == ["up"]).then_some(()));
    daemon.signal(Signal::SIGTERM);
    daemon.await_end(PATIENCE);
    let told = std::fs::read_to_string(scratch.join("told")).expect("they told");
    let mut names: Vec<&str> = told.lines().collect();
    assert_eq!(names.len(), 5, "each exactly once: {told}");
    names.sort_unstable();
    assert_eq!(names, ["first", "plain-1", "plain-2", "second", "third"]);
}

#[test]
fn five_hundred_that_obey_are_gone_at_once() {
    let mut daemon = daemon();
    for n in 0..500 {
        let mut body = json!({"command": "sleep", "args": ["5621"]});
        if n % 2 == 0 {
            body["name"] = json!(format!("s{n}"));
        }
        daemon.start_process(&body);
    }
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(0));
    // 1 s is the goal.
    assert!(begun.elapsed() < Duration::from_secs(9), "nobody needed the grace: {:?}", begun.elapsed());
}

#[test]
fn those_that_do_not_obey_go_after_the_grace_and_followers_hear_of_it() {
    let mut daemon = daemon_with(&["--shutdown-grace", "2"]);
    let stubborn = "trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done";
    let pids: Vec<u64> = (0..10).map(|_| daemon.sh(stubborn)).collect();
    let followers: Vec<_> = pids.iter().map(|pid| daemon.follow(*pid, "stdout")).collect();
    wait_until(PATIENCE, "all are up", || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == ["up"]).then_some(()));
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    for follower in followers {
        // Fails without an `eof`.
        assert_eq!(follower.all_lines(), ["up", "heard it"]);
    }
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(0));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_second_signal_gives_no_more_grace() {
    let mut daemon = daemon_with(&["--shutdown-grace", "3600"]);
    let pid = daemon.sh("trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done");
    let said = |lines: &[&str]| {
        wait_until(PATIENCE, &format!("it says {lines:?}"), || (daemon.lines(pid, "stdout") == lines).then_some(()));
    };
    said(&["up"]);
    daemon.signal(Signal::SIGINT);
    said(&["up", "heard it"]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(130), "the first one counts");
}

#[test]
fn signals_and_exit_codes_without_a_main_process() {
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
        let mut daemon = daemon();
        let scratch = daemon.scratch();
        let body = json!({"command": "bash", "args": ["-c", tells("asked")], "working_dir": scratch});
        let pid = daemon.start_process(&body)["pid"].as_u64().expect("a pid");
        wait_until(PATIENCE, "it is up", || (daemon.lines(pid, "stdout") == ["up"]).then_some(()));
        daemon.signal_number(signal);
        assert_eq!(daemon.await_end(PATIENCE).code(), Some(code), "signal {signal}");
        if grace {
            assert!(scratch.join("told").exists(), "signal {signal}: it was asked");
        }
    }
}

#[test]
fn the_api_can_end_it() {
    let mut daemon = daemon();
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
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(0));
}

#[test]
fn a_second_shutdown_never_gives_more_grace() {
    for options in [Options::default(), Options::default().without_cgroup(), Options::plain()] {
        let mut daemon = options.args(&["--shutdown-grace", "120"]).start();
        let stubborn = "trap 'echo heard it' TERM; echo up; while :; do sleep 0.02; done";
        let body = json!({"command": "sh", "args": ["-c", stubborn], "name": "managed", "stop_grace_ms": 60_000});
        let pids = [daemon.sh(stubborn), pid_of(&daemon.start_process(&body))];
        let said = |right: &[&str]| {
            let all = || pids.iter().all(|pid| daemon.lines(*pid, "stdout") == right);
            wait_until(PATIENCE, &format!("they say {right:?}"), || all().then_some(()));
        };
        said(&["up"]);
        let begun = Instant::now();
        daemon.post("/shutdown", &json!({"action": "exit", "grace_ms": 6000})).expect(202);
        said(&["up", "heard it"]);
        daemon.post("/shutdown", &json!({"action": "exit"})).expect(202);
        assert_eq!(daemon.await_end(PATIENCE).code(), Some(0));
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(6) && took < Duration::from_secs(60), "{took:?}");
    }
}

/// What is stopped hears of a SIGTERM only when it goes on: nobody is to use up a grace for that.
#[test]
fn what_is_stopped_is_asked_too() {
    for options in [Options::default(), Options::default().without_cgroup(), Options::plain()] {
        let mut daemon = options.args(&["--shutdown-grace", "3600"]).start();
        let managed =
            |name: &str| json!({"command": "sleep", "args": [name], "name": name, "stop_grace_ms": 3_600_000});
        daemon.start_process(&managed("5631s"));
        daemon.start_process(&managed("5632s"));
        daemon.sh("exec sleep 5633s");
        // An orphan in a session of its own, which nobody has a leader for.
        daemon.sh("setsid sleep 5634s >/dev/null 2>&1 & exit 0");
        let seconds = ["5631s", "5632s", "5633s", "5634s"];
        for words in seconds.map(|seconds| format!("sleep {seconds}")) {
            let pid = wait_until(PATIENCE, &words, || daemon.executing(&words).first().copied());
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop it");
            wait_until(PATIENCE, "it is stopped", || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
                status.contains("State:\tT").then_some(())
            });
        }
        daemon.delete("/processes/5631s").expect(204);
        daemon.await_gone(PATIENCE, "sleep 5631s");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.await_end(PATIENCE).code(), Some(0));
    }
}

/// The kernel refuses most of them; what counts in the end is who sent it.
#[test]
fn signals_of_other_users_change_nothing() {
    let daemon = daemon();
    let run =
        daemon.run_sh("for s in 1 2 3 10 12 15 30 37 38 39 47 48 49; do kill -$s 1 2>/dev/null && echo $s; done; true");
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), ""));
    assert_eq!(daemon.run_sh("echo still here").stdout(), "still here");
}

/// Mounts a FUSE file system over /etc whose server never answers: looking up a user there waits in the kernel.
const DEAD_DISK: &str = r#"
import ctypes, os, time
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None, use_errno=True).mount(b"none", b"/etc", b"fuse", 0, options) == 0, ctypes.get_errno()
print("mounted", flush=True)
time.sleep(600)
"#;

/// Mounts the dead file system over /etc, and has one connection wait for it.
fn kill_the_disk_of_etc(daemon: &Daemon) {
    let body = json!({"command": "python3", "args": ["-c", DEAD_DISK], "user": "root"});
    let pid = daemon.start_process(&body)["pid"].as_u64().expect("a pid");
    wait_until(PATIENCE, "it is mounted", || (daemon.lines(pid, "stdout") == ["mounted"]).then_some(()));
    // Sent, and not waited for: nobody answers it.
    let body = json!({"command": "true"}).to_string();
    let head = format!("Authorization: Bearer {}\r\nContent-Length: {}\r\n", daemon.token, body.len());
    let mut stream = daemon.connect();
    write!(stream, "POST /api/v1/processes HTTP/1.1\r\nHost: x\r\n{head}\r\n{body}").expect("send it");
    wait_until(PATIENCE, "the request waits for the disk", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("its threads");
        tasks.flatten().find(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            read("comm") == "http-conn\n" && read("wchan").contains("fuse")
        })
    });
}

/// The main process cannot be started, nor can the start fail.
#[test]
fn a_disk_that_does_not_answer_at_the_start_does_not_keep_it() {
    if !root("a_disk_that_does_not_answer_at_the_start_does_not_keep_it") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let dead = DEAD_DISK.replace("rootmode=40000", "rootmode=100000").replace("/etc", "/etc/passwd");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c"]);
    command.arg("mkfifo go; python3 -c \"$DEAD_DISK\" >go & until [ -p go ]; do :; done; read x <go; exec \"$@\"");
    command.args(["sh", env!("CARGO_BIN_EXE_tl-init"), "--listen", "127.0.0.1:0", "--config-dir", "none"]);
    command.args(["--run-dir", "run", "--log-dir", "log", "--", "sleep", "600"]);
    command.env("DEAD_DISK", dead).current_dir(dir.path()).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    die_with_us(&mut command);
    let mut launcher = command.spawn().expect("start it");
    let address = dir.path().join("run/address");
    wait_until(PATIENCE, "it listens", || address.exists().then_some(()));
    let pid = machine::children(launcher.id() as i32)[0];
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        kill(Pid::from_raw(pid), signal).expect("signal it");
    }
    let end = wait_until(PATIENCE, "it ends", || launcher.try_wait().expect("wait for it"));
    // The disk ends with everything else: the start may have failed by that, or be given up.
    assert!(matches!(end.code(), Some(1 | 137)), "{end}");
}

#[test]
fn without_an_answer_from_etc_all_that_runs_is_served_and_ended() {
    if !root("without_an_answer_from_etc_all_that_runs_is_served_and_ended") {
        return;
    }
    let mut daemon = Options::default().args(&["--shutdown-grace", "0.1"]).start();
    let service = json!({"command": "sleep", "args": ["600"], "name": "web", "restart": {"policy": "always", "initial_backoff_ms": 0}});
    let pid = daemon.start_process(&service)["pid"].as_u64().expect("a pid");
    let plain = daemon.start_process(&json!({"command": "sleep", "args": ["600"]}))["pid"].as_u64().expect("a pid");
    kill_the_disk_of_etc(&daemon);
    let begun = Instant::now();
    // The restart of the service waits for its user.
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9})).expect(200);
    wait_until(PATIENCE, "it is to start again", || {
        (daemon.info(pid)["managed"]["status"] == "starting").then_some(())
    });
    daemon.delete(&format!("/processes/{plain}")).expect(204);
    assert_eq!(daemon.info(plain)["status"], "signaled");
    assert_eq!(daemon.try_health(), Some(200));
    // It can be stopped, and asked to start again, in spite of that.
    for _ in 0..3 {
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        assert_eq!(daemon.info(pid)["managed"]["status"], "stopped");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(130));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());

    let mut daemon = Options::default().args(&["--default-user", "0", "--", "sleep", "600"]).start();
    kill_the_disk_of_etc(&daemon);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.await_end(PATIENCE).code(), Some(143));
}
