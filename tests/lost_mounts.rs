//! Directories that the daemon uses and that disappear or become read-only under it: /proc, the run directory, and the
//! directory of the logs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::baseline::{Baseline, while_serving};
use crate::harness::files::{files, get, put};
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, skip, skip_without_root};

/// Unmounts /proc in the mount namespace of the daemon: that of the namespace, and that of the machine below it.
fn unmount_proc(daemon: &Daemon) {
    let left = daemon.run_as_root("umount -l /proc; while umount -l /proc 2>/dev/null; do :; done; ls /proc | wc -l");
    assert_eq!(left, "0");
}

fn process_with_children(daemon: &Daemon) -> u64 {
    let script = "sleep 4840 & setsid sleep 4841 & sleep 4842";
    let pid = daemon.sh(script);
    for words in ["sleep 4840", "sleep 4841", "sleep 4842"] {
        daemon.wait_for_processes(words, 1);
    }
    pid
}

/// Checks everything that needs no /proc; the daemon may have it or not.
fn check_that_the_rest_works(daemon: &Daemon) {
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", "echo out; echo err >&2; exit 3"]}));
    assert_eq!(
        (run.code(), run.lines("stdout"), run.lines("stderr")),
        (Some(3), vec!["out".into()], vec!["err".into()])
    );
    daemon.post("/processes", &json!({"command": "no-such"})).expect_error(400, "COMMAND_NOT_FOUND", "no-such");
    let begun = Instant::now();
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", "sleep 4843 & sleep 4843"], "timeout": 0.3}));
    assert_eq!((run.last["reason"].as_str(), run.last["signal"].as_u64()), (Some("timed_out"), Some(9)));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    daemon.wait_until_gone(TIMEOUT, "sleep 4843");
    let managed = json!({"command": "sh", "args": ["-c", "sleep 4844 & sleep 4844"], "name": "m", "restart": {"policy": "always"}});
    let first = pid_of(&daemon.start_process(&managed));
    let second = pid_of(&daemon.post("/processes/m/restart", &json!({})).expect(200));
    assert_ne!(first, second);
    daemon.delete("/processes/m").expect(204);
    daemon.wait_until_gone(TIMEOUT, "sleep 4844");
    let file = daemon.scratch().join("file");
    put(daemon, &file, "&user=root", b"first").expect(204);
    put(daemon, &file, "&user=root", b"second").expect(204);
    assert_eq!(get(daemon, &file, "").body, b"second");
    daemon.delete(&files(&file, "&user=root")).expect(204);
    let session = daemon.pty_sh("stty -echo; echo up; read x; exit 5");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.type_in("\n");
    assert_eq!(terminal.wait_for_end().exit, Some(5));
    daemon.delete(&format!("/pty/{}", session.id)).expect(204);
    let metrics = daemon.get("/metrics");
    assert_eq!(metrics.status, 200);
    daemon.get("/info").expect(200);
    daemon.get("/boot").expect(200);
}

/// Kills the fork server, if there is one: on a busy machine the daemon may have given it up.
fn kill_fork_server(daemon: &Daemon) {
    if let Some(pid) = procfs::fork_server(daemon.pid) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
    }
    for number in 0..5 {
        assert_eq!(daemon.run_sh(&format!("echo {number}")).stdout(), number.to_string());
    }
}

#[test]
fn without_proc_everything_works_if_there_is_a_cgroup() {
    if skip_without_root() {
        return;
    }
    let mut daemon = Options::default().start();
    let tree = process_with_children(&daemon);
    let baseline = Baseline::of(&daemon);
    unmount_proc(&daemon);
    while_serving(&daemon, || {
        check_that_the_rest_works(&daemon);
        let other = process_with_children_of_signal(&daemon);
        daemon.post(&format!("/processes/{other}/signal"), &json!({"signal": 15, "scope": "tree"})).expect(200);
        daemon.wait_until_gone(TIMEOUT, "sleep 4845");
        kill_fork_server(&daemon);
    });
    daemon.delete_tree(tree, &["sleep 4840", "sleep 4841", "sleep 4842"]);
    baseline.check_restored(&daemon);
    assert!(!daemon.log().contains("/proc"), "{}", daemon.log());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
}

fn process_with_children_of_signal(daemon: &Daemon) -> u64 {
    let pid = daemon.sh("setsid sleep 4845 & sleep 4845");
    daemon.wait_for_processes("sleep 4845", 2);
    pid
}

