//! A table of what each event does in each state. The test also checks that every other event does nothing.

use std::fmt::Write;

use super::*;

/// State, event, actions and next state: first of a managed unit with a health check, the policy `on_failure` and the
/// default backoff, then of a plain one with a timeout.
const TABLE: &str = "
new                 | start        | resolve                                       | awaiting user
new                 | stop         | kill                                          | down
new                 | restart      | reopen kill                                   | tree, restart
awaiting user       | resolved     | spawn                                         | forking
awaiting user       | stop         | forget                                        | down
awaiting user       | shut down    | start-failed forget                           | down
forking             | spawned      |                                               | execing
forking             | spawn failed | start-failed forget                           | down
forking             | stop         |                                               | forking
execing             | exec ok      | started +started watch                        | running
execing             | exec failed  |                                               | broken
execing             | exited 0     |                                               | reaped
execing             | exited 1     |                                               | reaped
execing             | stop         | term unwatch                                  | execing, stop
execing             | restart      | term unwatch                                  | execing, restart
execing             | pause        | freeze +paused                                | execing, paused
execing             | shut down    | term unwatch                                  | execing, stop
execing             | tick, due    | started +started watch                        | slow
slow                | exec ok      |                                               | running
slow                | exec failed  | late-failure                                  | running
slow                | exited 0     |                                               | slow, reaped
slow                | exited 1     |                                               | slow, reaped
slow                | stop         | term unwatch                                  | slow, stop
slow                | restart      | term unwatch                                  | slow, restart
slow                | pause        | unwatch freeze +paused                        | slow, paused
slow                | shut down    | term unwatch                                  | slow, stop
slow                | probe ok     | +health                                       | slow
slow                | probe failed | +health term unwatch                          | slow, failed
broken              | exited 0     | start-failed forget                           | down
broken              | exited 1     | start-failed forget                           | down
broken              | stop         |                                               | broken, stop
broken              | restart      |                                               | broken, restart
broken              | shut down    |                                               | broken, stop
reaped              | exec ok      | started +started unwatch kill drain           | draining
reaped              | exec failed  | start-failed forget                           | down
reaped              | stop         | kill                                          | reaped, stop
reaped              | restart      | kill                                          | reaped, restart
reaped              | shut down    | term                                          | reaped, stop
slow, reaped        | exec ok      | unwatch kill drain                            | draining
slow, reaped        | exec failed  | late-failure unwatch kill drain               | draining
slow, reaped        | stop         | kill                                          | slow, reaped, stop
slow, reaped        | restart      | kill                                          | slow, reaped, restart
slow, reaped        | shut down    | term                                          | slow, reaped, stop
running             | exited 0     | unwatch drain                                 | draining
running             | exited 1     | unwatch kill drain                            | draining
running             | stop         | term unwatch                                  | running, stop
running             | restart      | term unwatch                                  | running, restart
running             | pause        | unwatch freeze +paused                        | running, paused
running             | shut down    | term unwatch                                  | running, stop
running             | probe ok     | +health                                       | running
running             | probe failed | +health term unwatch                          | running, failed
execing, paused     | exec ok      | started +started                              | running, paused
execing, paused     | exec failed  | thaw +resumed                                 | broken
execing, paused     | exited 0     | thaw                                          | reaped
execing, paused     | exited 1     | thaw                                          | reaped
execing, paused     | stop         | thaw +resumed term unwatch                    | execing, stop
execing, paused     | restart      | thaw +resumed term unwatch                    | execing, restart
execing, paused     | resume       | thaw +resumed                                 | execing
execing, paused     | shut down    | thaw +resumed term unwatch                    | execing, stop
execing, paused     | tick, due    | started +started                              | slow, paused
slow, paused        | exec ok      |                                               | running, paused
slow, paused        | exec failed  | late-failure thaw +resumed watch              | running
slow, paused        | exited 0     | thaw                                          | slow, reaped
slow, paused        | exited 1     | thaw                                          | slow, reaped
slow, paused        | stop         | thaw +resumed term unwatch                    | slow, stop
slow, paused        | restart      | thaw +resumed term unwatch                    | slow, restart
slow, paused        | resume       | thaw +resumed watch                           | slow
slow, paused        | shut down    | thaw +resumed term unwatch                    | slow, stop
running, paused     | exited 0     | unwatch thaw drain                            | draining
running, paused     | exited 1     | unwatch kill thaw drain                       | draining
running, paused     | stop         | thaw +resumed term unwatch                    | running, stop
running, paused     | restart      | thaw +resumed term unwatch                    | running, restart
running, paused     | resume       | thaw +resumed watch                           | running
running, paused     | shut down    | thaw +resumed term unwatch                    | running, stop
running, stop       | exited 0     | unwatch drain                                 | draining, stop
running, stop       | exited 1     | unwatch drain                                 | draining, stop
running, stop       | restart      |                                               | running, restart
running, stop       | shut down    |                                               | running, stop
running, stop       | tick, due    | kill                                          | running, stop
running, restart    | exited 0     | unwatch drain                                 | draining, restart
running, restart    | exited 1     | unwatch drain                                 | draining, restart
running, restart    | stop         |                                               | running, stop
running, restart    | shut down    |                                               | running, stop
running, restart    | tick, due    | kill                                          | running, restart
running, failed     | exited 0     | unwatch drain                                 | draining, failed
running, failed     | exited 1     | unwatch drain                                 | draining, failed
running, failed     | stop         |                                               | running, stop
running, failed     | restart      |                                               | running, restart
running, failed     | shut down    |                                               | running, stop
running, failed     | tick, due    | kill                                          | running, failed
draining            | drained      | +ended                                        | tree
draining            | stop         | kill                                          | draining, stop
draining            | restart      | kill                                          | draining, restart
draining            | shut down    | term                                          | draining, stop
draining, stop      | drained      | +ended +stopped finish                        | down
draining, stop      | restart      |                                               | draining, restart
draining, stop      | shut down    |                                               | draining, stop
draining, stop      | tick, due    | kill                                          | draining, stop
draining, restart   | drained      | +ended                                        | tree, restart
draining, restart   | stop         |                                               | draining, stop
draining, restart   | shut down    |                                               | draining, stop
draining, restart   | tick, due    | kill                                          | draining, restart
draining, failed    | drained      | +ended                                        | tree, failed
draining, failed    | stop         |                                               | draining, stop
draining, failed    | restart      |                                               | draining, restart
draining, failed    | shut down    |                                               | draining, stop
draining, failed    | tick, due    | kill                                          | draining, failed
tree                | tree gone    | +restarting                                   | backing off
tree                | stop         | +stopped finish                               | down
tree                | restart      |                                               | tree, restart
tree                | shut down    | +stopped finish                               | down
tree                | tick, due    | +restarting                                   | backing off
tree, restart       | tree gone    | +restarting resolve                           | awaiting user
tree, restart       | stop         | +stopped finish                               | down
tree, restart       | shut down    | +stopped finish                               | down
tree, restart       | tick, due    | kill                                          | tree, restart
tree, failed        | tree gone    | +restarting                                   | backing off
tree, failed        | stop         | +stopped finish                               | down
tree, failed        | restart      |                                               | tree, restart
tree, failed        | shut down    | +stopped finish                               | down
tree, failed        | tick, due    | kill                                          | tree, failed
backing off         | stop         | kill +stopped finish                          | down
backing off         | restart      | kill                                          | tree, restart
backing off         | shut down    | kill +stopped finish                          | down
backing off         | tick, due    | resolve                                       | awaiting user
down                | stop         | kill                                          | down
down                | restart      | reopen kill                                   | tree, restart
down                | shut down    | term                                          | down
down, leftovers     | tree gone    |                                               | down
down, leftovers     | restart      | reopen                                        | tree, restart
down, leftovers     | shut down    |                                               | down
down, leftovers     | tick, due    | kill                                          | down
2nd awaiting user   | resolved     | spawn                                         | forking
2nd awaiting user   | stop         | kill +stopped finish                          | down
2nd awaiting user   | restart      |                                               | awaiting user
2nd awaiting user   | shut down    | kill +stopped finish                          | down
2nd forking         | spawned      |                                               | execing
2nd forking         | spawn failed | start-failed +restarting                      | backing off
2nd forking         | stop         |                                               | forking
2nd execing         | exec ok      | started +started watch                        | running
2nd execing         | exec failed  |                                               | broken
2nd execing         | exited 0     |                                               | reaped
2nd execing         | exited 1     |                                               | reaped
2nd execing         | stop         | term unwatch                                  | execing, stop
2nd execing         | restart      | term unwatch                                  | execing, restart
2nd execing         | pause        | freeze +paused                                | execing, paused
2nd execing         | shut down    | term unwatch                                  | execing, stop
2nd execing         | tick, due    | started +started watch                        | slow
2nd broken          | exited 0     | start-failed +restarting                      | backing off
2nd broken          | exited 1     | start-failed +restarting                      | backing off
2nd broken          | stop         |                                               | broken, stop
2nd broken          | restart      |                                               | broken, restart
2nd broken          | shut down    |                                               | broken, stop
2nd broken, stop    | exited 0     | start-failed +stopped finish                  | down
2nd broken, stop    | exited 1     | start-failed +stopped finish                  | down
2nd broken, stop    | restart      |                                               | broken, restart
2nd broken, restart | exited 0     | start-failed +restarting resolve              | awaiting user
2nd broken, restart | exited 1     | start-failed +restarting resolve              | awaiting user
2nd broken, restart | stop         |                                               | broken, stop
2nd broken, restart | shut down    |                                               | broken, stop
2nd reaped          | exec ok      | started +started unwatch kill drain           | draining
2nd reaped          | exec failed  | start-failed +restarting                      | backing off
2nd reaped          | stop         | kill                                          | reaped, stop
2nd reaped          | restart      | kill                                          | reaped, restart
2nd reaped          | shut down    | term                                          | reaped, stop
plain new           | start        | resolve                                       | awaiting user
plain new           | stop         | kill                                          | down
plain execing       | exec ok      | started +started                              | running
plain execing       | exec failed  |                                               | broken
plain execing       | exited 0     |                                               | reaped
plain execing       | exited 1     |                                               | reaped
plain execing       | stop         | kill                                          | execing, stop
plain execing       | pause        | freeze +paused                                | execing, paused
plain execing       | shut down    | term                                          | execing, stop
plain execing       | tick, due    | started +started                              | slow
plain broken        | exited 0     | start-failed forget                           | down
plain broken        | exited 1     | start-failed forget                           | down
plain broken        | stop         | kill                                          | broken, stop
plain broken        | shut down    |                                               | broken, stop
plain broken        | tick, due    | kill                                          | broken, timed out
plain reaped        | exec ok      | started +started drain                        | draining
plain reaped        | exec failed  | start-failed forget                           | down
plain reaped        | stop         | kill                                          | reaped, stop
plain reaped        | shut down    | term                                          | reaped, stop
plain reaped        | tick, due    |                                               | reaped
plain running       | exited 0     | drain                                         | draining
plain running       | exited 1     | drain                                         | draining
plain running       | stop         | kill                                          | running, stop
plain running       | pause        | freeze +paused                                | running, paused
plain running       | shut down    | term                                          | running, stop
plain running       | tick, due    | kill                                          | running, timed out
plain paused        | exited 0     | thaw drain                                    | draining
plain paused        | exited 1     | thaw drain                                    | draining
plain paused        | stop         | kill                                          | running, stop, paused
plain paused        | resume       | thaw +resumed                                 | running
plain paused        | shut down    | thaw +resumed term                            | running, stop
plain paused        | tick, due    | kill                                          | running, timed out, paused
plain running, stop | exited 0     | drain                                         | draining, stop
plain running, stop | exited 1     | drain                                         | draining, stop
plain running, stop | stop         | kill                                          | running, stop
plain running, stop | tick, due    | abandon drain                                 | draining, stop
plain draining      | drained      | +ended finish                                 | down
plain draining      | stop         | kill                                          | draining, stop
plain draining      | shut down    | term                                          | draining, stop
plain draining      | tick, due    |                                               | draining
session, paused     | exited 0     | thaw drain                                    | draining
session, paused     | exited 1     | thaw drain                                    | draining
session, paused     | hang up      | thaw +resumed disconnect                      | running
session, paused     | stop         | thaw +resumed hangup                          | running, stop
session, paused     | resume       | thaw +resumed                                 | running
session, paused     | shut down    | thaw +resumed hangup                          | running, stop
plain down          | stop         | kill                                          | down
plain down          | shut down    | term                                          | down
";

