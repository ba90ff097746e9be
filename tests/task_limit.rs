//! The limit of tasks (processes and threads) by RLIMIT_NPROC, without a pids controller. `tests/vm/test_limits.py`
//! tests the limit by cgroup.

use serde_json::json;

use crate::harness::{Daemon, Options, TIMEOUT, pid_of, skip_without_root, wait_until};

/// A UID that no other process of the machine uses: the kernel counts the tasks of a user across namespaces.
fn unused_uid() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    // Unique per test process: each has fewer than 16 tests that need a UID.
    100_000 + std::process::id() * 16 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn start_daemon_for(uid: u32, options: Options) -> Daemon {
    options.args(&["--default-user", &uid.to_string()]).start()
}

/// Starts a command of the default user that starts `sleep 4700` until the kernel refuses a fork, and waits for that.
/// Returns the PID of the command.
fn start_fork_bomb(daemon: &Daemon) -> u64 {
    let pid = daemon.sh("(while :; do sleep 4700 & done); echo full; exec sleep 4700");
    wait_until(TIMEOUT, "the user has as many processes as it may", || {
        (daemon.lines(pid, "stdout") == ["full"]).then_some(())
    });
    // Both streams are read independently.
    wait_until(TIMEOUT, "a fork was refused", || {
        daemon.lines(pid, "stderr").iter().any(|line| line.contains("fork")).then_some(())
    });
    pid
}

/// Checks that a start of the default user is refused for lack of tasks, and that root can start processes.
fn check_only_root_can_start(daemon: &Daemon) {
    // Takes the task of the shell that could not fork and has ended.
    daemon.start_process(&json!({"command": "sleep", "args": ["4700"]}));
    let refused = daemon.post("/processes", &json!({"command": "true"}));
    refused.expect_error(503, "OUT_OF_RESOURCES", "RLIMIT_NPROC");
    for _ in 0..10 {
        let run = daemon.run(&json!({"command": "sh", "args": ["-c", "true; echo x"], "user": "root"}));
        assert_eq!(run.stdout(), "x");
        assert_eq!(daemon.try_health(), Some(200));
    }
}

fn end_fork_bomb(daemon: &Daemon, pid: u64) {
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    // On a busy machine, the response comes before all processes of the bomb have ended, that of the request included.
    let is_other = |info: &serde_json::Value| info["status"] == "running" && info["pid"] != pid;
    let other = daemon.list().into_iter().find(is_other).expect("the other one");
    daemon.delete(&format!("/processes/{}", other["pid"])).expect(204);
    daemon.wait_until_gone(TIMEOUT, "sleep 4700");
    wait_until(TIMEOUT, "the user can start processes again", || {
        (daemon.post("/processes", &json!({"command": "true"})).status == 201).then_some(())
    });
}

#[test]
fn a_fork_bomb_of_the_default_user_leaves_pids_for_root() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon_for(unused_uid(), Options::default().pid_max(1_500));
    let pid = start_fork_bomb(&daemon);
    check_only_root_can_start(&daemon);
    end_fork_bomb(&daemon, pid);
}

#[test]
fn max_tasks_limits_the_tasks_of_each_user() {
    if skip_without_root() {
        return;
    }
    let (uid, other) = (unused_uid(), unused_uid());
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = start_daemon_for(uid, options.args(&["--max-tasks", "20"]));
        let pid = start_fork_bomb(&daemon);
        check_only_root_can_start(&daemon);
        daemon.wait_for_processes("sleep 4700", 20);
        let limit =
            json!({"command": "sh", "args": ["-c", "grep processes /proc/self/limits"], "user": other.to_string()});
        let limit = daemon.run(&limit).stdout();
        assert_eq!(limit.split_whitespace().collect::<Vec<_>>(), ["Max", "processes", "20", "20", "processes"]);
        assert!(daemon.log().contains("RLIMIT_NPROC"), "no cgroup limits tasks here: {}", daemon.log());
        end_fork_bomb(&daemon, pid);
    }
}

#[test]
fn an_inherited_rlimit_nproc_is_not_raised() {
    if skip_without_root() {
        return;
    }
    let given = || Options::default().prepare("prlimit --pid $$ --nproc=300:400");
    for (options, limits, warned) in [
        (given(), ["300", "400"], false),
        (given().args(&["--max-tasks", "5000"]), ["300", "400"], true),
        (given().args(&["--max-tasks", "350"]), ["300", "350"], true),
    ] {
        let daemon = start_daemon_for(unused_uid(), options);
        let limit = daemon.run_sh("grep processes /proc/self/limits").stdout();
        assert_eq!(limit.split_whitespace().skip(2).take(2).collect::<Vec<_>>(), limits);
        let own = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid)).expect("its limits");
        let own = own.lines().find(|line| line.contains("processes")).expect("that of processes").to_owned();
        assert!(own.contains("300") && own.contains("400"), "{own}");
        assert_eq!(daemon.log().contains("RLIMIT_NPROC is 300"), warned, "{}", daemon.log());
    }
}

#[test]
fn tasks_of_the_same_uid_elsewhere_do_not_block_starts_in_a_small_namespace() {
    if skip_without_root() {
        return;
    }
    let uid = unused_uid();
    let busy = start_daemon_for(uid, Options::default());
    busy.run_sh("i=0; while [ $i -lt 500 ]; do sleep 4701 & i=$((i+1)); done");
    let small = start_daemon_for(uid, Options::default().pid_max(400));
    assert_eq!(small.run_sh("true; echo x").stdout(), "x");
}

#[test]
fn a_killed_process_frees_its_task_at_once() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon_for(unused_uid(), Options::default().args(&["--max-tasks", "2"]));
    for _ in 0..20 {
        let pid = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["4702"]})));
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
}
