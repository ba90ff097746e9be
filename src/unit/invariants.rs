//! What must hold in every state of a unit, together with its simulated environment. `tests/walk.rs` checks it in every
//! state that can be reached with a few specs, the fuzz target `unit` after any events with any spec.
//!
//! Times are relative to the present, so that equivalent states are equal.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use super::state::{Next, Phase, State};
use super::{Action, Event, Now, Unit};
use crate::error::Error;
use crate::fuzzing::Choices;
use crate::model::{Exit, HealthCheck, Leftovers, ManagedSpec, Occurrence, Pid, Policy};

pub(super) const PID: Pid = 100;

/// The current time in every state.
pub(super) const BASE: Duration = Duration::from_secs(1_000);
/// Times further in the past than this are equivalent.
pub(super) const LONG_AGO: Duration = Duration::from_secs(11);
const NOW: Now = Now { mono: BASE, wall: 0 };

/// The simulated environment of the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The user of the next run is being looked up.
    resolving: bool,
    /// There is a child that has not been reaped and was not abandoned.
    child: bool,
    /// The outcome of the exec has not been reported.
    exec: bool,
    /// A drain was requested and has not finished.
    draining: bool,
    /// The health of the run is probed.
    watched: bool,
    /// The tree stands still.
    frozen: bool,
    /// The log and its followers have ended.
    finished: bool,
    /// The latest request was to stop the unit.
    stopped: bool,
    /// A start was reported, and no end since.
    shown_up: bool,
    /// The unit was removed.
    forgotten: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) unit: Unit,
    pub(super) world: World,
}

/// The event and the node that led to an action, for the message of a failed assertion.
type Context<'a> = (&'a Event, &'a Node);

#[derive(Clone, Debug)]
pub(super) enum Input {
    Event(Event),
    Time(Duration),
}

pub(super) fn inputs(node: &Node) -> Vec<Input> {
    let (unit, world) = (&node.unit, &node.world);
    if world.forgotten {
        return Vec::new();
    }
    let mut events = Vec::new();
    if unit.run == 0 && !world.resolving {
        events.push(Event::Start);
    } else {
        events.extend([Event::Stop, Event::Restart, Event::ShutDown(BASE), Event::Start, Event::HangUp]);
        events.extend([Event::Pause, Event::Resume]);
    }
    if world.resolving {
        events.push(Event::UserResolved);
    }
    // Only a signal ends a child that stands still; its end may have been under way.
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
        events.extend([Event::Verdict(unit.watch, Ok(())), Event::Verdict(unit.watch, failed_probe())]);
    }
    // A verdict of an earlier watch, and events at the wrong time: these must change nothing.
    events.extend([Event::Verdict(unit.watch.wrapping_sub(1), failed_probe()), Event::Spawned(1), Event::Tick]);
    let mut inputs: Vec<Input> = events.into_iter().map(Input::Event).collect();
    if let Some(at) = unit.deadline() {
        inputs.push(Input::Time(at.saturating_sub(BASE)));
    }
    inputs.push(Input::Time(LONG_AGO));
    inputs
}

/// The nodes that one input can lead to. An input that forks leads to two, since a fork can fail.
pub(super) fn follow(node: &Node, input: &Input) -> Vec<Node> {
    let mut next = node.clone();
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
    perform(next, out, (&event, node))
}

fn perform(mut node: Node, actions: Vec<Action>, context: Context) -> Vec<Node> {
    for (index, action) in actions.iter().enumerate() {
        let world = &mut node.world;
        match action {
            Action::ResolveUser => {
                assert!(!world.child && !world.exec && !world.draining, "two runs at once: {context:?}");
                assert!(!world.stopped && !world.finished, "a stopped unit starts by itself: {context:?}");
                assert_eq!(index + 1, actions.len(), "the answer can come in the same step: {context:?}");
                world.resolving = true;
            }
            Action::Spawn => {
                assert!(!world.child && !world.exec && !world.draining, "two children: {context:?}");
                assert!(!world.stopped, "a stopped unit starts by itself: {context:?}");
                assert!(!world.finished, "followers would miss this run: {context:?}");
                assert_eq!(index + 1, actions.len(), "nothing may follow a fork in the same step: {context:?}");
                return forks(node, context);
            }
            // Sent to the tree, which can outlive its leader.
            Action::Terminate => assert!(!world.frozen, "a paused tree cannot react to the signal: {context:?}"),
            Action::Abandon(_) => {
                assert!(world.child && node.unit.leader().is_none(), "{context:?}");
                // The outcome of the exec comes late or never, and no state depends on it.
                (world.child, world.exec) = (false, false);
            }
            Action::HangUp => {
                assert!(world.child, "a signal to a PID that was reaped: {context:?}");
                assert!(node.unit.leader().is_some() && !world.frozen, "{context:?}");
            }
            Action::Disconnect => {}
            Action::Freeze => {
                assert!(world.child && !world.frozen && !world.watched, "{context:?}");
                world.frozen = true;
            }
            Action::Thaw => {
                assert!(world.frozen, "{context:?}");
                world.frozen = false;
            }
            Action::Watch(_) => {
                assert!(!world.frozen && !world.watched, "{context:?}");
                world.watched = true;
            }
            Action::Unwatch => world.watched = false,
            Action::Drain => {
                assert!(!world.child && !world.exec && !world.draining, "{context:?}");
                world.draining = true;
            }
            Action::Finish(_) => {
                assert!(!world.child && !world.draining, "ended before its output was drained: {context:?}");
                assert!(!world.shown_up, "the end was not reported: {context:?}");
                assert!(!world.watched && !world.frozen, "{context:?}");
                world.finished = true;
            }
            Action::Report(occurrence) => report(world, occurrence, context),
            Action::Reopen => world.finished = false,
            Action::Forget => {
                assert!(!world.frozen, "its processes would stand still for ever: {context:?}");
                world.forgotten = true;
            }
            Action::KillTree | Action::Started | Action::StartFailed(..) | Action::ReportLateFailure(_) => {}
        }
    }
    vec![node]
}

