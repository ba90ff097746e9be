//! The state machine of one unit, that is, of one process over all of its restarts: events and the time go in, actions come
//! out. It does no I/O, reads no clock and never blocks; the supervisor performs the actions.
//!
//! A unit is *down*, *up* (its leader has not been reaped, or the output of the run is not drained), *awaiting its tree*
//! (the next run follows once the processes of the last one are gone), *backing off* until its next restart, or *awaiting
//! its user* (`/etc/passwd` is being read for the next run, which takes as long as the disk takes). A run goes through these
//! phases:
//!
//! ```text
//!  Spawn ─► Execing ──exec ok──► Running ──reaped──► Draining ──drained──► down, or awaiting its tree
//!              │ 5 s                ▲
//!              ├──────► Slow ───────┤ (an exec that hangs counts as started)
//!              │ reaped    │ reaped │
//!              ├──► Reaped ┴────────┘ (the outcome of the exec is still to come)
//!              └─exec failed─► Broken ──reaped──► the start has failed
//! ```
//!
//! [`Next`] says what follows the end of the run: what the restart policy says, unless a request says otherwise.
//!
//! **Stopping.** The grace of a stop belongs to the whole tree: the processes that outlive the leader are killed when the
//! grace is over, and the next run begins when none of them is left. Processes that a leader leaves behind when it exits by
//! itself are killed before the next run, without a grace.
//!
//! **Abandoning.** A leader that was killed but cannot be reaped, because a tracer holds it or it hangs in the kernel, is
//! abandoned after [`REAP_PATIENCE`]: its run has ended for everybody who waits for it.

mod backoff;
pub(crate) mod fleet;
mod health;
mod run;
mod stop;
#[cfg(test)]
mod tests;
mod tree;
mod view;

use std::time::Duration;

use self::health::Health;
use crate::error::Error;
use crate::model::{Exit, HealthStatus, Leftovers, ManagedSpec, Millis, Pid, RestartPolicy, RunEnd, RunNo};

/// Time after which an exec that hangs counts as started (docs/api.md, Processes).
pub const EXEC_PATIENCE: Duration = Duration::from_secs(5);

/// Time from the SIGHUP that ends a terminal session to the SIGKILL.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// Time from that SIGHUP to the disconnection of the terminal, which also reaches a shell that missed the signal between its
/// prompt and its read.
const DISCONNECT: Duration = Duration::from_secs(1);

/// Time from the SIGKILL of a leader to the end of its run, whether the leader has been reaped or not. The last event of a
/// run comes within 1 s of its timeout (docs/api.md, Run).
pub const REAP_PATIENCE: Duration = Duration::from_millis(750);

/// Time from the SIGKILL of the remaining processes of a run to the next run, whether they are gone or not. Processes that
/// are left after this time hang in the kernel.
const TREE_PATIENCE: Duration = Duration::from_secs(1);

/// The current time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since the start of the supervisor. All deadlines are on this clock.
    pub mono: Duration,
    /// Wall-clock time, which clients are shown.
    pub wall: Millis,
}

/// What happens to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The unit was admitted to the fleet: start it.
    Start,
    /// [`Action::ResolveUser`] has finished. If the user could not be found, the supervisor answers [`Action::Spawn`] with
    /// [`Event::SpawnFailed`].
    UserResolved,
    /// [`Action::Spawn`] has forked this child.
    Spawned(Pid),
    /// [`Action::Spawn`] has failed before or at the fork.
    SpawnFailed(Error),
    /// The exec has succeeded.
    ExecOk,
    /// The exec has failed.
    ExecFailed(Error),
    /// The leader was reaped.
    Exited(Exit),
    /// All that the leader wrote is in the log.
    Drained,
    /// No process of the last run is left.
    TreeGone,
    /// No client has been attached to the terminal for too long: disconnect it, as when a terminal window is closed.
    HangUp,
    /// A client wants the unit ended and not restarted.
    Stop,
    /// A client wants the unit ended, if it is up, and started again.
    Restart,
    /// The supervisor shuts down: SIGTERM to the tree now, SIGKILL at this time, no restart.
    ShutDown(Duration),
    /// A health probe of a run has finished.
    Verdict(RunNo, Result<(), String>),
    /// A deadline may have passed.
    Tick,
}

