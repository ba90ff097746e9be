//! Requests with an idempotency key (docs/api.md, Idempotency): a repetition is answered with the unit that the first
//! request has started.

use std::time::Duration;

use super::actor::Actor;
use super::builder::Builder;
use super::handle::Handle;
use super::limits;
use super::message::{Command, Message};
use super::replies::{SessionKey, Started};
use crate::error::Error;
use crate::model::{Operation, ProcessInfo, ProcessSpec, UnitId};
use crate::pending::ReplySender;
use crate::unit::{Event, Now};

/// The result of a request that may be a repetition.
#[derive(Debug)]
pub(crate) struct Repeatable<T> {
    pub(crate) result: T,
    /// Whether an earlier request has started the unit.
    pub(crate) is_repeat: bool,
}

impl Handle {
    /// [`Handle::start`] of a spec that may have a [`RequestKey`](crate::model::RequestKey).
    pub(crate) fn start_or_repeat(&self, spec: ProcessSpec) -> Result<Repeatable<ProcessInfo>, Error> {
        let (id, starting) = self.begin_start_with_user(spec);
        let info = starting.wait()?.info;
        Ok(Repeatable { is_repeat: info.handle != id, result: info })
    }

    /// [`Handle::open_pty`] of a spec that may have a [`RequestKey`](crate::model::RequestKey).
    pub(crate) fn open_pty_or_repeat(&self, spec: ProcessSpec) -> Result<Repeatable<SessionKey>, Error> {
        spec.check_session()?;
        limits::check(&spec)?;
        let (id, key) = (self.next_id(), SessionKey::generate()?);
        let user = self.look_up_user(&spec);
        let opened = self.call(|reply| Command::OpenPty { id, spec: Box::new(spec), user, key, reply })?;
        let key = opened.session.ok_or_else(|| Error::internal("the unit has no terminal"))?;
        Ok(Repeatable { result: *key, is_repeat: opened.info.handle != id })
    }

    /// Reports that a client no longer follows the run that its request has started or found, whether that has ended or
    /// not. `client`: the id that the request has reserved.
    pub(crate) fn leave_run(&self, client: UnitId) {
        self.messages.send(Message::Command(Command::LeaveRun(client)));
    }
}

impl Builder {
    /// Time after which a run of the HTTP API that has an idempotency key is killed when no client follows it any more. The
    /// default is 10 s.
    pub fn run_grace(mut self, time: Duration) -> Self {
        self.run_grace = time;
        self
    }
}

impl Actor {
    /// Answers a request that repeats an earlier one, or that has the key of a different one. Returns the reply if the
    /// request is neither. `id` is what the request has reserved.
    pub(super) fn answer_repeat(
        &mut self,
        id: UnitId,
        spec: &ProcessSpec,
        reply: ReplySender<Started>,
    ) -> Option<ReplySender<Started>> {
        let Some(request) = &spec.request else { return Some(reply) };
        let unit = match self.keyed.find(request) {
            Ok(None) => return Some(reply),
            Ok(Some(unit)) => unit,
            Err(error) => {
                reply.send(Err(error));
                return None;
            }
        };
        // The key is forgotten with its unit.
        let Some(member) = self.parts.fleet.get_mut(unit) else { return Some(reply) };
        if request.operation == Operation::Run {
            self.keyed.attach(unit, id);
        }
        if member.context.starting.iter().any(|(run, _)| *run == 1) {
            member.context.starting.push((1, reply));
        } else {
            let gone = || Error::internal("the unit has not been started");
            reply.send(self.started(unit).ok_or_else(gone));
        }
        None
    }

    /// Records the request that has started a unit, if it has a key.
    pub(super) fn record_request(&mut self, id: UnitId) {
        let Some(member) = self.parts.fleet.get(id) else { return };
        let Some(request) = &member.context.spec.request else { return };
        self.keyed.insert(request, id);
        if request.operation == Operation::Run {
            self.keyed.attach(id, id);
        }
    }

    /// Handles the departure of a client of a run. If it was the last one, the run is killed after the grace.
    pub(super) fn leave_run(&mut self, client: UnitId) {
        let Some(run) = self.keyed.detach(client) else { return };
        if self.parts.fleet.get(run).is_some_and(|member| !member.unit.is_down()) {
            self.keyed.await_client(run, self.clock.now().mono);
        }
    }

    /// Kills the runs to which no client has come back in time, with their trees.
    pub(super) fn kill_left_runs(&mut self, now: Now) {
        while let Some(run) = self.keyed.take_due(now.mono) {
            // What a run that has ended meanwhile has left behind is not killed: its clients did not go before its end.
            if self.parts.fleet.get(run).is_some_and(|member| !member.unit.is_down()) {
                log::debug!("run {run}: no client has come back: killing it");
                self.step(run, now, Event::Stop);
            }
        }
    }
}
