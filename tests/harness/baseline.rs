//! What every fault must leave as it was: the promise of `docs/reliability.md`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Daemon, check_times, procfs, wait_until, wait_until_ok};

/// Time after a fault in which everything must be back to normal.
const BACK_TO_NORMAL: Duration = Duration::from_secs(5);

/// Longest time in which another client is served during a fault. On an idle machine it is at most 1.5 s.
const SERVED_WITHIN: Duration = Duration::from_secs(15);

/// How much resident memory may remain in use after a fault, in KiB. Stacks of threads and the lists of the allocator
/// take up to 6 MiB right after 10,000 connections.
const MEMORY_MARGIN: u64 = 10 << 10;

/// Threads, descriptors and memory of a daemon before a fault.
pub struct Baseline {
    released: (usize, usize),
    memory: u64,
}

impl Baseline {
    pub fn of(daemon: &Daemon) -> Baseline {
        let connections = || procfs::threads(daemon.pid).iter().filter(|name| *name == "http-conn").count();
        // The connection of the first request stays open, so it counts as normal, and that of the run ends.
        daemon.list();
        let before = connections();
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        wait_until(BACK_TO_NORMAL, "the connection of the run has ended", || (connections() <= before).then_some(()));
        let released = daemon.threads_and_descriptors();
        Baseline { released, memory: procfs::kilobytes(daemon.pid, "VmRSS") }
    }

    /// Checks that the daemon runs commands, that no zombie is left, and that its threads, descriptors
    /// and memory are back within 5 s.
    pub fn check_restored(&self, daemon: &Daemon) {
        let begun = Instant::now();
        assert_eq!(daemon.try_health(), Some(200));
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        // The thread that reads environments stays once there is one.
        let has_reader = procfs::threads(daemon.pid).iter().any(|name| name == "environ");
        let (threads, descriptors) = self.released;
        daemon.wait_until_released((threads + usize::from(has_reader), descriptors));
        let most = self.memory + MEMORY_MARGIN;
        let memory = wait_until_ok(BACK_TO_NORMAL, || {
            let memory = procfs::kilobytes(daemon.pid, "VmRSS");
            let zombies = procfs::children(daemon.pid).into_iter().filter(|pid| procfs::is_zombie(*pid)).count();
            let is_normal = memory <= most && zombies == 0;
            is_normal.then_some(memory).ok_or_else(|| format!("{zombies} zombies; {memory} KiB, not at most {most}"))
        });
        let took = begun.elapsed();
        assert!(took < 2 * BACK_TO_NORMAL, "everything is back to normal after {took:?}");
        let (before, peak) = (self.memory, procfs::kilobytes(daemon.pid, "VmHWM"));
        eprintln!("back to normal after {took:?}, with {memory} KiB, not {before}; peak {peak} KiB");
    }
}

/// Injects a fault while another client checks that it is served.
pub fn while_serving<T>(daemon: &Daemon, fault: impl FnOnce() -> T) -> T {
    /// Ends the other client, also when the fault panics.
    struct End<'a>(&'a AtomicBool);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut served, mut slowest) = (0, Duration::ZERO);
            while !is_over.load(Ordering::SeqCst) || served == 0 {
                slowest = slowest.max(check_served(daemon));
                served += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            eprintln!("{served} requests of another client, the slowest after {slowest:?}");
            assert!(slowest < SERVED_WITHIN, "{slowest:?}");
        });
        let end = End(&is_over);
        let result = fault();
        drop(end);
        other.join().expect("the other client is served");
        result
    })
}

/// Time after which a client that has not sent its request may be disconnected while others wait: see
/// `src/http/connection/entry.rs`. On a busy machine, the thread of a test may be that late.
pub const EVICTION_GRACE: Duration = Duration::from_millis(100);

/// Checks that other clients are served during a fault that is present now: most of some runs take less than 5 s. They
/// take milliseconds; the margin is for a busy machine.
pub fn check_others_are_served(daemon: &Daemon) {
    let run = |_| {
        let begun = Instant::now();
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        assert_eq!(daemon.try_health(), Some(200));
        begun.elapsed()
    };
    check_times(Duration::from_secs(5), (0..5).map(run).collect());
}

/// Checks that health is answered; returns the time that took.
fn check_served(daemon: &Daemon) -> Duration {
    let begun = Instant::now();
    loop {
        let status = daemon.try_health();
        let took = begun.elapsed();
        match status {
            Some(status) => assert_eq!(status, 200),
            None => {
                assert!(took >= EVICTION_GRACE && took < SERVED_WITHIN, "disconnected after {took:?}");
                continue;
            }
        }
        return took;
    }
}

/// `small`, or `full` where the environment variable TL_TEST_FULL is set.
pub fn scaled<T>(small: T, full: T) -> T {
    if std::env::var_os("TL_TEST_FULL").is_some() { full } else { small }
}
