//! Performs the actions of units.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::launch::{launch, stdio};
use crate::error::Error;
use crate::logs::Writing;
use crate::model::{HealthCheck, RunEnd, RunNo, Target, UnitId};
use crate::output::{Attach, Descriptor, Message as ToOutput};
use crate::supervisor::actor::Actor;
use crate::supervisor::fd_budget;
use crate::supervisor::limits;
use crate::supervisor::resolver::{LookUp, Resolved};
use crate::supervisor::usage::LastUsage;
use crate::trees::Tracking;
use crate::unit::{Action, Event, Now};
use tl_os::cgroup::Leaf;
use tl_os::pipe::is_at_end;
use tl_os::process_tree::Marks;
use tl_os::random;
use tl_os::send_signal;

impl Actor {
    /// Passes an event to a unit, and performs the resulting actions and those of the events that follow from them.
    pub(super) fn step(&mut self, id: UnitId, now: Now, event: Event) {
        let mut actions = Vec::new();
        self.parts.fleet.step(id, now, event, &mut actions);
        let mut queue = VecDeque::from(actions);
        loop {
            let event = match queue.pop_front() {
                Some(action) => self.act(id, action),
                None => match self.watch_if_awaited(id) {
                    None => return,
                    event => event,
                },
            };
            let Some(event) = event else { continue };
            let mut more = Vec::new();
            self.parts.fleet.step(id, now, event, &mut more);
            queue.extend(more);
        }
    }

    /// Performs one action. Returns the event that follows immediately, if one does.
    fn act(&mut self, id: UnitId, action: Action) -> Option<Event> {
        match action {
            Action::ResolveUser => {
                let member = self.parts.fleet.get(id)?;
                if member.context.user.is_some() {
                    return Some(Event::UserResolved);
                }
                self.request_user(id);
            }
            Action::Spawn => {
                return Some(match self.spawn(id) {
                    Ok(pid) => Event::Spawned(pid),
                    Err(error) => Event::SpawnFailed(error),
                });
            }
            Action::Terminate => self.terminate_tree(id),
            Action::HangUp => self.hang_up_session(id),
            Action::Disconnect => self.send_to_output(id, ToOutput::HangUp),
            Action::KillTree => self.kill_tree(id),
            Action::Abandon(leader) => {
                log::warn!(
                    "unit {id}: process {leader} has not exited after its SIGKILL; its run is reported as ended"
                );
                // Without a cgroup, the trees thread may not have killed the leader yet.
                let _ = send_signal::signal_group(leader, libc::SIGKILL);
                self.parts.fleet.abandon(id, leader);
            }
            Action::Watch(delay) => {
                let member = self.parts.fleet.get(id)?;
                let initial_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                let check = HealthCheck { initial_delay_ms, ..member.unit.probed()?.clone() };
                self.parts.probes.watch(id, member.unit.watch_no(), check);
            }
            Action::Freeze => self.freeze_tree(id),
            Action::Thaw => self.thaw_tree(id),
            Action::Unwatch => self.parts.probes.unwatch(id),
            Action::Drain => return self.drain(id),
            Action::ReportLateFailure(error) => self.report_late_failure(id, &error),
            Action::Started => {
                let started = self.started(id)?;
                let member = self.parts.fleet.get_mut(id)?;
                let run = member.unit.run_no();
                for (_, reply) in member.context.starting.extract_if(.., |(wanted, _)| *wanted <= run) {
                    reply.send(Ok(started.clone()));
                }
            }
            Action::Report(occurrence) => self.report(id, &occurrence),
            Action::StartFailed(run, error) => {
                self.parts.fleet.get_mut(id)?.context.outputs = [None, None];
                self.parts.output.sender().send((id, run), ToOutput::Forget);
                self.refuse_starts(id, run, &error);
                self.report_start_failure(id, &error);
            }
            Action::Finish(end) => self.finish(id, end),
            Action::Reopen => {
                let log = Arc::clone(&self.parts.fleet.get(id)?.context.log);
                log.revoke_end();
                self.send_to_output(id, ToOutput::ReopenLog(Writing::new(&log)));
            }
            Action::Forget => {
                self.refuse_starts(id, RunNo::MAX, &Error::NotFound(Target::Unit(id)));
                let member = self.parts.fleet.remove(id)?;
                self.release_unit(id, member);
            }
        }
        None
    }

