//! The health actor: one thread with one epoll runs the health checks of all units.
//!
//! The thread reports how each probe ended. The unit counts failures and decides what follows. The pure [`Schedule`] decides
//! when a probe begins, times out or is void. The thread sleeps until the next deadline; without any check it does not
//! wake up.
//!
//! Deliberately absent: a thread, a timer or a buffer per check, and reading more of a response than its status
//! line.

#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use mio::{Events, Poll, Token, Waker};

use crate::health::schedule::{Due, Schedule, Timing};
use crate::model::{HealthCheck, UnitId, WatchNo};
use crate::probe::{Outcome, Probe};
use tl_os::thread;

/// The result of one probe of one run of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The unit that was probed.
    pub unit: UnitId,
    /// The watch that it belongs to. It may have ended since.
    pub watch: WatchNo,
    /// Success, or a sentence that describes the failure.
    pub outcome: Result<(), String>,
}

/// A handle to the health thread. Dropping it ends the thread and closes its connections.
#[derive(Debug)]
pub struct Health {
    /// Unbounded, but short: the thread handles all commands whenever it wakes, and does not block in between.
    commands: Option<Sender<Command>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Watch { unit: UnitId, watch: WatchNo, check: HealthCheck, since: Instant },
    Unwatch(UnitId),
}

impl Health {
    /// Starts the thread. It calls `report`, which must not block, with each verdict. `died` is called if the thread
    /// panics: then all checks must be registered with another one.
    ///
    /// # Errors
    /// If the system has run out of descriptors or threads.
    pub fn start(
        report: impl Fn(Verdict) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<Health> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (commands, receiver) = unbounded();
        let actor = Actor {
            poll,
            commands: receiver,
            report,
            epoch: Instant::now(),
            schedule: Schedule::default(),
            checks: HashMap::new(),
            fin_budget: FinBudget::default(),
            starved: false,
        };
        let thread = thread::spawn("health", move || actor.run(), died)?;
        Ok(Health { commands: Some(commands), waker, thread: Some(thread) })
    }

    /// Probes `unit` from now on, and ends an earlier check of it. The initial delay begins with this call.
    ///
    /// A verdict of an earlier watch may still follow; its `watch` identifies it.
    pub fn watch(&self, unit: UnitId, watch: WatchNo, check: HealthCheck) {
        self.send(Command::Watch { unit, watch, check, since: Instant::now() });
    }

