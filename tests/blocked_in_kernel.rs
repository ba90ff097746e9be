//! Programs, directories and files whose access blocks in the kernel delay only their own request.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::faults::{Freezer, Lease, hanging_directory};
use crate::harness::files::{get, put};
use crate::harness::{
    Daemon, Options, TIMEOUT, check_most_take_less, pid_of, procfs, skip_without_root, start_daemon, wait_until,
};

/// Waits until the hanging start is listed; its ProcessInfo.
fn wait_for_hanging_start(daemon: &Daemon, command: &str) -> Value {
    wait_until(TIMEOUT, "the start that hangs is listed", || {
        daemon.list().into_iter().find(|info| info["command"] == command && info["status"] == "running")
    })
}

/// Checks that runs and health are served without delay.
fn check_others_are_served(daemon: &Daemon) {
    check_most_take_less(Duration::from_secs(2), 20, || {
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        assert_eq!(daemon.try_health(), Some(200));
    });
}

/// Deletes a process that hangs in the kernel, and waits until it has ended. The request is answered after 2 s at most
/// in any case. The kernel takes a lease away after 45 s.
fn check_delete(daemon: &Daemon, pid: u64) {
    let begun = Instant::now();
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    wait_until(TIMEOUT, "the process has ended", || (daemon.info(pid)["status"] == "signaled").then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

fn check_delete_ends_a_hanging_exec(daemon: &Daemon) {
    let script = daemon.script("hangs", "#!/bin/sh\necho ran\n");
    let command = script.to_str().expect("a path");
    let lease = Lease::take(&script);
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| daemon.post("/processes", &json!({"command": command})));
        let pid = pid_of(&wait_for_hanging_start(daemon, command));
        check_others_are_served(daemon);
        check_delete(daemon, pid);
        // The request that started it is answered now; its status does not matter.
        let begun = Instant::now();
        starter.join().expect("the starting thread");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    });
    drop(lease);
    assert_eq!(daemon.run(&json!({"command": command})).stdout(), "ran");
}

#[test]
fn delete_kills_a_process_whose_exec_hangs() {
    if !skip_without_root() {
        check_delete_ends_a_hanging_exec(&start_daemon());
    }
}

#[test]
fn delete_kills_a_process_whose_exec_hangs_without_a_cgroup() {
    if !skip_without_root() {
        check_delete_ends_a_hanging_exec(&Options::default().without_cgroup().start());
    }
}

#[test]
fn start_answers_201_after_5_s_of_a_hanging_exec_and_reports_its_result_later() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let cases = [
        ("good", "#!/bin/sh\necho ran\n", 0, vec!["ran"]),
        // The kernel notices the missing interpreter only when it can read the script.
        ("bad", "#!/no/such/interpreter\n", 126, vec![]),
    ];
    let scripts = cases.map(|(name, text, code, lines)| (daemon.script(name, text), code, lines));
    let leases: Vec<Lease> = scripts.iter().map(|(script, ..)| Lease::take(script)).collect();
    let pids: Vec<u64> = std::thread::scope(|scope| {
        let starters: Vec<_> = scripts
            .iter()
            .map(|(script, ..)| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let begun = Instant::now();
                    let pid = pid_of(&daemon.start_process(&json!({"command": script})));
                    let took = begun.elapsed();
                    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(25), "{took:?}");
                    pid
                })
            })
            .collect();
        starters.into_iter().map(|starter| starter.join().expect("a starter")).collect()
    });
    drop(leases);
    for (pid, (_, code, lines)) in pids.into_iter().zip(scripts) {
        let info = daemon.wait_for_end(pid);
        assert_eq!(info["exit_code"], code, "{info}");
        assert_eq!(daemon.lines(pid, "stdout"), lines);
        assert_eq!(daemon.lines(pid, "stderr").len(), usize::from(code != 0), "one line about the failure");
    }
}

#[test]
fn a_run_whose_exec_hangs_ends_at_its_timeout() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let script = daemon.script("hangs", "#!/bin/sh\necho ran\n");
    let lease = Lease::take(&script);
    let begun = Instant::now();
    // The response ends at the timeout, and no process remains.
    let response = daemon.post("/processes/run", &json!({"command": script, "timeout": 0.5}));
    let text = String::from_utf8_lossy(&response.body).into_owned();
    assert!(response.status == 200 && text.contains("\"timed_out\""), "{} {text}", response.status);
    wait_until(TIMEOUT, "no process is running", || {
        daemon.list().iter().all(|info| info["status"] != "running").then_some(())
    });
    // The kernel takes the lease away after 45 s.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(lease);
}

#[test]
fn a_working_directory_that_hangs_delays_only_its_own_request() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let dir = hanging_directory(&daemon);
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| daemon.post("/processes", &json!({"command": "stuck-there", "working_dir": dir})));
        let pid = pid_of(&wait_for_hanging_start(&daemon, "stuck-there"));
        check_others_are_served(&daemon);
        check_delete(&daemon, pid);
        starter.join().expect("the starting thread");
    });
}

#[test]
fn a_file_that_hangs_delays_only_its_own_request() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let file = daemon.scratch().join("leased");
    std::fs::write(&file, "x").expect("write the file");
    let lease = Lease::take(&file);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| get(&daemon, &file, ""));
        wait_until(TIMEOUT, "a thread waits for the lease", || procfs::waits_in(daemon.pid, "lease").then_some(()));
        assert_eq!(daemon.try_health(), Some(200));
        put(&daemon, "x", "", b"y").expect(204);
        assert_eq!(get(&daemon, "x", "").body, b"y");
        drop(lease);
        assert_eq!(reader.join().expect("the reader").body, b"x");
    });
}

#[test]
fn a_run_ends_at_its_timeout_although_its_leader_is_frozen() {
    if skip_without_root() {
        return;
    }
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.start();
        let begun = Instant::now();
        let mut run = daemon.open_run(&json!({"command": "sleep", "args": ["4410"], "timeout": 10}));
        let pid = run.next_frame().expect("the first event").data["pid"].as_u64().expect("a PID");
        let sleep = wait_until(TIMEOUT, "the process runs", || daemon.pids_executing("sleep 4410").first().copied());
        let Some(freezer) = Freezer::freeze(sleep) else {
            return;
        };
        assert_eq!(run.next_frame().expect("the last event").data["reason"], "timed_out");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert_eq!(daemon.pids_executing("sleep 4410"), [sleep], "the frozen process still exists");
        check_others_are_served(&daemon);
        let begun = Instant::now();
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        assert!(begun.elapsed() < Duration::from_secs(20), "after 2 s at most: {:?}", begun.elapsed());
        drop(freezer);
        daemon.wait_until_gone(TIMEOUT, "sleep 4410");
        assert_eq!(daemon.info(pid)["signal"], 9);
    }
}
