//! Process trees: SIGTERM, the grace and SIGKILL reach every process that a unit has started.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Options, TIMEOUT, pid_of, procfs, start_daemon, wait_until};

/// A wrapper that ends at once on SIGTERM, like `npm start`, and two servers that take 0.5 s to end: `near` in the
/// session of the wrapper, `far` in its own. Each server writes its name to the file `told` when it ends on SIGTERM.
fn wrapper_body(scratch: &Path, name: &str, more: Value) -> Value {
    let server = "trap 'sleep 0.5; echo $0 >>told; exit 0' TERM; touch up.$0; while :; do sleep 0.02; done";
    let script = format!("bash -c \"$1\" near & setsid bash -c \"$1\" far & wait # {name}");
    let mut body = json!({"command": "sh", "args": ["-c", script, "sh", server], "name": name,
        "working_dir": scratch, "restart": {"policy": "always", "initial_backoff_ms": 1}, "stop_grace_ms": 60_000});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

fn wait_until_servers_are_up(scratch: &Path) {
    for name in ["up.near", "up.far"] {
        let file = scratch.join(name);
        wait_until(TIMEOUT, name, || file.exists().then_some(()));
        std::fs::remove_file(&file).expect("remove it, for the next run");
    }
}

fn servers_ended_on_sigterm(scratch: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(scratch.join("told")).unwrap_or_default();
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn restart_and_delete_wait_for_the_grace_of_the_whole_tree() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let scratch = daemon.scratch();
        let old = pid_of(&daemon.start_process(&wrapper_body(&scratch, "web", json!({}))));
        wait_until_servers_are_up(&scratch);
        let new = daemon.post("/processes/web/restart", &json!({})).expect(200);
        assert_ne!(pid_of(&new), old);
        assert_eq!(
            servers_ended_on_sigterm(&scratch),
            ["far", "near"],
            "both servers ended on SIGTERM before the next run"
        );
        wait_until_servers_are_up(&scratch);
        let begun = Instant::now();
        daemon.delete_tree("web", &["touch up."]);
        assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
        assert_eq!(servers_ended_on_sigterm(&scratch), ["far", "far", "near", "near"], "both ended on SIGTERM");
    }
}

#[test]
fn a_failed_check_waits_for_the_grace_of_the_whole_tree() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let scratch = daemon.scratch();
        let service = TcpListener::bind("127.0.0.1:0").expect("bind a port");
        let port = service.local_addr().expect("local address").port();
        let check =
            json!({"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 20, "failure_threshold": 1});
        daemon.start_process(&wrapper_body(&scratch, "web", json!({"health_check": check})));
        wait_until_servers_are_up(&scratch);
        drop(service);
        let both = |ended: Vec<String>| ["far", "near"].iter().all(|name| ended.iter().any(|one| one == name));
        wait_until(TIMEOUT, "both servers ended on SIGTERM", || both(servers_ended_on_sigterm(&scratch)).then_some(()));
    }
}

#[test]
fn a_shutdown_waits_for_the_grace_of_the_whole_tree() {
    for options in Options::all_tree_tracking() {
        let mut daemon = options.args(&["--shutdown-grace", "3600"]).start();
        let scratch = daemon.scratch();
        let mut plain = wrapper_body(&scratch, "", json!({}));
        for managed in ["name", "restart", "stop_grace_ms"] {
            plain.as_object_mut().expect("an object").remove(managed);
        }
        daemon.start_process(&plain);
        wait_until_servers_are_up(&scratch);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        assert_eq!(servers_ended_on_sigterm(&scratch), ["far", "near"]);
    }
}

#[test]
fn a_restart_kills_the_remaining_tree_after_the_grace() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let script = "trap '' TERM; sleep 5701 & setsid sleep 5701 & trap - TERM; wait";
        let body = json!({"command": "sh", "args": ["-c", script], "name": "web", "stop_grace_ms": 600});
        daemon.start_process(&body);
        daemon.wait_for_processes("sleep 5701", 2);
        let old = daemon.pids_executing("sleep 5701");
        let begun = Instant::now();
        daemon.post("/processes/web/restart", &json!({})).expect(200);
        assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
        assert!(
            old.iter().all(|pid| !daemon.pids_executing("sleep 5701").contains(pid)),
            "they are gone before the next run"
        );
    }
}

