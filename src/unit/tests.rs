//! Scenarios with a clock of their own; `table` lists every event in every state, and `walk` searches every reachable state.

mod table;
mod walk;

use std::time::Duration;

use super::backoff::{SHORT_RUN, SHORT_RUNS};
use super::state::{Next, Phase, State, TreeWait};
use super::times::{EXEC_PATIENCE, REAP_PATIENCE};
use super::{Action, Event, Now, Unit};
use crate::error::Error;
use crate::model::{
    Exit, HealthCheck, HealthKind, HealthStatus, Leftovers, ManagedSpec, ManagedStatus, Pid, Policy, RunEnd, Status,
};

const MS: Duration = Duration::from_millis(1);
const PID: Pid = 100;

/// A unit, with a supervisor that performs every action at once.
struct Story {
    unit: Unit,
    now: Duration,
    actions: Vec<Action>,
}

impl Story {
    fn plain() -> Story {
        Story { unit: Unit::new(None, None), now: Duration::ZERO, actions: Vec::new() }
    }

    fn timed(timeout: Duration) -> Story {
        Story { unit: Unit::new(None, Some(timeout)), ..Story::plain() }
    }

    fn managed(policy: Policy, change: impl FnOnce(&mut ManagedSpec)) -> Story {
        let mut spec = ManagedSpec::new(policy);
        change(&mut spec);
        Story { unit: Unit::new(Some(spec), None), ..Story::plain() }
    }

    fn clock(&self) -> Now {
        Now { mono: self.now, wall: 1_000_000 + self.now.as_millis() as u64 }
    }

    /// Processes one event and returns the actions. Users are found, and forks succeed.
    fn event(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.unit.step(self.clock(), event, &mut out);
        if out.pop_if(|action| *action == Action::ResolveUser).is_some() {
            self.unit.step(self.clock(), Event::UserResolved, &mut out);
        }
        if out.last() == Some(&Action::Spawn) {
            self.unit.step(self.clock(), Event::Spawned(PID + self.unit.run as Pid), &mut out);
        }
        self.actions.extend(out.clone());
        out
    }

    fn after(&mut self, time: Duration) -> &mut Story {
        self.now += time;
        self
    }

    fn start(&mut self) -> Vec<Action> {
        let mut out = self.event(Event::Start);
        out.extend(self.event(Event::ExecOk));
        out
    }

    /// The leader ends, its output is drained, and no other process of its tree is left.
    fn end(&mut self, exit: Exit) -> Vec<Action> {
        let mut out = self.event(Event::Exited(exit));
        out.extend(self.event(Event::Drained));
        if self.unit.awaits_tree() {
            out.extend(self.event(Event::TreeGone));
        }
        out
    }

    /// Advances the clock to the next deadline, and returns the time that passed.
    fn next(&mut self) -> Duration {
        let at = self.unit.deadline().expect("something is due");
        let waited = at.saturating_sub(self.now);
        self.now = at;
        self.event(Event::Tick);
        waited
    }
}

fn health(threshold: u32) -> impl FnOnce(&mut ManagedSpec) {
    move |spec| {
        spec.health = Some(HealthCheck {
            kind: HealthKind::Tcp,
            port: 80,
            path: None,
            initial_delay_ms: 0,
            interval_ms: 1_000,
            timeout_ms: 500,
            failure_threshold: threshold,
        });
    }
}

fn sick() -> Result<(), String> {
    Err("nobody listens".to_owned())
}

#[test]
fn the_longest_possible_timeout_never_expires_and_does_not_overflow() {
    let mut story = Story::timed(Duration::MAX);
    story.after(MS).start();
    assert_eq!(story.after(Duration::from_secs(1 << 40)).event(Event::Tick), []);
}