/// Starts and ends are reported alternately, and nothing else is reported at the wrong time.
fn report(world: &mut World, occurrence: &Occurrence, context: Context) {
    match occurrence {
        Occurrence::Started { .. } => {
            assert!(!world.shown_up, "two starts were reported: {context:?}");
            world.shown_up = true;
        }
        Occurrence::Ended { .. } => {
            assert!(world.shown_up, "an end without a start was reported: {context:?}");
            world.shown_up = false;
        }
        Occurrence::Restarting { .. } => {
            assert!(!world.shown_up && !world.stopped, "a restart of what is up or stopped: {context:?}");
        }
        Occurrence::Stopped { .. } => assert!(!world.shown_up && !world.child, "{context:?}"),
        Occurrence::Health { .. } => assert!(world.shown_up && !world.frozen, "{context:?}"),
        Occurrence::Paused => assert!(world.frozen, "{context:?}"),
        Occurrence::Resumed => assert!(!world.frozen, "{context:?}"),
    }
}

fn forks(node: Node, context: Context) -> Vec<Node> {
    let mut nodes = Vec::new();
    for event in [Event::Spawned(PID), Event::SpawnFailed(Error::out_of_resources("forks"))] {
        let mut next = node.clone();
        let up = matches!(event, Event::Spawned(_));
        (next.world.child, next.world.exec) = (up, up);
        let mut out = Vec::new();
        next.unit.step(NOW, event, &mut out);
        // A failed fork can be tried again in the same step: the same node with one more restart.
        nodes.extend(perform(next, out, context));
    }
    nodes
}

/// Lets time pass: moves every time that the unit holds into the past.
fn pass(unit: &mut Unit, passed: Duration) {
    let past_from = |now: Duration, at: &mut Duration| *at = at.saturating_sub(passed).max(now - LONG_AGO);
    let past = |at: &mut Duration| past_from(BASE, at);
    let due = |at: &mut Duration| *at = at.saturating_sub(passed).max(BASE);
    let mut counted_until = BASE;
    if let State::BackingOff { until } = &mut unit.state {
        due(until);
    }
    if let State::AwaitingTree(wait) = &mut unit.state {
        wait.kill_at.iter_mut().for_each(due);
        due(&mut wait.give_up);
    }
    if let State::Up(run) = &mut unit.state {
        past(&mut run.since);
        run.paused_at.iter_mut().for_each(past);
        // What counts is how long ago they were when the run was paused.
        counted_until = run.paused_at.unwrap_or(BASE);
        past_from(counted_until, &mut run.counted_from);
        let deadlines = [&mut run.kill_at, &mut run.disconnect_at, &mut run.expires_at, &mut run.abandon_at];
        deadlines.into_iter().flatten().for_each(due);
        if let Phase::Execing { give_up } = &mut run.phase {
            due(give_up);
        }
    }
    unit.sweep_at.iter_mut().for_each(due);
    unit.health.healthy_since.iter_mut().for_each(|at| past_from(counted_until, at));
}

