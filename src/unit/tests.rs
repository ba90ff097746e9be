//! Scenarios with a simulated clock. `pause` is about pauses; `table`
//! lists every event in every state; `walk` searches every reachable state.

mod pause;
mod table;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use super::backoff::{SHORT_RUN, SHORT_RUNS};
use super::invariants::{PID, failed_probe};
use super::state::{Next, Phase, State};
use super::times::{EXEC_TIMEOUT, REAP_TIMEOUT};
use super::{Action, Event, Now, Unit};
use crate::error::Error;
use crate::model::{
    Exit, HealthCheck, HealthKind, HealthStatus, Leftovers, ManagedSpec, ManagedStatus, Occurrence, Pid, Policy,
    RestartReason, RunEnd, Status,
};

const MS: Duration = Duration::from_millis(1);

/// A unit, and a simulated supervisor that performs every action at once.
struct Scenario {
    unit: Unit,
    now: Duration,
    actions: Vec<Action>,
    /// What was reported; not among the actions.
    reports: Vec<Occurrence>,
}

impl Scenario {
    fn plain() -> Scenario {
        Scenario { unit: Unit::new(None, None), now: Duration::ZERO, actions: Vec::new(), reports: Vec::new() }
    }

    fn timed(timeout: Duration) -> Scenario {
        Scenario { unit: Unit::new(None, Some(timeout)), ..Scenario::plain() }
    }

    fn managed(policy: Policy, change: impl FnOnce(&mut ManagedSpec)) -> Scenario {
        let mut spec = ManagedSpec::new(policy);
        change(&mut spec);
        Scenario { unit: Unit::new(Some(Arc::new(spec)), None), ..Scenario::plain() }
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
        out.retain(|action| match action {
            Action::Report(occurrence) => {
                self.reports.push(occurrence.clone());
                false
            }
            _ => true,
        });
        self.actions.extend(out.clone());
        out
    }

    fn after(&mut self, time: Duration) -> &mut Scenario {
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
        let at = self.unit.deadline().expect("the unit has a deadline");
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

#[test]
fn the_longest_possible_timeout_never_expires_and_does_not_overflow() {
    let mut scenario = Scenario::timed(Duration::MAX);
    scenario.after(MS).start();
    assert_eq!(scenario.after(Duration::from_secs(1 << 40)).event(Event::Tick), []);
}

#[test]
fn a_plain_process_starts_ends_and_is_down() {
    let mut scenario = Scenario::plain();
    assert_eq!(scenario.start(), [Action::Spawn, Action::Started]);
    assert_eq!(scenario.unit.status(), Status::Running);
    assert_eq!(scenario.event(Event::Exited(Exit::Code(3))), [Action::Drain]);
    assert_eq!(scenario.unit.status(), Status::Running, "not ended before its output is read");
    let end = RunEnd { exit: Exit::Code(3), timed_out: false, ended_at: 1_000_000 };
    assert_eq!(scenario.event(Event::Drained), [Action::Finish(end)]);
    assert_eq!((scenario.unit.status(), scenario.unit.is_down()), (Status::Exited, true));
    assert_eq!(scenario.event(Event::Restart), []);
    assert_eq!(scenario.event(Event::Stop), [Action::KillTree], "the rest of its tree is killed");
}

#[test]
fn an_exit_reported_before_the_exec_outcome_is_processed_after_it() {
    let mut scenario = Scenario::plain();
    scenario.event(Event::Start);
    assert_eq!(scenario.event(Event::Exited(Exit::Code(0))), []);
    assert_eq!(scenario.event(Event::ExecOk), [Action::Started, Action::Drain]);
}

#[test]
fn a_failed_start_is_forgotten_once_its_child_is_reaped() {
    for exec_first in [true, false] {
        let mut scenario = Scenario::plain();
        scenario.event(Event::Start);
        let failed = Event::ExecFailed(Error::CommandNotFound("x".into()));
        let exited = Event::Exited(Exit::Code(127));
        let (first, second) = if exec_first { (failed, exited) } else { (exited, failed) };
        assert_eq!(scenario.event(first), []);
        let error = Error::CommandNotFound("x".into());
        assert_eq!(scenario.event(second), [Action::StartFailed(1, error), Action::Forget]);
    }
}

#[test]
fn a_hanging_exec_counts_as_a_start_after_five_seconds() {
    let mut scenario = Scenario::plain();
    scenario.event(Event::Start);
    assert_eq!(scenario.next(), EXEC_TIMEOUT);
    assert_eq!(scenario.actions.last(), Some(&Action::Started));
    let error = Error::CommandNotFound("x".into());
    assert_eq!(scenario.event(Event::ExecFailed(error.clone())), [Action::ReportLateFailure(error)]);
    let out = scenario.end(Exit::Code(127));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(RunEnd { exit: Exit::Code(127), .. })]), "{out:?}");
}