#[test]
fn a_plain_process_starts_ends_and_is_down() {
    let mut story = Story::plain();
    assert_eq!(story.start(), [Action::Spawn, Action::Started]);
    assert_eq!(story.unit.status(), Status::Running);
    assert_eq!(story.event(Event::Exited(Exit::Code(3))), [Action::Drain]);
    assert_eq!(story.unit.status(), Status::Running, "not ended before its output is read");
    let end = RunEnd { exit: Exit::Code(3), timed_out: false, ended_at: 1_000_000 };
    assert_eq!(story.event(Event::Drained), [Action::Finish(end)]);
    assert_eq!((story.unit.status(), story.unit.is_down()), (Status::Exited, true));
    assert_eq!(story.event(Event::Restart), []);
    assert_eq!(story.event(Event::Stop), [Action::KillTree], "the rest of its tree is killed");
}

#[test]
fn an_exit_that_is_reported_before_the_exec_waits_for_it() {
    let mut story = Story::plain();
    story.event(Event::Start);
    assert_eq!(story.event(Event::Exited(Exit::Code(0))), []);
    assert_eq!(story.event(Event::ExecOk), [Action::Started, Action::Drain]);
}

#[test]
fn a_failed_start_is_forgotten_once_its_child_is_reaped() {
    for exec_first in [true, false] {
        let mut story = Story::plain();
        story.event(Event::Start);
        let failed = Event::ExecFailed(Error::CommandNotFound("x".into()));
        let exited = Event::Exited(Exit::Code(127));
        let (first, second) = if exec_first { (failed, exited) } else { (exited, failed) };
        assert_eq!(story.event(first), []);
        let error = Error::CommandNotFound("x".into());
        assert_eq!(story.event(second), [Action::StartFailed(1, error), Action::Forget]);
    }
}

#[test]
fn a_hanging_exec_counts_as_a_start_after_five_seconds() {
    let mut story = Story::plain();
    story.event(Event::Start);
    assert_eq!(story.next(), EXEC_PATIENCE);
    assert_eq!(story.actions.last(), Some(&Action::Started));
    let error = Error::CommandNotFound("x".into());
    assert_eq!(story.event(Event::ExecFailed(error.clone())), [Action::ReportLateFailure(error)]);
    let out = story.end(Exit::Code(127));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(RunEnd { exit: Exit::Code(127), .. })]), "{out:?}");
}

#[test]
fn a_timeout_kills_the_tree_and_says_so() {
    let mut story = Story { unit: Unit::new(None, Some(300 * MS)), ..Story::plain() };
    story.start();
    assert_eq!(story.next(), 300 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    let out = story.end(Exit::Signal(9));
    let [Action::Drain, Action::Finish(end)] = out[..] else { panic!("{out:?}") };
    assert_eq!(end.reason(), "timed_out");

    // A process that exits by itself at the moment of its timeout has not timed out.
    let mut story = Story { unit: Unit::new(None, Some(300 * MS)), ..Story::plain() };
    story.start();
    story.next();
    let out = story.end(Exit::Code(0));
    assert!(matches!(out[..], [_, Action::Finish(end)] if end.reason() == "exited"), "{out:?}");
}

#[test]
fn each_policy_restarts_after_the_exits_it_names() {
    let cases = [
        (Policy::Never, Exit::Code(0), false),
        (Policy::Never, Exit::Code(1), false),
        (Policy::OnFailure, Exit::Code(0), false),
        (Policy::OnFailure, Exit::Code(1), true),
        (Policy::OnFailure, Exit::Signal(15), true),
        (Policy::OnFailure, Exit::OomKilled, true),
        (Policy::Always, Exit::Code(0), true),
        (Policy::Always, Exit::Signal(9), true),
    ];
    for (policy, exit, restarts) in cases {
        let mut story = Story::managed(policy, |_| {});
        story.start();
        story.end(exit);
        let expected = if restarts { ManagedStatus::BackingOff } else { ManagedStatus::Stopped };
        assert_eq!(story.unit.managed_status(), expected, "{policy:?} after {exit:?}");
        assert_eq!(story.actions.contains(&Action::KillTree), restarts, "the rest of the tree goes first");
    }
}

#[test]
fn the_backoff_doubles_up_to_its_limit_and_starts_anew_after_a_stable_run() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    let mut waits = Vec::new();
    for _ in 0..8 {
        story.end(Exit::Code(1));
        assert_eq!(story.unit.next_restart_at(), story.unit.deadline().map(|at| 1_000_000 + at.as_millis() as u64));
        waits.push(story.next().as_millis());
        story.event(Event::ExecOk);
    }
    assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    assert_eq!(story.unit.restart_count(), 8);
    assert_eq!(story.unit.next_restart_at(), None);
    story.after(29_999 * MS).end(Exit::Code(1));
    assert_eq!(story.next().as_millis(), 30_000, "stable means the longest backoff here");
    story.event(Event::ExecOk);
    story.after(30_000 * MS).end(Exit::Code(1));
    assert_eq!(story.next().as_millis(), 500);
}