/// A unit in each state.
fn states() -> Vec<(&'static str, Scenario)> {
    let checked = || Scenario::managed(Policy::OnFailure, health(1));
    let plain = || Scenario { unit: Unit::new(None, Some(60_000 * MS)), ..Scenario::plain() };
    let apply = |mut scenario: Scenario, events: &[Event]| {
        for event in events {
            scenario.event(event.clone());
        }
        scenario
    };
    let failed = || Event::ExecFailed(Error::CommandNotFound("x".into()));
    let exited = |code| Event::Exited(Exit::Code(code));
    let late = |mut scenario: Scenario| {
        scenario.event(Event::Start);
        scenario.after(EXEC_TIMEOUT).event(Event::Tick);
        scenario
    };
    let awaiting_user = |mut scenario: Scenario| {
        scenario.unit.step(scenario.clock(), Event::Start, &mut Vec::new());
        scenario
    };
    let forking = |mut scenario: Scenario| {
        for event in [Event::Start, Event::UserResolved] {
            scenario.unit.step(scenario.clock(), event, &mut Vec::new());
        }
        scenario
    };
    let again = |events: &[Event]| {
        let end = [Event::Exited(Exit::Code(1)), Event::Drained, Event::TreeGone];
        let mut scenario = apply(checked(), &[&[Event::Start, Event::ExecOk][..], &end].concat());
        scenario.after(scenario.unit.deadline().unwrap_or_default());
        for event in [&[Event::Tick], events].concat() {
            scenario.unit.step(scenario.clock(), event, &mut Vec::new());
        }
        scenario
    };
    let (start, up) = (|| vec![Event::Start], || vec![Event::Start, Event::ExecOk]);
    let with = |mut events: Vec<Event>, more: &[Event]| {
        events.extend_from_slice(more);
        events
    };
    vec![
        ("new", checked()),
        ("awaiting user", awaiting_user(checked())),
        ("forking", forking(checked())),
        ("execing", apply(checked(), &start())),
        ("slow", late(checked())),
        ("broken", apply(checked(), &with(start(), &[failed()]))),
        ("reaped", apply(checked(), &with(start(), &[exited(1)]))),
        ("slow, reaped", apply(late(checked()), &[exited(1)])),
        ("running", apply(checked(), &up())),
        ("execing, paused", apply(checked(), &with(start(), &[Event::Pause]))),
        ("slow, paused", apply(late(checked()), &[Event::Pause])),
        ("running, paused", apply(checked(), &with(up(), &[Event::Pause]))),
        ("running, stop", apply(checked(), &with(up(), &[Event::Stop]))),
        ("running, restart", apply(checked(), &with(up(), &[Event::Restart]))),
        ("running, failed", apply(checked(), &with(up(), &[Event::Verdict(1, failed_probe())]))),
        ("draining", apply(checked(), &with(up(), &[exited(1)]))),
        ("draining, stop", apply(checked(), &with(up(), &[Event::Stop, exited(1)]))),
        ("draining, restart", apply(checked(), &with(up(), &[Event::Restart, exited(1)]))),
        ("draining, failed", apply(checked(), &with(up(), &[Event::Verdict(1, failed_probe()), exited(0)]))),
        ("tree", apply(checked(), &with(up(), &[exited(1), Event::Drained]))),
        ("tree, restart", apply(checked(), &with(up(), &[Event::Restart, exited(1), Event::Drained]))),
        (
            "tree, failed",
            apply(checked(), &with(up(), &[Event::Verdict(1, failed_probe()), exited(0), Event::Drained])),
        ),
        ("backing off", apply(checked(), &with(up(), &[exited(1), Event::Drained, Event::TreeGone]))),
        ("down", apply(checked(), &with(up(), &[exited(0), Event::Drained]))),
        ("down, leftovers", apply(checked(), &with(up(), &[Event::Stop, exited(0), Event::Drained]))),
        ("2nd awaiting user", again(&[])),
        ("2nd forking", again(&[Event::UserResolved])),
        ("2nd execing", again(&[Event::UserResolved, Event::Spawned(8)])),
        ("2nd broken", again(&[Event::UserResolved, Event::Spawned(8), failed()])),
        ("2nd broken, stop", again(&[Event::UserResolved, Event::Spawned(8), failed(), Event::Stop])),
        ("2nd broken, restart", again(&[Event::UserResolved, Event::Spawned(8), failed(), Event::Restart])),
        ("2nd reaped", again(&[Event::UserResolved, Event::Spawned(8), exited(1)])),
        ("plain new", plain()),
        ("plain execing", apply(plain(), &start())),
        ("plain broken", apply(plain(), &with(start(), &[failed()]))),
        ("plain reaped", apply(plain(), &with(start(), &[exited(1)]))),
        ("plain running", apply(plain(), &up())),
        ("plain paused", apply(plain(), &with(up(), &[Event::Pause]))),
        ("plain running, stop", apply(plain(), &with(up(), &[Event::Stop]))),
        ("plain draining", apply(plain(), &with(up(), &[exited(1)]))),
        ("session, paused", apply(Scenario { unit: Unit::with_terminal(), ..plain() }, &with(up(), &[Event::Pause]))),
        ("plain down", apply(plain(), &with(up(), &[exited(0), Event::Drained]))),
    ]
}

