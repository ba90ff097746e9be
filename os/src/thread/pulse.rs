//! Whether the threads that a program depends on run, and whether they hang.
//!
//! Such a thread waits for work inside [`idle`]. A thread that neither waits nor gets back to waiting hangs. So the
//! check costs such a thread a few additions for each wait, and never wakes it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The threads that are watched, by the names that [`spawn`](super::spawn) gives them.
static PULSES: [Pulse; 8] = [
    Pulse::of("supervisor"),
    Pulse::of("output"),
    Pulse::of("log-writer"),
    Pulse::of("users"),
    Pulse::of("trees"),
    Pulse::of("health"),
    Pulse::of("oom"),
    Pulse::of("http-accept"),
];

thread_local! {
    /// The pulse of this thread, if it is watched.
    static CURRENT: Cell<Option<&'static Pulse>> = const { Cell::new(None) };
}

/// What is known of the threads with one name. Usually there is one such thread.
#[derive(Debug)]
struct Pulse {
    name: &'static str,
    running: AtomicU32,
    waiting: AtomicU32,
    /// Number of waits that have ended.
    waits: AtomicU64,
}

/// The state of a watched thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// The name of the thread.
    pub name: &'static str,
    /// Whether it runs.
    pub is_up: bool,
    /// Whether it waits for work, or was seen to get back to waiting.
    pub is_responsive: bool,
}

impl Pulse {
    const fn of(name: &'static str) -> Pulse {
        Pulse { name, running: AtomicU32::new(0), waiting: AtomicU32::new(0), waits: AtomicU64::new(0) }
    }

    fn is_idle(&self) -> bool {
        self.waiting.load(Relaxed) >= self.running.load(Relaxed)
    }
}

/// Marks the calling thread as running until it is dropped, if a thread with this name is watched.
pub(super) struct Running(Option<&'static Pulse>);

impl Running {
    pub(super) fn begin(name: &str) -> Running {
        let pulse = PULSES.iter().find(|pulse| pulse.name == name);
        if let Some(pulse) = pulse {
            pulse.running.fetch_add(1, Relaxed);
        }
        CURRENT.set(pulse);
        Running(pulse)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pulse) = self.0 {
            pulse.running.fetch_sub(1, Relaxed);
        }
        CURRENT.set(None);
    }
}

/// Marks a thread as waiting until it is dropped, by the end of the wait or by a panic.
struct Waiting(Option<&'static Pulse>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(pulse) = self.0 {
            pulse.waits.fetch_add(1, Relaxed);
            pulse.waiting.fetch_sub(1, Relaxed);
        }
    }
}

/// Calls `wait`, which waits for work or finds some, for the calling thread.
pub fn idle<T>(wait: impl FnOnce() -> T) -> T {
    let pulse = CURRENT.get();
    if let Some(pulse) = pulse {
        pulse.waiting.fetch_add(1, Relaxed);
    }
    let waiting = Waiting(pulse);
    let found = wait();
    drop(waiting);
    super::fault::fault_point();
    found
}

/// The states of the watched threads. If one of them works, watches it until it gets back to waiting, `patience` at most.
pub fn states(patience: Duration) -> Vec<ThreadState> {
    let until = Instant::now() + patience;
    let before: Vec<u64> = PULSES.iter().map(|pulse| pulse.waits.load(Relaxed)).collect();
    let mut pause = Duration::from_millis(1);
    loop {
        let states = PULSES.iter().zip(&before).map(|(pulse, before)| ThreadState {
            name: pulse.name,
            is_up: pulse.running.load(Relaxed) > 0,
            is_responsive: pulse.is_idle() || pulse.waits.load(Relaxed) != *before,
        });
        let states: Vec<ThreadState> = states.collect();
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || states.iter().all(|state| state.is_responsive) {
            return states
                .into_iter()
                .map(|state| ThreadState { is_responsive: state.is_up && state.is_responsive, ..state })
                .collect();
        }
        std::thread::sleep(pause.min(left));
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_thread_that_does_not_get_back_to_waiting_is_not_responsive() {
        let (end, ended) = bounded::<()>(0);
        let (tell, told) = bounded(0);
        let body = move || {
            tell.send(()).unwrap();
            let _ = ended.recv();
            idle(|| tell.send(()).unwrap());
            let _ = idle(|| ended.recv());
            Ok(())
        };
        let thread = super::super::spawn("oom", body, || {}).unwrap();
        let state = |patience| states(patience).into_iter().find(|state| state.name == "oom").unwrap();
        told.recv().unwrap();
        let hangs = state(Duration::from_millis(20));
        assert_eq!((hangs.is_up, hangs.is_responsive), (true, false));
        end.send(()).unwrap();
        told.recv().unwrap();
        let waits = state(Duration::from_secs(60));
        assert_eq!((waits.is_up, waits.is_responsive), (true, true));
        drop(end);
        thread.join().unwrap();
        let gone = state(Duration::ZERO);
        assert_eq!((gone.is_up, gone.is_responsive), (false, false));
    }
}
