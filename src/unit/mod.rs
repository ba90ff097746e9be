//! The life of one unit, as a pure state machine: events and the time go in, actions come out.
//!
//! A unit is *down*, *up* (it has a leader that was not yet reaped, or whose output is not yet drained), *awaiting the
//! end of its tree* before the next run, *backing off* until its next restart, or *awaiting its user*: `/etc/passwd` is
//! being read for the run that is to begin, which takes as long as the disk takes. A run goes through these phases:
//!
//! ```text
//!  Spawn ─► Execing ──exec ok──► Running ──reaped──► Draining ──drained──► down, or awaiting the end of the tree
//!              │ 5 s                ▲
//!              ├──────► Slow ───────┤ (a hanging exec counts as started)
//!              │ reaped    │ reaped │
//!              ├──► Reaped ┴────────┘ (the exec's outcome is still on its way)
//!              └─exec failed─► Broken ──reaped──► the start has failed
//! ```
//!
//! What follows the end of the run is its `Then`: the policy's word, unless somebody asked for something else.
//!
//! A unit that is stopped has a grace, and that belongs to its whole tree: what outlives the leader is killed when the
//! grace is over, and the next run begins when nothing of the tree is left. What a leader leaves that has ended by itself
//! is killed before the next run, without a grace.
//!
//! A leader that has got its SIGKILL and cannot be reaped, because a tracer holds it or it hangs in the kernel, is given up
//! after [`REAP_PATIENCE`]: the run has ended for all who wait for it.
//! There is no I/O here, no clock, and nothing that blocks; the supervisor performs the actions.

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

/// After this long a hanging exec counts as a start (section 2).
pub const EXEC_PATIENCE: Duration = Duration::from_secs(5);

/// From the hang-up of a terminal to SIGKILL.
const HANG_UP: Duration = Duration::from_secs(5);

/// From the hang-up to the end of the terminal itself: a shell may miss a signal between its prompt and its read.
const DISCONNECT: Duration = Duration::from_secs(1);

/// From the SIGKILL of a leader to the end of the run, whether it has been reaped or not: a run's last event comes within
/// 1 s of its timeout (section 3).
pub const REAP_PATIENCE: Duration = Duration::from_millis(750);

/// From the SIGKILL of what a run has left to the next run, whether that is gone or not: what is left then is in the
/// kernel's hands.
const TREE_PATIENCE: Duration = Duration::from_secs(1);

/// The time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since the supervisor began. All deadlines are in it.
    pub mono: Duration,
    /// The wall clock, for showing.
    pub wall: Millis,
}

/// What happens to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was admitted.
    Start,
    /// The user that [`Action::ResolveUser`] asked for has been looked up, or could not be. Which of the two, the
    /// supervisor knows: in the second case it answers [`Action::Spawn`] with [`Event::SpawnFailed`].
    UserResolved,
    /// The fork that [`Action::Spawn`] asked for gave this child.
    Spawned(Pid),
    /// That fork, or what had to be found out before it, failed.
    SpawnFailed(Error),
    /// The program runs.
    ExecOk,
    /// The program could not be run.
    ExecFailed(Error),
    /// The leader was reaped.
    Exited(Exit),
    /// Everything the leader wrote is in the log.
    Drained,
    /// No process of the last run is left.
    TreeGone,
    /// Nobody is attached to its terminal any more, which goes away as when a terminal window is closed.
    HangUp,
    /// `DELETE`: end it, and never restart it.
    Stop,
    /// End it if it is up, and start it again.
    Restart,
    /// Everything ends: SIGTERM now, SIGKILL to the tree at this time, no restart.
    ShutDown(Duration),
    /// A health probe of a run has finished.
    Verdict(RunNo, Result<(), String>),
    /// A deadline may have passed.
    Tick,
}

/// What the supervisor has to do for a unit, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look up the user of the next run, then give [`Event::UserResolved`], now or later. A unit that has been stopped
    /// meanwhile ignores that event.
    ResolveUser,
    /// Fork, then give [`Event::Spawned`] or [`Event::SpawnFailed`] at once.
    Spawn,
    /// SIGTERM to every process of the tree, and SIGCONT.
    Terminate,
    /// SIGHUP to the whole session of the leader, which has not been reaped.
    HangUp,
    /// Let go of the terminal.
    Disconnect,
    /// SIGKILL to everything that the unit has started.
    KillTree,
    /// The leader has got its SIGKILL, and its reaping is not waited for: [`Event::Exited`] will not be given any more.
    Abandon(Pid),
    /// Begin to probe its health.
    Watch,
    /// Stop probing.
    Unwatch,
    /// Read what is in the pipes, then give [`Event::Drained`].
    Drain,
    /// A line for its stderr: the exec that hung has failed after all.
    Complain(Error),
    /// Whoever waits for the start gets a yes.
    Started,
    /// Whoever waits for this run gets this. The next one may be asked for in the same step.
    StartFailed(RunNo, Error),
    /// It is down for good: followers end.
    Finish(RunEnd),
    /// It is coming up again after a [`Action::Finish`].
    Reopen,
    /// The first start failed: remove the unit.
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Down,
    /// [`Action::ResolveUser`] has been asked for. The number of the run is still that of the last one.
    AwaitingUser,
    /// [`Action::Spawn`] is being performed.
    Forking,
    Up(Run),
    /// The last run is over; the next waits for what is left of its tree.
    AwaitingTree(TreeWait),
    BackingOff {
        until: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TreeWait {
    then: Then,
    /// When the grace of the tree is over; none once it has been killed.
    kill_at: Option<Duration>,
    /// When the end of the tree is not waited for any longer.
    give_up: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    pid: Pid,
    since: Duration,
    phase: Phase,
    then: Then,
    kill_at: Option<Duration>,
    disconnect_at: Option<Duration>,
    expires: Option<Duration>,
    /// When the reaping of the leader is not waited for any longer; set with its SIGKILL.
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

/// What follows the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Policy,
    /// It was unhealthy: a failure, whatever it exits with.
    Fail,
    Stop,
    Restart,
    /// Its time was over.
    Expired,
}

/// The run that is shown: the current one, or the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// Its leader.
    pub pid: Pid,
    /// When it was forked.
    pub started_at: Millis,
    /// How it ended; none while it is up.
    pub end: Option<RunEnd>,
}