    /// Stops probing `unit`.
    pub fn unwatch(&self, unit: UnitId) {
        self.send(Command::Unwatch(unit));
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
        let _ = self.waker.wake();
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The token of the waker. The tokens of units are their ids, which never become this large.
const WAKE: Token = Token(usize::MAX);

/// Maximum number of probes that begin or end before the sockets are polled again.
const BATCH: usize = 128;

/// The longest timeout that `epoll_wait(2)` accepts.
const MAX_SLEEP: Duration = Duration::from_millis(i32::MAX as u64);

/// The state of the thread.
struct Actor<F> {
    poll: Poll,
    commands: Receiver<Command>,
    report: F,
    /// The time at which the clock of the schedule is 0.
    epoch: Instant,
    schedule: Schedule<UnitId>,
    checks: HashMap<UnitId, Check>,
    fin_budget: FinBudget,
    /// Whether the last probe could not be made. That is logged once, not for every probe.
    starved: bool,
}

struct Check {
    watch: WatchNo,
    spec: HealthCheck,
    probe: Option<Probe>,
}

impl<F: Fn(Verdict)> Actor<F> {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let ended = loop {
            let sleep = self.schedule.sleep().map(|at| at.saturating_sub(self.epoch.elapsed()).min(MAX_SLEEP));
            match thread::idle(|| self.poll.poll(&mut events, sleep)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            self.observe_time();
            if !self.take_commands() {
                break Ok(());
            }
            for event in &events {
                // An event of a probe that was closed above finds no probe: new ones begin only below.
                self.advance(UnitId(event.token().0 as u64));
            }
            self.handle_due();
        };
        for (_, check) in self.checks.drain() {
            if let Some(probe) = check.probe {
                probe.close(self.poll.registry(), false);
            }
        }
        ended
    }

    /// Returns the time. Drops the probes that are void because of a gap.
    fn observe_time(&mut self) -> Duration {
        let now = self.epoch.elapsed();
        for unit in self.schedule.observe(now) {
            self.drop_probe(unit);
        }
        now
    }

    /// Handles all commands. Returns false if the handle was dropped.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Watch { unit, watch, check, since }) => {
                    self.drop_probe(unit);
                    let since = since.saturating_duration_since(self.epoch);
                    self.schedule.watch(since, unit, timing(&check));
                    self.checks.insert(unit, Check { watch, spec: check, probe: None });
                }
                Ok(Command::Unwatch(unit)) => {
                    self.drop_probe(unit);
                    self.schedule.unwatch(unit);
                    self.checks.remove(&unit);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn handle_due(&mut self) {
        for _ in 0..BATCH {
            let now = self.observe_time();
            match self.schedule.due(now) {
                Some(Due::Begin(unit)) => self.begin(unit),
                Some(Due::Expired(unit)) => self.expire(unit),
                None => return,
            }
        }
    }

    fn begin(&mut self, unit: UnitId) {
        let Some(check) = self.checks.get_mut(&unit) else { return };
        match Probe::connect(&check.spec) {
            Ok(probe) => check.probe = Some(probe),
            Err(outcome) => return self.settle(unit, outcome),
        }
        // On the loopback interface the connection is usually established or refused by the time that connect(2) returns:
        // nearly every TCP check ends here, without epoll.
        self.advance(unit);
    }

    /// Continues the probe of `unit` as far as possible. Returns whether it has ended; if not, it is registered for
    /// events.
    fn advance(&mut self, unit: UnitId) -> bool {
        let Some(probe) = self.checks.get_mut(&unit).and_then(|check| check.probe.as_mut()) else { return false };
        let registry = self.poll.registry();
        let mut outcome = probe.advance(registry);
        if outcome.is_none() && !probe.is_registered() {
            outcome = probe.register(registry, Token(unit.0 as usize)).err().map(Outcome::Void);
        }
        let ended = outcome.is_some();
        if let Some(outcome) = outcome {
            self.settle(unit, outcome);
        }
        ended
    }

    fn expire(&mut self, unit: UnitId) {
        // A response that arrived before this thread woke counts as in time.
        if self.advance(unit) {
            return;
        }
        let Some(check) = self.checks.get(&unit) else { return };
        if let Some(probe) = &check.probe {
            self.settle(unit, probe.timed_out(check.spec.timeout_ms));
        }
    }

    /// Ends the probe of `unit` and reports how it ended.
    fn settle(&mut self, unit: UnitId, outcome: Outcome) {
        let now = self.epoch.elapsed();
        self.schedule.finished(now, unit);
        let Some(check) = self.checks.get_mut(&unit) else { return };
        if let Some(probe) = check.probe.take() {
            let with_fin = matches!(outcome, Outcome::Healthy) && self.fin_budget.take(now);
            probe.close(self.poll.registry(), with_fin);
        }
        let starved = matches!(outcome, Outcome::Void(_));
        let verdict = |outcome| Verdict { unit, watch: check.watch, outcome };
        match outcome {
            Outcome::Healthy => (self.report)(verdict(Ok(()))),
            Outcome::Failed(why) => (self.report)(verdict(Err(why))),
            Outcome::Void(error) if !self.starved => log::warn!("cannot make health probes: {error}"),
            Outcome::Void(_) => {}
        }
        self.starved = starved;
    }

    /// Drops the unit's probe, if there is one, without a verdict.
    fn drop_probe(&mut self, unit: UnitId) {
        if let Some(probe) = self.checks.get_mut(&unit).and_then(|check| check.probe.take()) {
            probe.close(self.poll.registry(), false);
        }
    }
}

/// Limits how many connections are closed with a FIN, and so stay in TIME_WAIT: see [`Probe::close`].
///
/// At most 1,000 per minute are, plus a burst of 500, so at most about 1,500 are in TIME_WAIT. With a few services all
/// connections are closed with a FIN, which leaves no trace in their logs; with thousands of services most are reset,
/// which leaves none in the kernel's tables.
#[derive(Default)]
struct FinBudget {
    /// The time up to which the budget is used: each connection uses [`FinBudget::SHARE`].
    taken: Duration,
}

impl FinBudget {
    /// The share of one connection: a minute has 1,000 of them.
    const SHARE: Duration = Duration::from_millis(60);
    /// How far the budget may be used in advance.
    const AHEAD: Duration = Duration::from_secs(30);

    /// Takes the share of one connection. Returns false if the budget is used up.
    fn take(&mut self, now: Duration) -> bool {
        let taken = self.taken.max(now) + Self::SHARE;
        let allowed = taken <= now + Self::AHEAD;
        if allowed {
            self.taken = taken;
        }
        allowed
    }
}

/// The times of a check. An interval or a timeout of 0 ms counts as 1 ms.
fn timing(check: &HealthCheck) -> Timing {
    Timing {
        initial_delay: Duration::from_millis(check.initial_delay_ms),
        interval: Duration::from_millis(check.interval_ms.max(1)),
        timeout: Duration::from_millis(check.timeout_ms.max(1)),
    }
}
