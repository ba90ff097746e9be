//! Pause and resume: the whole tree stands still, with and without cgroups, and everything that measures time is right
//! across a pause.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Daemon, Options, TIMEOUT, pid_of, procfs, reserve_closed_port, start_daemon, tcp_service, wait_until,
};

/// Time for which a paused process is watched. One that runs counts to 50 meanwhile.
const WATCHED: Duration = Duration::from_millis(500);

/// Counts every 10 ms, by the size of a file.
const COUNT: &str = "count() { while :; do printf . >>$1; sleep 0.01; done; }";

/// A process of several: the leader counts in the file `leader`, a child in `child`, one in a session of its own in
/// `far`.
fn counting_tree(scratch: &Path, more: Value) -> Value {
    let far = format!("{COUNT}; count far");
    let script = format!("{COUNT}; count child & setsid sh -c '{far}' & count leader");
    with(json!({"command": "sh", "args": ["-c", script], "working_dir": scratch}), more)
}

fn with(mut body: Value, more: Value) -> Value {
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

struct Counters(Vec<PathBuf>);

impl Counters {
    fn of_tree(scratch: &Path) -> Counters {
        Counters(["leader", "child", "far"].map(|name| scratch.join(name)).to_vec())
    }

    fn values(&self) -> Vec<u64> {
        self.0.iter().map(|file| std::fs::metadata(file).map_or(0, |data| data.len())).collect()
    }

    /// Waits until each counter has gone on.
    fn wait_until_they_count(&self) {
        let before = self.values();
        wait_until(TIMEOUT, "all of them count", || {
            self.values().iter().zip(&before).all(|(now, before)| *now >= before + 3).then_some(())
        });
    }

    fn check_they_stand_still(&self) {
        let before = self.values();
        // Nothing can be waited for: the test is that nothing happens.
        std::thread::sleep(WATCHED);
        assert_eq!(self.values(), before);
    }
}

fn pause(daemon: &Daemon, process: impl std::fmt::Display) -> Value {
    let info = daemon.post(&format!("/processes/{process}/pause"), &json!({})).expect(200);
    assert_eq!((&info["paused"], &info["status"]), (&json!(true), &json!("running")), "{info}");
    info
}

fn resume(daemon: &Daemon, process: impl std::fmt::Display) -> Value {
    let info = daemon.post(&format!("/processes/{process}/resume"), &json!({})).expect(200);
    assert_eq!(info["paused"], false, "{info}");
    info
}

#[test]
fn a_pause_holds_the_whole_tree_and_a_resume_lets_it_run_on() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let (scratch, counters) = (daemon.scratch(), Counters::of_tree(&daemon.scratch()));
        let info = daemon.start_process(&counting_tree(&scratch, json!({})));
        assert_eq!(info["paused"], false);
        let pid = pid_of(&info);
        counters.wait_until_they_count();
        for _ in 0..2 {
            pause(&daemon, pid);
            counters.check_they_stand_still();
            assert_eq!(daemon.info(pid)["paused"], true);
            // The second one has no effect.
            pause(&daemon, pid);
            resume(&daemon, pid);
            counters.wait_until_they_count();
            resume(&daemon, pid);
            assert_eq!(daemon.info(pid)["paused"], false);
        }
        pause(&daemon, pid);
        daemon.delete_tree(pid, &["count far"]);
        let ended = daemon.info(pid);
        assert_eq!((&ended["paused"], &ended["signal"]), (&json!(false), &json!(9)));
        for action in ["pause", "resume"] {
            daemon.post(&format!("/processes/{pid}/{action}"), &json!({})).expect_error(409, "NOT_RUNNING", "ended");
            daemon.post(&format!("/processes/999999/{action}"), &json!({})).expect_error(404, "NOT_FOUND", "");
        }
    }
}

