//! The supervisor thread: the only one that forks and waits, and that signals by a PID. It takes messages, asks the fleet what follows from
//! them, and performs that. It waits for nothing but its own queue and the next deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::cgroups::Cgroups;
use super::entry::{Entry, Slot, Tree, info};
use super::handle::{Counts, Started, Stdin};
use super::launch::{exit, explain};
use super::message::{Command, Message};
use super::probes::Probes;
use super::shutdown::Shutdown;
use super::trees::Trees;
use crate::clock::Clock;
use crate::error::Error;
use crate::logs::LogStore;
use crate::model::{Exit, Pid, ProcessSpec, RunKey, SignalScope, StdinMode, Target, UnitId, UserSpec};
use crate::output::{Message as ToOutput, Notice, Output};
use crate::pending::ReplySender;
use crate::supervisor::fd_budget::Share;
use crate::terminal::Backlog;
use crate::trees;
use crate::unit::fleet::Fleet;
use crate::unit::{Event, Now, Unit};
use tl_os::send_signal;
use tl_os::spawn::Spawner;
use tl_os::wait::{ChildEvent, Reaped, TraceStop, next_event};

/// How long a DELETE is held while the tree is not gone yet (section 5).
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// Children reaped in a row before the queue has its turn: a storm of them must not hold up the clients.
const REAP_TURN: usize = 256;

/// What the thread is made of.
pub(super) struct Parts {
    pub(super) inbox: Receiver<Message>,
    /// Set by the signals thread when it has sent [`Message::Child`]; cleared here before we look.
    pub(super) child_pending: Arc<AtomicBool>,
    pub(super) fleet: Fleet<Entry>,
    pub(super) logs: Arc<LogStore>,
    pub(super) output: Output,
    pub(super) probes: Probes,
    pub(super) trees: trees::Trees,
    /// See [`Builder::on_main_thread`](super::Builder::on_main_thread).
    pub(super) on_main_thread: Box<dyn Fn(TraceStop) + Send>,
    pub(super) spawner: Spawner,
    pub(super) cgroups: Cgroups,
    pub(super) default_user: UserSpec,
    pub(super) base_env: Vec<(String, String)>,
    /// For pipes, logs and probes.
    pub(super) descriptors: Share,
    pub(super) session_idle: Duration,
}

pub(super) struct Actor {
    pub(super) parts: Parts,
    pub(super) clock: Clock,
    /// DELETE requests awaiting the end of the tree: (unit, deadline, reply).
    kills: Vec<(UnitId, Duration, ReplySender<()>)>,
    pub(super) trees: Trees,
    pub(super) shutdown: Option<Shutdown>,
    more_to_reap: bool,
    pub(super) last_writer: u64,
    /// The terminal sessions, by the ids that clients know.
    pub(super) sessions: BTreeMap<String, UnitId>,
    pub(super) backlog: Backlog,
}

impl Actor {
    pub(super) fn new(parts: Parts) -> Actor {
        Actor {
            parts,
            clock: Clock::start(),
            kills: Vec::new(),
            trees: Trees::default(),
            shutdown: None,
            more_to_reap: false,
            last_writer: 0,
            sessions: BTreeMap::new(),
            backlog: Backlog::default(),
        }
    }