/// Leftovers of ended processes that ignore SIGTERM get SIGKILL after the grace.
#[test]
fn a_shutdown_kills_leftovers_of_ended_processes_after_its_grace() {
    for options in Options::all_tree_tracking() {
        let mut daemon = options.args(&["--shutdown-grace", "1", "--keep-ended", "1"]).start();
        for _ in 0..3 {
            let pid = daemon.sh("trap '' TERM; setsid sleep 5702 & sleep 5702 & exit 0");
            daemon.wait_for_end(pid);
        }
        daemon.wait_for_processes("sleep 5702", 6);
        let left = daemon.pids_executing("sleep 5702");
        let begun = Instant::now();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(990) && took < Duration::from_secs(20), "{took:?}");
        for pid in left {
            assert!(!procfs::command_line(pid).starts_with("sleep 5702"), "{pid} still runs");
        }
        // Below another PID 1, which is asked, because they would end with it.
        assert!(!daemon.log().contains("left: "), "{}", daemon.log());
    }
}

/// Leftovers of processes that ended by themselves get SIGTERM too; the shutdown waits no longer than they need.
#[test]
fn a_shutdown_sends_sigterm_to_leftovers_of_ended_processes() {
    for options in Options::all_tree_tracking() {
        let mut daemon = options.args(&["--shutdown-grace", "50", "--keep-ended", "1"]).start();
        let scratch = daemon.scratch();
        let server = "trap 'echo $0 >>told; exit' TERM; touch up.$0; while :; do sleep 0.02; done";
        for n in 0..3 {
            let script = format!("bash -c \"$0\" near{n} & setsid bash -c \"$0\" far{n} & exit 0");
            let body = json!({"command": "sh", "args": ["-c", script, server], "working_dir": scratch});
            daemon.wait_for_end(pid_of(&daemon.start_process(&body)));
            for name in ["near", "far"] {
                let file = scratch.join(format!("up.{name}{n}"));
                wait_until(TIMEOUT, "the process is up", || file.exists().then_some(()));
            }
        }
        let begun = Instant::now();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(40), "the shutdown used up the grace: {:?}", begun.elapsed());
        assert_eq!(servers_ended_on_sigterm(&scratch), ["far0", "far1", "far2", "near0", "near1", "near2"]);
    }
}

/// The orphan has left the session, its parent and the pipes; only INVOCATION_ID in its environment identifies it.
#[test]
fn delete_finds_an_orphan_by_its_invocation_id() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let other = daemon.sh("(setsid sleep 5704 >/dev/null 2>&1 &); exec sleep 5705");
        let pid = daemon.sh("(setsid sleep 5703 >/dev/null 2>&1 &); exit 0");
        daemon.wait_for_end(pid);
        for words in ["sleep 5703", "sleep 5704"] {
            wait_until(TIMEOUT, words, || {
                let orphans = daemon.pids_executing(words);
                orphans.iter().any(|pid| procfs::children(daemon.pid).contains(pid)).then_some(())
            });
        }
        daemon.wait_for_processes("sleep 5705", 1);
        daemon.delete_tree(pid, &["sleep 5703"]);
        assert_eq!((daemon.pids_executing("sleep 5704").len(), daemon.pids_executing("sleep 5705").len()), (1, 1));
        daemon.delete_tree(other, &["sleep 5704"]);
    }
}

