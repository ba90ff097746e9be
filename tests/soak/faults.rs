//! Faults from outside of the clients: the fork server dies, the daemon is stopped, the log disk fills up. A thread of
//! its own prober asks for the health all the time.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::allowed::HEALTH;
use crate::client::Shared;
use crate::harness::{Random, procfs, reset};
use crate::lines::generator;

/// Injects faults until the round is over; every fault has ended by then.
pub fn inject(shared: &Shared, round: u64, full_disk: bool, is_over: &AtomicBool) {
    let mut random = generator(&[shared.seed, round, u64::MAX]);
    loop {
        pause(Duration::from_millis(20 + random.below(500)), is_over);
        if is_over.load(Ordering::SeqCst) {
            return;
        }
        match random.below(14) {
            0..=3 => signal_fork_server(shared, Signal::SIGKILL, "fork server killed"),
            4 => signal_fork_server(shared, Signal::SIGSTOP, "fork server stopped"),
            5..=7 => stop_daemon(shared, &mut random, is_over),
            8..=10 if full_disk => fill_disk(shared, &mut random, is_over),
            _ => idle_connections(shared, &mut random, is_over),
        }
    }
}

/// Lets the fault last, but not beyond the end of the round.
fn pause(time: Duration, is_over: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !is_over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal_fork_server(shared: &Shared, signal: Signal, name: &'static str) {
    // None while it forks or is being replaced.
    let Some(server) = procfs::fork_server(shared.daemon.pid) else { return };
    if kill(Pid::from_raw(server), signal).is_ok() {
        shared.tally.fault(name);
    }
}

fn stop_daemon(shared: &Shared, random: &mut Random, is_over: &AtomicBool) {
    shared.tally.fault("daemon stopped and continued");
    shared.faults.mark_stopped(true);
    shared.daemon.signal(Signal::SIGSTOP);
    pause(Duration::from_millis(20 + random.below(1_200)), is_over);
    shared.daemon.signal(Signal::SIGCONT);
    shared.faults.mark_stopped(false);
}

fn fill_disk(shared: &Shared, random: &mut Random, is_over: &AtomicBool) {
    shared.tally.fault("log disk full");
    shared.faults.mark_full(true);
    let path = shared.disk.join("filler");
    let mut file = File::create(&path).expect("create the file that fills the disk");
    // The last part in small steps, so that nothing is left.
    for size in [1 << 20, 4 << 10] {
        let zeros = vec![0; size];
        while file.write_all(&zeros).is_ok() {}
    }
    pause(Duration::from_millis(20 + random.below(1_500)), is_over);
    drop(file);
    std::fs::remove_file(&path).expect("remove the file that fills the disk");
    shared.faults.mark_full(false);
}

fn idle_connections(shared: &Shared, random: &mut Random, is_over: &AtomicBool) {
    shared.tally.fault("idle connections reset");
    let sockets: Vec<_> = (0..20 + random.below(100)).map(|_| shared.daemon.connect()).collect();
    pause(Duration::from_millis(random.below(500)), is_over);
    sockets.into_iter().for_each(reset);
}

/// Asks for the health until the soak is over.
pub fn probe(shared: &Shared, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        let sent = Instant::now();
        let status = shared.daemon.try_health();
        let took = sent.elapsed().saturating_sub(shared.faults.stopped_since(sent));
        assert_eq!(status, Some(200), "GET /health after {took:?}");
        assert!(took < HEALTH, "GET /health took {took:?}");
        shared.tally.slowest_health.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        shared.tally.health_checks.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
    }
}