    /// Drains the pipes of a run whose leader was reaped. Usually nothing is left in them by now, and all output is in
    /// the log; then the drain is over. Otherwise the output thread is asked to do it.
    fn drain(&mut self, id: UnitId) -> Option<Event> {
        let context = &mut self.parts.fleet.get_mut(id)?.context;
        let outputs = std::mem::take(&mut context.outputs);
        // The pipes first: the log is not at rest while bytes that were read from them are not in it.
        let is_over = context.pty.is_none()
            && outputs.iter().flatten().all(|output| is_at_end(&**output))
            && context.log.is_at_rest();
        if !is_over {
            let log = Arc::clone(&context.log);
            self.send_to_output(id, ToOutput::Drain(log));
            return None;
        }
        if context.spec.stdio.has_stdin_pipe() {
            self.send_to_output(id, ToOutput::CloseStdin);
        }
        Some(Event::Drained)
    }

    /// Appends the error to the unit's stderr.
    fn report_late_failure(&self, id: UnitId, error: &Error) {
        let line = format!("tl-init: {error}\n");
        let Some(context) = self.parts.fleet.get(id).map(|member| &member.context) else { return };
        match &context.pty {
            Some(session) => session.terminal.append(line.as_bytes()),
            None => self.send_to_output(id, ToOutput::AppendToLog(Writing::new(&context.log), line.into_bytes())),
        }
    }

    /// Ends the log and the followers of a unit that is down.
    fn finish(&mut self, id: UnitId, end: RunEnd) {
        self.refuse_starts(id, RunNo::MAX, &Error::NotRunning(Target::Unit(id)));
        let Some(context) = self.parts.fleet.get_mut(id).map(|member| &mut member.context) else { return };
        if context.spec.managed.is_none() {
            // The unit never starts again, so its environment is dropped; clients are still shown the rest.
            context.spec.env = Vec::new();
            context.starting = Vec::new();
        }
        let at_rest = context.log.finish_at_rest(end);
        let finish = ToOutput::FinishLog(Writing::new(&context.log), context.log.epoch(), end);
        if let Some(session) = &mut context.pty {
            session.terminal.finish(end);
            session.life.end(self.clock.now().mono);
        }
        if !at_rest {
            self.send_to_output(id, finish);
        }
    }

    fn send_to_output(&self, id: UnitId, message: ToOutput) {
        if let Some(member) = self.parts.fleet.get(id) {
            self.parts.output.sender().send((id, member.unit.run_no()), message);
        }
    }

    /// Replies with an error to all requests that wait for the start of this run or of an earlier one.
    fn refuse_starts(&mut self, id: UnitId, run: RunNo, error: &Error) {
        if let Some(member) = self.parts.fleet.get_mut(id) {
            for (_, reply) in member.context.starting.extract_if(.., |(wanted, _)| *wanted <= run) {
                reply.send(Err(error.clone()));
            }
        }
    }

    /// Requests the look-up of the user of a unit's next run from the resolver.
    pub(super) fn request_user(&mut self, id: UnitId) {
        let Some(member) = self.parts.fleet.get_mut(id) else { return };
        match member.context.look_up {
            LookUp::Idle => {
                member.context.look_up = LookUp::Requested;
                self.parts.resolver.request(id, member.context.spec.user.as_ref().unwrap_or(&self.parts.default_user));
            }
            LookUp::Requested | LookUp::Outdated => member.context.look_up = LookUp::Outdated,
        }
    }