/// One unit. See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    managed: Option<ManagedSpec>,
    timeout: Option<Duration>,
    /// It has a terminal: it is ended by a hang-up.
    terminal: bool,
    leftovers: Leftovers,
    state: State,
    run: RunNo,
    shown: Option<Shown>,
    last_exit: Option<RunEnd>,
    last_error: Option<String>,
    next_restart_at: Option<Millis>,
    health: Health,
    streak: u32,
    short_runs: u32,
    /// Out of supervision: its name is free.
    released: bool,
    /// Down, but the grace of its tree goes on until then: what is left is killed.
    sweep_at: Option<Duration>,
}

type Out<'a> = &'a mut Vec<Action>;

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
            streak: 0,
            short_runs: 0,
            released: false,
            sweep_at: None,
        }
    }

    /// The same with a terminal.
    pub fn with_terminal() -> Unit {
        Unit { terminal: true, ..Unit::new(None, None) }
    }

    /// The same with this rule for what a leader leaves that ends by itself.
    pub fn with_leftovers(self, leftovers: Leftovers) -> Unit {
        Unit { leftovers, ..self }
    }

    /// Takes one event. Events that do not fit the state change nothing.
    pub fn step(&mut self, now: Now, event: Event, out: Out) {
        match event {
            Event::Start => self.start(out),
            Event::UserResolved => self.spawn(out),
            Event::Spawned(pid) => self.spawned(now, pid),
            Event::SpawnFailed(error) => {
                if self.state == State::Forking {
                    self.start_failed(now, error, Then::Policy, None, out);
                }
            }
            Event::ExecOk => self.exec_ok(now, out),
            Event::ExecFailed(error) => self.exec_failed(now, error, out),
            Event::Exited(exit) => self.exited(now, exit, out),
            Event::Drained => self.drained(now, out),
            Event::TreeGone => self.tree_gone(now, out),
            Event::HangUp => self.hang_up(out),
            Event::Stop => self.stop(now, out),
            Event::Restart => self.restart(now, out),
            Event::ShutDown(kill_at) => self.shut_down(now, kill_at, out),
            Event::Verdict(run, outcome) => self.verdict(now, run, outcome, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn start(&mut self, out: Out) {
        if self.state == State::Down && self.run == 0 {
            self.begin_run(out);
        }
    }

    /// The first step of a run: the supervisor looks up its user.
    fn begin_run(&mut self, out: Out) {
        self.state = State::AwaitingUser;
        self.next_restart_at = None;
        self.sweep_at = None;
        out.push(Action::ResolveUser);
    }

    fn spawn(&mut self, out: Out) {
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
        out.push(Action::Spawn);
    }

    fn tick(&mut self, now: Now, out: Out) {
        if self.sweep_at.is_some_and(|at| at <= now.mono) {
            self.sweep_at = None;
            out.push(Action::KillTree);
        }
        match &self.state {
            State::Down | State::AwaitingUser | State::Forking => {}
            State::BackingOff { until } => {
                if *until <= now.mono {
                    self.begin_run(out);
                }
            }
            State::AwaitingTree(_) => self.tick_awaiting(now, out),
            State::Up(_) => self.tick_up(now, out),
        }
    }

    fn tick_up(&mut self, now: Now, out: Out) {
        let State::Up(run) = &mut self.state else { return };
        let has_leader = run.has_leader();
        if take_if_due(&mut run.disconnect_at, now) {
            out.push(Action::Disconnect);
        }
        if take_if_due(&mut run.kill_at, now) {
            run.kill(now, out);
        }
        if take_if_due(&mut run.expires, now) && has_leader {
            run.then = Then::Expired;
            run.kill(now, out);
        }
        if matches!(run.phase, Phase::Execing { give_up } if give_up <= now.mono) {
            run.phase = Phase::Slow;
            self.is_up(out);
        }
        if let State::Up(run) = &mut self.state
            && take_if_due(&mut run.abandon_at, now)
            && has_leader
        {
            self.abandon(now, out);
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
                [run.kill_at, run.disconnect_at, run.expires, run.abandon_at, give_up].into_iter().flatten().min()
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

    fn then(&self) -> Then {
        match &self.state {
            State::Up(run) => run.then,
            _ => Then::Policy,
        }
    }
}

impl Run {
    /// Whether the leader has not been reaped, so that its PID is its own.
    fn has_leader(&self) -> bool {
        !matches!(self.phase, Phase::Reaped { .. } | Phase::Draining { .. })
    }

    /// SIGKILL to the tree; a leader that has not been reaped is waited for from now on.
    fn kill(&mut self, now: Now, out: Out) {
        if self.has_leader() {
            self.abandon_at.get_or_insert(now.mono + REAP_PATIENCE);
        }
        out.push(Action::KillTree);
    }
}

/// Whether a deadline has passed; it is over then.
fn take_if_due(deadline: &mut Option<Duration>, now: Now) -> bool {
    deadline.take_if(|at| *at <= now.mono).is_some()
}
