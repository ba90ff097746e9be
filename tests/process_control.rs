//! Process control: inspect, signal, kill and wait.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, start_daemon, start_daemon_with, wait_until};

#[test]
fn a_process_whose_program_cannot_be_executed_is_never_listed() {
    let daemon = start_daemon();
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(script.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = script.into_temp_path();
    let start =
        || daemon.post("/processes", &json!({ "command": command.to_str() })).expect_error(400, "NOT_EXECUTABLE", "");
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..2).map(|_| scope.spawn(|| (0..100).for_each(|_| start()))).collect();
        while !starts.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let listed = daemon.get("/processes").expect(200);
            assert_eq!(listed["processes"], json!([]));
        }
    });
}

#[test]
fn process_info_has_all_documented_fields() {
    let daemon = start_daemon();
    let args = ["-c", "exit 3", "", "ünï\n"];
    let info = daemon.start_process(&json!({"command": "sh", "args": args}));
    let fields = [
        "handle",
        "pid",
        "status",
        "exit_code",
        "signal",
        "oom_killed",
        "stdin_writable",
        "paused",
        "command",
        "args",
        "started_at",
        "ended_at",
        "limits",
        "managed",
    ];
    for field in fields {
        assert!(info.get(field).is_some(), "no {field} in {info}");
    }
    let pid = pid_of(&info);
    let ended = daemon.wait_for_end(pid);
    let (begun, over) = (ended["started_at"].as_u64().expect("a start"), ended["ended_at"].as_u64().expect("an end"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the time").as_millis() as u64;
    assert!(begun <= over && over <= now && now - begun < 60_000, "{ended} at {now}");
    let expected = json!({"handle": info["handle"], "pid": pid, "status": "exited", "exit_code": 3, "signal": null,
        "oom_killed": false, "stdin_writable": false, "paused": false, "command": "sh", "args": args,
        "started_at": begun, "ended_at": over, "limits": null,
        "managed": null});
    assert_eq!(ended, expected);
    assert_eq!(daemon.list(), [expected]);
    let running = daemon.start_process(&json!({"command": "sleep", "args": ["4500"]}));
    assert_eq!(
        (&running["status"], &running["ended_at"], &running["args"]),
        (&json!("running"), &Value::Null, &json!(["4500"]))
    );
    let bare = daemon.start_process(&json!({"command": "true"}));
    assert_eq!(bare["args"], json!([]));
    assert!(
        info["handle"].as_u64() < running["handle"].as_u64() && running["handle"].as_u64() < bare["handle"].as_u64()
    );
    let listed: Vec<Value> = daemon.list().into_iter().map(|info| info["handle"].clone()).collect();
    assert_eq!(listed, [&info, &running, &bare].map(|info| info["handle"].clone()), "oldest first");
}

#[test]
fn health_and_info_describe_the_daemon() {
    let daemon = start_daemon();
    assert_eq!(daemon.get("/health").expect(200), json!({"healthy": true}));
    daemon.run_sh("true");
    daemon.sh("sleep 4501");
    let info = daemon.get("/info").expect(200);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((info["running_processes"].as_u64(), info["total_processes"].as_u64()), (Some(1), Some(2)), "{info}");
    assert!(info["uptime_secs"].as_u64().is_some_and(|secs| secs < 60), "{info}");
}

#[test]
fn a_signal_is_sent_to_the_process_group() {
    let daemon = start_daemon();
    let pid = daemon.sh("trap 'echo usr1' USR1; (trap 'echo child' USR1; echo up; while :; do sleep 0.05; done) & \
                         echo up; while :; do sleep 0.05; done");
    wait_until(TIMEOUT, "both are up", || (daemon.lines(pid, "stdout").len() == 2).then_some(()));
    let sent = daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 10}));
    assert_eq!(sent.expect(200), json!({"success": true}));
    wait_until(TIMEOUT, "both got it", || {
        let lines = daemon.lines(pid, "stdout");
        (lines.contains(&"usr1".to_owned()) && lines.contains(&"child".to_owned())).then_some(())
    });
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 15})).expect(200);
    let info = daemon.wait_for_end(pid);
    assert_eq!((&info["status"], &info["signal"]), (&json!("signaled"), &json!(15)));
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 15})).expect_error(409, "NOT_RUNNING", "ended");
}

const TREE: &str =
    "setsid sleep 4502 & setsid sh -c 'setsid sleep 4502 & sleep 4502' & trap '' TERM; sleep 4502 & wait; wait";