#[test]
fn short_runs_are_never_restarted_without_any_wait() {
    let mut story = Story::managed(Policy::Always, |spec| spec.restart.initial_backoff_ms = 0);
    story.start();
    for _ in 0..4 {
        story.end(Exit::Code(1));
        assert_eq!(story.unit.managed_status(), ManagedStatus::Starting, "at once");
        story.event(Event::ExecOk);
    }
    story.end(Exit::Code(1));
    assert_eq!(story.next(), 100 * MS, "five short runs in a row");
    story.event(Event::ExecOk);
    story.after(SHORT_RUN).end(Exit::Code(1));
    assert_eq!(story.unit.managed_status(), ManagedStatus::Starting, "the last run was not a short one");
}

#[test]
fn a_unit_stays_stopped_after_max_restarts() {
    let mut story = Story::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(2));
    story.start();
    for _ in 0..2 {
        story.end(Exit::Code(1));
        story.next();
        story.event(Event::ExecOk);
    }
    story.end(Exit::Code(1));
    assert_eq!(story.unit.managed_status(), ManagedStatus::Stopped);
    assert!(story.unit.last_error().is_some_and(|error| error.contains("2 restarts")));
    assert_eq!(story.unit.deadline(), None);
}

#[test]
fn a_stopped_session_gets_sighup_then_loses_its_terminal_then_is_killed() {
    let mut story = Story { unit: Unit::with_terminal(), ..Story::plain() };
    story.start();
    assert_eq!(story.event(Event::Stop), [Action::HangUp]);
    assert_eq!(story.event(Event::Stop), [], "the deadline stands");
    assert_eq!(story.next(), 1_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::Disconnect));
    assert_eq!(story.next(), 4_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    let out = story.end(Exit::Signal(9));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
}

#[test]
fn a_stop_terminates_first_and_kills_after_the_grace() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    assert_eq!(story.event(Event::Stop), [Action::Terminate]);
    assert!(story.unit.is_released());
    assert_eq!(story.event(Event::Stop), [], "the deadline stands");
    assert_eq!(story.next(), 10_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    let out = story.end(Exit::Signal(9));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
    assert_eq!(story.unit.managed_status(), ManagedStatus::Stopped);
}

#[test]
fn processes_that_outlive_a_stopped_leader_have_the_rest_of_the_grace() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.event(Event::Stop);
    story.after(1_000 * MS).event(Event::Exited(Exit::Signal(15)));
    let out = story.event(Event::Drained);
    assert!(matches!(out[..], [Action::Finish(_)]), "followers do not wait for the rest of the tree: {out:?}");
    assert_eq!(story.event(Event::Stop), [], "a second stop does not cut it short");
    assert_eq!(story.next(), 9_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    assert_eq!(story.unit.deadline(), None);
}

#[test]
fn a_stop_is_over_when_no_process_of_the_tree_is_left() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.event(Event::Stop);
    story.after(1_000 * MS).end(Exit::Signal(15));
    assert_eq!((story.unit.deadline(), story.unit.awaits_tree()), (None, false));
}

