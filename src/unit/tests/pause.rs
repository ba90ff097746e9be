//! Scenarios with pauses.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn paused() -> Action {
    Action::Report(Occurrence::Paused)
}

/// The actions of an event, with the reports.
fn all_actions(scenario: &mut Scenario, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    scenario.unit.step(scenario.clock(), event, &mut actions);
    actions
}

fn verdict(scenario: &mut Scenario, outcome: Result<(), String>) -> Vec<Action> {
    let watch = scenario.unit.watch_no();
    scenario.event(Event::Verdict(watch, outcome))
}

#[test]
fn a_pause_freezes_the_tree_once_and_a_resume_thaws_it_once() {
    let mut scenario = Scenario::plain();
    scenario.start();
    assert!(scenario.unit.can_pause() && !scenario.unit.is_paused());
    assert_eq!(all_actions(&mut scenario, Event::Resume), [], "it is not paused");
    assert_eq!(all_actions(&mut scenario, Event::Pause), [Action::Freeze, paused()]);
    assert!(scenario.unit.is_paused());
    assert_eq!(all_actions(&mut scenario, Event::Pause), [], "it is paused already");
    let resumed = Action::Report(Occurrence::Resumed);
    assert_eq!(all_actions(&mut scenario, Event::Resume), [Action::Thaw, resumed]);
    assert!(!scenario.unit.is_paused());
    assert_eq!(all_actions(&mut scenario, Event::Resume), []);
}

#[test]
fn a_pause_does_not_stop_the_timeout() {
    let mut scenario = Scenario::timed(10 * SECOND);
    scenario.start();
    scenario.after(SECOND).event(Event::Pause);
    assert_eq!(scenario.next(), 9 * SECOND);
    assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
    assert_eq!(scenario.event(Event::Exited(Exit::Signal(9))), [Action::Thaw, Action::Drain]);
    scenario.event(Event::Drained);
    assert_eq!(scenario.unit.last_exit().map(|end| (end.timed_out, end.reason())), Some((true, "timed_out")));
    assert!(!scenario.unit.is_paused());
}

#[test]
fn a_stop_resumes_first_and_leaves_the_whole_grace() {
    for event in [Event::Stop, Event::Restart] {
        let mut scenario = Scenario::managed(Policy::Always, |spec| spec.stop_grace = 50 * SECOND);
        scenario.start();
        scenario.after(SECOND).event(Event::Pause);
        scenario.after(3_600 * SECOND);
        assert_eq!(scenario.event(event), [Action::Thaw, Action::Terminate]);
        assert_eq!(scenario.reports.last(), Some(&Occurrence::Resumed));
        assert_eq!(scenario.next(), 50 * SECOND);
        assert_eq!(scenario.actions.last(), Some(&Action::KillTree));
        assert!(!scenario.unit.can_pause(), "it is being ended");
        assert_eq!(scenario.event(Event::Pause), []);
    }
}

#[test]
fn a_shutdown_resumes_a_plain_process_before_it_terminates_it() {
    let mut scenario = Scenario::plain();
    scenario.start();
    scenario.event(Event::Pause);
    let kill_at = scenario.now + 5 * SECOND;
    assert_eq!(scenario.event(Event::ShutDown(kill_at)), [Action::Thaw, Action::Terminate]);
    assert_eq!(scenario.next(), 5 * SECOND);
}

#[test]
fn a_delete_kills_a_plain_process_without_letting_it_run() {
    let mut scenario = Scenario::plain();
    scenario.start();
    scenario.event(Event::Pause);
    assert_eq!(scenario.event(Event::Stop), [Action::KillTree]);
    assert_eq!(scenario.event(Event::Exited(Exit::Signal(9))), [Action::Thaw, Action::Drain]);
    assert!(!scenario.unit.is_paused());
}

#[test]
fn leftovers_of_a_leader_that_is_killed_while_paused_run_on_or_are_killed_before_they_could() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.event(Event::Pause);
    assert_eq!(scenario.event(Event::Exited(Exit::Signal(9))), [Action::KillTree, Action::Thaw, Action::Drain]);
}

/// The first restart waits for 500 ms; one after an unstable run waits twice as long.
fn wait_after_runs(lengths: [Duration; 2], paused: Duration) -> Duration {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    for length in lengths {
        scenario.after(length / 2).event(Event::Pause);
        scenario.after(paused).event(Event::Resume);
        scenario.after(length / 2).end(Exit::Code(1));
        let wait = scenario.next();
        if length == lengths[1] && scenario.unit.run_no() == 3 {
            return wait;
        }
        scenario.event(Event::ExecOk);
    }
    panic!("no second restart");
}

#[test]
fn the_time_of_a_pause_does_not_make_a_run_stable() {
    for (length, wait) in [(29 * SECOND, 1_000 * MS), (31 * SECOND, 500 * MS)] {
        for paused in [Duration::ZERO, SECOND, 86_400 * SECOND] {
            assert_eq!(wait_after_runs([SECOND, length], paused), wait, "{length:?} {paused:?}");
        }
    }
}

