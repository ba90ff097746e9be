//! The supervisor thread: the only one that starts and waits for children, and that signals by a PID.
//!
//! It receives messages, passes them to the units as events, and performs the resulting actions. It blocks only in its
//! inbox, until the next deadline, and for the answer of the fork server, for a limited time. The other files of this
//! directory handle the messages, as methods of [`Actor`].

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::cgroups::Cgroups;
use super::context::{LogSource, UnitContext};
use super::fd_budget::Share;
use super::keyed_requests::KeyedRequests;
use super::limits::DefaultLimits;
use super::mailbox::{Inbox, Wake};
use super::memory_return::MemoryReturn;
use super::message::{Command, Message};
use super::pause_watch::Pauses;
use super::probes::Probes;
use super::reap_scan::ReapScan;
use super::replies::Started;
use super::resolver::Resolver;
use super::shutdown::Shutdown;
use super::trace::TraceStop;
use super::tree_watch::{AwaitedKill, TreeWatches};
use crate::clock::Clock;
use crate::events::EventLog;
use crate::logs::LogStore;
use crate::model::{UnitId, UserSpec};
use crate::output::Output;
use crate::ports::Ports;
use crate::rate_limit::RateLimit;
use crate::terminal::Backlog;
use crate::trees::Trees;
use crate::unit::Event;
use crate::unit::fleet::Fleet;
use tl_os::allocator;
use tl_os::spawn::Spawner;

/// The parts of the supervisor thread: its queue, the units, handles to the other threads, and the options.
pub(super) struct Parts {
    pub(super) inbox: Inbox,
    pub(super) fleet: Fleet<UnitContext>,
    pub(super) logs: Arc<LogStore>,
    pub(super) events: Arc<EventLog>,
    pub(super) ports: Ports,
    pub(super) output: Output,
    pub(super) probes: Probes,
    pub(super) trees: Trees,
    pub(super) resolver: Resolver,
    /// See [`Builder::on_main_thread`](super::Builder::on_main_thread).
    pub(super) on_main_thread: Box<dyn Fn(TraceStop) + Send>,
    /// See [`Builder::on_managed_start`](super::Builder::on_managed_start).
    pub(super) on_managed_start: Box<dyn FnMut(Started) + Send>,
    pub(super) spawner: Spawner,
    pub(super) cgroups: Cgroups,
    pub(super) default_limits: DefaultLimits,
    pub(super) default_user: UserSpec,
    pub(super) base_env: Vec<(String, String)>,
    /// The descriptors that processes may take, for pipes, logs and probes.
    pub(super) descriptors: Share,
    pub(super) session_idle: Duration,
}

/// The state of the supervisor thread.
pub(super) struct Actor {
    pub(super) parts: Parts,
    pub(super) clock: Clock,
    /// DELETE requests awaiting the end of the tree.
    pub(super) kills: Vec<AwaitedKill>,
    pub(super) watches: TreeWatches,
    pub(super) pauses: Pauses,
    pub(super) shutdown: Option<Shutdown>,
    /// When to look for ended children among all children.
    pub(super) reap_scan: ReapScan,
    pub(super) memory_return: MemoryReturn,
    /// The id of the latest [`Stdin`](super::Stdin).
    pub(super) last_writer: u64,
    /// The terminal sessions by their ids.
    pub(super) sessions: BTreeMap<String, UnitId>,
    /// The requests with an idempotency key.
    pub(super) keyed: KeyedRequests,
    /// Number of bytes that all sessions keep for viewers that are behind.
    pub(super) backlog: Backlog,
    /// Limits the log lines of each source.
    pub(super) log_limit: RateLimit<LogSource>,
}

impl Actor {
    /// For `run_grace`, see [`Builder::run_grace`](super::Builder::run_grace).
    pub(super) fn new(parts: Parts, run_grace: Duration) -> Actor {
        let keyed = KeyedRequests::new(run_grace);
        Actor {
            parts,
            keyed,
            clock: Clock::start(),
            kills: Vec::new(),
            watches: TreeWatches::default(),
            pauses: Pauses::default(),
            shutdown: None,
            reap_scan: ReapScan::default(),
            memory_return: MemoryReturn::default(),
            last_writer: 0,
            sessions: BTreeMap::new(),
            backlog: Backlog::default(),
            log_limit: RateLimit::default(),
        }
    }

