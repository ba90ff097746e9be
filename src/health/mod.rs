//! The health actor: all checks of all units in one thread, over one epoll.
//!
//! It says how each probe ended and nothing more: counting failures, and what follows from them, is the unit's. When a
//! probe is due, given up on or void is decided by the pure [`Schedule`]; the thread sleeps until its next deadline,
//! and for good while nothing is watched.
//!
//! Absent on purpose: a thread, a timer or a buffer per check, and anything that reads more of an answer than its
//! status line.

mod probe;
mod schedule;
mod status_line;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use mio::{Events, Poll, Token, Waker};

use self::probe::{Outcome, Probe};
use crate::health::schedule::{Due, Schedule, Timing};
use crate::model::{HealthCheck, RunNo, UnitId};
use tl_os::thread;

/// How one finished probe of one run of a unit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whose.
    pub unit: UnitId,
    /// Of the run that was watched; that may be over by now.
    pub run: RunNo,
    /// What was wrong, as a sentence.
    pub outcome: Result<(), String>,
}

/// Asks the health thread. Dropping it ends the thread and closes its connections.
#[derive(Debug)]
pub struct Health {
    /// Never long: the thread takes all there is whenever it wakes, and waits for nobody in between.
    commands: Option<Sender<Command>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Watch { unit: UnitId, run: RunNo, check: HealthCheck, since: Instant },
    Unwatch(UnitId),
}

impl Health {
    /// Starts the thread. It calls `report` with each verdict, and waits for it: it must not block. `died` is called if
    /// the thread panics; what was watched is then to be watched anew, by another one.
    ///
    /// # Errors
    /// When there is no descriptor or thread left.
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
            manners: Manners::default(),
            starved: false,
        };
        let thread = thread::spawn("health", move || actor.run(), died)?;
        Ok(Health { commands: Some(commands), waker, thread: Some(thread) })
    }

    /// Probes `unit` from now on, in place of what was watched of it so far. The initial delay counts from this call.
    ///
    /// A verdict of the earlier run may be on its way already: its `run` tells.
    pub fn watch(&self, unit: UnitId, run: RunNo, check: HealthCheck) {
        self.send(Command::Watch { unit, run, check, since: Instant::now() });
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

/// The token of the waker; units have their number, which never comes this far.
const WAKE: Token = Token(usize::MAX);

/// Probes begun or ended between two looks at the sockets.
const BATCH: usize = 128;

/// The longest sleep that fits into what `epoll_wait(2)` takes.
const LONGEST_SLEEP: Duration = Duration::from_millis(i32::MAX as u64);

/// What the thread owns.
struct Actor<F> {
    poll: Poll,
    commands: Receiver<Command>,
    report: F,
    /// The zero of the schedule's time.
    epoch: Instant,
    schedule: Schedule<UnitId>,
    checks: HashMap<UnitId, Check>,
    manners: Manners,
    /// The last probe that was to begin could not: said once in the log, not at every probe.
    starved: bool,
}

struct Check {
    run: RunNo,
    spec: HealthCheck,
    probe: Option<Probe>,
}

impl<F: Fn(Verdict)> Actor<F> {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let ended = loop {
            let sleep = self.schedule.sleep().map(|at| at.saturating_sub(self.epoch.elapsed()).min(LONGEST_SLEEP));
            match self.poll.poll(&mut events, sleep) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            self.look();
            if !self.take_commands() {
                break Ok(());
            }
            for event in &events {
                // Those of a probe that has just been closed find none: new ones begin below.
                self.advance(UnitId(event.token().0 as u64));
            }
            self.do_what_is_due();
        };
        for (_, check) in self.checks.drain() {
            if let Some(probe) = check.probe {
                probe.close(self.poll.registry(), false);
            }
        }
        ended
    }

    /// The time, after dropping what a gap has made void.
    fn look(&mut self) -> Duration {
        let now = self.epoch.elapsed();
        for unit in self.schedule.look(now) {
            self.drop_probe(unit);
        }
        now
    }

    /// False when the handle is gone.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Watch { unit, run, check, since }) => {
                    self.drop_probe(unit);
                    let since = since.saturating_duration_since(self.epoch);
                    self.schedule.watch(since, unit, timing(&check));
                    self.checks.insert(unit, Check { run, spec: check, probe: None });
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

    fn do_what_is_due(&mut self) {
        for _ in 0..BATCH {
            let now = self.look();
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
        // Over loopback the kernel has mostly connected, or been refused, by the time that connect(2) returns: that
        // saves nearly every TCP check its way through epoll.
        self.advance(unit);
    }

    /// Whether the probe of `unit` is at its end; if not, it has events coming.
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
        // What has come in while we were late is in time.
        if self.advance(unit) {
            return;
        }
        let Some(check) = self.checks.get(&unit) else { return };
        if let Some(probe) = &check.probe {
            self.settle(unit, probe.timed_out(check.spec.timeout_ms));
        }
    }

    /// Ends the probe of `unit` and says how it ended.
    fn settle(&mut self, unit: UnitId, outcome: Outcome) {
        let now = self.epoch.elapsed();
        self.schedule.finished(now, unit);
        let Some(check) = self.checks.get_mut(&unit) else { return };
        if let Some(probe) = check.probe.take() {
            let politely = matches!(outcome, Outcome::Healthy) && self.manners.allow(now);
            probe.close(self.poll.registry(), politely);
        }
        let starved = matches!(outcome, Outcome::Void(_));
        let verdict = |outcome| Verdict { unit, run: check.run, outcome };
        match outcome {
            Outcome::Healthy => (self.report)(verdict(Ok(()))),
            Outcome::Failed(why) => (self.report)(verdict(Err(why))),
            Outcome::Void(error) if !self.starved => log::warn!("health probes cannot be made: {error}"),
            Outcome::Void(_) => {}
        }
        self.starved = starved;
    }

    /// Drops the probe in flight, if any, without a verdict.
    fn drop_probe(&mut self, unit: UnitId) {
        if let Some(probe) = self.checks.get_mut(&unit).and_then(|check| check.probe.take()) {
            probe.close(self.poll.registry(), false);
        }
    }
}

/// How many connections may be closed with a FIN, and so be in TIME_WAIT: see [`Probe::close`].
///
/// A few services are probed without a trace in their logs, and thousands without a trace in the kernel's tables: at
/// most some 1,500 connections are in TIME_WAIT because of us.
#[derive(Default)]
struct Manners {
    /// Each takes its share of a minute; this is how far they have been taken.
    taken: Duration,
}

impl Manners {
    const SHARE: Duration = Duration::from_millis(60);
    const AHEAD: Duration = Duration::from_secs(30);

    fn allow(&mut self, now: Duration) -> bool {
        let taken = self.taken.max(now) + Self::SHARE;
        let allowed = taken <= now + Self::AHEAD;
        if allowed {
            self.taken = taken;
        }
        allowed
    }
}

/// A spec that was not validated could ask for probes without any time between them.
fn timing(check: &HealthCheck) -> Timing {
    Timing {
        initial_delay: Duration::from_millis(check.initial_delay_ms),
        interval: Duration::from_millis(check.interval_ms.max(1)),
        timeout: Duration::from_millis(check.timeout_ms.max(1)),
    }
}