#[test]
fn a_signal_takes_effect_on_resume_and_sigkill_at_once() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let script = "trap 'echo usr1' USR1; trap 'echo cont' CONT; echo up; while :; do sleep 0.01; done";
        let pid = daemon.sh(script);
        daemon.wait_for_stdout(pid, &["up"]);
        pause(&daemon, pid);
        for body in [json!({"signal": 10, "scope": "tree"}), json!({"signal": 18})] {
            daemon.post(&format!("/processes/{pid}/signal"), &body).expect(200);
        }
        std::thread::sleep(WATCHED);
        assert_eq!(daemon.lines(pid, "stdout"), ["up"]);
        resume(&daemon, pid);
        wait_until(TIMEOUT, "both signals took effect", || {
            let lines = daemon.lines(pid, "stdout");
            ["usr1", "cont"].iter().all(|line| lines.iter().any(|it| it == line)).then_some(())
        });
        pause(&daemon, pid);
        daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9})).expect(200);
        let ended = daemon.wait_for_end(pid);
        assert_eq!((&ended["signal"], &ended["paused"]), (&json!(9), &json!(false)));
    }
}

/// The process does what it has to do on SIGTERM, for longer than the time before the pause, and ends by itself.
#[test]
fn a_stop_resumes_a_paused_process_and_gives_it_its_whole_grace() {
    for options in Options::all_tree_tracking() {
        for how in ["restart", "delete", "shutdown"] {
            let mut daemon = options.clone().args(&["--shutdown-grace", "3600"]).start();
            let scratch = daemon.scratch();
            let script = "trap 'sleep 0.7; echo done >told; exit 0' TERM; touch up; while :; do sleep 0.01; done";
            let body = json!({"command": "sh", "args": ["-c", script], "name": "web", "working_dir": scratch,
                "stop_grace_ms": 60_000, "restart": {"policy": "always"}});
            let pid = pid_of(&daemon.start_process(&body));
            wait_until(TIMEOUT, "it is up", || scratch.join("up").exists().then_some(()));
            pause(&daemon, pid);
            match how {
                "restart" => {
                    let info = daemon.post("/processes/web/restart", &json!({})).expect(200);
                    assert_eq!(
                        (&info["paused"], &info["managed"]["last_exit"]["exit_code"]),
                        (&json!(false), &json!(0))
                    );
                }
                "delete" => {
                    daemon.delete("/processes/web").expect(204);
                    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
                }
                _ => {
                    daemon.signal(nix::sys::signal::Signal::SIGTERM);
                    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
                }
            }
            assert_eq!(std::fs::read_to_string(scratch.join("told")).ok().as_deref(), Some("done\n"), "{how}");
        }
    }
}

#[test]
fn a_process_that_is_being_stopped_or_backs_off_cannot_be_paused() {
    let daemon = start_daemon();
    let script = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let body = json!({"command": "sh", "args": ["-c", script], "name": "slow", "stop_grace_ms": 60_000});
    let slow = pid_of(&daemon.start_process(&body));
    daemon.wait_for_stdout(slow, &["up"]);
    daemon.delete("/processes/slow").expect(204);
    daemon.post(&format!("/processes/{slow}/pause"), &json!({})).expect_error(409, "NOT_RUNNING", "");
    daemon.post(&format!("/processes/{slow}/signal"), &json!({"signal": 9})).expect(200);
    let body =
        json!({"command": "false", "name": "crash", "restart": {"policy": "always", "initial_backoff_ms": 60_000}});
    daemon.start_process(&body);
    wait_until(TIMEOUT, "it backs off", || {
        (daemon.get("/processes/crash").expect(200)["managed"]["status"] == "backing_off").then_some(())
    });
    for action in ["pause", "resume"] {
        daemon.post(&format!("/processes/crash/{action}"), &json!({})).expect_error(409, "NOT_RUNNING", "");
    }
}

#[test]
fn the_timeout_of_a_run_goes_on_while_it_is_paused() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let begun = Instant::now();
        // Long enough to pause it before that, on a busy machine too.
        let body = json!({"command": "sh", "args": ["-c", "echo up; sleep 5801"], "timeout": 5});
        let mut run = daemon.open_run(&body);
        let pid = pid_of(&run.next_frame().expect("the first event").data);
        daemon.wait_for_stdout(pid, &["up"]);
        pause(&daemon, pid);
        // A run has no `eof`.
        let frames: Vec<_> = std::iter::from_fn(|| run.next_frame()).collect();
        let last = &frames.last().expect("the end").data;
        assert_eq!((&last["reason"], &last["signal"]), (&json!("timed_out"), &json!(9)));
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
        daemon.wait_until_gone(TIMEOUT, "sleep 5801");
    }
}