fn check_kill_of_tree(daemon: &Daemon) {
    for how in ["delete", "signal 9"] {
        let pid = daemon.sh(TREE);
        daemon.wait_for_processes("sleep 4502", 4);
        match how {
            "delete" => daemon.delete_tree(pid, &["4502"]),
            _ => {
                assert_eq!(daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9})).status, 200);
                daemon.wait_until_gone(TIMEOUT, "4502");
            }
        }
        let info = daemon.wait_for_end(pid);
        assert_eq!((&info["status"], &info["signal"]), (&json!("signaled"), &json!(9)), "{how}");
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
}

#[test]
fn delete_and_signal_9_kill_the_whole_tree() {
    check_kill_of_tree(&start_daemon());
}

#[test]
fn delete_and_signal_9_kill_the_whole_tree_without_a_cgroup() {
    check_kill_of_tree(&Options::default().without_cgroup().start());
}

#[test]
fn delete_and_signal_9_kill_the_whole_tree_under_a_subreaper() {
    check_kill_of_tree(&Options::subreaper().start());
}

#[test]
fn delete_of_an_ended_process_kills_its_leftovers() {
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.start();
        let pid = daemon.sh("sleep 4503 & sleep 4503 & exit 0");
        assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
        daemon.wait_for_processes("sleep 4503", 2);
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        daemon.wait_until_gone(TIMEOUT, "4503");
        assert_eq!(daemon.info(pid)["exit_code"], 0, "the exit code does not change");
    }
}

/// The response waits for the end of the tree, which the supervisor notices up to 1 ms after that of its leader.
#[test]
fn delete_of_a_process_that_is_just_ending_does_not_wait() {
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.start();
        for n in 0..40 {
            let pid = pid_of(&daemon.start_process(&json!({"command": "true"})));
            let begun = Instant::now();
            daemon.delete(&format!("/processes/{pid}")).expect(204);
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(1), "delete {n} took {took:?}");
        }
    }
}

/// An orphan that has left the session is a child of the daemon and still holds the output pipes of the unit.
#[test]
fn delete_kills_orphans_that_left_the_session_without_a_cgroup() {
    let daemon = Options::default().without_cgroup().start();
    let orphaned = |words: &str| {
        wait_until(TIMEOUT, &format!("{words} is an orphan"), || {
            let orphans: Vec<i32> = daemon.pids_executing(words);
            orphans.iter().any(|pid| procfs::children(daemon.pid).contains(pid)).then_some(())
        });
    };
    // Orphans of other units, one running and one ended, which must survive.
    let other = daemon.sh("(setsid sleep 4520 &); exec sleep 4521");
    let ended = daemon.sh("setsid sleep 4522 & exit 0");
    daemon.wait_for_end(ended);
    for words in ["sleep 4520", "sleep 4522"] {
        orphaned(words);
    }
    daemon.wait_for_processes("sleep 4521", 1);
    for output in ["", ">/dev/null", "2>/dev/null"] {
        let pid = daemon.sh(&format!("(setsid sleep 4523 {output} &); exec sleep 4524"));
        orphaned("sleep 4523");
        daemon.delete_tree(pid, &["4523"]);
    }
    // The unit has ended, and a child of the orphan holds no pipe of the unit.
    let pid = daemon.sh("setsid sh -c 'sleep 4525 >/dev/null 2>&1 & sleep 4526; :' & exit 0");
    daemon.wait_for_end(pid);
    orphaned("sh -c sleep 4525");
    daemon.wait_for_processes("sleep 4525", 1);
    daemon.delete_tree(pid, &["4525", "4526"]);
    // A managed process whose leader ends at once leaves the rest of the grace to its tree.
    let body = json!({"command": "sh", "args": ["-c", "(trap '' TERM; setsid sleep 4527 &); exec sleep 4528"],
        "name": "managed", "stop_grace_ms": 200});
    daemon.start_process(&body);
    orphaned("sleep 4527");
    daemon.delete("/processes/managed").expect(204);
    daemon.wait_until_gone(TIMEOUT, "4527");
    // A run that times out, and a run whose client disconnects.
    let run = |seconds: u64| {
        let script = "(setsid sleep 4529 &); exec sleep 4530";
        daemon.open_run(&json!({"command": "sh", "args": ["-c", script], "timeout": seconds}))
    };
    let mut events = run(10);
    orphaned("sleep 4529");
    while events.next_frame().is_some() {}
    daemon.wait_until_gone(TIMEOUT, "4529");
    let events = run(3600);
    orphaned("sleep 4529");
    drop(events);
    daemon.wait_until_gone(TIMEOUT, "4529");
    for words in ["sleep 4520", "sleep 4521", "sleep 4522"] {
        assert_eq!(daemon.pids_executing(words).len(), 1, "{words} is another unit's");
    }
    assert_eq!(daemon.info(other)["status"], "running");
}

