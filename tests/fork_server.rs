//! The process that forks on behalf of the daemon: what it holds, and what happens when it is killed or stopped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::cgroups::cgroup_of;
use crate::harness::faults::{Freezer, TestCgroup};
use crate::harness::response::ResponseStream;
use crate::harness::{
    Daemon, TIMEOUT, is_root, procfs, skip, skip_without_root, start_daemon, wait_until, wait_until_still,
};

/// The PID of the fork server, as the tests see it.
fn fork_server(daemon: &Daemon) -> Option<i32> {
    procfs::fork_server(daemon.pid)
}

fn wait_for_fork_server(daemon: &Daemon) -> i32 {
    wait_until(TIMEOUT, "the fork server runs", || fork_server(daemon))
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signal the fork server");
}

fn check_runs_work(daemon: &Daemon) {
    let run = daemon.run_sh("echo out; echo err >&2; exit 3");
    assert_eq!((run.lines("stdout").as_slice(), run.code()), (["out".to_owned()].as_slice(), Some(3)));
}

#[test]
fn it_holds_only_its_socket_and_little_memory_and_its_children_are_the_daemons() {
    let daemon = start_daemon();
    let pid = daemon.sh("echo up; exec sleep 4801");
    daemon.wait_for_stdout(pid, &["up"]);
    let server = wait_for_fork_server(&daemon);
    wait_until(TIMEOUT, "it has closed the descriptors of its last request", || {
        let descriptors = procfs::descriptors(server);
        matches!(descriptors.as_slice(), [(_, target)] if target.starts_with("socket:")).then_some(())
    });
    assert!(procfs::kilobytes(server, "RssAnon") < 1024, "{} kB", procfs::kilobytes(server, "RssAnon"));
    let maps = std::fs::read_to_string(format!("/proc/{server}/maps")).expect("its mappings");
    assert!(maps.contains("tl-init") && !maps.contains("[heap]"), "{maps}");
    assert_eq!(procfs::children(server), [] as [i32; 0]);
    let [leader] = daemon.wait_for_processes("sleep 4801", 1)[..] else { panic!("one leader") };
    assert!(procfs::children(daemon.pid).contains(&leader));
}

