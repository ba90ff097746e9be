//! Measures and prints figures, and the floors that several figures share.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::is_root;

/// Prints one figure and its floor.
pub fn row(what: &str, ours: f64, floor: Option<f64>) {
    match floor {
        Some(floor) => println!("{what:<44} {ours:>12.3} {floor:>12.3} {:>8.2}", ours / floor),
        None => println!("{what:<44} {ours:>12.3} {:>12} {:>8}", "-", "-"),
    }
}

/// The 50th, 90th and 99th percentile in milliseconds.
pub fn percentiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    [50, 90, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3)
}

/// Runs `job` `count` times; the time of each.
pub fn timed(count: usize, mut job: impl FnMut()) -> Vec<Duration> {
    let time = |_| {
        let begun = Instant::now();
        job();
        begun.elapsed()
    };
    (0..count).map(time).collect()
}

/// Runs `count` jobs in all, one thread for each element of `jobs`; jobs per second.
pub fn rate<J: FnMut() + Send>(count: usize, jobs: Vec<J>) -> f64 {
    let threads = jobs.len();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for mut job in jobs {
            scope.spawn(move || (0..count / threads).for_each(|_| job()));
        }
    });
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Runs `/bin/true` by fork, setuid, exec and wait: the least that any supervisor has to do.
pub fn spawn_true() {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null());
    if is_root() {
        command.uid(1000).gid(1000);
    }
    assert!(command.status().expect("run it").success());
}