#[test]
fn a_timeout_kills_the_tree_and_is_the_reason_of_the_end() {
    let mut scenario = Scenario { unit: Unit::new(None, Some(300 * MS)), ..Scenario::plain() };
    scenario.start();
    assert_eq!(scenario.next(), 300 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    let out = scenario.end(Exit::Signal(9));
    let [Action::Drain, Action::Finish(end)] = out[..] else { panic!("{out:?}") };
    assert_eq!(end.reason(), "timed_out");

    // A process that exits by itself at the moment of its timeout has not timed out.
    let mut scenario = Scenario { unit: Unit::new(None, Some(300 * MS)), ..Scenario::plain() };
    scenario.start();
    scenario.next();
    let out = scenario.end(Exit::Code(0));
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
        let mut scenario = Scenario::managed(policy, |_| {});
        scenario.start();
        scenario.end(exit);
        let expected = if restarts { ManagedStatus::BackingOff } else { ManagedStatus::Stopped };
        assert_eq!(scenario.unit.managed_status(), expected, "{policy:?} after {exit:?}");
        assert_eq!(
            scenario.actions.contains(&Action::KillTree),
            restarts,
            "a restart first kills the rest of the tree"
        );
    }
}

#[test]
fn the_backoff_doubles_up_to_its_limit_and_is_reset_by_a_stable_run() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    let mut waits = Vec::new();
    for _ in 0..8 {
        scenario.end(Exit::Code(1));
        assert_eq!(
            scenario.unit.next_restart_at(),
            scenario.unit.deadline().map(|at| 1_000_000 + at.as_millis() as u64)
        );
        waits.push(scenario.next().as_millis());
        scenario.event(Event::ExecOk);
    }
    assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    assert_eq!(scenario.unit.restart_count(), 8);
    assert_eq!(scenario.unit.next_restart_at(), None);
    scenario.after(29_999 * MS).end(Exit::Code(1));
    assert_eq!(scenario.next().as_millis(), 30_000, "a stable run lasts at least the longest backoff");
    scenario.event(Event::ExecOk);
    scenario.after(30_000 * MS).end(Exit::Code(1));
    assert_eq!(scenario.next().as_millis(), 500);
}

#[test]
fn after_five_short_runs_in_a_row_a_restart_waits_at_least_100_ms() {
    let mut scenario = Scenario::managed(Policy::Always, |spec| spec.restart.initial_backoff_ms = 0);
    scenario.start();
    for _ in 0..4 {
        scenario.end(Exit::Code(1));
        assert_eq!(scenario.unit.managed_status(), ManagedStatus::Starting, "restarted at once");
        scenario.event(Event::ExecOk);
    }
    scenario.end(Exit::Code(1));
    assert_eq!(scenario.next(), 100 * MS, "five short runs in a row");
    scenario.event(Event::ExecOk);
    scenario.after(SHORT_RUN).end(Exit::Code(1));
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::Starting, "the last run was not a short one");
}

#[test]
fn a_unit_stays_stopped_after_max_restarts() {
    let mut scenario = Scenario::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(2));
    scenario.start();
    for _ in 0..2 {
        scenario.end(Exit::Code(1));
        scenario.next();
        scenario.event(Event::ExecOk);
    }
    scenario.end(Exit::Code(1));
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::Stopped);
    assert!(scenario.unit.last_error().is_some_and(|error| error.contains("2 restarts")));
    assert_eq!(scenario.unit.deadline(), None);
}