    /// Handles the answer of the resolver. It is ignored if the unit no longer waits for it.
    pub(super) fn user_resolved(&mut self, Resolved { unit, user }: Resolved) {
        let Some(member) = self.parts.fleet.get_mut(unit) else { return };
        let look_up = std::mem::take(&mut member.context.look_up);
        if !member.unit.awaits_user() {
            return;
        }
        if look_up == LookUp::Outdated {
            return self.request_user(unit);
        }
        member.context.user = Some(Box::new(user));
        self.step(unit, self.clock.now(), Event::UserResolved);
    }

    /// Forks the child of a unit's next run.
    fn spawn(&mut self, id: UnitId) -> Result<i32, Error> {
        let gone = || Error::internal("the unit was removed");
        let member = self.parts.fleet.get_mut(id).ok_or_else(gone)?;
        let run = member.unit.run_no();
        // Done first: a start that fails must not leave the tree of the previous run without an owner.
        let old = member.context.tree.take();
        self.retire((id, run.saturating_sub(1)), old);
        let member = self.parts.fleet.get_mut(id).ok_or_else(gone)?;
        let user = *member.context.user.take().ok_or_else(|| Error::internal("the user was not looked up"))?;
        let user = user?;
        // Counted until the pipes are closed, which a background child can delay beyond the end of its run.
        let taken = self.parts.descriptors.take(fd_budget::needs(&member.context.spec));
        let mut taken =
            taken.ok_or_else(|| Error::out_of_resources("all descriptors reserved for processes are in use"))?;
        let spec = &member.context.spec;
        let invocation = random::hex::<16>().map_err(|error| Error::from_io("generating the id of a run", &error))?;
        let mut launch = launch(spec, &user.identity, &self.parts.base_env, &invocation)?;
        launch.open_files = self.parts.default_limits.open_files(spec.limits.as_ref());
        let (spawner, defaults) = (&mut self.parts.spawner, &mut self.parts.default_limits);
        let started = self.parts.cgroups.start_in(|leaf| {
            let limits = match limits::prepare(defaults, spec.limits.as_ref(), leaf)? {
                Ok(limits) => limits,
                Err(error) => return Ok(Err(error)),
            };
            Ok(Ok((spawner.spawn(stdio(spec, user.tty_group), &launch, leaf)?, limits)))
        });
        let (started, leaf) = started.map_err(|error| Error::from_io("starting a process", &error))?;
        let (child, limits) = started.inspect_err(|_| drop(leaf.as_ref().map(Leaf::give_back)))?;
        let outputs = [&child.stdout, &child.stderr].map(|fd| fd.as_ref().map(AsFd::as_fd));
        let marks = || Tracking::Marks(Box::new(Marks::new(child.pid, &invocation, outputs)));
        let tree = leaf.map_or_else(marks, Tracking::Leaf);
        let [stdout, stderr] = [child.stdout, child.stderr].map(|fd| fd.map(|fd| Descriptor::new(fd, taken.one())));
        let report = Descriptor::new(child.report, taken.one());
        // Only the output thread holds the master of a terminal: closing it hangs the session up.
        let kept = if member.context.pty.is_none() { [stdout.clone(), stderr.clone()] } else { [None, None] };
        let attach = Attach {
            log: member.context.log.clone(),
            terminal: member.context.pty.as_ref().map(|session| Arc::clone(&session.terminal)),
            stdin: child.stdin,
            stdout,
            stderr,
            taken,
        };
        self.parts.output.sender().attach((id, run), attach);
        let context = &mut self.parts.fleet.get_mut(id).ok_or_else(gone)?.context;
        context.stdin_open = context.spec.stdio.has_stdin_pipe();
        context.outputs = kept;
        let watched = self.parts.inbox.watch_report(id, &*report);
        context.report = Some(report);
        if let Err(error) = watched {
            log::error!("unit {id}: the outcome of its exec is not known before its end: {error}");
        }
        context.killed = false;
        (context.limits, context.last_usage) = (limits, LastUsage::None);
        context.hold = None;
        context.tree = Some(tree);
        Ok(child.pid)
    }
}
