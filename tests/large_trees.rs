//! Large trees, and trees whose processes leave everything that connects them.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::baseline::{Baseline, check_others_are_served};
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, skip_without_root, wait_until};

/// Held by a test that starts thousands of processes: the tests of one machine share its PIDs, often 32,768.
fn reserve_many_pids() -> Flock<File> {
    let file = File::create(std::env::temp_dir().join("tl-test.pids")).expect("create the lock file");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock it")
}

/// They become orphans at once, and end at once.
#[test]
fn ten_thousand_orphans_are_adopted_and_reaped() {
    const COUNT: usize = 10_000;
    let _pids = reserve_many_pids();
    for options in [Options::default(), Options::default().without_cgroup()] {
        let daemon = options.start();
        let other = daemon.sh("exec sleep 5719");
        let before = Baseline::of(&daemon);
        // Each waits until the FIFO has a writer.
        let script = format!("mkfifo gate; for i in $(seq {COUNT}); do read x <gate & done; echo up; read x; exit 7");
        let body = json!({"command": "sh", "args": ["-c", script], "working_dir": daemon.scratch(),
            "stdin_mode": "pipe"});
        let pid = pid_of(&daemon.start_process(&body));
        wait_until(4 * TIMEOUT, "all are up", || (daemon.lines(pid, "stdout") == ["up"]).then_some(()));
        daemon.post(&format!("/processes/{pid}/stdin/close"), &json!({})).expect(204);
        assert_eq!(daemon.wait_for_end(pid)["exit_code"], 7);
        wait_until(TIMEOUT, "the daemon has adopted all", || {
            (procfs::children(daemon.pid).len() > COUNT).then_some(())
        });
        check_others_are_served(&daemon);
        let begun = Instant::now();
        let gate = File::options().write(true).open(daemon.scratch().join("gate")).expect("open the FIFO");
        drop(gate);
        check_others_are_served(&daemon);
        wait_until(TIMEOUT, "all have ended and are reaped", || {
            (procfs::children(daemon.pid).len() == 1).then_some(())
        });
        println!("{COUNT} orphans were reaped within {:?}", begun.elapsed());
        assert_eq!(daemon.info(other)["status"], "running");
        before.check_restored(&daemon);
    }
}

/// 1,000 processes in 50 sessions. With the argument `detach`, each closes every descriptor and leaves session and parent.
const SESSIONS: &str = r#"
use POSIX;
my $detach = shift;
sub process { if ($detach) { POSIX::close($_) for 0..255 } exec 'sleep', '5720' }
for (1..50) {
    next if fork;
    POSIX::setsid();
    for (1..20) {
        next if fork;
        if ($detach) { POSIX::setsid() if $_ % 2; exit if fork }
        process();
    }
    exit;
}
if (!$detach) { wait; sleep 600 }
"#;

#[test]
fn a_kill_ends_a_thousand_processes_in_fifty_sessions() {
    let _pids = reserve_many_pids();
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let before = Baseline::of(&daemon);
        for detach in ["", "detach"] {
            // Looks the same, and belongs to another unit.
            let other = daemon.sh("(setsid sleep 5721 <&- >&- 2>&- &); exit 0");
            daemon.wait_for_end(other);
            let body = json!({"command": "perl", "args": ["-e", SESSIONS, detach]});
            let pid = pid_of(&daemon.start_process(&body));
            daemon.wait_for_processes("sleep 5720", 1_000);
            let begun = Instant::now();
            std::thread::scope(|scope| {
                let kill = scope.spawn(|| daemon.delete_tree(pid, &["sleep 5720"]));
                check_others_are_served(&daemon);
                kill.join().expect("the DELETE");
            });
            println!("{detach} killed within {:?}", begun.elapsed());
            assert_eq!(daemon.pids_executing("sleep 5721").len(), 1);
            daemon.delete_tree(other, &["sleep 5721"]);
        }
        before.check_restored(&daemon);
    }
}

/// An orphan without descriptors, in a session of its own, without its environment: without a cgroup nothing connects it
/// with its unit.
fn start_escaped(daemon: &Daemon) -> u64 {
    let pid = daemon.sh("setsid env -i sleep 5722 <&- >&- 2>&- & exit 0");
    daemon.wait_for_end(pid);
    wait_until(TIMEOUT, "it is an orphan", || {
        let sleeps = daemon.pids_executing("sleep 5722");
        sleeps.iter().any(|pid| procfs::children(daemon.pid).contains(pid)).then_some(())
    });
    pid
}

/// What docs/design.md says of trees without cgroups: such a process escapes a kill, until PID 1 shuts down.
#[test]
fn an_orphan_without_any_mark_escapes_a_kill_without_cgroups_until_pid_1_ends() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().start();
    let pid = start_escaped(&daemon);
    daemon.delete_tree(pid, &["sleep 5722"]);

    for (options, is_pid1) in [(Options::default(), true), (Options::subreaper(), false)] {
        let mut daemon = options.without_cgroup().args(&["--shutdown-grace", "0.2"]).start();
        let pid = start_escaped(&daemon);
        daemon.delete(&format!("/processes/{pid}")).expect(204);
        daemon.wait_until_idle(Duration::from_millis(300));
        assert_eq!(daemon.pids_executing("sleep 5722").len(), 1, "it has escaped");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
        assert_eq!(daemon.log().contains("left: sleep"), !is_pid1, "{}", daemon.log());
    }
}