#[test]
fn restart_waits_for_the_grace_of_the_whole_tree() {
    for (why, first) in [("restart", Event::Restart), ("failed check", Event::Verdict(1, sick()))] {
        for ends_by_itself in [true, false] {
            let mut story = Story::managed(Policy::Always, health(1));
            story.start();
            assert_eq!(story.event(first.clone())[0], Action::Terminate, "{why}");
            let out = story.after(10 * MS).event(Event::Exited(Exit::Signal(15)));
            assert_eq!(out, [Action::Unwatch, Action::Drain], "{why}: the rest of the tree is not killed yet");
            assert_eq!(story.event(Event::Drained), [], "{why}");
            assert_eq!(story.unit.managed_status(), ManagedStatus::Starting);
            if ends_by_itself {
                story.after(500 * MS).event(Event::TreeGone);
            } else {
                assert_eq!(story.next(), 9_990 * MS, "{why}");
                assert_eq!(story.actions.last(), Some(&Action::KillTree));
                // A process that does not end even then hangs in the kernel, and is not waited for.
                assert_eq!(story.next(), 1_000 * MS, "{why}");
            }
            match first {
                Event::Restart => assert_eq!(story.actions.last(), Some(&Action::Spawn)),
                _ => assert_eq!(story.next(), 500 * MS, "the backoff follows"),
            }
            assert_eq!(story.unit.run_no(), 2, "{why}");
        }
    }
}

#[test]
fn a_stop_cancels_a_restart_that_waits_for_the_tree() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.event(Event::Restart);
    story.event(Event::Exited(Exit::Signal(15)));
    story.event(Event::Drained);
    let out = story.after(1_000 * MS).event(Event::Stop);
    assert!(matches!(out[..], [Action::Finish(_)]), "{out:?}");
    assert_eq!(story.next(), 9_000 * MS, "the grace stands");
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    // A restart of a stopped unit waits for the remaining processes of its tree.
    story.event(Event::Restart);
    story.event(Event::TreeGone);
    story.event(Event::ExecOk);
    story.event(Event::Stop);
    story.event(Event::Exited(Exit::Signal(15)));
    story.event(Event::Drained);
    assert_eq!(story.event(Event::Restart), [Action::Reopen]);
    assert_eq!(story.event(Event::TreeGone), [Action::Spawn]);
}

#[test]
fn leftovers_of_a_leader_that_exits_by_itself_are_killed_only_if_the_spec_says_so() {
    for (leftovers, kills) in [(Leftovers::Keep, false), (Leftovers::Kill, true)] {
        let mut story = Story { unit: Unit::new(None, None).with_leftovers(leftovers), ..Story::plain() };
        story.start();
        let out = story.end(Exit::Code(0));
        assert_eq!(out[0] == Action::KillTree, kills, "{leftovers:?}: {out:?}");
        assert_eq!(story.unit.deadline(), None);
    }
    // A unit that is stopped has its grace all the same.
    let mut story = Story::managed(Policy::Never, |_| {});
    story.unit = story.unit.with_leftovers(Leftovers::Kill);
    story.start();
    story.event(Event::Stop);
    story.end(Exit::Code(0));
    assert!(!story.actions.contains(&Action::KillTree));
}

