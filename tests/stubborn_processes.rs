//! Processes that do not react to signals, or cannot: SIGKILL ends them, and what cannot be killed holds nothing up.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::baseline::{Baseline, check_others_are_served};
use crate::harness::faults::UnkillableDirectory;
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, skip_without_root, start_daemon, wait_until};

/// Ignores and blocks every signal that a process can.
const DEAF: &str = "
use POSIX;
$SIG{$_} = 'IGNORE' for keys %SIG;
my $all = POSIX::SigSet->new; $all->fillset; sigprocmask(SIG_BLOCK, $all);
$| = 1; print \"up\\n\"; select undef, undef, undef, 1 while 1
";

/// The parent of a vfork is in state D until its child executes a program; here the child waits for a writer of a FIFO.
/// Both have all signals blocked.
const VFORK: &str = "
import os
os.path.exists('fifo') or os.mkfifo('fifo')
print('up', flush=True)
os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, 'fifo', os.O_RDONLY, 0)])
";

/// One child stops the other as its tracer, and the leader stops itself; neither tracer nor leader reacts to SIGTERM.
const TRACED: &str = "
import ctypes, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
libc = ctypes.CDLL(None, use_errno=True)
sibling = os.fork()
if sibling == 0:
    time.sleep(600)
if os.fork() == 0:
    assert libc.ptrace(0x4206, sibling, 0, 0) == 0 and libc.ptrace(0x4207, sibling, 0, 0) == 0, ctypes.get_errno()
    print('up', flush=True)
    time.sleep(600)
time.sleep(600)
";

/// Executes itself without end, with another environment each time.
const EXECUTES: &str = "[ $1 != 0 ] || echo up; exec env -i PATH=\"$PATH\" N=$1 sh -c \"$0\" \"$0\" $(($1 + 1))";

