//! Pausing the tree of a unit, and resuming it.
//!
//! A tree is frozen by its cgroup. If it has none, or the kernel has no freezer, the trees thread stops each process. In
//! both cases it takes a moment until the whole tree stands still; the reply to the client waits for that, and nothing
//! else does.

use std::time::Duration;

use super::actor::Actor;
use super::pause_watch::{Hold, Pausing};
use super::replies::Started;
use super::trees::log_failure;
use crate::error::Error;
use crate::model::{RunKey, Target, UnitId};
use crate::pending::ReplySender;
use crate::trees::{Job, Reply, Suspension, Tracking};
use crate::unit::{Event, Now};

/// Longest wait for a tree to stand still (docs/api.md, Process control). A process that hangs in the kernel then stands
/// still once its system call returns.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Time to the second look at a tree that is being paused; it doubles with each look.
const FIRST_LOOK: Duration = Duration::from_micros(250);
/// The longest time between two looks.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// Why a tree cannot be paused without a cgroup.
const GROWING: &str = "the processes of the tree start others more quickly than they can be stopped";
const BLIND: &str = "/proc does not show this PID namespace, so the processes of the tree cannot be found";

impl Actor {
    /// Pauses a unit. Replies when its whole tree stands still, or after [`TIMEOUT`].
    pub(super) fn pause(&mut self, target: Target, reply: ReplySender<Started>) {
        let found = self.member(&target).map(|(id, member)| (id, member.unit.can_pause(), member.unit.is_paused()));
        let (id, can_pause, is_paused) = match found {
            Ok(found) => found,
            Err(error) => return reply.send(Err(error)),
        };
        if !can_pause {
            return reply.send(Err(Error::NotRunning(target)));
        }
        let Some(run) = self.current_run(id) else { return reply.send(Err(Error::NotRunning(target))) };
        if is_paused {
            match self.pauses.waiting.iter_mut().find(|pausing| pausing.run == run) {
                Some(pausing) => pausing.waiting.push((target, reply)),
                None => self.reply_with(id, target, reply),
            }
            return;
        }
        let now = self.clock.now();
        self.pauses.last += 1;
        let pausing = Pausing {
            number: self.pauses.last,
            run,
            next: Some(now.mono),
            wait: FIRST_LOOK,
            until: now.mono + TIMEOUT,
            suspension: Suspension::Growing,
            waiting: vec![(target, reply)],
        };
        self.step(id, now, Event::Pause);
        self.pauses.waiting.push(pausing);
        self.settle_pauses(now);
    }

    /// Resumes a unit. It is no error if it is not paused. Replies when its tree can run on: a SIGSTOP that the client
    /// sends after the reply takes effect.
    pub(super) fn resume(&mut self, target: Target, reply: ReplySender<Started>) {
        let found = self.member(&target).map(|(id, member)| (id, member.unit.leader(), member.context.hold));
        let (id, hold) = match found {
            Ok((id, Some(_), hold)) => (id, hold),
            Ok((_, None, _)) => return reply.send(Err(Error::NotRunning(target))),
            Err(error) => return reply.send(Err(error)),
        };
        self.step(id, self.clock.now(), Event::Resume);
        if hold == Some(Hold::Frozen) {
            return self.reply_with(id, target, reply);
        }
        // The trees thread sends SIGCONT, perhaps for an earlier request.
        let result = self.started(id).ok_or(Error::NotRunning(target));
        self.send_job(Job::Reply(Reply(Box::new(move || reply.send(result)))));
    }

    /// Resumes all units: nobody could do it later.
    pub(super) fn resume_all(&mut self) {
        let paused = self.parts.fleet.iter().filter(|(_, member)| member.unit.is_paused()).map(|(id, _)| id);
        let paused: Vec<UnitId> = paused.collect();
        paused.into_iter().for_each(|id| self.step(id, self.clock.now(), Event::Resume));
    }

    fn reply_with(&self, id: UnitId, target: Target, reply: ReplySender<Started>) {
        reply.send(self.started(id).ok_or(Error::NotRunning(target)));
    }