#[test]
fn a_killed_one_is_replaced_and_runs_work_meanwhile() {
    let daemon = start_daemon();
    check_runs_work(&daemon);
    for _ in 0..3 {
        let first = wait_for_fork_server(&daemon);
        signal(first, Signal::SIGKILL);
        let begun = Instant::now();
        wait_until(TIMEOUT, "another one runs", || {
            check_runs_work(&daemon);
            fork_server(&daemon).filter(|server| *server != first)
        });
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert!(daemon.log().contains("fork server has ended"), "{}", daemon.log());
}

#[test]
fn a_stopped_one_delays_only_one_start_and_is_replaced() {
    let daemon = start_daemon();
    check_runs_work(&daemon);
    let first = wait_for_fork_server(&daemon);
    signal(first, Signal::SIGSTOP);
    let begun = Instant::now();
    check_runs_work(&daemon);
    // 500 ms until the daemon gives up, and as long until the server has ended.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    wait_until(TIMEOUT, "it is gone", || (fork_server(&daemon) != Some(first)).then_some(()));
    check_runs_work(&daemon);
    assert!(daemon.log().contains("does not answer"), "{}", daemon.log());
}

/// A start holds the supervisor up while the fork server does not answer. A leader that was killed, and that ends
/// meanwhile, has ended in time, although its deadline, 750 ms after the kill, is over when the supervisor sees both.
#[test]
fn a_leader_that_ends_while_the_supervisor_is_held_up_is_not_abandoned() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let send = |method: &str, path: &str, body: &str| {
        let head = daemon.request_head(method, path, &format!("Content-Length: {}\r\n", body.len()));
        let mut socket = daemon.connect();
        socket.write_all(format!("{head}{body}").as_bytes()).expect("send the request");
        socket
    };
    let abandoned = || daemon.log().matches("has not exited after its SIGKILL").count();
    let channels = || procfs::waiting_threads(daemon.pid, "supervisor");
    // On a busy machine the deadline can pass before the supervisor is held up: then once more.
    for _ in 0..5 {
        let server = wait_until(TIMEOUT, "the fork server runs", || {
            check_runs_work(&daemon);
            fork_server(&daemon)
        });
        let (pid, before) = (daemon.sh("exec sleep 4803"), abandoned());
        let [leader] = daemon.wait_for_processes("sleep 4803", 1)[..] else { panic!("one leader") };
        let idle = wait_until(TIMEOUT, "the supervisor is idle", || Some(channels()).filter(|all| !all.is_empty()));
        let is_held_up = || !channels().is_empty() && channels() != idle;
        // A frozen process ends only when it is thawed.
        let Some(freezer) = Freezer::freeze(leader) else { return };
        let deleted = send("DELETE", &format!("/processes/{pid}"), "");
        wait_until(TIMEOUT, "the leader is killed", || {
            let pending = [procfs::status(leader, "SigPnd")?, procfs::status(leader, "ShdPnd")?];
            pending.iter().any(|set| set.ends_with("100")).then_some(())
        });
        let killed = Instant::now();
        signal(server, Signal::SIGSTOP);
        // The supervisor is held up for 500 ms, until after the deadline.
        wait_until(TIMEOUT, "half of the time is over", || {
            (killed.elapsed() > Duration::from_millis(350)).then_some(())
        });
        let started = send("POST", "/processes", r#"{"command": "true"}"#);
        wait_until(TIMEOUT, "the supervisor is held up, or it is too late", || {
            (is_held_up() || killed.elapsed() > Duration::from_secs(1)).then_some(())
        });
        let is_early = killed.elapsed() < Duration::from_millis(650);
        drop(freezer);
        wait_until(TIMEOUT, "the leader has ended", || (!procfs::is_alive(leader)).then_some(()));
        let is_valid = is_early && procfs::is_zombie(leader) && is_held_up();
        assert_eq!(ResponseStream::read(deleted).expect("a response").status, 204);
        assert_eq!(ResponseStream::read(started).expect("a response").status, 201);
        assert_eq!(daemon.wait_for_end(pid)["signal"], 9);
        if is_valid {
            return assert_eq!(abandoned(), before, "{}", daemon.log());
        }
    }
    skip("a CPU that is free for a second");
}

/// A cgroup whose members together get 100 ms of CPU time in each second. A program that never waits takes them at once.
struct Throttled {
    busy: Child,
    cgroup: TestCgroup,
}

impl Throttled {
    fn with(pid: i32) -> Option<Throttled> {
        let cgroup = TestCgroup::new("cpu")?;
        cgroup.write("cpu.cfs_period_us", 1_000_000);
        cgroup.write("cpu.cfs_quota_us", 100_000);
        let busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("run the shell");
        let throttled = Throttled { busy, cgroup };
        // On one CPU: the kernel leaves a little time to the others.
        let status = std::fs::read_to_string("/proc/self/status").expect("read the own status");
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("the own CPUs");
        let cpu = cpus.trim().split([',', '-']).next().expect("the first CPU");
        for member in [throttled.busy.id() as i32, pid] {
            throttled.cgroup.write("cgroup.procs", member);
            let status = Command::new("taskset").args(["-pc", cpu, &member.to_string()]).stdout(Stdio::null()).status();
            assert!(status.expect("run taskset").success());
        }
        Some(throttled)
    }

    /// Waits until the members have used up their time, so that none runs before the next second.
    fn wait_until_used_up(&self) {
        let busy = self.busy.id() as i32;
        wait_until_still(Duration::from_millis(60), "no CPU time is left", || procfs::cpu_time(busy));
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        let _ = self.busy.kill();
        let _ = self.busy.wait();
    }
}

/// A freezer of cgroups version 1 makes the kernel show a process as waiting uninterruptibly (state D).
#[test]
fn one_that_waits_inside_the_kernel_for_a_second_is_waited_for() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    check_runs_work(&daemon);
    let first = wait_for_fork_server(&daemon);
    let Some(freezer) = Freezer::freeze(first) else { return };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| check_runs_work(&daemon));
        // Twice as long as the daemon waits for a server that is stopped.
        std::thread::sleep(Duration::from_secs(1));
        drop(freezer);
        run.join().expect("the run works");
    });
    check_runs_work(&daemon);
    assert_eq!(fork_server(&daemon), Some(first));
    assert!(!daemon.log().contains("does not answer"), "{}", daemon.log());
}

#[test]
fn one_that_gets_no_cpu_for_a_second_is_waited_for() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    check_runs_work(&daemon);
    let first = wait_for_fork_server(&daemon);
    let Some(throttled) = Throttled::with(first) else { return };
    for _ in 0..3 {
        throttled.wait_until_used_up();
        check_runs_work(&daemon);
    }
    drop(throttled);
    check_runs_work(&daemon);
    assert_eq!(fork_server(&daemon), Some(first));
    assert!(!daemon.log().contains("does not answer"), "{}", daemon.log());
}