fn bodies(daemon: &Daemon) -> [(&'static str, Value); 4] {
    let body = |command: &str, args: Value| json!({"command": command, "args": args, "working_dir": daemon.scratch()});
    [
        ("it ignores all signals", body("perl", json!(["-e", DEAF]))),
        ("it waits for its child of a vfork", body("python3", json!(["-c", VFORK]))),
        ("one child traces the other", body("python3", json!(["-c", TRACED]))),
        ("it executes without end", body("sh", json!(["-c", EXECUTES, EXECUTES, "0"]))),
    ]
}

fn wait_until_up(daemon: &Daemon, pid: u64) {
    daemon.wait_for_stdout(pid, &["up"]);
}

/// Number of processes below the daemon, without the fork server and zombies.
fn count_below(daemon: &Daemon) -> usize {
    procfs::descendants(daemon.pid).into_iter().filter(|pid| !procfs::is_zombie(*pid)).count()
}

fn wait_until_alone(daemon: &Daemon, what: &str) {
    wait_until(TIMEOUT, &format!("{what}: no process is left"), || (count_below(daemon) == 0).then_some(()));
}

fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

/// Calls the function for each way of keeping track of trees, at the same time: it mostly waits.
fn for_all_tree_tracking(test: fn(Options)) {
    std::thread::scope(|scope| {
        let tests = Options::all_tree_tracking().map(|options| scope.spawn(move || test(options)));
        tests.into_iter().for_each(|test| test.join().expect("it passes"));
    });
}

fn check_delete_timeout_and_restart(daemon: &Daemon, what: &str, body: &Value) {
    let plain = pid_of(&daemon.start_process(body));
    wait_until_up(daemon, plain);
    check_others_are_served(daemon);
    let begun = Instant::now();
    daemon.delete(&format!("/processes/{plain}")).expect(204);
    wait_until_alone(daemon, what);
    assert_eq!(daemon.wait_for_end(plain)["signal"], 9, "{what}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());

    let run = daemon.run(&with(body, json!({"timeout": 1})));
    assert_eq!((&run.last["reason"], &run.last["signal"]), (&json!("timed_out"), &json!(9)), "{what}");
    wait_until_alone(daemon, what);

    let managed = json!({"name": "web", "stop_grace_ms": 200});
    wait_until_up(daemon, pid_of(&daemon.start_process(&with(body, managed))));
    let new = daemon.post("/processes/web/restart", &json!({})).expect(200);
    assert_eq!(new["status"], "running", "{what}: {new}");
    daemon.delete("/processes/web").expect(204);
    wait_until_alone(daemon, what);
    daemon.delete(&format!("/processes/{plain}")).expect(204);
}

#[test]
fn delete_timeout_restart_and_shutdown_end_stubborn_processes() {
    for_all_tree_tracking(|options| {
        let mut daemon = options.args(&["--shutdown-grace", "0.3"]).start();
        let before = Baseline::of(&daemon);
        for (what, body) in bodies(&daemon) {
            check_delete_timeout_and_restart(&daemon, what, &body);
        }
        before.check_restored(&daemon);
        for (_, body) in bodies(&daemon) {
            wait_until_up(&daemon, pid_of(&daemon.start_process(&body)));
        }
        let begun = Instant::now();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(20), "{took:?}");
        assert!(!daemon.log().contains("left: "), "{}", daemon.log());
    });
}

#[test]
fn a_process_that_ignores_all_signals_gets_each_and_is_killed_while_it_is_stopped() {
    let daemon = start_daemon();
    let pid = pid_of(&daemon.start_process(&json!({"command": "perl", "args": ["-e", DEAF]})));
    wait_until_up(&daemon, pid);
    let signal = |number: i32| daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": number})).expect(200);
    // The C library lets no program ignore or block its own signals, 32 and 33.
    for number in (1..=64).filter(|number| ![9, 19, 32, 33].contains(number)) {
        signal(number);
    }
    assert_eq!(daemon.info(pid)["status"], "running");
    signal(19);
    let perl = daemon.pids_executing("perl")[0];
    wait_until(TIMEOUT, "it is stopped", || procfs::status(perl, "State")?.starts_with('T').then_some(()));
    assert_eq!(daemon.info(pid)["status"], "running");
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    assert_eq!(daemon.wait_for_end(pid)["signal"], 9);
}

#[test]
fn a_process_keeps_its_pid_and_output_over_a_thousand_execs() {
    let daemon = start_daemon();
    let script = "echo $$; [ $1 = 1000 ] && exit 6; exec sh -c \"$0\" \"$0\" $(($1 + 1))";
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", script, script, "1"]}));
    assert_eq!(run.code(), Some(6));
    assert_eq!(run.lines("stdout"), vec![run.pid().to_string(); 1000]);
}

/// The server of the file system has read the request of the process and never answers: not even SIGKILL ends the wait.
/// The daemon gives up waiting for the process; the kernel lets PID 1 of a namespace end only after all others.
#[test]
fn a_process_that_cannot_be_killed_holds_up_neither_delete_nor_shutdown() {
    if skip_without_root() {
        return;
    }
    for_all_tree_tracking(|options| {
        let mut daemon = options.args(&["--shutdown-grace", "0.3"]).start();
        let directory = UnkillableDirectory::mount(&daemon);
        let pid = pid_of(&daemon.start_process(&json!({"command": "stat", "args": [directory.path().join("x")]})));
        let stat = daemon.wait_for_processes("stat ", 1)[0];
        wait_until(TIMEOUT, "the server has read the request", || directory.has_request().then_some(()));
        let begun = Instant::now();
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        assert!(begun.elapsed() < Duration::from_secs(20), "after 2 s at most: {:?}", begun.elapsed());
        wait_until(TIMEOUT, "its run has ended", || (daemon.info(pid)["signal"] == 9).then_some(()));
        assert!(procfs::status(stat, "State").is_some_and(|state| state.starts_with('D')), "it still exists");
        check_others_are_served(&daemon);

        let begun = Instant::now();
        daemon.signal(Signal::SIGTERM);
        // A process that has begun to end has no memory.
        wait_until(TIMEOUT, "the daemon ends", || procfs::status(daemon.pid, "VmRSS").is_none().then_some(()));
        let took = begun.elapsed();
        println!("the shutdown took {took:?}");
        assert!(took < Duration::from_secs(20), "3.3 s at most: {took:?}");
        assert!(procfs::status(stat, "State").is_some(), "the process has outlived the daemon");
        drop(directory);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
    });
}