#[test]
fn each_run_has_its_own_invocation_id() {
    let daemon = start_daemon();
    let body = json!({"command": "sh", "args": ["-c", "echo $INVOCATION_ID"], "env": {"INVOCATION_ID": "forged"}});
    let ids: Vec<String> = (0..2).map(|_| daemon.run(&body).stdout()).collect();
    for id in &ids {
        assert!(id.len() == 32 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{id:?}");
    }
    assert_ne!(ids[0], ids[1]);
}

/// Each process of a chain forks and exits at once, so that no scan of /proc sees the whole chain.
#[test]
fn delete_kills_chains_of_processes_that_fork_and_exit() {
    let chain = "use POSIX; POSIX::close($_) for 0..2; POSIX::setsid(); $SIG{TERM} = $SIG{HUP} = 'IGNORE'; \
                 while (1) { my $child = fork; exit if $child; POSIX::setsid() }";
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let script = "for i in 1 2 3 4 5; do perl -e \"$0\" & done; exit 0";
        let pid = pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script, chain]})));
        daemon.wait_for_end(pid);
        // The chains run without end; reaping them takes CPU time of the daemon.
        let reaping = || procfs::cpu_time(daemon.pid);
        let before = reaping();
        wait_until(TIMEOUT, "the chains run", || (reaping() > before + Duration::from_millis(50)).then_some(()));
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        wait_until(2 * TIMEOUT, "the chains have ended", || {
            let before = reaping();
            std::thread::sleep(Duration::from_millis(300));
            (reaping() - before < Duration::from_millis(20) && daemon.pids_matching("perl").is_empty()).then_some(())
        });
    }
}

/// `cgroup.kill` signals the main thread of each process; if that has ended, the other threads keep running.
#[test]
fn delete_kills_a_process_whose_main_thread_has_ended() {
    let script = "
import ctypes, os, sys, threading, time
threading.Thread(target=time.sleep, args=(5706,)).start()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
ctypes.CDLL(None).syscall(60)
";
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let go = daemon.scratch().join("go");
        let body = json!({"command": "sh", "args": ["-c", "setsid python3 -c \"$0\" \"$1\" & exit 0", script, go]});
        let pid = pid_of(&daemon.start_process(&body));
        daemon.wait_for_end(pid);
        let python = wait_until(TIMEOUT, "python is up", || daemon.pids_executing("python3").first().copied());
        std::fs::write(&go, "").expect("release the process");
        wait_until(TIMEOUT, "its main thread has ended", || procfs::is_zombie(python).then_some(()));
        assert_eq!(procfs::status(python, "Threads").as_deref(), Some("2"));
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        wait_until(TIMEOUT, "the process is gone", || procfs::status(python, "State").is_none().then_some(()));
    }
}

#[test]
fn signal_scope_selects_leader_group_or_tree() {
    let child = "trap 'echo $0' USR1; echo up; while :; do sleep 0.02; done";
    let script = "bash -c \"$0\" near & setsid bash -c \"$0\" far & trap 'echo leader' USR1; echo up; \
                  while :; do sleep 0.02; done";
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let pid = pid_of(&daemon.start_process(&json!({"command": "bash", "args": ["-c", script, child]})));
        daemon.wait_for_stdout(pid, &["up"; 3]);
        let mut heard = vec!["up".to_owned(); 3];
        for (scope, receivers) in [
            (json!("leader"), &["leader"][..]),
            (json!("group"), &["leader", "near"]),
            (Value::Null, &["leader", "near"]),
            (json!("tree"), &["far", "leader", "near"]),
        ] {
            daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 10, "scope": scope})).expect(200);
            heard.extend(receivers.iter().map(ToString::to_string));
            heard.sort_unstable();
            wait_until(TIMEOUT, &format!("scope {scope} gets the signal"), || {
                let mut lines = daemon.lines(pid, "stdout");
                lines.sort_unstable();
                (lines == heard).then_some(())
            });
        }
        daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 9, "scope": "leader"})).expect(200);
        assert_eq!(daemon.wait_for_end(pid)["signal"], 9);
        assert!(daemon.pids_executing("bash -c trap").len() >= 2, "signal 9 reached only the leader");
        daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 10, "scope": "all"})).expect_error(
            400,
            "INVALID_REQUEST",
            "`scope`",
        );
    }
}