#[test]
fn a_leader_that_cannot_be_reaped_does_not_delay_the_end_of_its_run() {
    let mut story = Story { unit: Unit::new(None, Some(300 * MS)), ..Story::plain() };
    story.start();
    story.next();
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    assert_eq!(story.next(), REAP_PATIENCE);
    assert_eq!(story.actions[story.actions.len() - 2..], [Action::Abandon(PID + 1), Action::Drain]);
    assert_eq!(story.unit.leader(), None, "it is not signalled any more");
    let out = story.event(Event::Drained);
    let [Action::Finish(end)] = out[..] else { panic!("{out:?}") };
    assert_eq!((end.reason(), end.exit), ("timed_out", Exit::Signal(9)));

    // A leader whose exec hangs counts as started first, so that the clients that wait for the start get an answer.
    let mut story = Story::plain();
    story.event(Event::Start);
    story.event(Event::Stop);
    story.next();
    let expected = [Action::Abandon(PID + 1), Action::Started, Action::Drain];
    assert_eq!(story.actions[story.actions.len() - 3..], expected);

    // A restart does not wait for such a leader.
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.event(Event::Restart);
    story.next();
    story.next();
    story.event(Event::Drained);
    assert_eq!(story.event(Event::TreeGone), [Action::Spawn]);
}

#[test]
fn a_disconnected_terminal_ends_only_the_processes_that_heed_it() {
    let mut story = Story { unit: Unit::with_terminal(), ..Story::plain() };
    story.start();
    assert_eq!(story.event(Event::HangUp), [Action::Disconnect]);
    assert_eq!(story.unit.deadline(), None, "a process that ignores it lives on");
    assert_eq!(story.event(Event::Stop), [Action::HangUp], "and can still be ended");
    story.next();
    assert_eq!(story.next(), 4_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
    let mut story = Story { unit: Unit::with_terminal(), ..Story::plain() };
    story.start();
    story.event(Event::HangUp);
    let out = story.end(Exit::Signal(1));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
    assert_eq!(Story::plain().event(Event::HangUp), []);
}

#[test]
fn a_shutdown_terminates_the_leftovers_of_a_leader_that_has_exited() {
    let mut story = Story::plain();
    story.start();
    story.end(Exit::Code(0));
    assert_eq!(story.event(Event::ShutDown(5_000 * MS)), [Action::Terminate]);
    assert_eq!(story.event(Event::ShutDown(3_000 * MS)), [], "once");
    assert_eq!(story.next(), 3_000 * MS);
    assert_eq!(story.actions.last(), Some(&Action::KillTree));
}

#[test]
fn a_restart_ends_the_run_and_starts_the_next_without_backoff() {
    let mut story = Story::managed(Policy::Never, |_| {});
    story.start();
    assert_eq!(story.event(Event::Restart), [Action::Terminate]);
    let out = story.end(Exit::Signal(15));
    assert_eq!(out, [Action::Drain, Action::Spawn]);
    assert_eq!(story.event(Event::ExecOk), [Action::Started]);
    assert_eq!(story.unit.restart_count(), 1);
    // A unit that is down can be restarted as well.
    story.end(Exit::Code(0));
    assert_eq!(story.event(Event::Restart), [Action::Reopen, Action::KillTree]);
    assert_eq!(story.event(Event::TreeGone), [Action::Spawn]);
    assert!(!story.unit.is_released());
}

#[test]
fn a_restart_resets_the_backoff() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.end(Exit::Code(1));
    story.next();
    story.event(Event::ExecOk);
    story.end(Exit::Code(1));
    assert_eq!(story.unit.managed_status(), ManagedStatus::BackingOff);
    assert_eq!(story.event(Event::Restart), [Action::KillTree]);
    assert_eq!(story.event(Event::TreeGone), [Action::Spawn]);
    story.event(Event::ExecOk);
    story.end(Exit::Code(1));
    assert_eq!(story.next().as_millis(), 500);
}

#[test]
fn a_stop_cancels_a_backoff() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.end(Exit::Code(1));
    let out = story.event(Event::Stop);
    assert!(matches!(out[..], [Action::KillTree, Action::Finish(_)]), "{out:?}");
    assert_eq!((story.unit.deadline(), story.unit.next_restart_at()), (None, None));
    assert_eq!(story.after(60_000 * MS).event(Event::Tick), []);
}