#[test]
fn a_stopped_session_gets_sighup_then_loses_its_terminal_then_is_killed() {
    let mut scenario = Scenario { unit: Unit::with_terminal(), ..Scenario::plain() };
    scenario.start();
    assert_eq!(scenario.event(Event::Stop), [Action::HangUp]);
    assert_eq!(scenario.event(Event::Stop), [], "the deadline does not change");
    assert_eq!(scenario.next(), 1_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::Disconnect));
    assert_eq!(scenario.next(), 4_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    let out = scenario.end(Exit::Signal(9));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
}

#[test]
fn a_stop_terminates_first_and_kills_after_the_grace() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    assert_eq!(scenario.event(Event::Stop), [Action::Terminate]);
    assert!(scenario.unit.is_released());
    assert_eq!(scenario.event(Event::Stop), [], "the deadline does not change");
    assert_eq!(scenario.next(), 10_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    let out = scenario.end(Exit::Signal(9));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::Stopped);
}

#[test]
fn processes_that_outlive_a_stopped_leader_keep_the_rest_of_the_grace() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Stop);
    scenario.after(1_000 * MS).event(Event::Exited(Exit::Signal(15)));
    let out = scenario.event(Event::Drained);
    assert!(matches!(out[..], [Action::Finish(_)]), "followers do not wait for the rest of the tree: {out:?}");
    assert_eq!(scenario.event(Event::Stop), [], "a second stop does not shorten the grace");
    assert_eq!(scenario.next(), 9_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    assert_eq!(scenario.unit.deadline(), None);
}

#[test]
fn a_stop_is_complete_when_all_processes_of_the_tree_have_ended() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Stop);
    scenario.after(1_000 * MS).end(Exit::Signal(15));
    assert_eq!((scenario.unit.deadline(), scenario.unit.awaits_tree()), (None, false));
}

#[test]
fn restart_waits_for_the_grace_of_the_whole_tree() {
    for (why, first) in [("restart", Event::Restart), ("failed check", Event::Verdict(1, failed_probe()))] {
        for ends_by_itself in [true, false] {
            let mut scenario = Scenario::managed(Policy::Always, health(1));
            scenario.start();
            assert_eq!(scenario.event(first.clone())[0], Action::Terminate, "{why}");
            let out = scenario.after(10 * MS).event(Event::Exited(Exit::Signal(15)));
            assert_eq!(out, [Action::Unwatch, Action::Drain], "{why}: the rest of the tree is not killed yet");
            assert_eq!(scenario.event(Event::Drained), [], "{why}");
            assert_eq!(scenario.unit.managed_status(), ManagedStatus::Starting);
            if ends_by_itself {
                scenario.after(500 * MS).event(Event::TreeGone);
            } else {
                assert_eq!(scenario.next(), 9_990 * MS, "{why}");
                assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
                // A process that does not end even then hangs in the kernel, and is not waited for.
                assert_eq!(scenario.next(), 1_000 * MS, "{why}");
            }
            match first {
                Event::Restart => assert_eq!(scenario.actions.last(), Some(&Action::Spawn)),
                _ => assert_eq!(scenario.next(), 500 * MS, "the backoff follows"),
            }
            assert_eq!(scenario.unit.run_no(), 2, "{why}");
        }
    }
}

#[test]
fn a_stop_cancels_a_restart_that_waits_for_the_tree() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Restart);
    scenario.event(Event::Exited(Exit::Signal(15)));
    scenario.event(Event::Drained);
    let out = scenario.after(1_000 * MS).event(Event::Stop);
    assert!(matches!(out[..], [Action::Finish(_)]), "{out:?}");
    assert_eq!(scenario.next(), 9_000 * MS, "the grace does not change");
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    // A restart of a stopped unit waits for the remaining processes of its tree.
    scenario.event(Event::Restart);
    scenario.event(Event::TreeGone);
    scenario.event(Event::ExecOk);
    scenario.event(Event::Stop);
    scenario.event(Event::Exited(Exit::Signal(15)));
    scenario.event(Event::Drained);
    assert_eq!(scenario.event(Event::Restart), [Action::Reopen]);
    assert_eq!(scenario.event(Event::TreeGone), [Action::Spawn]);
}

