//! Performs what a unit's state machine asks for.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::launch::{launch, stdio};
use crate::clock;
use crate::error::Error;
use crate::model::{RunNo, StdinMode, Stream, Target, UnitId};
use crate::output::{Attach, Message as ToOutput};
use crate::supervisor::actor::Actor;
use crate::supervisor::entry::Tree;
use crate::supervisor::fd_budget;
use crate::unit::{Action, Event, Now};
use crate::users;
use tl_os::process_tree::Marks;
use tl_os::random;
use tl_os::send_signal;

impl Actor {
    /// Gives an event to a unit and performs what follows, and what follows from that.
    pub(super) fn step(&mut self, id: UnitId, now: Now, event: Event) {
        let mut actions = Vec::new();
        self.parts.fleet.step(id, now, event, &mut actions);
        let mut queue = VecDeque::from(actions);
        loop {
            let event = match queue.pop_front() {
                Some(action) => self.perform(id, action),
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

    /// Performs one action; a fork's outcome is an event at once.
    fn perform(&mut self, id: UnitId, action: Action) -> Option<Event> {
        match action {
            Action::Spawn => {
                return Some(match self.spawn(id) {
                    Ok(pid) => Event::Spawned(pid),
                    Err(error) => Event::SpawnFailed(error),
                });
            }
            Action::Terminate => self.terminate_tree(id),
            Action::HangUp => self.hang_up_session(id),
            Action::Disconnect => self.tell_output(id, ToOutput::HangUp),
            Action::KillTree => self.kill_tree(id),
            Action::Abandon(leader) => {
                log::warn!(
                    "unit {id}: process {leader} has not exited after its SIGKILL; its run is reported as ended"
                );
                // Without a cgroup, another thread may not have come to it yet.
                let _ = send_signal::signal_group(leader, libc::SIGKILL);
                self.parts.fleet.abandon(id, leader);
            }
            Action::Watch => {
                let slot = self.parts.fleet.get(id)?;
                let check = slot.unit.probed()?.clone();
                self.parts.probes.watch(id, slot.unit.run_no(), check);
            }
            Action::Unwatch => self.parts.probes.unwatch(id),
            Action::Drain => self.tell_output(id, ToOutput::Drain),
            Action::Complain(error) => {
                let line = format!("tl-init: {error}\n");
                let entry = &self.parts.fleet.get(id)?.data;
                match &entry.pty {
                    Some(session) => session.terminal.append(line.as_bytes()),
                    None => entry.log.append(clock::wall(), Stream::Stderr, line.as_bytes()),
                }
            }
            Action::Started => {
                let started = self.started(id)?;
                let slot = self.parts.fleet.get_mut(id)?;
                let run = slot.unit.run_no();
                for (_, reply) in slot.data.starting.extract_if(.., |(wanted, _)| *wanted <= run) {
                    reply.send(Ok(started.clone()));
                }
            }
            Action::StartFailed(run, error) => {
                self.parts.output.sender().send((id, run), ToOutput::Forget);
                self.refuse_starts(id, run, &error);
            }
            Action::Finish(end) => {
                self.refuse_starts(id, RunNo::MAX, &Error::NotRunning(Target::Unit(id)));
                let entry = &mut self.parts.fleet.get_mut(id)?.data;
                if entry.spec.managed.is_none() {
                    // It never starts again: what is shown is all that is kept.
                    entry.spec.env = Vec::new();
                }
                entry.log.finish(end);
                if let Some(session) = &mut entry.pty {
                    session.terminal.finish(end);
                    session.life.end(self.clock.now().mono);
                }
            }
            Action::Reopen => self.parts.fleet.get(id)?.data.log.reopen(),
            Action::Forget => {
                self.refuse_starts(id, RunNo::MAX, &Error::NotFound(Target::Unit(id)));
                let slot = self.parts.fleet.remove(id)?;
                self.part_with(id, slot);
            }
        }
        None
    }

    fn tell_output(&self, id: UnitId, message: ToOutput) {
        if let Some(slot) = self.parts.fleet.get(id) {
            self.parts.output.sender().send((id, slot.unit.run_no()), message);
        }
    }

    /// Tells all who wait for this run or one before it.
    fn refuse_starts(&mut self, id: UnitId, run: RunNo, error: &Error) {
        if let Some(slot) = self.parts.fleet.get_mut(id) {
            for (_, reply) in slot.data.starting.extract_if(.., |(wanted, _)| *wanted <= run) {
                reply.send(Err(error.clone()));
            }
        }
    }

    fn spawn(&mut self, id: UnitId) -> Result<i32, Error> {
        let gone = || Error::Internal("the unit is gone".to_owned());
        let slot = self.parts.fleet.get_mut(id).ok_or_else(gone)?;
        // Children in the background may hold pipes of processes that have ended: those are taken still.
        let taken = self.parts.descriptors.take(fd_budget::needs(&slot.data.spec));
        let taken = taken.ok_or_else(|| Error::OutOfResources("processes hold all descriptors they may".to_owned()))?;
        let run = slot.unit.run_no();
        let old = std::mem::replace(&mut slot.data.tree, Tree::Gone);
        self.retire((id, run.saturating_sub(1)), old);
        let slot = self.parts.fleet.get(id).ok_or_else(gone)?;
        let spec = &slot.data.spec;
        let identity = users::resolve(spec.user.as_ref().unwrap_or(&self.parts.default_user))?;
        let invocation = random::hex::<16>().map_err(|error| Error::from_io("naming a run", &error))?;
        let launch = launch(spec, &identity, &self.parts.base_env, &invocation)?;
        let spawner = &self.parts.spawner;
        let started =
            self.parts.cgroups.start_in(&format!("{id}.{run}"), |leaf| spawner.spawn(stdio(spec), &launch, leaf));
        let (child, leaf) = started.map_err(|error| Error::from_io("starting a process", &error))?;
        let outputs = [&child.stdout, &child.stderr].map(|fd| fd.as_ref().map(AsFd::as_fd));
        let tree = leaf.map_or_else(|| Tree::Marked(Marks::new(child.pid, &invocation, outputs)), Tree::Leaf);
        let attach = Attach {
            log: slot.data.log.clone(),
            terminal: slot.data.pty.as_ref().map(|session| Arc::clone(&session.terminal)),
            stdin: child.stdin,
            stdout: child.stdout,
            stderr: child.stderr,
            report: child.report,
            taken,
        };
        self.parts.output.sender().send((id, run), ToOutput::Attach(Box::new(attach)));
        let entry = &mut self.parts.fleet.get_mut(id).ok_or_else(gone)?.data;
        entry.stdin_open = entry.spec.stdin == StdinMode::Pipe;
        entry.killed = false;
        entry.tree = tree;
        Ok(child.pid)
    }
}
