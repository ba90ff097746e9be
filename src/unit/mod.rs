//! The state machine of one unit: one process across all of its restarts. Its input is events and the time, its output
//! is actions, which the supervisor performs. It does no I/O, reads no clock and never blocks.
//!
//! A unit is *down*; *awaiting its user* (another thread reads `/etc/passwd` for the next run); *forking*; *up* (its
//! leader has not been reaped, or the output of the run is not drained); *awaiting its tree* (the next run follows once
//! all processes of the last run have ended); or *backing off* until its next restart. A run goes through these phases:
//!
//! ```text
//!  Execing ──exec ok──► Running ──reaped──────────────► Draining ──drained──► down, or awaiting its tree
//!     │ 5 s                ▲                                ▲
//!     ├──────► Slow ───────┘ exec ok, or failed late        │
//!     │         │ reaped                                    │
//!     ├─reaped─►┴─► Reaped ──exec ok, or failed late────────┘
//!     │                └─────exec failed────────► the start has failed
//!     └─exec failed─► Broken ──reaped───────────► the start has failed
//! ```
//!
//! In `Slow`, an exec that hangs counts as started; in `Reaped`, the outcome of the exec is not known yet. `Next`
//! decides what follows the end of the run: the restart policy, unless a stop or restart was requested.
//!
//! **Stopping.** The grace of a stop applies to the whole tree: processes that outlive the leader are killed when the
//! grace is over. The next run begins when all of them have ended, at the latest 1 s after that kill. Processes that a
//! leader leaves behind when it exits by itself are killed before the next run, without a grace.
//!
//! **Pausing.** While a run is paused, its health is not probed, and the time that counts as a stable run stands still;
//! its timeout goes on. Whatever ends the run resumes it first, except a SIGKILL, which needs no resume. A run that is
//! being ended cannot be paused.
//!
//! **Abandoning.** A leader that was killed but cannot be reaped, because a tracer holds it or it hangs in the kernel,
//! is abandoned after 750 ms: its run is reported as ended.

mod backoff;
mod event;
pub(crate) mod fleet;
mod health;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod pause;
mod run;
mod state;
mod stop;
#[cfg(test)]
mod tests;
mod times;
mod tree;
mod view;

use std::sync::Arc;
use std::time::Duration;

pub use event::{Action, Event, Now};
pub use state::Shown;

use crate::model::{HealthStatus, Leftovers, ManagedSpec, Millis, RestartPolicy, RunEnd, RunNo, WatchNo};
use state::{Actions, Health, Next, Phase, State, take_if_due};

/// One unit. See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    managed: Option<Arc<ManagedSpec>>,
    timeout: Option<Duration>,
    /// Whether it is a terminal session, which is ended by SIGHUP instead of SIGTERM.
    terminal: bool,
    leftovers: Leftovers,
    state: State,
    /// Number of the current or last run; 0 before the first.
    run: RunNo,
    shown: Option<Shown>,
    last_exit: Option<RunEnd>,
    last_error: Option<String>,
    next_restart_at: Option<Millis>,
    health: Health,
    /// Number of the latest [`Action::Watch`]. A verdict on an earlier one, of another run or before a pause, is ignored.
    watch: WatchNo,
    /// Number of restarts in a row without a stable run.
    restarts: u32,
    /// Number of short runs in a row.
    short_runs: u32,
    /// Whether a client has stopped it, so that another unit may take its name.
    released: bool,
    /// End of the grace of the tree of a unit that is down. The remaining processes are killed then.
    sweep_at: Option<Duration>,
}

impl Unit {
    /// A unit that is down; [`Event::Start`] starts it.
    pub fn new(managed: Option<Arc<ManagedSpec>>, timeout: Option<Duration>) -> Unit {
        let watched = managed.as_ref().is_some_and(|managed| managed.health.is_some());
        let status = if watched { HealthStatus::Starting } else { HealthStatus::Disabled };
        Unit {
            managed,
            timeout,
            terminal: false,
            leftovers: Leftovers::Keep,
            state: State::Down,
            run: 0,
            shown: None,
            last_exit: None,
            last_error: None,
            next_restart_at: None,
            health: Health { status, failures: 0, healthy_since: None, stable: false },
            watch: 0,
            restarts: 0,
            short_runs: 0,
            released: false,
            sweep_at: None,
        }
    }

    /// A terminal session.
    pub fn with_terminal() -> Unit {
        Unit { terminal: true, ..Unit::new(None, None) }
    }