/// Eight clients run commands while the fork server is killed and stopped again and again. Each run has its own output
/// and exit code, and no process is left.
#[test]
fn no_run_is_lost_or_mixed_up_while_it_is_killed_and_stopped() {
    let daemon = start_daemon();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let mut attacks = 0u32;
            while !done.load(Ordering::Relaxed) {
                if let Some(server) = fork_server(&daemon) {
                    let with = if attacks.is_multiple_of(4) { Signal::SIGSTOP } else { Signal::SIGKILL };
                    // It may have ended meanwhile.
                    let _ = kill(Pid::from_raw(server), with);
                    attacks += 1;
                }
                std::thread::yield_now();
            }
            attacks
        });
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let daemon = &daemon;
                scope.spawn(move || {
                    for n in 0..40 {
                        let code = n % 7;
                        let run = daemon.run_sh(&format!("echo {client}-{n}; exit {code}"));
                        assert_eq!((run.lines("stdout").concat(), run.code()), (format!("{client}-{n}"), Some(code)));
                    }
                })
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(attacker.join().expect("the attacker") > 0);
        results.into_iter().for_each(|result| result.expect("a client"));
    });
    wait_until(TIMEOUT, "no process is left", || procfs::children(daemon.pid).is_empty().then_some(()));
}

/// A child that has not executed its program yet has the server's socket open, so the end of that socket does not say
/// that the server has ended.
#[test]
fn a_stopped_one_is_replaced_while_a_child_of_it_hangs_before_its_exec() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    check_runs_work(&daemon);
    let Some(slice) = slice(&daemon) else { return skip("cgroups of version 2") };
    let freeze = |dir: &Path, value: &str| std::fs::write(dir.join("cgroup.freeze"), value).expect("freeze or thaw");
    // Whichever leaf the daemon chooses, a process in it hangs. Then only that leaf stays frozen.
    freeze(&slice, "1");
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| daemon.sh("exec sleep 4803"));
        let has_member = |leaf: &PathBuf| {
            let members = std::fs::read_to_string(leaf.join("cgroup.procs"));
            members.is_ok_and(|members| !members.is_empty())
        };
        let leaf = wait_until(TIMEOUT, "its leader was forked", || subdirectories(&slice).into_iter().find(has_member));
        freeze(&leaf, "1");
        freeze(&slice, "0");
        signal(wait_for_fork_server(&daemon), Signal::SIGSTOP);
        check_runs_work(&daemon);
        freeze(&leaf, "0");
        let pid = hanging.join().expect("start a process");
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    });
    check_runs_work(&daemon);
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("list a cgroup").flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

/// The cgroup of all units of the daemon.
fn slice(daemon: &Daemon) -> Option<PathBuf> {
    let own = cgroup_of(daemon.pid)?;
    let parent = if own.ends_with("tl-init") { own.parent()?.to_owned() } else { own };
    let is_slice =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tl-units."));
    subdirectories(&parent).into_iter().find(is_slice)
}

#[test]
fn arguments_that_do_not_fit_into_a_request_are_forked_without_it() {
    let daemon = start_daemon();
    let long = "x".repeat(100_000);
    let env = json!({"A": long, "B": long, "C": long, "D": long});
    let script = "echo ${#A} ${#D}";
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", script], "env": env}));
    assert_eq!((run.stdout(), run.code()), ("100000 100000".to_owned(), Some(0)));
    check_runs_work(&daemon);
}

#[test]
fn a_run_after_killed_runs_is_not_killed() {
    let daemon = start_daemon();
    for _ in 0..5 {
        let pid = daemon.sh("sleep 4802 & exec sleep 4802");
        daemon.wait_for_processes("sleep 4802", 2);
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        check_runs_work(&daemon);
        // The leader ends by itself, and then its child is killed.
        daemon.run(&json!({"command": "sh", "args": ["-c", "sleep 4802 & exit 0"], "leftovers": "kill"}));
        (0..3).for_each(|_| check_runs_work(&daemon));
        if is_root() {
            // Kills itself through its cgroup, if it has one.
            let script = "dir=$(sed -n s/^0:://p /proc/self/cgroup); for mount in /sys/fs/cgroup /sys/fs/cgroup/unified; \
                          do echo 1 > $mount$dir/cgroup.kill; done 2>/dev/null; true";
            daemon.run(&json!({"command": "sh", "args": ["-c", script], "user": "root"}));
        }
        (0..3).for_each(|_| check_runs_work(&daemon));
    }
}

/// The kernel kills processes that are created in a leaf that existed when the slice was killed.
#[test]
fn a_run_after_a_kill_of_the_cgroup_of_all_units_is_not_killed() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    for _ in 0..3 {
        // Each leaves an empty cgroup behind, which a later run uses again.
        let pids: Vec<u64> = (0..4).map(|_| daemon.sh("sleep 0.2")).collect();
        for pid in pids {
            daemon.wait_for_end(pid);
        }
        let script = "dir=$(sed -n s/^0:://p /proc/self/cgroup); for mount in /sys/fs/cgroup /sys/fs/cgroup/unified; \
                      do echo 1 > $mount${dir%/*}/cgroup.kill; done 2>/dev/null; true";
        daemon.run(&json!({"command": "sh", "args": ["-c", script], "user": "root"}));
        (0..6).for_each(|_| check_runs_work(&daemon));
    }
}