#[test]
fn leftovers_of_a_leader_that_exits_by_itself_are_killed_only_if_the_spec_says_so() {
    for (leftovers, kills) in [(Leftovers::Keep, false), (Leftovers::Kill, true)] {
        let mut scenario = Scenario { unit: Unit::new(None, None).with_leftovers(leftovers), ..Scenario::plain() };
        scenario.start();
        let out = scenario.end(Exit::Code(0));
        assert_eq!(out[0] == Action::KillTree, kills, "{leftovers:?}: {out:?}");
        assert_eq!(scenario.unit.deadline(), None);
    }
    // A stopped unit has its grace even so.
    let mut scenario = Scenario::managed(Policy::Never, |_| {});
    scenario.unit = scenario.unit.with_leftovers(Leftovers::Kill);
    scenario.start();
    scenario.event(Event::Stop);
    scenario.end(Exit::Code(0));
    assert!(!scenario.actions.contains(&Action::KillTree));
}

#[test]
fn a_leader_that_cannot_be_reaped_does_not_delay_the_end_of_its_run() {
    let mut scenario = Scenario { unit: Unit::new(None, Some(300 * MS)), ..Scenario::plain() };
    scenario.start();
    scenario.next();
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    assert_eq!(scenario.next(), REAP_TIMEOUT);
    assert_eq!(scenario.actions[scenario.actions.len() - 2..], [Action::Abandon(PID + 1), Action::Drain]);
    assert_eq!(scenario.unit.leader(), None, "it is no longer signalled");
    let out = scenario.event(Event::Drained);
    let [Action::Finish(end)] = out[..] else { panic!("{out:?}") };
    assert_eq!((end.reason(), end.exit), ("timed_out", Exit::Signal(9)));

    // A leader with a hanging exec counts as started first, so that clients that wait for the start get a reply.
    let mut scenario = Scenario::plain();
    scenario.event(Event::Start);
    scenario.event(Event::Stop);
    scenario.next();
    let expected = [Action::Abandon(PID + 1), Action::Started, Action::Drain];
    assert_eq!(scenario.actions[scenario.actions.len() - 3..], expected);

    // A restart does not wait for such a leader.
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Restart);
    scenario.next();
    scenario.next();
    scenario.event(Event::Drained);
    assert_eq!(scenario.event(Event::TreeGone), [Action::Spawn]);
}

#[test]
fn a_hangup_disconnects_the_terminal_and_kills_nothing() {
    let mut scenario = Scenario { unit: Unit::with_terminal(), ..Scenario::plain() };
    scenario.start();
    assert_eq!(scenario.event(Event::HangUp), [Action::Disconnect]);
    assert_eq!(scenario.unit.deadline(), None, "a process that ignores it keeps running");
    assert_eq!(scenario.event(Event::Stop), [Action::HangUp], "the session can still be stopped");
    scenario.next();
    assert_eq!(scenario.next(), 4_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    let mut scenario = Scenario { unit: Unit::with_terminal(), ..Scenario::plain() };
    scenario.start();
    scenario.event(Event::HangUp);
    let out = scenario.end(Exit::Signal(1));
    assert!(matches!(out[..], [Action::Drain, Action::Finish(_)]), "{out:?}");
    assert_eq!(Scenario::plain().event(Event::HangUp), []);
}

#[test]
fn a_shutdown_terminates_the_leftovers_of_a_leader_that_has_exited() {
    let mut scenario = Scenario::plain();
    scenario.start();
    scenario.end(Exit::Code(0));
    assert_eq!(scenario.event(Event::ShutDown(5_000 * MS)), [Action::Terminate]);
    assert_eq!(scenario.event(Event::ShutDown(3_000 * MS)), [], "SIGTERM is sent once");
    assert_eq!(scenario.next(), 3_000 * MS);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
}

#[test]
fn a_restart_ends_the_run_and_starts_the_next_without_backoff() {
    let mut scenario = Scenario::managed(Policy::Never, |_| {});
    scenario.start();
    assert_eq!(scenario.event(Event::Restart), [Action::Terminate]);
    let out = scenario.end(Exit::Signal(15));
    assert_eq!(out, [Action::Drain, Action::Spawn]);
    assert_eq!(scenario.event(Event::ExecOk), [Action::Started]);
    assert_eq!(scenario.unit.restart_count(), 1);
    // A unit that is down can be restarted as well.
    scenario.end(Exit::Code(0));
    assert_eq!(scenario.event(Event::Restart), [Action::Reopen, Action::KillTree]);
    assert_eq!(scenario.event(Event::TreeGone), [Action::Spawn]);
    assert!(!scenario.unit.is_released());
}

#[test]
fn a_restart_resets_the_backoff() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.end(Exit::Code(1));
    scenario.next();
    scenario.event(Event::ExecOk);
    scenario.end(Exit::Code(1));
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::BackingOff);
    assert_eq!(scenario.event(Event::Restart), [Action::KillTree]);
    assert_eq!(scenario.event(Event::TreeGone), [Action::Spawn]);
    scenario.event(Event::ExecOk);
    scenario.end(Exit::Code(1));
    assert_eq!(scenario.next().as_millis(), 500);
}