#[test]
fn stdin_is_kept_and_a_follower_stays_while_a_process_is_paused() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let pid = pid_of(&daemon.start_process(&json!({"command": "cat", "stdin_mode": "pipe"})));
        let follower = daemon.follow(pid, "stdout");
        pause(&daemon, pid);
        daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"kept\n")).expect(204);
        daemon.request("POST", &format!("/processes/{pid}/stdin/close"), Some(b"")).expect(204);
        std::thread::sleep(WATCHED);
        assert!(daemon.lines(pid, "stdout").is_empty());
        resume(&daemon, pid);
        assert_eq!(follower.all_lines(), ["kept"]);
        assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    }
}

/// The service stands still as long as the process does: probes would fail.
#[test]
fn health_checks_stand_still_while_a_process_is_paused() {
    let daemon = start_daemon();
    let (port, held) = reserve_closed_port();
    let check =
        json!({"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 50, "failure_threshold": 1_000});
    let body = json!({"command": "sleep", "args": ["5802"], "name": "web", "health_check": check,
        "restart": {"policy": "always"}});
    daemon.start_process(&body);
    let failures = || daemon.get("/processes/web").expect(200)["managed"]["consecutive_health_failures"].clone();
    wait_until(TIMEOUT, "it has failed some", || (failures().as_u64() >= Some(2)).then_some(()));
    let at_the_pause = pause(&daemon, "web")["managed"]["consecutive_health_failures"].clone();
    std::thread::sleep(WATCHED);
    assert_eq!(failures(), at_the_pause, "no probe was made, and none is forgotten");
    resume(&daemon, "web");
    wait_until(TIMEOUT, "probes go on", || (failures().as_u64() > at_the_pause.as_u64()).then_some(()));
    drop(held);
}

#[test]
fn a_process_becomes_healthy_after_a_pause_although_its_success_before_it_was_lost() {
    let daemon = start_daemon();
    let port = tcp_service(drop);
    let check = json!({"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 20});
    for n in 0..20 {
        let name = format!("web{n}");
        daemon.start_process(&json!({"command": "sleep", "args": ["5803"], "name": name, "health_check": check}));
        pause(&daemon, &name);
        resume(&daemon, &name);
        wait_until(TIMEOUT, "it is healthy", || {
            let info = daemon.get(&format!("/processes/{name}")).expect(200);
            (info["managed"]["health_status"] == "healthy").then_some(())
        });
    }
}

/// What is left of the tree of a leader that was killed alone runs on, or ends with it.
#[test]
fn a_leader_that_is_killed_while_paused_leaves_no_process_that_stands_still() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let (scratch, counters) = (daemon.scratch(), Counters::of_tree(&daemon.scratch()));
        let pid = pid_of(&daemon.start_process(&counting_tree(&scratch, json!({}))));
        counters.wait_until_they_count();
        pause(&daemon, pid);
        daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9, "scope": "leader"})).expect(200);
        assert_eq!(daemon.wait_for_end(pid)["paused"], false);
        let [_, child, far] = counters.0.try_into().expect("three");
        Counters(vec![child, far]).wait_until_they_count();
        daemon.delete_tree(pid, &["count far"]);
    }
}

#[test]
fn processes_that_were_stopped_before_a_pause_without_cgroup_stay_stopped_after_it() {
    let daemon = Options::default().without_cgroup().start();
    let script = "sleep 5804 & echo $!; while :; do sleep 0.01; done";
    let pid = daemon.sh(script);
    let child = daemon.wait_for_processes("sleep 5804", 1)[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGSTOP).expect("stop it");
    let is_stopped = || procfs::status(child, "State").is_some_and(|state| state.starts_with('T'));
    wait_until(TIMEOUT, "it is stopped", || is_stopped().then_some(()));
    pause(&daemon, pid);
    resume(&daemon, pid);
    let counted = Instant::now();
    wait_until(TIMEOUT, "the others run", || {
        let leader = daemon.pids_matching("sleep 5804").into_iter().find(|one| *one != child)?;
        procfs::status(leader, "State").is_some_and(|state| !state.starts_with('T')).then_some(())
    });
    assert!(is_stopped(), "after {:?}", counted.elapsed());
    pause(&daemon, pid);
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 18})).expect(200);
    assert!(is_stopped());
    resume(&daemon, pid);
    wait_until(TIMEOUT, "the SIGCONT took effect on resume", || (!is_stopped()).then_some(()));
}