#[test]
fn a_restart_that_cannot_start_backs_off_with_the_reason() {
    let mut story = Story::managed(Policy::OnFailure, |_| {});
    story.start();
    story.end(Exit::Code(1));
    story.next();
    story.event(Event::ExecFailed(Error::CommandNotFound("x".into())));
    let out = story.event(Event::Exited(Exit::Code(127)));
    assert_eq!(out, [Action::StartFailed(2, Error::CommandNotFound("x".into()))]);
    assert_eq!(story.unit.managed_status(), ManagedStatus::BackingOff);
    assert!(story.unit.last_error().is_some_and(|error| error.contains("x")));
    assert_eq!(story.next().as_millis(), 1_000);
}

#[test]
fn a_restart_that_is_requested_while_a_start_fails_makes_another_attempt() {
    let mut story = Story::managed(Policy::Never, |_| {});
    story.start();
    story.end(Exit::Code(0));
    story.event(Event::Restart);
    story.event(Event::TreeGone);
    story.event(Event::Restart);
    let error = Error::CommandNotFound("x".into());
    story.event(Event::ExecFailed(error.clone()));
    assert_eq!(story.event(Event::Exited(Exit::Code(127))), [Action::StartFailed(2, error), Action::Spawn]);
    assert_eq!(story.event(Event::ExecOk), [Action::Started]);
    assert_eq!((story.unit.restart_count(), story.unit.last_error()), (2, None));
}

#[test]
fn every_attempt_counts_as_a_restart() {
    let mut story = Story::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(3));
    story.start();
    story.end(Exit::Code(1));
    for _ in 0..3 {
        story.after(60_000 * MS);
        story.unit.step(story.clock(), Event::Tick, &mut Vec::new());
        story.unit.step(story.clock(), Event::UserResolved, &mut Vec::new());
        story.event(Event::SpawnFailed(Error::UserNotFound("x".into())));
    }
    assert_eq!((story.unit.restart_count(), story.unit.managed_status()), (3, ManagedStatus::Stopped));
    let error = story.unit.last_error().unwrap_or_default().to_owned();
    assert!(error.starts_with("gave up after 3 restarts") && error.contains("x"), "{error}");
    // A requested restart clears the last error.
    story.event(Event::Restart);
    story.event(Event::TreeGone);
    assert_eq!(story.unit.last_error(), None);
}

#[test]
fn a_restart_by_a_client_clears_the_counts_also_while_the_user_is_looked_up() {
    let mut story = Story::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(3));
    story.start();
    story.end(Exit::Code(1));
    for _ in 0..3 {
        story.after(60_000 * MS);
        story.unit.step(story.clock(), Event::Tick, &mut Vec::new());
        assert!(story.unit.awaits_user());
        if story.unit.last_error().is_some() && story.unit.restart_count() == 2 {
            story.event(Event::Restart);
            assert_eq!(story.unit.last_error(), None);
        }
        story.unit.step(story.clock(), Event::UserResolved, &mut Vec::new());
        story.event(Event::SpawnFailed(Error::UserNotFound("x".into())));
    }
    // Without the request, the third attempt would have been the last.
    assert_eq!(story.unit.managed_status(), ManagedStatus::BackingOff);
}

#[test]
fn a_stable_run_clears_the_last_error() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.end(Exit::Code(1));
    story.next();
    story.event(Event::ExecFailed(Error::CommandNotFound("x".into())));
    story.event(Event::Exited(Exit::Code(127)));
    story.next();
    story.event(Event::ExecOk);
    assert!(story.unit.last_error().is_some());
    story.after(30_000 * MS).end(Exit::Code(1));
    assert_eq!(story.unit.last_error(), None);
}

#[test]
fn a_unit_that_does_not_run_is_not_healthy() {
    let mut story = Story::managed(Policy::Always, health(2));
    story.start();
    story.event(Event::Verdict(1, Ok(())));
    story.event(Event::Verdict(1, sick()));
    story.end(Exit::Code(0));
    assert_eq!(story.unit.health(), (HealthStatus::Starting, 0));
    story.next();
    story.event(Event::ExecOk);
    for _ in 0..2 {
        story.event(Event::Verdict(2, sick()));
    }
    story.end(Exit::Signal(15));
    assert_eq!(story.unit.health(), (HealthStatus::Unhealthy, 2), "the reason why it was replaced");
}

