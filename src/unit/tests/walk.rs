//! Searches every reachable state of a unit, in a world that may do anything it can do, and holds the invariants in each.
//!
//! Times are kept relative to the present and counts are capped, so that the states are finitely many.

use std::collections::{HashSet, VecDeque};

use super::*;

/// The present of every state.
const BASE: Duration = Duration::from_secs(1_000);
/// Further back than this makes no difference.
const LONG_AGO: Duration = Duration::from_secs(11);
const NOW: Now = Now { mono: BASE, wall: 0 };

/// What is true outside of the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    /// The user of the next run is being looked up.
    resolving: bool,
    /// A child that has not been reaped, and that is waited for.
    child: bool,
    /// The exec's outcome is on its way.
    exec: bool,
    /// A drain was asked for.
    draining: bool,
    watched: bool,
    /// Followers have ended.
    finished: bool,
    /// The last that was asked for is that it be down.
    stopped: bool,
    forgotten: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    unit: Unit,
    world: World,
}

/// What led here, for the words of a failure.
type Context<'a> = (&'a Event, &'a Place);

#[derive(Clone, Debug)]
enum Input {
    Event(Event),
    Time(Duration),
}

fn inputs(place: &Place) -> Vec<Input> {
    let (unit, world) = (&place.unit, &place.world);
    if world.forgotten {
        return Vec::new();
    }
    let mut events = Vec::new();
    if unit.run == 0 && !world.resolving {
        events.push(Event::Start);
    } else {
        events.extend([Event::Stop, Event::Restart, Event::ShutDown(BASE), Event::Start, Event::HangUp]);
    }
    if world.resolving {
        events.push(Event::UserResolved);
    }
    if world.child {
        events.extend([Exit::Code(0), Exit::Code(1), Exit::Signal(9)].map(Event::Exited));
    }
    if world.exec {
        events.extend([Event::ExecOk, Event::ExecFailed(Error::CommandNotFound("x".into()))]);
    }
    if world.draining {
        events.push(Event::Drained);
    }
    if unit.awaits_tree() {
        events.push(Event::TreeGone);
    }
    if world.watched {
        events.extend([Event::Verdict(unit.run, Ok(())), Event::Verdict(unit.run, sick())]);
    }
    // Of an earlier run, and out of the blue: nothing may come of it.
    events.extend([Event::Verdict(unit.run.wrapping_sub(1), sick()), Event::Spawned(1), Event::Tick]);
    let mut inputs: Vec<Input> = events.into_iter().map(Input::Event).collect();
    if let Some(at) = unit.deadline() {
        inputs.push(Input::Time(at.saturating_sub(BASE)));
    }
    inputs.push(Input::Time(LONG_AGO));
    inputs
}

/// All places that one input can lead to: a fork may fail.
fn follow(place: &Place, input: &Input) -> Vec<Place> {
    let mut next = place.clone();
    let event = match input {
        Input::Event(event) => event.clone(),
        Input::Time(passed) => {
            pass(&mut next.unit, *passed);
            Event::Tick
        }
    };
    match &event {
        Event::UserResolved => next.world.resolving = false,
        Event::Exited(_) => next.world.child = false,
        Event::ExecOk | Event::ExecFailed(_) => next.world.exec = false,
        Event::Drained => next.world.draining = false,
        Event::Stop => next.world.stopped = true,
        Event::Restart if next.unit.managed.is_some() => next.world.stopped = false,
        Event::ShutDown(_) if !next.unit.is_down() => next.world.stopped = true,
        _ => {}
    }
    let mut out = Vec::new();
    next.unit.step(NOW, event.clone(), &mut out);
    perform(next, out, (&event, place))
}

fn perform(mut place: Place, actions: Vec<Action>, context: Context) -> Vec<Place> {
    for (index, action) in actions.iter().enumerate() {
        let world = &mut place.world;
        match action {
            Action::ResolveUser => {
                assert!(!world.child && !world.exec && !world.draining, "two runs at once: {context:?}");
                assert!(!world.stopped && !world.finished, "a stopped unit starts by itself: {context:?}");
                assert_eq!(index + 1, actions.len(), "the answer may come at once: {context:?}");
                world.resolving = true;
            }
            Action::Spawn => {
                assert!(!world.child && !world.exec && !world.draining, "two children: {context:?}");
                assert!(!world.stopped, "a stopped unit starts by itself: {context:?}");
                assert!(!world.finished, "followers would miss this run: {context:?}");
                assert_eq!(index + 1, actions.len(), "nothing may follow a fork in the same step: {context:?}");
                return forks(place, context);
            }
            // To the tree, of which something may be left without its leader.
            Action::Terminate => {}
            Action::Abandon(_) => {
                assert!(world.child && place.unit.leader().is_none(), "{context:?}");
                // What the exec has come to is told late or never, and nobody waits for it.
                (world.child, world.exec) = (false, false);
            }
            Action::HangUp => {
                assert!(world.child, "a signal to a PID that was reaped: {context:?}");
                assert!(place.unit.leader().is_some(), "{context:?}");
            }
            Action::Disconnect => {}
            Action::Watch => world.watched = true,
            Action::Unwatch => world.watched = false,
            Action::Drain => {
                assert!(!world.child && !world.exec && !world.draining, "{context:?}");
                world.draining = true;
            }
            Action::Finish(_) => {
                assert!(!world.child && !world.draining, "an end before its output is drained: {context:?}");
                assert!(!world.watched, "{context:?}");
                world.finished = true;
            }
            Action::Reopen => world.finished = false,
            Action::Forget => world.forgotten = true,
            Action::KillTree | Action::Started | Action::StartFailed(..) | Action::Complain(_) => {}
        }
    }
    vec![place]
}

