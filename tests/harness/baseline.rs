//! What a daemon holds before a fault, which it must hold again after it.

use std::time::{Duration, Instant};

use super::{Daemon, TIMEOUT, check_times, procfs, wait_until_ok};

/// Anonymous memory, in KiB, that a daemon may hold beyond that before a fault: buffers and records of ended processes.
const MARGIN: u64 = 4 * 1024;

/// Threads, descriptors and memory of an idle daemon.
pub struct Baseline {
    threads_and_descriptors: (usize, usize),
    memory: u64,
}

impl Daemon {
    /// What the daemon holds now, after a first run and with the connection that the client of the test keeps.
    pub fn baseline(&self) -> Baseline {
        self.list();
        assert_eq!(self.run_sh("echo x").stdout(), "x");
        self.wait_until_idle(Duration::from_millis(100));
        Baseline {
            threads_and_descriptors: self.threads_and_descriptors(),
            memory: procfs::kilobytes(self.pid, "RssAnon"),
        }
    }

    /// Checks that a fault is over: a command runs, no zombie is left, and the daemon holds no more than before.
    pub fn check_back_to(&self, before: &Baseline) {
        let begun = Instant::now();
        assert_eq!(self.run_sh("echo x").stdout(), "x");
        // The thread that reads environments stays once there is one.
        let has_reader = procfs::threads(self.pid).iter().any(|name| name == "environ");
        let (threads, descriptors) = before.threads_and_descriptors;
        self.wait_until_released((threads + usize::from(has_reader), descriptors));
        wait_until_ok(TIMEOUT, || {
            let zombies = procfs::children(self.pid).into_iter().filter(|pid| procfs::is_zombie(*pid)).count();
            let memory = procfs::kilobytes(self.pid, "RssAnon");
            (zombies == 0 && memory < before.memory + MARGIN)
                .then_some(())
                .ok_or_else(|| format!("{zombies} zombies; memory rose from {} to {memory} kB", before.memory))
        });
        println!("back to normal after {:?}", begun.elapsed());
    }

    /// Checks that other clients are served meanwhile: most of some runs take less than 5 s. They take milliseconds; the
    /// margin is for a busy machine.
    pub fn check_others_are_served(&self) {
        check_times(Duration::from_secs(5), self.times_of_runs(5));
    }

    fn times_of_runs(&self, count: usize) -> Vec<Duration> {
        let run = |_| {
            let begun = Instant::now();
            assert_eq!(self.run_sh("echo x").stdout(), "x");
            assert_eq!(self.try_health(), Some(200));
            begun.elapsed()
        };
        (0..count).map(run).collect()
    }
}