    /// Sets what happens to the processes that a leader leaves behind when it exits by itself.
    pub fn with_leftovers(self, leftovers: Leftovers) -> Unit {
        Unit { leftovers, ..self }
    }

    /// Processes one event and appends the resulting actions. An event that does not apply to the state changes
    /// nothing.
    pub fn step(&mut self, now: Now, event: Event, actions: Actions) {
        match event {
            Event::Start => self.start(actions),
            Event::UserResolved => self.spawn(actions),
            Event::Spawned(pid) => self.spawned(now, pid),
            Event::SpawnFailed(error) => {
                if self.state == State::Forking {
                    self.start_failed(now, error, Next::Policy, None, actions);
                }
            }
            Event::ExecOk => self.exec_ok(now, actions),
            Event::ExecFailed(error) => self.exec_failed(now, error, actions),
            Event::Exited(exit) => self.exited(now, exit, actions),
            Event::Drained => self.drained(now, actions),
            Event::TreeGone => self.tree_gone(now, actions),
            Event::HangUp => self.hang_up(now, actions),
            Event::Stop => self.stop(now, actions),
            Event::Restart => self.restart(now, actions),
            Event::ShutDown(kill_at) => self.shut_down(now, kill_at, actions),
            Event::Pause => self.pause(now, actions),
            Event::Resume => self.resume(now, actions),
            Event::Verdict(watch, outcome) => self.verdict(now, watch, outcome, actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn start(&mut self, actions: Actions) {
        if self.state == State::Down && self.run == 0 {
            self.begin_run(actions);
        }
    }

    /// Begins a run by requesting the look-up of its user.
    fn begin_run(&mut self, actions: Actions) {
        self.state = State::AwaitingUser;
        self.next_restart_at = None;
        self.sweep_at = None;
        actions.push(Action::ResolveUser);
    }

    fn spawn(&mut self, actions: Actions) {
        if self.state != State::AwaitingUser {
            return;
        }
        self.state = State::Forking;
        self.run += 1;
        let status = match self.health.status {
            HealthStatus::Disabled => HealthStatus::Disabled,
            _ => HealthStatus::Starting,
        };
        self.health = Health { status, failures: 0, healthy_since: None, stable: false };
        actions.push(Action::Spawn);
    }

    fn tick(&mut self, now: Now, actions: Actions) {
        if self.sweep_at.is_some_and(|at| at <= now.mono) {
            self.sweep_at = None;
            actions.push(Action::KillTree);
        }
        match &self.state {
            State::Down | State::AwaitingUser | State::Forking => {}
            State::BackingOff { until } => {
                if *until <= now.mono {
                    self.begin_run(actions);
                }
            }
            State::AwaitingTree(_) => self.tick_awaiting(now, actions),
            State::Up(_) => self.tick_up(now, actions),
        }
    }

    fn tick_up(&mut self, now: Now, actions: Actions) {
        let State::Up(run) = &mut self.state else { return };
        let has_leader = run.has_leader();
        if take_if_due(&mut run.disconnect_at, now) {
            actions.push(Action::Disconnect);
        }
        if take_if_due(&mut run.kill_at, now) {
            run.kill(now, actions);
        }
        if take_if_due(&mut run.expires_at, now) && has_leader {
            run.next = Next::TimedOut;
            run.kill(now, actions);
        }
        if matches!(run.phase, Phase::Execing { give_up } if give_up <= now.mono) {
            run.phase = Phase::Slow;
            self.report_started(actions);
        }
        if let State::Up(run) = &mut self.state
            && take_if_due(&mut run.abandon_at, now)
            && has_leader
        {
            self.abandon(now, actions);
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let of_state = match &self.state {
            State::Down | State::AwaitingUser | State::Forking => None,
            State::BackingOff { until } => Some(*until),
            State::AwaitingTree(wait) => Some(wait.kill_at.unwrap_or(wait.give_up)),
            State::Up(run) => {
                let give_up = match run.phase {
                    Phase::Execing { give_up } => Some(give_up),
                    _ => None,
                };
                [run.kill_at, run.disconnect_at, run.expires_at, run.abandon_at, give_up].into_iter().flatten().min()
            }
        };
        [of_state, self.sweep_at].into_iter().flatten().min()
    }

    fn policy(&self) -> Option<RestartPolicy> {
        self.managed.as_ref().map(|managed| managed.restart)
    }

    fn watched(&self) -> bool {
        self.health.status != HealthStatus::Disabled
    }

    fn next(&self) -> Next {
        match &self.state {
            State::Up(run) => run.next,
            _ => Next::Policy,
        }
    }
}