/// Then only the process group of a leader is known. What reaches it still works; what needs the tree says so.
#[test]
fn without_proc_and_cgroup_only_process_groups_are_killed_and_the_log_says_so() {
    if skip_without_root() {
        return;
    }
    let mut daemon = Options::default().without_cgroup().start();
    let tree = process_with_children(&daemon);
    let baseline = Baseline::of(&daemon);
    unmount_proc(&daemon);
    while_serving(&daemon, || {
        check_that_the_rest_works(&daemon);
        let refused = daemon.post(&format!("/processes/{tree}/signal"), &json!({"signal": 15, "scope": "tree"}));
        refused.expect_error(500, "INTERNAL", "/proc does not show this PID namespace");
        let other = process_with_children_of_signal(&daemon);
        daemon.post(&format!("/processes/{other}/signal"), &json!({"signal": 15})).expect(200);
        assert_eq!(daemon.wait_for_end(other)["signal"], 15);
        daemon.delete(&format!("/processes/{other}")).expect(204);
        kill_fork_server(&daemon);
    });
    daemon.delete(&format!("/processes/{tree}")).expect(204);
    ["sleep 4840", "sleep 4842"].iter().for_each(|words| daemon.wait_until_gone(TIMEOUT, words));
    assert_eq!(daemon.log().matches("/proc does not show this PID namespace").count(), 1, "{}", daemon.log());
    // The processes that have left their group survive, and hold their pipes.
    for words in ["sleep 4841", "sleep 4845"] {
        let escaped = daemon.wait_for_processes(words, 1)[0];
        kill(Pid::from_raw(escaped), Signal::SIGKILL).expect("kill it");
    }
    baseline.check_restored(&daemon);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
}

/// Checks that a daemon works without its run directory, also through a reload and a shutdown.
fn check_without_run_directory(mut daemon: Daemon) {
    let run = daemon.state_dir().join("run");
    let baseline = Baseline::of(&daemon);
    while_serving(&daemon, || {
        check_that_the_rest_works(&daemon);
        daemon.signal(Signal::SIGHUP);
        check_that_the_rest_works(&daemon);
    });
    baseline.check_restored(&daemon);
    assert!(!run.join("token").exists());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
}

#[test]
fn the_run_directory_is_not_needed_after_the_start() {
    let daemon = Options::default().start();
    std::fs::remove_dir_all(daemon.state_dir().join("run")).expect("remove the directory");
    check_without_run_directory(daemon);
}

#[test]
fn the_file_system_of_the_run_directory_can_be_unmounted() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().start();
    let run = daemon.state_dir().join("run").display().to_string();
    // A file system over the directory, and its removal with what is below it.
    daemon.run_as_root(&format!("mount -t tmpfs tmpfs {run}; test -z \"$(ls {run})\"; umount -l {run}; rm -r {run}"));
    check_without_run_directory(daemon);
}

/// An ext4 file system in a file.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None where no ext4 file system can be created or mounted on a loop device.
    fn mount() -> Option<Disk> {
        let disk = Disk(tempfile::tempdir().expect("create a directory"));
        let script = "truncate -s 64M image && mkfs.ext4 -q -F image && mkdir mounted && mount -o loop image mounted";
        let output =
            Command::new("sh").args(["-c", script]).current_dir(disk.0.path()).output().expect("run the shell");
        output.status.success().then_some(disk)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mounted")
    }

    /// Makes the file system read-only although files are open for writing, as the kernel does after an error of the
    /// disk (ext4(5), `abort`).
    fn abort(&self) {
        let mount = Command::new("mount").args(["-o", "remount,abort"]).arg(self.path()).status();
        assert!(mount.expect("run mount").success());
        assert!(std::fs::write(self.path().join("x"), "x").is_err(), "the file system is read-only");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn with_log_dir(dir: &Path) -> Daemon {
    Options::default().args(&["--log-dir", &dir.display().to_string()]).start()
}

#[test]
fn a_log_directory_that_becomes_read_only_ends_no_process_and_loses_no_recent_output() {
    if skip_without_root() {
        return;
    }
    let Some(disk) = Disk::mount() else {
        return skip("ext4 on a loop device");
    };
    let daemon = with_log_dir(&disk.path().join("log"));
    let script = "i=0; while read x; do echo $i; i=$((i + 1)); done";
    let pid = pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"})));
    let go_on = || daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"\n")).expect(204);
    let mut follower = daemon.follow(pid, "stdout");
    let mut expect = |number: u32| {
        go_on();
        assert_eq!(follower.next_frame().expect("a line").data["line"], number.to_string());
    };
    (0..3).for_each(&mut expect);
    let baseline = Baseline::of(&daemon);
    disk.abort();
    while_serving(&daemon, || {
        (3..6).for_each(&mut expect);
        check_that_the_rest_works(&daemon);
        for number in 0..30 {
            assert_eq!(daemon.run_sh(&format!("echo {number}")).stdout(), number.to_string());
        }
        // More than is kept in memory.
        let long = daemon.sh("seq 1 100000");
        assert_eq!(daemon.wait_for_end(long)["exit_code"], 0);
        let listing = daemon.get(&format!("/processes/{long}/stdout")).expect(200);
        let lines = listing["lines"].as_array().expect("lines");
        assert!(lines.len() > 5_000 && listing["truncated"] == true, "{} lines", lines.len());
        assert_eq!(lines.last(), Some(&json!("100000")));
    });
    assert_eq!(daemon.lines(pid, "stdout"), ["0", "1", "2", "3", "4", "5"]);
    let warnings = daemon.log().matches("is kept in memory").count();
    assert!((1..=6).contains(&warnings), "{warnings} warnings: {}", daemon.log());
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    baseline.check_restored(&daemon);
}