/// What the supervisor has to do for a unit. Actions are performed in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look up the user of the next run. [`Event::UserResolved`] follows, immediately or later. A unit that was stopped in the
    /// meantime ignores that event.
    ResolveUser,
    /// Fork a child. [`Event::Spawned`] or [`Event::SpawnFailed`] follows immediately.
    Spawn,
    /// Send SIGTERM and SIGCONT to every process of the tree.
    Terminate,
    /// Send SIGHUP to the whole session of the leader, which has not been reaped.
    HangUp,
    /// Disconnect the terminal.
    Disconnect,
    /// Send SIGKILL to every process of the tree.
    KillTree,
    /// Stop waiting for this leader, which was killed but not reaped. [`Event::Exited`] must not follow for it.
    Abandon(Pid),
    /// Begin to probe the health of the run.
    Watch,
    /// Stop probing.
    Unwatch,
    /// Read what is in the pipes. [`Event::Drained`] follows.
    Drain,
    /// Append the error to the unit's stderr: an exec that hung, and so counted as started, has failed.
    ReportLateFailure(Error),
    /// Tell the clients that wait for this run that it has started.
    Started,
    /// Tell the clients that wait for this run, or for an earlier one, that it could not be started. The same step may contain
    /// another [`Action::Spawn`].
    StartFailed(RunNo, Error),
    /// The unit is down and will not restart by itself: end its log and its followers.
    Finish(RunEnd),
    /// The unit starts again after an [`Action::Finish`]: reopen its log.
    Reopen,
    /// The first start has failed: remove the unit.
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Down,
    /// [`Action::ResolveUser`] has not finished. The run number is still that of the last run.
    AwaitingUser,
    /// [`Action::Spawn`] is being performed.
    Forking,
    Up(Run),
    /// The last run is over, and the next one waits for the end of its tree.
    AwaitingTree(TreeWait),
    BackingOff {
        until: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TreeWait {
    next: Next,
    /// When the grace of the tree is over; None once the tree has been killed.
    kill_at: Option<Duration>,
    /// When to stop waiting for the end of the tree.
    give_up: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    pid: Pid,
    since: Duration,
    phase: Phase,
    next: Next,
    /// When the grace of a stop is over.
    kill_at: Option<Duration>,
    /// When the terminal is disconnected.
    disconnect_at: Option<Duration>,
    /// When the timeout of the process is over.
    expires_at: Option<Duration>,
    /// When to stop waiting for the reaping of the leader; set with its SIGKILL.
    abandon_at: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Execing { give_up: Duration },
    Slow,
    Running,
    Broken(Error),
    Reaped { end: RunEnd, slow: bool },
    Draining { end: RunEnd },
}

/// What follows the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    /// What the restart policy says.
    Policy,
    /// What the restart policy says of a failure: the run was unhealthy, whatever its exit code is.
    Failed,
    /// Nothing: a client, or the shutdown, has stopped the unit.
    Stop,
    /// Another run: a client has requested it.
    Restart,
    /// What the restart policy says: the run was killed at its timeout.
    TimedOut,
}

/// The run that clients are shown: the current one or, if there is none, the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// PID of its leader.
    pub pid: Pid,
    /// When it was forked.
    pub started_at: Millis,
    /// How it ended; None while it is up.
    pub end: Option<RunEnd>,
}

/// One unit. See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    managed: Option<ManagedSpec>,
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
    /// Number of restarts in a row without a stable run.
    restarts: u32,
    /// Number of short runs in a row.
    short_runs: u32,
    /// Whether a client has ended it, so that another unit may take its name.
    released: bool,
    /// The unit is down, but the grace of its tree lasts until this time; then the remaining processes are killed.
    sweep_at: Option<Duration>,
}

type Actions<'a> = &'a mut Vec<Action>;

impl Unit {
    /// A unit that is down; [`Event::Start`] starts it.
    pub fn new(managed: Option<ManagedSpec>, timeout: Option<Duration>) -> Unit {
        let status = match &managed {
            Some(ManagedSpec { health: Some(_), .. }) => HealthStatus::Starting,
            _ => HealthStatus::Disabled,
        };
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

    /// The same unit with this rule for the processes that a leader leaves behind when it exits by itself.
    pub fn with_leftovers(self, leftovers: Leftovers) -> Unit {
        Unit { leftovers, ..self }
    }

    /// Processes one event and appends the actions that follow. An event that does not fit the state changes nothing.
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
            Event::HangUp => self.hang_up(actions),
            Event::Stop => self.stop(now, actions),
            Event::Restart => self.restart(now, actions),
            Event::ShutDown(kill_at) => self.shut_down(now, kill_at, actions),
            Event::Verdict(run, outcome) => self.verdict(now, run, outcome, actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    fn start(&mut self, actions: Actions) {
        if self.state == State::Down && self.run == 0 {
            self.begin_run(actions);
        }
    }

    /// The first step of a run: has its user looked up.
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
            self.is_up(actions);
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

impl Run {
    /// Whether the leader has not been reaped, so that no other process can have its PID.
    fn has_leader(&self) -> bool {
        !matches!(self.phase, Phase::Reaped { .. } | Phase::Draining { .. })
    }

    /// Kills the tree. From then on the reaping of the leader is waited for, for a limited time.
    fn kill(&mut self, now: Now, actions: Actions) {
        if self.has_leader() {
            self.abandon_at.get_or_insert(now.mono + REAP_PATIENCE);
        }
        actions.push(Action::KillTree);
    }
}

/// Whether the deadline has passed. If so, it is removed.
fn take_if_due(deadline: &mut Option<Duration>, now: Now) -> bool {
    deadline.take_if(|at| *at <= now.mono).is_some()
}