    /// Runs until [`Command::Quit`]. After a panic, shuts down in order and returns; a second panic is passed on.
    pub(super) fn run_despite_panic(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            self.shut_down_after_panic("supervisor");
            self.run();
        }
    }

    /// Runs until [`Command::Quit`], or until a shutdown that ends the thread is done.
    fn run(&mut self) {
        loop {
            let deadline = self.next_wake().map(|at| self.clock.instant(at));
            let wake = self.parts.inbox.wait(deadline);
            let is_message = matches!(wake, Wake::Message(_));
            match wake {
                Wake::Message(Message::Command(Command::Quit)) | Wake::Closed => return self.resume_all(),
                Wake::Message(message) => self.receive(message),
                Wake::Children => self.reap_signalled(),
                Wake::ExecReport(unit) => self.read_report(unit),
                Wake::Deadline => {}
            }
            if self.reap_scan.take_due(self.clock.now().mono) {
                self.reap_all();
            }
            self.tick();
            if is_message && self.parts.inbox.is_empty() {
                // No request waits for this thread at the moment, except those that await the end of a tree.
                let now = self.clock.now();
                self.watch_leftovers(now);
                self.settle_kills(now);
            }
            if self.shutdown.as_ref().is_some_and(Shutdown::ends_thread_now) {
                return;
            }
        }
    }

    /// When [`Actor::tick`] must run next.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        let kills = self.kills.iter().map(|kill| kill.until);
        let shutdown = self.shutdown.as_ref().and_then(Shutdown::deadline);
        let probes = self.parts.probes.deadline();
        let units = self.parts.fleet.deadline().into_iter().chain(self.sessions_deadline());
        kills
            .chain(self.reap_scan.due())
            .chain(self.memory_return.due())
            .chain(self.log_limit.due())
            .chain(self.watches.deadline())
            .chain(self.pauses.deadline())
            .chain(units)
            .chain(shutdown)
            .chain(probes)
            .chain(self.keyed.deadline())
            .min()
    }

    /// Handles everything that is due.
    pub(super) fn tick(&mut self) {
        let now = self.clock.now();
        while let Some(id) = self.parts.fleet.due(now) {
            self.reap_leader(id, now);
            self.step(id, now, Event::Tick);
        }
        self.tick_sessions(now);
        self.kill_left_runs(now);
        self.tick_trees(now);
        self.settle_pauses(now);
        self.settle_kills(now);
        while let Some((id, member)) = self.parts.fleet.pop_surplus() {
            self.release_unit(id, member);
            self.memory_return.note_release(now.mono);
        }
        if self.memory_return.take_due(now.mono) {
            allocator::empty_thread_cache();
            allocator::trim();
        }
        self.log_left_out(now.mono);
        if self.parts.probes.restart_if_due(now.mono) {
            self.watch_all();
        }
        self.advance_shutdown(now);
    }

    /// Registers all health checks with a new health thread.
    fn watch_all(&self) {
        for (id, member) in self.parts.fleet.iter() {
            if let Some(check) = member.unit.probed() {
                self.parts.probes.watch(id, member.unit.watch_no(), check.clone());
            }
        }
    }

    /// Handles one message.
    pub(super) fn receive(&mut self, message: Message) {
        match message {
            Message::Command(command) => self.handle_command(command),
            Message::OomKill => self.note_oom_kills(),
            Message::Truncated(unit) => self.report_truncation(unit),
            Message::Output(run, notice) => self.notice(run, notice),
            Message::Trees(report) => self.tree_report(report),
            Message::UserResolved(answer) => self.user_resolved(answer),
            Message::Health(verdict) => {
                self.parts.probes.delivered(verdict.unit);
                let now = self.clock.now();
                self.step(verdict.unit, now, Event::Verdict(verdict.watch, verdict.outcome));
            }
            Message::HealthDied => self.parts.probes.died(self.clock.now().mono),
            Message::ThreadDied(thread) => self.shut_down_after_panic(thread),
        }
    }
}