    /// Stops the execution of a unit's tree. Does not wait until it stands still.
    pub(super) fn freeze_tree(&mut self, id: UnitId) {
        let Some(key) = self.current_run(id) else { return };
        let is_frozen = match self.tracking(key) {
            Some(Tracking::Leaf(leaf)) => leaf.freeze().inspect_err(|error| {
                log::debug!("unit {id}: its cgroup cannot be frozen, so each process is stopped: {error}");
            }),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        if let Some(member) = self.parts.fleet.get_mut(id) {
            member.context.hold = Some(match is_frozen {
                Ok(()) => Hold::Frozen,
                Err(_) => Hold::Stopped { continue_all: false },
            });
        }
    }

    /// Lets a unit's tree run on.
    pub(super) fn thaw_tree(&mut self, id: UnitId) {
        let hold = self.parts.fleet.get_mut(id).and_then(|member| member.context.hold.take());
        let Some((hold, key)) = hold.zip(self.current_run(id)) else { return };
        let Some(tracking) = self.tracking(key) else { return };
        match (hold, tracking) {
            (Hold::Frozen, Tracking::Leaf(leaf)) => log_failure(key, "thawing its cgroup", leaf.thaw()),
            (Hold::Frozen, Tracking::Marks(_)) => {}
            (Hold::Stopped { continue_all: all }, tracking) => {
                let tracking = tracking.clone();
                self.send_job(Job::Continue { key, tracking, all });
            }
        }
    }

    /// Whether the signal is a SIGCONT that must wait for the end of the pause. A frozen process does not react to it by
    /// itself; a stopped one would run on.
    pub(super) fn keep_sigcont(&mut self, id: UnitId, signal: i32) -> bool {
        let Some(member) = self.parts.fleet.get_mut(id) else { return false };
        match &mut member.context.hold {
            Some(Hold::Stopped { continue_all }) if signal == libc::SIGCONT => {
                *continue_all = true;
                true
            }
            _ => false,
        }
    }

    /// Handles a report of the trees thread about a tree that it stops.
    pub(super) fn suspended(&mut self, number: u64, suspension: Suspension) {
        let now = self.clock.now();
        // An earlier request of the same run may have been reported after a resume.
        if let Some(pausing) = self.pauses.waiting.iter_mut().find(|pausing| pausing.number == number) {
            pausing.suspension = suspension;
            pausing.next = Some(now.mono + pausing.wait);
            pausing.wait = (2 * pausing.wait).min(LONGEST_WAIT);
        }
    }

    /// Looks at the trees that are being paused, and replies for those that stand still.
    pub(super) fn settle_pauses(&mut self, now: Now) {
        if self.pauses.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.pauses.waiting);
        let over: Vec<Pausing> = waiting.extract_if(.., |pausing| self.is_settled(pausing, now)).collect();
        self.pauses.waiting = waiting;
        for Pausing { run, suspension, waiting, .. } in over {
            let failed = match (self.is_stopped(run), suspension) {
                (true, Suspension::Growing) => Some(GROWING),
                (true, Suspension::Blind) => Some(BLIND),
                _ => None,
            };
            if failed.is_some() {
                self.step(run.0, now, Event::Resume);
            }
            for (target, reply) in waiting {
                match failed {
                    Some(why) => reply.send(Err(Error::internal(why))),
                    None if self.current_run(run.0) == Some(run) && self.leader(run.0).is_some() => {
                        self.reply_with(run.0, target, reply);
                    }
                    None => reply.send(Err(Error::NotRunning(target))),
                }
            }
        }
    }

    /// Whether the run is paused, by SIGSTOP.
    fn is_stopped(&self, run: RunKey) -> bool {
        let member = self.parts.fleet.get(run.0).filter(|member| member.unit.run_no() == run.1);
        member.is_some_and(|member| matches!(member.context.hold, Some(Hold::Stopped { .. })))
    }

    /// Whether the client gets its reply now: the tree stands still, it is no longer paused, or the time is over.
    fn is_settled(&self, pausing: &mut Pausing, now: Now) -> bool {
        let key = pausing.run;
        let member = self.parts.fleet.get(key.0).filter(|member| member.unit.run_no() == key.1);
        let Some(hold) = member.filter(|member| member.unit.is_paused()).and_then(|member| member.context.hold) else {
            return true;
        };
        if pausing.until <= now.mono || matches!(pausing.suspension, Suspension::Complete | Suspension::Blind) {
            return true;
        }
        if pausing.next.is_none_or(|next| next > now.mono) {
            return false;
        }
        match (hold, self.tracking(key)) {
            (Hold::Frozen, Some(Tracking::Leaf(leaf))) => {
                pausing.next = Some(now.mono + pausing.wait);
                pausing.wait = (2 * pausing.wait).min(LONGEST_WAIT);
                leaf.is_frozen()
            }
            (Hold::Stopped { .. }, Some(tracking)) => {
                pausing.next = None;
                let tracking = tracking.clone();
                self.send_job(Job::Suspend { key, tracking, request: pausing.number });
                false
            }
            _ => true,
        }
    }
}