#[test]
fn a_run_that_ends_while_it_is_paused_counts_up_to_the_pause() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    scenario.start();
    scenario.after(500 * MS).event(Event::Pause);
    scenario.after(3_600 * SECOND).end(Exit::Signal(9));
    assert_eq!(scenario.unit.short_runs, 1);
    let lasted = scenario.reports.iter().find_map(|report| match report {
        Occurrence::Ended { lasted, .. } => Some(*lasted),
        _ => None,
    });
    assert_eq!(lasted, Some(3_600 * SECOND + 500 * MS), "what is reported is the time since the fork");
}

#[test]
fn health_checks_stand_still_and_keep_their_count() {
    let mut scenario = Scenario::managed(Policy::Always, health(3));
    scenario.start();
    for _ in 0..2 {
        assert_eq!(verdict(&mut scenario, failed_probe()), []);
    }
    assert_eq!(scenario.after(SECOND).event(Event::Pause), [Action::Unwatch, Action::Freeze]);
    assert!(scenario.unit.probed().is_none());
    let before = scenario.unit.watch_no();
    // Under way at the pause: ignored during the pause, and after it.
    for _ in 0..5 {
        assert_eq!(verdict(&mut scenario, failed_probe()), []);
    }
    assert_eq!(scenario.after(60 * SECOND).event(Event::Resume), [Action::Thaw, Action::Watch(SECOND)]);
    assert_eq!(scenario.event(Event::Verdict(before, failed_probe())), []);
    assert_eq!(scenario.unit.health(), (HealthStatus::Starting, 2));
    assert_eq!(verdict(&mut scenario, failed_probe()), [Action::Terminate, Action::Unwatch]);
}

#[test]
fn a_pause_prolongs_the_initial_delay_of_a_health_check() {
    let mut scenario = Scenario::managed(Policy::Always, |spec| {
        health(1)(spec);
        if let Some(check) = &mut spec.health {
            check.initial_delay_ms = 30_000;
        }
    });
    assert_eq!(scenario.start().last(), Some(&Action::Watch(30 * SECOND)));
    for (up, left) in [(10, 20), (10, 10), (9, 1), (10, 1)] {
        scenario.after(up * SECOND).event(Event::Pause);
        let resumed = scenario.after(3_600 * SECOND).event(Event::Resume);
        assert_eq!(resumed, [Action::Thaw, Action::Watch(left * SECOND)]);
    }
}

#[test]
fn the_time_of_a_pause_does_not_count_as_healthy() {
    let healthy_for = |up: Duration, paused: Duration| {
        let mut scenario = Scenario::managed(Policy::Always, health(1));
        scenario.start();
        verdict(&mut scenario, Ok(()));
        scenario.after(up).event(Event::Pause);
        scenario.after(paused).event(Event::Resume);
        verdict(&mut scenario, failed_probe());
        scenario.unit.health.stable
    };
    for paused in [Duration::ZERO, 3_600 * SECOND] {
        assert!(!healthy_for(29 * SECOND, paused) && healthy_for(30 * SECOND, paused), "{paused:?}");
    }
}

#[test]
fn a_process_that_is_paused_before_its_exec_starts_after_five_seconds_and_is_probed_once_it_is_resumed() {
    let mut scenario = Scenario::managed(Policy::Always, health(1));
    scenario.event(Event::Start);
    assert_eq!(scenario.event(Event::Pause), [Action::Freeze]);
    assert_eq!(scenario.next(), EXEC_TIMEOUT);
    assert_eq!(scenario.actions.last(), Some(&Action::Started), "and it is not probed");
    assert_eq!(scenario.event(Event::ExecOk), []);
    assert_eq!(scenario.event(Event::Resume), [Action::Thaw, Action::Watch(SECOND)]);
}

#[test]
fn a_failed_exec_ends_the_pause_so_that_the_child_can_exit() {
    let mut scenario = Scenario::plain();
    scenario.event(Event::Start);
    scenario.event(Event::Pause);
    let failed = Event::ExecFailed(Error::CommandNotFound("x".into()));
    assert_eq!(scenario.event(failed), [Action::Thaw]);
    assert!(!scenario.unit.can_pause());
}

#[test]
fn only_a_run_that_nobody_ends_can_be_paused() {
    let mut scenario = Scenario::managed(Policy::Always, |_| {});
    let refused = |scenario: &mut Scenario| {
        assert!(!scenario.unit.can_pause());
        let before = scenario.unit.clone();
        assert_eq!((scenario.event(Event::Pause), &scenario.unit), (vec![], &before));
        assert_eq!((scenario.event(Event::Resume), &scenario.unit), (vec![], &before));
    };
    refused(&mut scenario);
    scenario.start();
    scenario.event(Event::Exited(Exit::Code(0)));
    refused(&mut scenario);
    scenario.event(Event::Drained);
    refused(&mut scenario);
    scenario.event(Event::TreeGone);
    assert_eq!(scenario.unit.managed_status(), ManagedStatus::BackingOff);
    refused(&mut scenario);
    scenario.next();
    scenario.event(Event::ExecOk);
    assert!(scenario.unit.can_pause());
    scenario.event(Event::Restart);
    refused(&mut scenario);
}

#[test]
fn a_session_that_nobody_is_attached_to_is_resumed_before_it_is_disconnected() {
    let mut scenario = Scenario { unit: Unit::with_terminal(), ..Scenario::plain() };
    scenario.start();
    scenario.event(Event::Pause);
    assert_eq!(scenario.event(Event::HangUp), [Action::Thaw, Action::Disconnect]);
}