fn forks(place: Place, context: Context) -> Vec<Place> {
    let mut places = Vec::new();
    for event in [Event::Spawned(PID), Event::SpawnFailed(Error::OutOfResources("forks".into()))] {
        let mut next = place.clone();
        let up = matches!(event, Event::Spawned(_));
        (next.world.child, next.world.exec) = (up, up);
        let mut out = Vec::new();
        next.unit.step(NOW, event, &mut out);
        cap(&mut next.unit);
        // A failed fork may be tried again at once; that is the same place again, one restart on.
        places.extend(perform(next, out, context));
    }
    places
}

/// Lets time pass: everything that is kept of it moves back.
fn pass(unit: &mut Unit, passed: Duration) {
    let past = |at: &mut Duration| *at = at.saturating_sub(passed).max(BASE - LONG_AGO);
    let due = |at: &mut Duration| *at = at.saturating_sub(passed).max(BASE);
    if let State::BackingOff { until } = &mut unit.state {
        due(until);
    }
    if let State::AwaitingTree(wait) = &mut unit.state {
        wait.kill_at.iter_mut().for_each(due);
        due(&mut wait.give_up);
    }
    if let State::Up(run) = &mut unit.state {
        past(&mut run.since);
        let deadlines = [&mut run.kill_at, &mut run.disconnect_at, &mut run.expires, &mut run.abandon_at];
        deadlines.into_iter().flatten().for_each(due);
        if let Phase::Execing { give_up } = &mut run.phase {
            due(give_up);
        }
    }
    unit.sweep_at.iter_mut().for_each(due);
    unit.health.healthy_since.iter_mut().for_each(past);
}

/// Counts beyond these make no difference.
fn cap(unit: &mut Unit) {
    unit.run = unit.run.min(2);
    unit.streak = unit.streak.min(4);
    unit.short_runs = unit.short_runs.min(SHORT_RUNS);
    unit.health.failures = unit.health.failures.min(2);
    unit.last_error = unit.last_error.as_ref().map(|_| String::new());
    unit.next_restart_at = unit.next_restart_at.map(|_| 0);
}

fn check(place: &Place) {
    let (unit, world) = (&place.unit, &place.world);
    match &unit.state {
        State::Down => {
            assert!(!world.child && !world.draining && !world.watched, "{place:?}");
            assert!(unit.run == 0 || world.finished || world.forgotten, "down, and its followers wait: {place:?}");
        }
        State::AwaitingUser => {
            assert!(world.resolving, "nothing will ever happen: {place:?}");
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{place:?}");
            assert!(!world.finished && !world.stopped && !world.forgotten, "{place:?}");
        }
        State::Forking => panic!("between steps: {place:?}"),
        State::Up(run) => {
            assert!(!world.finished, "{place:?}");
            assert!(world.child || world.exec || world.draining, "nothing will ever happen: {place:?}");
            if run.then != Then::Policy && unit.managed.is_some() {
                assert!(!world.watched || !world.child, "probed while it is stopped: {place:?}");
            }
        }
        State::AwaitingTree(_) => {
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{place:?}");
            assert!(!world.finished && !world.stopped && unit.deadline().is_some(), "{place:?}");
        }
        State::BackingOff { until } => {
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{place:?}");
            assert_eq!(unit.deadline().map(|at| at <= *until), Some(true), "a lost restart: {place:?}");
            assert!(!world.stopped, "{place:?}");
        }
    }
    if unit.leader().is_some() {
        assert!(world.child, "a reaped leader could be signalled: {place:?}");
    }
}

/// However it stands, a stop and the end of its child lead to down.
fn check_stop(place: &Place) {
    let mut places = vec![place.clone()];
    let events = [Event::Stop, Event::UserResolved, Event::ExecOk, Event::Exited(Exit::Signal(9)), Event::Drained];
    for event in events {
        let fits = |place: &Place| match event {
            Event::UserResolved => place.world.resolving,
            Event::ExecOk => place.world.exec,
            Event::Exited(_) => place.world.child,
            Event::Drained => place.world.draining,
            _ => !place.world.forgotten && (place.unit.run > 0 || place.world.resolving),
        };
        places = places
            .into_iter()
            .flat_map(|place| if fits(&place) { follow(&place, &Input::Event(event.clone())) } else { vec![place] })
            .collect();
    }
    for end in places {
        assert!(end.world.forgotten || end.unit.is_down(), "{place:?} does not stop: {end:?}");
    }
}

fn walk(unit: Unit) -> usize {
    let start = Place { unit, world: World::default() };
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(place) = queue.pop_front() {
        check(&place);
        check_stop(&place);
        for input in inputs(&place) {
            for mut next in follow(&place, &input) {
                cap(&mut next.unit);
                if seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
    }
    seen.len()
}

#[test]
fn no_reachable_state_breaks_an_invariant() {
    let mut places = walk(Unit::new(None, None)) + walk(Unit::with_terminal()) + walk(Unit::new(None, Some(300 * MS)));
    for policy in [Policy::Never, Policy::OnFailure, Policy::Always] {
        for (backoff, most) in [(500, Some(2)), (0, None)] {
            for checked in [false, true] {
                let mut spec = ManagedSpec::new(policy);
                spec.restart.initial_backoff_ms = backoff;
                spec.restart.max_restarts = most;
                spec.restart.max_backoff_ms = 2 * backoff;
                if checked {
                    health(2)(&mut spec);
                }
                places += walk(Unit::new(Some(spec), None));
            }
        }
    }
    println!("{places} distinct states");
    assert!(places > 300_000, "the walk has got lost: {places}");
}