#[test]
fn a_stop_cancels_a_backoff() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.end(Exit::Code(1));
    let out = scenario.event(Event::Stop);
    assert!(matches!(out[..], [Action::KillTree, Action::Finish(_)]), "{out:?}");
    assert_eq!((scenario.unit.deadline(), scenario.unit.next_restart_at()), (None, None));
    assert_eq!(scenario.after(60_000 * MS).event(Event::Tick), []);
}

#[test]
fn a_restart_that_cannot_start_backs_off_with_the_reason() {
    let mut scenario = Scenario::managed(Policy::OnFailure, |_| {});
    scenario.start();
    scenario.end(Exit::Code(1));
    scenario.next();
    scenario.event(Event::ExecFailed(Error::CommandNotFound("x".into())));
    let out = scenario.event(Event::Exited(Exit::Code(127)));
    assert_eq!(out, [Action::StartFailed(2, Error::CommandNotFound("x".into()))]);
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::BackingOff);
    assert!(scenario.unit.last_error().is_some_and(|error| error.contains("x")));
    assert_eq!(scenario.next().as_millis(), 1_000);
}

#[test]
fn a_restart_that_is_requested_while_a_start_fails_makes_another_attempt() {
    let mut scenario = Scenario::managed(Policy::Never, |_| {});
    scenario.start();
    scenario.end(Exit::Code(0));
    scenario.event(Event::Restart);
    scenario.event(Event::TreeGone);
    scenario.event(Event::Restart);
    let error = Error::CommandNotFound("x".into());
    scenario.event(Event::ExecFailed(error.clone()));
    assert_eq!(scenario.event(Event::Exited(Exit::Code(127))), [Action::StartFailed(2, error), Action::Spawn]);
    assert_eq!(scenario.event(Event::ExecOk), [Action::Started]);
    assert_eq!((scenario.unit.restart_count(), scenario.unit.last_error()), (2, None));
}

#[test]
fn every_attempt_counts_as_a_restart() {
    let mut scenario = Scenario::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(3));
    scenario.start();
    scenario.end(Exit::Code(1));
    for _ in 0..3 {
        scenario.after(60_000 * MS);
        scenario.unit.step(scenario.clock(), Event::Tick, &mut Vec::new());
        scenario.unit.step(scenario.clock(), Event::UserResolved, &mut Vec::new());
        scenario.event(Event::SpawnFailed(Error::UserNotFound("x".into())));
    }
    assert_eq!((scenario.unit.restart_count(), scenario.unit.managed_status()), (3, ManagedStatus::Stopped));
    let error = scenario.unit.last_error().unwrap_or_default().to_owned();
    assert!(error.starts_with("gave up after 3 restarts") && error.contains("x"), "{error}");
    // A requested restart clears the last error.
    scenario.event(Event::Restart);
    scenario.event(Event::TreeGone);
    assert_eq!(scenario.unit.last_error(), None);
}