pub(super) fn check(node: &Node) {
    let (unit, world) = (&node.unit, &node.world);
    match &unit.state {
        State::Down => {
            assert!(!world.child && !world.draining && !world.watched, "{node:?}");
            assert!(unit.run == 0 || world.finished || world.forgotten, "down, but its log has not ended: {node:?}");
        }
        State::AwaitingUser => {
            assert!(world.resolving, "no event can follow: {node:?}");
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{node:?}");
            assert!(!world.finished && !world.stopped && !world.forgotten, "{node:?}");
        }
        State::Forking => panic!("forking lasts beyond a step: {node:?}"),
        State::Up(run) => {
            assert!(!world.finished, "{node:?}");
            assert!(world.child || world.exec || world.draining, "no event can follow: {node:?}");
            if run.next != Next::Policy && unit.managed.is_some() {
                assert!(!world.watched || !world.child, "probed while it is stopped: {node:?}");
            }
        }
        State::AwaitingTree(_) => {
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{node:?}");
            assert!(!world.finished && !world.stopped && unit.deadline().is_some(), "{node:?}");
        }
        State::BackingOff { until } => {
            assert!(!world.child && !world.exec && !world.draining && !world.watched, "{node:?}");
            assert_eq!(unit.deadline().map(|at| at <= *until), Some(true), "a lost restart: {node:?}");
            assert!(!world.stopped, "{node:?}");
        }
    }
    if unit.leader().is_some() {
        assert!(world.child, "a reaped leader could be signalled: {node:?}");
        assert_eq!(unit.is_paused(), world.frozen, "{node:?}");
    }
    assert!(!world.frozen || matches!(unit.state, State::Up(_)), "a tree stands still for ever: {node:?}");
    assert!(!world.frozen || !world.watched && unit.probed().is_none(), "probed while it is paused: {node:?}");
}

/// In every state, a stop and the end of the child lead to a unit that is down.
pub(super) fn check_stop(node: &Node) {
    let mut nodes = vec![node.clone()];
    let events = [Event::Stop, Event::UserResolved, Event::ExecOk, Event::Exited(Exit::Signal(9)), Event::Drained];
    for event in events {
        let fits = |node: &Node| match event {
            Event::UserResolved => node.world.resolving,
            Event::ExecOk => node.world.exec,
            Event::Exited(_) => node.world.child,
            Event::Drained => node.world.draining,
            _ => !node.world.forgotten && (node.unit.run > 0 || node.world.resolving),
        };
        nodes = nodes
            .into_iter()
            .flat_map(|node| if fits(&node) { follow(&node, &Input::Event(event.clone())) } else { vec![node] })
            .collect();
    }
    for end in nodes {
        assert!(end.world.forgotten || end.unit.is_down(), "{node:?} does not stop: {end:?}");
    }
}

pub(super) fn failed_probe() -> Result<(), String> {
    Err("connection refused".to_owned())
}

/// No sequence of events breaks an invariant, and none leads to a deadline that never passes.
pub(crate) fn unit(input: &[u8]) {
    let mut choices = Choices(input);
    let mut node = Node { unit: any_unit(&mut choices), world: World::default() };
    while !choices.is_done() && !node.world.forgotten {
        let mut inputs = inputs(&node);
        inputs.push(Input::Time(Duration::from_millis(choices.number() >> 24)));
        inputs.push(Input::Event(Event::ShutDown(BASE + Duration::from_millis(u64::from(choices.byte())))));
        let input = inputs.swap_remove(choices.below(inputs.len()));
        node = pick(follow(&node, &input), &mut choices);
        check(&node);
        check_stop(&node);
        check_deadline(&node);
    }
}

fn pick(mut nodes: Vec<Node>, choices: &mut Choices) -> Node {
    let at = if nodes.len() > 1 { choices.below(nodes.len()) } else { 0 };
    nodes.swap_remove(at)
}

fn any_unit(choices: &mut Choices) -> Unit {
    let leftovers = choices.one_of(&[Leftovers::Keep, Leftovers::Kill]);
    let unit = match choices.below(4) {
        0 => Unit::new(None, None),
        1 => Unit::with_terminal(),
        2 => Unit::new(None, Some(Duration::from_nanos(choices.number().max(1)))),
        _ => Unit::new(Some(Arc::new(any_managed(choices))), None),
    };
    unit.with_leftovers(leftovers)
}

/// A valid spec: the durations are at most a day.
pub(super) fn any_managed(choices: &mut Choices) -> ManagedSpec {
    let ms = |choices: &mut Choices| choices.number() % (crate::model::MAX_MS + 1);
    let mut spec = ManagedSpec::new(choices.one_of(&[Policy::Never, Policy::OnFailure, Policy::Always]));
    spec.restart.initial_backoff_ms = ms(choices);
    spec.restart.max_backoff_ms = ms(choices);
    spec.restart.max_restarts = (choices.below(2) > 0).then(|| u32::from(choices.byte()));
    spec.stop_grace = Duration::from_millis(ms(choices));
    if choices.below(2) > 0 {
        let mut check = HealthCheck::tcp(80);
        check.failure_threshold = 1 + choices.below(3) as u32;
        spec.health = Some(check);
    }
    spec
}

/// Once every deadline that is due has been handled, the next one is in the future: the supervisor never wakes up in vain.
fn check_deadline(node: &Node) {
    let mut unit = node.unit.clone();
    for _ in 0..20 {
        match unit.deadline() {
            Some(at) if at <= BASE => unit.step(NOW, Event::Tick, &mut Vec::new()),
            _ => return,
        }
    }
    panic!("the deadline never passes: {node:?}");
}