    pub(super) fn run(&mut self) {
        loop {
            let message = match self.next_wake() {
                Some(at) => self.parts.inbox.recv_deadline(self.clock.instant(at)),
                None => self.parts.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Command(Command::Quit)) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.receive(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.more_to_reap {
                self.reap();
            }
            self.tick();
            if self.shutdown.as_ref().is_some_and(Shutdown::is_the_end) {
                return;
            }
        }
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        if self.more_to_reap {
            return Some(Duration::ZERO);
        }
        let kills = self.kills.iter().map(|(_, until, _)| *until);
        let shutdown = self.shutdown.as_ref().and_then(Shutdown::deadline);
        let probes = self.parts.probes.deadline();
        let units = self.parts.fleet.deadline().into_iter().chain(self.sessions_deadline());
        kills.chain(self.trees.deadline()).chain(units).chain(shutdown).chain(probes).min()
    }

    pub(super) fn tick(&mut self) {
        let now = self.clock.now();
        while let Some(id) = self.parts.fleet.due(now) {
            self.step(id, now, Event::Tick);
        }
        self.tend_sessions(now);
        self.tend_trees(now);
        self.settle_kills(now);
        while let Some((id, slot)) = self.parts.fleet.pop_surplus() {
            self.part_with(id, slot);
        }
        if self.parts.probes.revive(now.mono) {
            self.watch_all();
        }
        self.advance_shutdown(now);
    }

    fn watch_all(&self) {
        for (id, slot) in self.parts.fleet.iter() {
            if let Some(check) = slot.unit.probed() {
                self.parts.probes.watch(id, slot.unit.run_no(), check.clone());
            }
        }
    }

    pub(super) fn receive(&mut self, message: Message) {
        match message {
            Message::Command(command) => self.obey(command),
            Message::Child => self.reap(),
            Message::OomKill => self.note_oom_kills(),
            Message::Output(run, notice) => self.notice(run, notice),
            Message::Trees(report) => self.tree_report(report),
            Message::Health(verdict) => {
                let now = self.clock.now();
                self.step(verdict.unit, now, Event::Verdict(verdict.run, verdict.outcome));
            }
            Message::HealthDied => self.parts.probes.died(self.clock.now().mono),
            Message::Died(thread) => self.begin_shutdown(Duration::ZERO, None, Some(thread)),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { id, spec, reply } => self.start(id, *spec, reply),
            Command::List(reply) => {
                let processes = self.parts.fleet.iter().filter(|(_, slot)| slot.data.pty.is_none());
                let all = processes.filter_map(|(id, slot)| info(id, slot));
                reply.send(Ok(all.collect()));
            }
            Command::LookUp(target, reply) => {
                reply.send(self.find(&target).and_then(|id| self.started(id).ok_or(Error::NotFound(target))));
            }
            Command::Counts(reply) => {
                reply.send(Ok(Counts { running: self.parts.fleet.running(), total: self.parts.fleet.len() }));
            }
            Command::Signal { target, signal, scope, reply } => self.signal(&target, signal, scope, reply),
            Command::Kill(target, reply) => self.kill(&target, reply),
            Command::Restart(target, reply) => self.restart(target, reply),
            Command::Stdin(target, reply) => reply.send(self.stdin(&target)),
            Command::CloseStdin(target, reply) => reply.send(self.close_stdin(&target)),
            Command::OpenPty { id, spec, key, reply } => self.open_pty(id, *spec, key, reply),
            Command::ListPtys(reply) => reply.send(Ok(self.ptys())),
            Command::LookUpPty(session, reply) => reply.send(self.look_up_pty(&session)),
            Command::KillPty(session, reply) => self.kill_pty(&session, reply),
            Command::Attach(key, reply) => reply.send(self.attach(&key)),
            Command::Detach(id) => self.detach(id),
            Command::Shutdown(grace, reply) => self.begin_shutdown(grace, Some(reply), None),
            Command::Quit => {}
        }
    }

    fn find(&self, target: &Target) -> Result<UnitId, Error> {
        self.parts.fleet.find(target)
    }

    pub(super) fn slot(&self, target: &Target) -> Result<(UnitId, &Slot), Error> {
        let not_found = || Error::NotFound(target.clone());
        let id = self.find(target)?;
        Ok((id, self.parts.fleet.get(id).ok_or_else(not_found)?))
    }

    pub(super) fn started(&self, id: UnitId) -> Option<Started> {
        let slot = self.parts.fleet.get(id)?;
        Some(Started { info: info(id, slot)?, log: Arc::clone(&slot.data.log) })
    }

    fn start(&mut self, id: UnitId, spec: ProcessSpec, reply: ReplySender<Started>) {
        if self.shutdown.is_some() {
            return reply.send(Err(Error::ShuttingDown));
        }
        let unit = Unit::new(spec.managed.clone(), spec.timeout).with_leftovers(spec.leftovers);
        let mut reply = Some(reply);
        let logs = &self.parts.logs;
        let admitted = self.parts.fleet.admit(id, unit, spec.size(), || Entry {
            stdin_open: false,
            log: logs.create(id),
            tree: Tree::Gone,
            killed: false,
            starting: reply.take().map(|reply| (1, reply)).into_iter().collect(),
            pty: None,
            spec,
        });
        match (admitted, reply) {
            (Err(error), Some(reply)) => reply.send(Err(error)),
            _ => self.step(id, self.clock.now(), Event::Start),
        }
    }

    fn signal(&mut self, target: &Target, signal: i64, scope: Option<SignalScope>, reply: ReplySender<()>) {
        match self.to_signal(target, signal) {
            Ok((id, leader, number)) => {
                let all = if number == libc::SIGKILL { SignalScope::Tree } else { SignalScope::Group };
                if number == libc::SIGKILL
                    && let Some(slot) = self.parts.fleet.get_mut(id)
                {
                    slot.data.killed = true;
                }
                let sent = match scope.unwrap_or(all) {
                    SignalScope::Leader => send_signal::signal_leader(leader, &[number]),
                    SignalScope::Group => send_signal::signal_group(leader, number),
                    SignalScope::Tree if number == libc::SIGKILL => {
                        self.kill_tree(id);
                        Ok(())
                    }
                    SignalScope::Tree => return self.signal_tree(id, number, reply),
                };
                reply.send(sent.map_err(|error| Error::from_io("sending the signal", &error)));
            }
            Err(error) => reply.send(Err(error)),
        }
    }

    fn to_signal(&self, target: &Target, signal: i64) -> Result<(UnitId, Pid, i32), Error> {
        let number = i32::try_from(signal).ok().filter(|number| (1..=64).contains(number));
        let number = number.ok_or(Error::InvalidSignal(signal))?;
        let (id, slot) = self.slot(target)?;
        let leader = slot.unit.leader().ok_or_else(|| Error::NotRunning(target.clone()))?;
        Ok((id, leader, number))
    }

    fn kill(&mut self, target: &Target, reply: ReplySender<()>) {
        match self.find(target) {
            Ok(id) => self.kill_unit(id, reply),
            Err(error) => reply.send(Err(error)),
        }
    }

    /// Answers when the tree is gone, or after a while.
    pub(super) fn kill_unit(&mut self, id: UnitId, reply: ReplySender<()>) {
        let now = self.clock.now();
        self.step(id, now, Event::Stop);
        self.kills.push((id, now.mono + KILL_PATIENCE, reply));
        self.settle_kills(now);
    }

    /// Answers the DELETEs whose tree is gone, and those that have waited for long enough.
    fn settle_kills(&mut self, now: Now) {
        let fleet = &self.parts.fleet;
        let is_gone = |id: UnitId| match fleet.get(id) {
            Some(slot) => slot.unit.is_down() && matches!(slot.data.tree, Tree::Gone),
            None => true,
        };
        for (_, _, reply) in self.kills.extract_if(.., |(id, until, _)| *until <= now.mono || is_gone(*id)) {
            reply.send(Ok(()));
        }
    }

    fn restart(&mut self, target: Target, reply: ReplySender<Started>) {
        let may = self.slot(&target).and_then(|(id, slot)| match slot.unit.managed() {
            Some(_) => Ok(id),
            None => Err(Error::NotManaged(target)),
        });
        let may = may.and_then(|id| match self.shutdown {
            Some(_) => Err(Error::ShuttingDown),
            None => self.parts.fleet.claim_for_restart(id).map(|()| id),
        });
        let id = match may {
            Ok(id) => id,
            Err(error) => return reply.send(Err(error)),
        };
        if let Some(slot) = self.parts.fleet.get_mut(id) {
            // Not the run that is to end: its exec may just have succeeded.
            slot.data.starting.push((slot.unit.run_no() + 1, reply));
        }
        self.step(id, self.clock.now(), Event::Restart);
    }

    fn stdin(&mut self, target: &Target) -> Result<Stdin, Error> {
        let (id, slot) = self.slot(target)?;
        if slot.data.spec.stdin != StdinMode::Pipe {
            return Err(Error::StdinNotWritable(target.clone()));
        }
        if !slot.data.stdin_open || slot.unit.leader().is_none() {
            return Err(Error::StdinClosed(target.clone()));
        }
        let run = (id, slot.unit.run_no());
        self.last_writer += 1;
        Ok(Stdin { output: self.parts.output.sender(), run, writer: self.last_writer })
    }

    fn close_stdin(&mut self, target: &Target) -> Result<(), Error> {
        let (id, slot) = self.slot(target)?;
        if slot.data.spec.stdin != StdinMode::Pipe {
            return Err(Error::StdinNotWritable(target.clone()));
        }
        let run = (id, slot.unit.run_no());
        if let Some(slot) = self.parts.fleet.get_mut(id)
            && std::mem::take(&mut slot.data.stdin_open)
        {
            self.parts.output.sender().send(run, ToOutput::CloseStdin);
        }
        Ok(())
    }

    fn notice(&mut self, (id, run): RunKey, notice: Notice) {
        let Some(slot) = self.parts.fleet.get_mut(id) else { return };
        if slot.unit.run_no() != run {
            return;
        }
        let event = match notice {
            Notice::ExecOk => Event::ExecOk,
            Notice::ExecFailed(failure) => Event::ExecFailed(explain(failure, &slot.data.spec)),
            Notice::Drained => Event::Drained,
            Notice::StdinClosed => {
                slot.data.stdin_open = false;
                return;
            }
        };
        self.step(id, self.clock.now(), event);
    }

    /// Takes note of what children have done: leaders of ours, and orphans of anybody.
    fn reap(&mut self) {
        // Cleared before we look: a child that ends from now on is announced anew.
        self.parts.child_pending.store(false, Ordering::SeqCst);
        self.more_to_reap = true;
        let now = self.clock.now();
        for _ in 0..REAP_TURN {
            match next_event() {
                Some(ChildEvent::Ended(reaped)) => self.reaped(reaped, now),
                Some(ChildEvent::Stopped(stop)) => self.let_tracee_go(stop),
                None => {
                    self.more_to_reap = false;
                    break;
                }
            }
        }
        self.look_at_awaited(now);
    }

    fn reaped(&mut self, reaped: Reaped, now: Now) {
        match self.parts.fleet.led_by(reaped.pid) {
            Some(id) => self.leader_ended(id, exit(reaped.exit), now),
            None => {
                self.parts.fleet.reaped(reaped.pid);
                self.trees.orphan_reaped(now.mono);
            }
        }
    }

    /// A child has made this process its tracer, and has stopped for it. It lives on.
    fn let_tracee_go(&self, stop: TraceStop) {
        // Only its parent can: for an orphan that is the main thread, whoever else waits for it.
        if stop.detach().is_err() {
            (self.parts.on_main_thread)(stop);
        }
    }

    fn leader_ended(&mut self, id: UnitId, exit: Exit, now: Now) {
        let mut exit = exit;
        if let Some(slot) = self.parts.fleet.get_mut(id) {
            slot.data.stdin_open = false;
            if let (Exit::Signal(libc::SIGKILL), false, Tree::Leaf(leaf)) = (exit, slot.data.killed, &slot.data.tree)
                && leaf.leader_was_oom_killed()
            {
                exit = Exit::OomKilled;
            }
        }
        self.step(id, now, Event::Exited(exit));
        if self.parts.fleet.get(id).is_some_and(|slot| slot.unit.leader().is_none()) {
            self.watch_what_is_left(id);
        }
    }
}