#[test]
fn leftovers_kill_ends_the_tree_with_its_leader() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let script = "sleep 5707 & setsid sleep 5707 & echo done";
        let body = |leftovers: &str| json!({"command": "sh", "args": ["-c", script], "leftovers": leftovers});
        for how in ["start", "run"] {
            match how {
                "start" => {
                    assert_eq!(daemon.wait_for_end(pid_of(&daemon.start_process(&body("kill"))))["exit_code"], 0)
                }
                _ => assert_eq!(daemon.run(&body("kill")).stdout(), "done"),
            }
            daemon.wait_until_gone(TIMEOUT, "5707");
        }
        let session = daemon.open_pty(
            &json!({"command": "sh", "leftovers": "kill", "args": ["-c", "sleep 5707 & setsid sleep 5707 & exit 3"]}),
        );
        wait_until(TIMEOUT, "the process has ended", || (daemon.pty_info(&session)["exit_code"] == 3).then_some(()));
        daemon.wait_until_gone(TIMEOUT, "5707");
        daemon.run(&body("keep"));
        daemon.wait_for_processes("sleep 5707", 2);
    }
}

/// An idle session is hung up like a closed terminal window.
#[test]
fn an_idle_session_leaves_processes_that_ignore_the_hang_up_until_delete() {
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.args(&["--pty-idle-secs", "4"]).start();
        let session = daemon.pty_sh("nohup sleep 5708 >/dev/null & setsid sleep 5708 & sleep 5709; exit 3");
        // The session is not idle before both ignore the hang-up.
        let terminal = daemon.watch(&session);
        daemon.wait_for_processes("sleep 5708", 2);
        terminal.disconnect();
        daemon.wait_for_session_end(&session);
        daemon.wait_until_gone(TIMEOUT, "sleep 5709");
        // Longer than the 5 s between hang-up and SIGKILL of a DELETE.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            assert_eq!(daemon.pids_executing("sleep 5708").len(), 2, "after {:?}", begun.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon.delete(&format!("/pty/{}", session.id)).expect(204);
        daemon.wait_until_gone(TIMEOUT, "sleep 5708");
    }
}

/// With many processes, each scan of /proc and each walk through a cgroup takes long.
#[test]
fn delete_of_6000_processes_does_not_delay_other_requests() {
    for options in [Options::default().without_cgroup(), Options::default()] {
        let daemon = options.start();
        let pid = daemon.sh("for i in $(seq 6000); do sleep 5710 & done; echo up; wait");
        wait_until(4 * TIMEOUT, "all are up", || (daemon.lines(pid, "stdout") == ["up"]).then_some(()));
        std::thread::scope(|scope| {
            let kill = scope.spawn(|| daemon.delete(&format!("/processes/{pid}")));
            let mut longest = Duration::ZERO;
            while !kill.is_finished() {
                let begun = Instant::now();
                daemon.list();
                longest = longest.max(begun.elapsed());
            }
            kill.join().expect("the DELETE").expect(204);
            println!("the longest list took {longest:?}");
            assert!(longest < Duration::from_millis(1_500), "{longest:?}");
        });
        daemon.wait_until_gone(TIMEOUT, "sleep 5710");
    }
}

/// A kill examines each orphan once, not once for each ended process.
#[test]
fn leftovers_of_ended_processes_do_not_slow_down_a_delete() {
    let daemon = Options::default().without_cgroup().start();
    for _ in 0..150 {
        daemon.wait_for_end(daemon.sh("setsid sleep 5711 </dev/null >/dev/null 2>&1 & exit 0"));
    }
    daemon.wait_for_processes("sleep 5711", 150);
    for _ in 0..600 {
        daemon.run_sh("true");
    }
    let cost = |work: &dyn Fn()| {
        let before = procfs::cpu_time(daemon.pid);
        work();
        procfs::cpu_time(daemon.pid) - before
    };
    // A quadratic search would take seconds of CPU time for each kill.
    let kills = cost(&|| {
        for _ in 0..5 {
            let pid = daemon.sh("exec sleep 5712");
            daemon.delete(&format!("/processes/{pid}")).expect(204);
        }
    });
    println!("five kills took {kills:?}");
    assert!(kills < Duration::from_secs(2), "{kills:?}");
}