fn events(scenario: &Scenario) -> Vec<(&'static str, Event)> {
    let watch = scenario.unit.watch;
    vec![
        ("start", Event::Start),
        ("resolved", Event::UserResolved),
        ("spawned", Event::Spawned(7)),
        ("spawn failed", Event::SpawnFailed(Error::out_of_resources("forks"))),
        ("exec ok", Event::ExecOk),
        ("exec failed", Event::ExecFailed(Error::CommandNotFound("x".into()))),
        ("exited 0", Event::Exited(Exit::Code(0))),
        ("exited 1", Event::Exited(Exit::Code(1))),
        ("drained", Event::Drained),
        ("tree gone", Event::TreeGone),
        ("hang up", Event::HangUp),
        ("stop", Event::Stop),
        ("restart", Event::Restart),
        ("pause", Event::Pause),
        ("resume", Event::Resume),
        ("shut down", Event::ShutDown(scenario.now + 3_000 * MS)),
        ("probe ok", Event::Verdict(watch, Ok(()))),
        ("probe failed", Event::Verdict(watch, failed_probe())),
        ("old verdict", Event::Verdict(watch.wrapping_sub(1), failed_probe())),
        ("tick", Event::Tick),
        ("tick, due", Event::Tick),
    ]
}

fn name(unit: &Unit) -> String {
    let State::Up(run) = &unit.state else {
        return match &unit.state {
            State::BackingOff { .. } => "backing off".to_owned(),
            State::AwaitingTree(wait) if wait.next == Next::Policy => "tree".to_owned(),
            State::AwaitingTree(wait) => format!("tree, {}", next_word(wait.next)),
            State::AwaitingUser => "awaiting user".to_owned(),
            State::Forking => "forking".to_owned(),
            _ => "down".to_owned(),
        };
    };
    let phase = match run.phase {
        Phase::Execing { .. } => "execing",
        Phase::Slow => "slow",
        Phase::Running => "running",
        Phase::Broken(_) => "broken",
        Phase::Reaped { slow: false, .. } => "reaped",
        Phase::Reaped { slow: true, .. } => "slow, reaped",
        Phase::Draining { .. } => "draining",
    };
    let paused = if run.paused_at.is_some() { ", paused" } else { "" };
    match run.next {
        Next::Policy => format!("{phase}{paused}"),
        next => format!("{phase}, {}{paused}", next_word(next)),
    }
}