#[test]
fn an_unhealthy_process_is_replaced_unless_the_policy_is_never() {
    let mut story = Story::managed(Policy::OnFailure, health(3));
    assert_eq!(story.start(), [Action::Spawn, Action::Started, Action::Watch]);
    assert_eq!(story.unit.health(), (HealthStatus::Starting, 0));
    story.event(Event::Verdict(1, Ok(())));
    assert_eq!(story.unit.health(), (HealthStatus::Healthy, 0));
    story.event(Event::Verdict(1, sick()));
    story.event(Event::Verdict(1, sick()));
    assert_eq!(story.unit.health(), (HealthStatus::Healthy, 2));
    assert_eq!(story.event(Event::Verdict(1, sick())), [Action::Terminate, Action::Unwatch]);
    assert_eq!(story.unit.health(), (HealthStatus::Unhealthy, 3));
    assert_eq!(story.event(Event::Verdict(1, Ok(()))), [], "too late");
    story.end(Exit::Code(0));
    assert_eq!(story.unit.managed_status(), ManagedStatus::BackingOff, "a failure, whatever it exits with");
    story.next();
    story.event(Event::ExecOk);
    assert_eq!(story.unit.health(), (HealthStatus::Starting, 0));
    assert_eq!(story.event(Event::Verdict(1, sick())), [], "of an earlier run");
    assert_eq!(story.unit.health(), (HealthStatus::Starting, 0));

    let mut story = Story::managed(Policy::Never, health(1));
    story.start();
    assert_eq!(story.event(Event::Verdict(1, sick())), []);
    assert_eq!(story.unit.health(), (HealthStatus::Unhealthy, 1));
    assert!(story.unit.last_error().is_some());
    story.event(Event::Verdict(1, Ok(())));
    assert_eq!(story.unit.health(), (HealthStatus::Healthy, 0));
}

#[test]
fn a_run_with_a_health_check_is_stable_once_it_was_healthy_for_long_enough() {
    for (healthy, wait) in [(true, 500), (false, 1_000)] {
        let mut story = Story::managed(Policy::Always, health(1));
        story.start();
        story.end(Exit::Code(1));
        story.next();
        story.event(Event::ExecOk);
        if healthy {
            story.event(Event::Verdict(2, Ok(())));
        }
        // Becoming unhealthy later does not undo that.
        story.after(40_000 * MS).event(Event::Verdict(2, sick()));
        story.end(Exit::Signal(15));
        assert_eq!(story.next().as_millis(), wait);
    }
}

#[test]
fn a_jump_of_the_clock_triggers_each_deadline_once() {
    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.end(Exit::Code(1));
    let out = story.after(Duration::from_secs(7 * 24 * 3600)).event(Event::Tick);
    assert_eq!(out, [Action::Spawn]);
    assert_eq!(story.event(Event::Tick), []);
}

#[test]
fn the_deadline_of_a_shutdown_takes_precedence_over_a_longer_grace() {
    let deadline = 3_000 * MS;
    let mut story = Story::plain();
    story.start();
    assert_eq!(story.event(Event::ShutDown(deadline)), [Action::Terminate]);
    assert_eq!(story.unit.deadline(), Some(deadline));
    story.event(Event::ShutDown(Duration::ZERO));
    assert_eq!(story.unit.deadline(), Some(Duration::ZERO), "no more grace");

    let mut story = Story::managed(Policy::Always, |_| {});
    story.start();
    story.event(Event::Stop);
    story.event(Event::ShutDown(deadline));
    assert_eq!(story.unit.deadline(), Some(deadline));
    story.end(Exit::Signal(15));
    assert!(story.unit.is_down());
}