/// Without a cgroup, a thread sends SIGCONT to each process of the tree.
#[test]
fn a_sigstop_after_a_resume_takes_effect() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let pid = daemon.sh("for n in $(seq 100); do sleep 5807 & done; wait");
        daemon.wait_for_processes("sleep 5807", 100);
        // The leader has it in its arguments.
        let processes = daemon.pids_matching("sleep 5807");
        assert_eq!(processes.len(), 101);
        let is_stopped = |pid: &i32| procfs::status(*pid, "State").is_some_and(|state| state.starts_with('T'));
        for _ in 0..10 {
            pause(&daemon, pid);
            resume(&daemon, pid);
            daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 19})).expect(200);
            wait_until(TIMEOUT, "all are stopped", || processes.iter().all(is_stopped).then_some(()));
            daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 18})).expect(200);
            wait_until(TIMEOUT, "all run", || (!processes.iter().any(is_stopped)).then_some(()));
        }
    }
}

#[test]
fn a_tree_that_cannot_be_found_runs_on() {
    let daemon = Options::default().without_cgroup().outer_proc().start();
    let counters = Counters(vec![daemon.scratch().join("leader")]);
    let script = format!("{COUNT}; count leader");
    let body = json!({"command": "sh", "args": ["-c", script], "working_dir": daemon.scratch()});
    let pid = pid_of(&daemon.start_process(&body));
    daemon.post(&format!("/processes/{pid}/pause"), &json!({})).expect_error(500, "INTERNAL", "/proc does not show");
    assert_eq!(daemon.info(pid)["paused"], false);
    counters.wait_until_they_count();
    resume(&daemon, pid);
}

/// Processes that fork all the time, each of which lives for a short time.
#[test]
fn a_tree_that_keeps_forking_stands_still_or_runs_on() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let scratch = daemon.scratch();
        let script = "busy() { while :; do /bin/true; printf . >>$1; done; }; busy a & busy b & busy c & wait";
        let pid =
            pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "working_dir": scratch})));
        let counters = Counters(["a", "b", "c"].map(|name| scratch.join(name)).to_vec());
        for _ in 0..3 {
            counters.wait_until_they_count();
            pause(&daemon, pid);
            counters.check_they_stand_still();
            resume(&daemon, pid);
        }
        daemon.delete_tree(pid, &["busy a"]);
    }
}

#[test]
fn a_process_can_end_while_it_is_being_paused() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        for _ in 0..100 {
            let pid = daemon.sh("exit 3");
            let response = daemon.post(&format!("/processes/{pid}/pause"), &json!({}));
            match response.status {
                200 => _ = daemon.post(&format!("/processes/{pid}/resume"), &json!({})),
                _ => response.expect_error(409, "NOT_RUNNING", "ended"),
            }
            assert_eq!(daemon.wait_for_end(pid)["exit_code"], 3);
        }
    }
}

/// A session is not addressed by the PID of its leader, as for signals.
#[test]
fn a_terminal_session_is_not_a_process_that_can_be_paused() {
    let daemon = start_daemon();
    daemon.open_pty(&json!({"command": "sleep", "args": ["5805"]}));
    let leader = procfs::inner_pid(daemon.wait_for_processes("sleep 5805", 1)[0]);
    daemon.post(&format!("/processes/{leader}/pause"), &json!({})).expect_error(404, "NOT_FOUND", "");
}

#[test]
fn a_paused_process_causes_no_wakeup() {
    let daemon = start_daemon();
    for _ in 0..10 {
        let pid = daemon.sh("while :; do sleep 0.01; done");
        pause(&daemon, pid);
    }
    daemon.wait_until_idle(Duration::from_secs(2));
}

/// The bound is ten times what it takes on an idle machine.
#[test]
fn a_pause_and_a_resume_of_a_tree_take_milliseconds() {
    for (options, limit) in [(Options::default(), 30), (Options::default().without_cgroup(), 100)] {
        let daemon = options.start();
        let pid = daemon.sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 5806 & done; wait");
        daemon.wait_for_processes("sleep 5806", 9);
        let mut times = Vec::new();
        for _ in 0..50 {
            let begun = Instant::now();
            pause(&daemon, pid);
            resume(&daemon, pid);
            times.push(begun.elapsed());
        }
        times.sort();
        println!("pause and resume of 10 processes: median {:?}, most {:?}", times[25], times[49]);
        crate::harness::check_times(Duration::from_millis(limit), times);
    }
}