#[test]
fn a_requested_restart_clears_the_counts_even_while_the_user_is_looked_up() {
    let mut scenario = Scenario::managed(Policy::Always, |spec| spec.restart.max_restarts = Some(3));
    scenario.start();
    scenario.end(Exit::Code(1));
    for _ in 0..3 {
        scenario.after(60_000 * MS);
        scenario.unit.step(scenario.clock(), Event::Tick, &mut Vec::new());
        assert!(scenario.unit.awaits_user());
        if scenario.unit.last_error().is_some() && scenario.unit.restart_count() == 2 {
            scenario.event(Event::Restart);
            assert_eq!(scenario.unit.last_error(), None);
        }
        scenario.unit.step(scenario.clock(), Event::UserResolved, &mut Vec::new());
        scenario.event(Event::SpawnFailed(Error::UserNotFound("x".into())));
    }
    // Without the request, the third attempt would have been the last.
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::BackingOff);
}

#[test]
fn a_stable_run_clears_the_last_error() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.end(Exit::Code(1));
    scenario.next();
    scenario.event(Event::ExecFailed(Error::CommandNotFound("x".into())));
    scenario.event(Event::Exited(Exit::Code(127)));
    scenario.next();
    scenario.event(Event::ExecOk);
    assert!(scenario.unit.last_error().is_some());
    scenario.after(30_000 * MS).end(Exit::Code(1));
    assert_eq!(scenario.unit.last_error(), None);
}

#[test]
fn the_end_of_a_run_ends_a_healthy_status_but_not_an_unhealthy_one() {
    let mut scenario = Scenario::managed(Policy::Always, health(2));
    scenario.start();
    scenario.event(Event::Verdict(1, Ok(())));
    scenario.event(Event::Verdict(1, failed_probe()));
    scenario.end(Exit::Code(0));
    assert_eq!(scenario.unit.health(), (HealthStatus::Starting, 0));
    scenario.next();
    scenario.event(Event::ExecOk);
    for _ in 0..2 {
        scenario.event(Event::Verdict(2, failed_probe()));
    }
    scenario.end(Exit::Signal(15));
    assert_eq!(scenario.unit.health(), (HealthStatus::Unhealthy, 2), "kept as the reason for the restart");
}

#[test]
fn an_unhealthy_process_is_restarted_unless_the_policy_is_never() {
    let mut scenario = Scenario::managed(Policy::OnFailure, health(3));
    assert_eq!(scenario.start(), [Action::Spawn, Action::Started, Action::Watch(Duration::ZERO)]);
    assert_eq!(scenario.unit.health(), (HealthStatus::Starting, 0));
    scenario.event(Event::Verdict(1, Ok(())));
    assert_eq!(scenario.unit.health(), (HealthStatus::Healthy, 0));
    scenario.event(Event::Verdict(1, failed_probe()));
    scenario.event(Event::Verdict(1, failed_probe()));
    assert_eq!(scenario.unit.health(), (HealthStatus::Healthy, 2));
    assert_eq!(scenario.event(Event::Verdict(1, failed_probe())), [Action::Terminate, Action::Unwatch]);
    assert_eq!(scenario.unit.health(), (HealthStatus::Unhealthy, 3));
    assert_eq!(scenario.event(Event::Verdict(1, Ok(()))), [], "a verdict after the restart began is ignored");
    scenario.end(Exit::Code(0));
    assert_eq!(
        scenario.unit.managed_status(),
        ManagedStatus::BackingOff,
        "an unhealthy run is a failure whatever its exit code"
    );
    scenario.next();
    scenario.event(Event::ExecOk);
    assert_eq!(scenario.unit.health(), (HealthStatus::Starting, 0));
    assert_eq!(scenario.event(Event::Verdict(1, failed_probe())), [], "a verdict on an earlier run is ignored");
    assert_eq!(scenario.unit.health(), (HealthStatus::Starting, 0));

    let mut scenario = Scenario::managed(Policy::Never, health(1));
    scenario.start();
    assert_eq!(scenario.event(Event::Verdict(1, failed_probe())), []);
    assert_eq!(scenario.unit.health(), (HealthStatus::Unhealthy, 1));
    assert!(scenario.unit.last_error().is_some());
    scenario.event(Event::Verdict(1, Ok(())));
    assert_eq!(scenario.unit.health(), (HealthStatus::Healthy, 0));
}

