//! Which threads have signals unblocked.

use crate::harness::{Daemon, Options, procfs, start_daemon};

/// Names of the threads that have this signal unblocked.
fn threads_with_unblocked(daemon: &Daemon, signal: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("the threads").flatten();
    let names = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let blocked = u64::from_str_radix(field("SigBlk:")?, 16).ok()?;
        (blocked & (1 << (signal - 1)) == 0).then(|| field("Name:").unwrap_or_default().to_owned())
    });
    names.collect()
}

/// The kernel delivers a signal to one thread that has it unblocked; if that thread hangs, so do reaping and shutdown.
#[test]
fn each_signal_is_unblocked_in_one_thread() {
    for daemon in [start_daemon(), Options::subreaper().start()] {
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPWR, 37, 64] {
            let threads = threads_with_unblocked(&daemon, signal);
            let thread = if signal == libc::SIGCHLD { "supervisor" } else { "signals" };
            assert_eq!(threads, [thread], "signal {signal} of {:?}", procfs::threads(daemon.pid));
        }
    }
}
