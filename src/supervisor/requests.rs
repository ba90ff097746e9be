//! The requests of clients to processes: start, look up, signal, end, restart, write to standard input.

use std::sync::Arc;
use std::time::Duration;

use super::actor::Actor;
use super::context::{Member, Pty, UnitContext, info};
use super::message::Command;
use super::replies::{Census, Counts, Started, Stdin};
use super::resolver::RunUser;
use super::tree_watch::AwaitedKill;
use crate::error::Error;
use crate::model::{Pid, ProcessSpec, Signal, SignalScope, Target, UnitId};
use crate::output::Message as ToOutput;
use crate::pending::ReplySender;
use crate::unit::{Event, Now, Unit};
use tl_os::send_signal;

/// Longest time that the response to a DELETE waits for the end of the tree (docs/api.md, Process control).
const KILL_REPLY_TIMEOUT: Duration = Duration::from_secs(2);

impl Actor {
    /// Handles one request.
    pub(super) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Start { id, spec, user, reply } => self.start(id, *spec, user, reply),
            Command::List(reply) => {
                let is_listed = |member: &Member| member.context.pty.is_none() && !member.unit.is_starting();
                let processes = self.parts.fleet.iter().filter(|(_, member)| is_listed(member));
                let all = processes.filter_map(|(id, member)| info(id, member));
                reply.send(Ok(all.collect()));
            }
            Command::LookUp(target, reply) => {
                reply.send(self.find(&target).and_then(|id| self.started(id).ok_or(Error::NotFound(target))));
            }
            Command::Counts(reply) => {
                reply.send(Ok(Counts { running: self.parts.fleet.running(), total: self.parts.fleet.len() }));
            }
            Command::Census(reply) => reply.send(Ok(self.census())),
            Command::UnitsOf(candidates, reply) => self.units_of(candidates, reply),
            Command::Usage(target, reply) => reply.send(self.usage(&target)),
            Command::UsagePage(after, reply) => reply.send(Ok(self.usage_page(after))),
            Command::Signal { target, signal, scope, reply } => self.signal(&target, signal, scope, reply),
            Command::Kill(target, reply) => self.kill(&target, reply),
            Command::Restart(target, reply) => self.restart(target, reply),
            Command::Pause(target, reply) => self.pause(target, reply),
            Command::Resume(target, reply) => self.resume(target, reply),
            Command::Stdin(target, reply) => reply.send(self.stdin(&target)),
            Command::CloseStdin(target, reply) => reply.send(self.close_stdin(&target)),
            Command::OpenPty { id, spec, user, key, reply } => self.open_pty(id, *spec, user, key, reply),
            Command::ListPtys(reply) => reply.send(Ok(self.ptys())),
            Command::LookUpPty(session, reply) => reply.send(self.look_up_pty(&session)),
            Command::KillPty(session, reply) => self.kill_pty(&session, reply),
            Command::Attach(key, reply) => reply.send(self.attach(&key)),
            Command::Detach(id) => self.detach(id),
            Command::LeaveRun(client) => self.leave_run(client),
            Command::Shutdown(grace, reply) => self.begin_shutdown(grace, Some(reply), false),
            Command::Quit => {}
        }
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        let add = |counts: &mut [u64], at: usize| counts.iter_mut().skip(at).take(1).for_each(|count| *count += 1);
        for (_, member) in self.parts.fleet.iter().filter(|(_, member)| member.unit.shown().is_some()) {
            if let Some(session) = &member.context.pty {
                add(&mut census.sessions, usize::from(member.unit.is_down()));
                census.viewers += session.life.clients() as u64;
                continue;
            }
            add(&mut census.processes, member.unit.status() as usize);
            if member.unit.managed().is_some() {
                add(&mut census.managed, member.unit.managed_status() as usize);
            }
        }
        census
    }

    /// The unit that a request addresses.
    fn find(&self, target: &Target) -> Result<UnitId, Error> {
        self.parts.fleet.find(target)
    }

    /// The unit that a request addresses, with its context.
    pub(super) fn member(&self, target: &Target) -> Result<(UnitId, &Member), Error> {
        let not_found = || Error::NotFound(target.clone());
        let id = self.find(target)?;
        Ok((id, self.parts.fleet.get(id).ok_or_else(not_found)?))
    }

    /// A unit as it is returned to clients; None before its first fork.
    pub(super) fn started(&self, id: UnitId) -> Option<Started> {
        let member = self.parts.fleet.get(id)?;
        let session = member.context.pty.as_ref().map(|session| Box::new(session.key.clone()));
        Some(Started { info: info(id, member)?, log: Arc::clone(&member.context.log), session })
    }

    fn start(
        &mut self,
        id: UnitId,
        spec: ProcessSpec,
        user: Option<Result<RunUser, Error>>,
        reply: ReplySender<Started>,
    ) {
        let Some(reply) = self.answer_repeat(id, &spec, reply) else { return };
        if self.shutdown.is_some() {
            return reply.send(Err(Error::ShuttingDown));
        }
        let unit = Unit::new(spec.managed.clone(), spec.timeout).with_leftovers(spec.leftovers);
        if self.admit(id, unit, spec, user, None, reply) {
            self.step(id, self.clock.now(), Event::Start);
        }
    }

    /// Admits a unit to the fleet. If that is refused, replies with the error and returns false.
    pub(super) fn admit(
        &mut self,
        id: UnitId,
        unit: Unit,
        spec: ProcessSpec,
        user: Option<Result<RunUser, Error>>,
        pty: Option<Pty>,
        reply: ReplySender<Started>,
    ) -> bool {
        let mut reply = Some(reply);
        let logs = &self.parts.logs;
        let admitted = self.parts.fleet.admit(id, unit, spec.size(), || {
            let starting = reply.take().map_or_else(Vec::new, |reply| vec![(1, reply)]);
            let user = user.map(Box::new);
            UnitContext { starting, pty: pty.map(Box::new), user, ..UnitContext::new(spec, logs.create(id)) }
        });
        if let (Err(error), Some(reply)) = (admitted, reply) {
            reply.send(Err(error));
            return false;
        }
        self.record_request(id);
        true
    }

    fn signal(&mut self, target: &Target, signal: Signal, scope: Option<SignalScope>, reply: ReplySender<()>) {
        match self.signalled_leader(target) {
            Ok((id, leader)) => {
                let number = signal.number();
                if self.keep_sigcont(id, number) {
                    return reply.send(Ok(()));
                }
                let default = if number == libc::SIGKILL { SignalScope::Tree } else { SignalScope::Group };
                if number == libc::SIGKILL
                    && let Some(member) = self.parts.fleet.get_mut(id)
                {
                    member.context.killed = true;
                }
                let sent = match scope.unwrap_or(default) {
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

    /// The unit that a signal addresses, and its leader.
    fn signalled_leader(&self, target: &Target) -> Result<(UnitId, Pid), Error> {
        let (id, member) = self.member(target)?;
        let leader = member.unit.leader().ok_or_else(|| Error::NotRunning(target.clone()))?;
        Ok((id, leader))
    }

    fn kill(&mut self, target: &Target, reply: ReplySender<()>) {
        match self.find(target) {
            Ok(id) => self.kill_unit(id, reply),
            Err(error) => reply.send(Err(error)),
        }
    }

    /// Ends a unit. Replies when all processes of its tree have ended, or after [`KILL_REPLY_TIMEOUT`].
    pub(super) fn kill_unit(&mut self, id: UnitId, reply: ReplySender<()>) {
        let Some(run) = self.current_run(id) else { return reply.send(Ok(())) };
        let now = self.clock.now();
        self.step(id, now, Event::Stop);
        self.kills.push(AwaitedKill { run, until: now.mono + KILL_REPLY_TIMEOUT, reply });
        self.settle_kills(now);
    }

    /// Replies to the DELETE requests for which the tree has ended or the deadline has passed.
    pub(super) fn settle_kills(&mut self, now: Now) {
        let mut kills = std::mem::take(&mut self.kills);
        let is_gone = |kill: &AwaitedKill| match self.parts.fleet.get(kill.run.0) {
            Some(member) => member.unit.is_down() && member.context.tree.is_none(),
            // The unit was forgotten meanwhile. Its tree is tracked until all processes have ended.
            None => self.tracking(kill.run).is_none(),
        };
        for kill in kills.extract_if(.., |kill| kill.until <= now.mono || is_gone(kill)) {
            kill.reply.send(Ok(()));
        }
        self.kills = kills;
    }

    fn restart(&mut self, target: Target, reply: ReplySender<Started>) {
        let permitted = self.member(&target).and_then(|(id, member)| match member.unit.managed() {
            Some(_) => Ok(id),
            None => Err(Error::NotManaged(target)),
        });
        let permitted = permitted.and_then(|id| match self.shutdown {
            Some(_) => Err(Error::ShuttingDown),
            None => self.parts.fleet.claim_for_restart(id).map(|()| id),
        });
        let id = match permitted {
            Ok(id) => id,
            Err(error) => return reply.send(Err(error)),
        };
        if let Some(member) = self.parts.fleet.get_mut(id) {
            // The reply waits for the next run, not for the one that is being ended: its exec may have succeeded just
            // now.
            member.context.starting.push((member.unit.run_no() + 1, reply));
        }
        self.step(id, self.clock.now(), Event::Restart);
    }

    fn stdin(&mut self, target: &Target) -> Result<Stdin, Error> {
        let (id, member) = self.member(target)?;
        if !member.context.spec.stdio.has_stdin_pipe() {
            return Err(Error::StdinNotWritable(target.clone()));
        }
        if !member.context.stdin_open || member.unit.leader().is_none() {
            return Err(Error::StdinClosed(target.clone()));
        }
        let run = (id, member.unit.run_no());
        self.last_writer += 1;
        Ok(Stdin::new(self.parts.output.sender().clone(), run, self.last_writer))
    }

    fn close_stdin(&mut self, target: &Target) -> Result<(), Error> {
        let (id, member) = self.member(target)?;
        if !member.context.spec.stdio.has_stdin_pipe() {
            return Err(Error::StdinNotWritable(target.clone()));
        }
        let run = (id, member.unit.run_no());
        if let Some(member) = self.parts.fleet.get_mut(id)
            && std::mem::take(&mut member.context.stdin_open)
        {
            self.parts.output.sender().send(run, ToOutput::CloseStdin);
        }
        Ok(())
    }
}