#[test]
fn a_run_with_a_health_check_is_stable_after_being_healthy_for_long_enough() {
    for (healthy, wait) in [(true, 500), (false, 1_000)] {
        let mut scenario = Scenario::managed(Policy::Always, health(1));
        scenario.start();
        scenario.end(Exit::Code(1));
        scenario.next();
        scenario.event(Event::ExecOk);
        if healthy {
            scenario.event(Event::Verdict(2, Ok(())));
        }
        // A run that was stable stays stable when it becomes unhealthy later.
        scenario.after(40_000 * MS).event(Event::Verdict(2, failed_probe()));
        scenario.end(Exit::Signal(15));
        assert_eq!(scenario.next().as_millis(), wait);
    }
}

#[test]
fn a_jump_of_the_clock_triggers_each_deadline_once() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.end(Exit::Code(1));
    let out = scenario.after(Duration::from_secs(7 * 24 * 3600)).event(Event::Tick);
    assert_eq!(out, [Action::Spawn]);
    assert_eq!(scenario.event(Event::Tick), []);
}

#[test]
fn the_deadline_of_a_shutdown_takes_precedence_over_a_longer_grace() {
    let deadline = 3_000 * MS;
    let mut scenario = Scenario::plain();
    scenario.start();
    assert_eq!(scenario.event(Event::ShutDown(deadline)), [Action::Terminate]);
    assert_eq!(scenario.unit.deadline(), Some(deadline));
    scenario.event(Event::ShutDown(Duration::ZERO));
    assert_eq!(scenario.unit.deadline(), Some(Duration::ZERO), "the grace is over");

    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Stop);
    scenario.event(Event::ShutDown(deadline));
    assert_eq!(scenario.unit.deadline(), Some(deadline));
    scenario.end(Exit::Signal(15));
    assert!(scenario.unit.is_down());
}

#[test]
fn everything_that_happens_to_a_managed_unit_is_reported_in_order() {
    let mut scenario = Scenario::managed(Policy::OnFailure, |spec| {
        health(1)(spec);
        spec.restart.max_restarts = Some(1);
    });
    scenario.start();
    scenario.event(Event::Verdict(1, Ok(())));
    scenario.event(Event::Verdict(1, Ok(())));
    scenario.event(Event::Verdict(1, failed_probe()));
    scenario.after(2_000 * MS).event(Event::Exited(Exit::Code(0)));
    for event in [Event::Drained, Event::TreeGone] {
        scenario.event(event);
    }
    scenario.after(500 * MS).event(Event::Tick);
    scenario.event(Event::ExecFailed(Error::CommandNotFound("x".into())));
    scenario.event(Event::Exited(Exit::Code(127)));
    let why = failed_probe().unwrap_err();
    let started = Occurrence::Started { restart_count: 0 };
    let [first, healthy, unhealthy, Occurrence::Ended { end, lasted }, restarting, stopped] = &scenario.reports[..]
    else {
        panic!("{:?}", scenario.reports);
    };
    assert_eq!((first, end.reason(), *lasted), (&started, "exited", 2_000 * MS));
    assert_eq!(healthy, &Occurrence::Health { status: HealthStatus::Healthy, error: None });
    assert_eq!(unhealthy, &Occurrence::Health { status: HealthStatus::Unhealthy, error: Some(why.clone()) });
    let reason = RestartReason::Unhealthy(Some(format!("unhealthy: {why}")));
    assert_eq!(restarting, &Occurrence::Restarting { delay: 500 * MS, reason });
    assert!(
        matches!(stopped, Occurrence::Stopped { last_error: Some(error), gave_up: true } if error.contains("gave up")),
        "{stopped:?}"
    );
}

#[test]
fn a_requested_restart_is_reported_with_its_reason() {
    let mut scenario = Scenario::managed(Policy::Never, |_| {});
    scenario.start();
    for event in [Event::Restart, Event::Exited(Exit::Signal(15)), Event::Drained, Event::TreeGone, Event::ExecOk] {
        scenario.event(event);
    }
    let restarting = Occurrence::Restarting { delay: Duration::ZERO, reason: RestartReason::Requested };
    assert!(
        matches!(&scenario.reports[..], [_, Occurrence::Ended { .. }, middle, Occurrence::Started { restart_count: 1 }]
        if *middle == restarting),
        "{:?}",
        scenario.reports
    );
}