#[test]
fn wait_answers_when_the_process_ends_or_at_its_timeout() {
    let daemon = start_daemon();
    let body = json!({"command": "sh", "args": ["-c", "read x; exit 9"], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&body));
    let begun = Instant::now();
    let early = daemon.get(&format!("/processes/{pid}/wait?timeout=0.1")).expect(200);
    assert_eq!(early["status"], "running");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| daemon.get(&format!("/processes/{pid}/wait?timeout=50")).expect(200));
        daemon.request("POST", &format!("/processes/{pid}/stdin/close"), Some(b"")).expect(204);
        let info = waiter.join().expect("the waiting thread");
        assert_eq!((&info["status"], &info["exit_code"]), (&json!("exited"), &json!(9)));
    });
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    for bad in ["x", "-1", ""] {
        daemon.get(&format!("/processes/{pid}/wait?timeout={bad}")).expect_error(400, "INVALID_REQUEST", "timeout");
    }
}

#[test]
fn a_shutdown_sends_sigterm_and_ends_without_using_up_the_grace() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "3600"]);
    let scratch = daemon.scratch();
    let body = json!({"command": "sh", "working_dir": scratch,
        "args": ["-c", "trap 'echo got it >told; exit 0' TERM; echo up; while :; do sleep 0.05; done"]});
    let pid = pid_of(&daemon.start_process(&body));
    daemon.sh("setsid sleep 4504 & sleep 4504");
    wait_until(TIMEOUT, "both are up", || {
        (daemon.lines(pid, "stdout") == ["up"] && daemon.pids_executing("sleep 4504").len() == 2).then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_exit(TIMEOUT);
    assert_eq!(std::fs::read_to_string(scratch.join("told")).expect("read the file"), "got it\n");
    assert!(!daemon.state_dir().exists(), "the launcher has removed the directory");
}

#[test]
fn a_shutdown_refuses_starts_and_lasts_no_longer_than_its_grace() {
    // Long enough for a request on a busy machine.
    let mut daemon = start_daemon_with(&["--shutdown-grace", "10"]);
    let pid = daemon.sh("trap 'echo ignored' TERM; echo up; while :; do sleep 0.05; done");
    daemon.wait_for_stdout(pid, &["up"]);
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    wait_until(TIMEOUT, "the shutdown has begun", || (daemon.lines(pid, "stdout").len() > 1).then_some(()));
    let refused = daemon.post("/processes", &json!({"command": "true"}));
    refused.expect_error(503, "SHUTTING_DOWN", "shutting down");
    assert!(refused.header("retry-after").is_some());
    daemon.wait_for_exit(TIMEOUT);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(9900) && took < Duration::from_secs(50), "{took:?}");
}

#[test]
fn responses_in_progress_are_completed_during_a_shutdown() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "3600"]);
    // On SIGTERM the process writes far more than socket buffers hold.
    let script = "trap 'seq 1 200000; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let body = json!({"command": "bash", "args": ["-c", script]});
    std::thread::scope(|scope| {
        // The clients only read: the daemon waits 10 s at most for clients that are busy with what they have read.
        let read = || {
            let mut events = Vec::new();
            daemon.open_run(&body).into_reader().read_to_end(&mut events).expect("the whole response");
            String::from_utf8(events).expect("a stream is UTF-8")
        };
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        wait_until(TIMEOUT, "all are up", || {
            let pids: Vec<u64> = daemon.list().iter().map(pid_of).collect();
            (pids.len() == 3 && pids.iter().all(|pid| daemon.lines(*pid, "stdout") == ["up"])).then_some(())
        });
        daemon.signal(Signal::SIGTERM);
        for run in runs {
            let events = run.join().expect("the last event");
            let last = events.lines().rfind(|line| line.starts_with("data:")).expect("the last event");
            assert_eq!(events.matches("\"stream\":\"stdout\"").count(), 200_001);
            assert!(last.contains("\"exit_code\":3"), "{last}");
        }
    });
    daemon.wait_for_exit(TIMEOUT);
}
