//! Handles what the kernel and the output thread report about runs: ended children, out-of-memory kills, the outcome of
//! an exec, and drained output.

use nix::errno::Errno;
use nix::unistd::read;

use super::actor::Actor;
use super::launch::{exit, explain};
use super::trace::TraceStop;
use super::usage::LastUsage;
use crate::metrics::METRICS;
use crate::model::{Exit, RunKey, UnitId};
use crate::output::Notice;
use crate::trees::Tracking;
use crate::unit::{Event, Now};
use tl_os::spawn::{ExecFailure, ReportBuffer};
use tl_os::wait::{ChildEvent, Reaped, event_of_child, next_event};

/// Maximum number of children reaped before the next message is handled, so that many exits at once do not delay
/// clients.
const REAP_TURN: usize = 256;

impl Actor {
    /// Handles a notice of the output thread about one run.
    pub(super) fn notice(&mut self, (id, run): RunKey, notice: Notice) {
        let Some(member) = self.parts.fleet.get_mut(id) else { return };
        if member.unit.run_no() != run {
            return;
        }
        let event = match notice {
            Notice::Drained => Event::Drained,
            Notice::StdinClosed => {
                member.context.stdin_open = false;
                return;
            }
        };
        self.step(id, self.clock.now(), event);
    }

    /// Reads the outcome of the exec of a unit's run, if the child has reported it. It reports a failure in a single write
    /// of a few bytes, which a pipe never splits.
    pub(super) fn read_report(&mut self, id: UnitId) {
        let Some(member) = self.parts.fleet.get_mut(id) else { return };
        let Some(report) = &member.context.report else { return };
        let mut bytes = ReportBuffer::default();
        let failure = loop {
            match read(&**report, &mut bytes) {
                Ok(count) => break ExecFailure::read(bytes.get(..count).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => break None,
            }
        };
        member.context.report = None;
        let event = match failure {
            None => Event::ExecOk,
            Some(failure) => Event::ExecFailed(explain(failure, &member.context.spec)),
        };
        self.step(id, self.clock.now(), event);
    }

    /// Reaps the children that signals were received for, and has the others looked at.
    pub(super) fn reap_signalled(&mut self) {
        let now = self.clock.now();
        self.reap_scan.request(now.mono);
        for pid in self.parts.inbox.signalled_children() {
            if let Some(event) = event_of_child(pid) {
                self.child_event(event, now);
            }
        }
        self.check_awaited(now);
    }

    /// Reaps children that have ended: leaders of units, and orphans.
    pub(super) fn reap_all(&mut self) {
        let now = self.clock.now();
        let mut begun = now.mono;
        for _ in 0..REAP_TURN {
            let event = next_event();
            let ended = self.clock.now().mono;
            self.reap_scan.done(begun, ended);
            let Some(event) = event else { return self.check_awaited(now) };
            self.child_event(event, now);
            begun = self.clock.now().mono;
        }
        self.reap_scan.go_on();
        self.check_awaited(now);
    }

    /// Reaps the leader of a unit with a deadline that is due, if the leader has ended. This thread may see the deadline
    /// first: a stopped fork server can hold it up for longer than a deadline is away.
    pub(super) fn reap_leader(&mut self, id: UnitId, now: Now) {
        let leader = self.parts.fleet.get(id).and_then(|member| member.unit.leader());
        if let Some(event) = leader.and_then(event_of_child) {
            self.child_event(event, now);
        }
    }

    fn child_event(&mut self, event: ChildEvent, now: Now) {
        match event {
            ChildEvent::Ended(reaped) => self.reaped(reaped, now),
            ChildEvent::Stopped(stop) => self.end_trace(stop),
        }
    }

    fn reaped(&mut self, reaped: Reaped, now: Now) {
        match self.parts.fleet.led_by(reaped.pid) {
            Some(id) => self.leader_ended(id, reaped, now),
            None if self.parts.spawner.reaped(reaped) => {}
            None => {
                if self.parts.fleet.reaped(reaped.pid).is_none() {
                    METRICS.orphans.increment();
                }
                self.watches.orphan_reaped(now.mono);
            }
        }
    }

    /// Ends the tracing of a child that has made this process its tracer, and has stopped.
    fn end_trace(&self, stop: tl_os::wait::TraceStop) {
        // Only the tracing thread can do that: for an orphan, the main thread.
        if stop.detach().is_err() {
            (self.parts.on_main_thread)(TraceStop(stop));
        }
    }

    fn leader_ended(&mut self, id: UnitId, reaped: Reaped, now: Now) {
        // It has reported by now.
        self.read_report(id);
        let mut exit = exit(reaped.exit);
        if let Some(member) = self.parts.fleet.get_mut(id) {
            member.context.stdin_open = false;
            if matches!(member.context.last_usage, LastUsage::None) {
                member.context.last_usage = LastUsage::Leader(reaped.usage);
            }
            if let (Exit::Signal(libc::SIGKILL), false, Some(Tracking::Leaf(leaf))) =
                (exit, member.context.killed, &member.context.tree)
                && leaf.leader_was_oom_killed()
            {
                exit = Exit::OomKilled;
            }
            if let Some(Tracking::Leaf(leaf)) = &member.context.tree
                && !matches!(exit, Exit::Signal(libc::SIGKILL) | Exit::OomKilled)
            {
                leaf.leader_exited();
            }
            if exit == Exit::Signal(libc::SIGKILL) && !member.context.killed {
                self.parts.cgroups.leader_was_killed();
            }
        }
        if exit == Exit::OomKilled
            && let Some(key) = self.current_run(id)
            && matches!(self.tracking(key), Some(Tracking::Leaf(leaf)) if leaf.was_oom_killed_as_a_whole())
        {
            // The kernel spares processes that have set their `oom_score_adj` to -1000.
            self.kill_run(key);
        }
        self.step(id, now, Event::Exited(exit));
        if self.parts.fleet.get(id).is_some_and(|member| member.unit.leader().is_none())
            && let Some(key) = self.current_run(id)
        {
            self.watches.leader_ended(key, now.mono);
        }
    }

    /// Records which out-of-memory kills did not hit leaders, before other processes are killed.
    pub(super) fn note_oom_kills(&mut self) {
        self.parts.cgroups.begin_oom_check();
        let fleet = &mut self.parts.fleet;
        let mut whole = Vec::new();
        for (id, leader) in fleet.iter().map(|(id, member)| (id, member.unit.leader())).collect::<Vec<_>>() {
            let Some(member) = fleet.get_mut(id) else { continue };
            if let Some(Tracking::Leaf(leaf)) = &mut member.context.tree {
                if let Some(leader) = leader {
                    leaf.note_oom_kills(leader);
                }
                let is_limited = member.context.limits.as_ref().is_some_and(|limits| limits.memory_bytes.is_some());
                if is_limited && leaf.was_oom_killed_as_a_whole() {
                    whole.push((id, member.unit.run_no()));
                }
            }
        }
        // The leader may be one of those that the kernel spares, or have ended before.
        whole.into_iter().for_each(|key| self.kill_run(key));
    }
}