fn next_word(next: Next) -> &'static str {
    match next {
        Next::Policy => "policy",
        Next::Failed => "failed",
        Next::Stop => "stop",
        Next::Restart => "restart",
        Next::TimedOut => "timed out",
    }
}

fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::ResolveUser => "resolve".to_owned(),
        Action::Terminate => "term".to_owned(),
        Action::KillTree => "kill".to_owned(),
        Action::StartFailed(..) => "start-failed".to_owned(),
        Action::ReportLateFailure(_) => "late-failure".to_owned(),
        Action::Report(occurrence) => {
            format!("+{}", format!("{occurrence:?}").split([' ', '(']).next().unwrap_or_default().to_lowercase())
        }
        action => format!("{action:?}").split('(').next().unwrap_or_default().to_lowercase(),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_event_in_each_state_has_the_effect_in_the_table() {
    let mut table = String::new();
    for (state, scenario) in states() {
        for (event, input) in events(&scenario) {
            let mut unit = scenario.unit.clone();
            let mut now = scenario.clock();
            if event == "tick, due" {
                let Some(at) = unit.deadline() else { continue };
                now.mono = at;
            }
            let mut actions = Vec::new();
            unit.step(now, input, &mut actions);
            let after = name(&unit);
            if actions.is_empty() && unit == scenario.unit {
                continue;
            }
            let line = format!("{state:<20}| {event:<13}| {:<46}| {after}", words(&actions));
            writeln!(table, "{}", line.trim_end()).unwrap();
        }
    }
    assert!(table.trim() == TABLE.trim(), "\n{table}");
}
