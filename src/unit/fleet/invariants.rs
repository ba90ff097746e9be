//! What must hold for the indexes and limits of the fleet, whatever its units do (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Bounds, Fleet, KEPT_BYTES};
use crate::error::Error;
use crate::fuzzing::Choices;
use crate::model::{Exit, Pid, Target, UnitId};
use crate::unit::invariants::any_managed;
use crate::unit::{Action, Event, Now, Unit};

const BOUNDS: Bounds = Bounds { max_running: 3, keep_ended: 2, max_sessions: 2 };
const NAMES: [&str; 2] = ["web", "db"];

/// The processes of a unit, and the answers that it waits for.
#[derive(Debug, Default)]
struct World {
    /// The PID of a child that was not reaped, abandoned ones excluded.
    child: Option<Pid>,
    exec: bool,
    draining: bool,
    resolving: bool,
}

/// A fleet, the kernel's processes, and the clock.
struct Model {
    fleet: Fleet<World>,
    now: Duration,
    next_id: u64,
    /// Leaders that were abandoned and have not been reaped.
    abandoned: BTreeMap<Pid, UnitId>,
    removed: HashSet<UnitId>,
}

/// Every unit is found by its PID, its name and its id, and by nothing else; the deadline is the first of all units; no
/// more units run, and no more ended ones are kept, than allowed.
pub(crate) fn fleet(input: &[u8]) {
    let mut choices = Choices(input);
    let (fleet, abandoned, removed) = (Fleet::new(BOUNDS), BTreeMap::new(), HashSet::new());
    let mut model = Model { fleet, now: Duration::from_secs(100), next_id: 1, abandoned, removed };
    while !choices.is_done() {
        model.turn(&mut choices);
        while let Some((id, _)) = model.fleet.pop_surplus() {
            model.removed.insert(id);
        }
        model.check();
    }
}

impl Model {
    fn clock(&self) -> Now {
        Now { mono: self.now, wall: 0 }
    }

    fn turn(&mut self, choices: &mut Choices) {
        let ids: Vec<UnitId> = self.fleet.iter().map(|(id, _)| id).collect();
        match choices.below(8) {
            0 => self.admit(choices),
            1 => self.pass(Duration::from_millis(choices.number() >> 40)),
            2 => {
                let next = self.fleet.deadline();
                self.pass(next.map_or(Duration::ZERO, |at| at.saturating_sub(self.now)));
            }
            3 => {
                let Some(pid) = self.abandoned.keys().next().copied() else { return };
                assert_eq!(self.fleet.reaped(pid), self.abandoned.remove(&pid));
            }
            _ if ids.is_empty() => self.admit(choices),
            _ => {
                let id = choices.one_of(&ids);
                if let Some(event) = self.event(id, choices) {
                    self.step(id, event, choices);
                }
            }
        }
    }

    fn admit(&mut self, choices: &mut Choices) {
        let id = UnitId(self.next_id);
        self.next_id += 1;
        let unit = match choices.below(4) {
            0 => Unit::new(None, Some(Duration::from_millis(choices.number() >> 40))),
            1 => Unit::with_terminal(),
            _ => {
                let name = choices.one_of(&[Some(NAMES[0]), Some(NAMES[1]), None]);
                let managed = any_managed(choices);
                Unit::new(Some(Arc::new(crate::model::ManagedSpec { name: name.map(str::to_owned), ..managed })), None)
            }
        };
        let running = self.count(|unit| !unit.has_terminal() && !unit.is_down()) + self.abandoned.len();
        let sessions = self.count(|unit| unit.has_terminal() && !unit.is_down());
        let (is_session, name) = (unit.has_terminal(), unit.managed().and_then(|managed| managed.name.clone()));
        let weight = choices.one_of(&[0, 100, KEPT_BYTES]);
        match self.fleet.admit(id, unit, weight, World::default) {
            Ok(()) => {
                assert!(if is_session { sessions < BOUNDS.max_sessions } else { running < BOUNDS.max_running });
                self.step(id, Event::Start, choices);
            }
            Err(Error::TooManyProcesses(most)) => assert!(!is_session && running >= most),
            Err(Error::TooManySessions(most)) => assert!(is_session && sessions >= most),
            Err(Error::NameInUse(used)) => assert_eq!(name, Some(used)),
            Err(error) => panic!("{error}"),
        }
    }

    fn count(&self, is_counted: impl Fn(&Unit) -> bool) -> usize {
        self.fleet.iter().filter(|(_, member)| is_counted(&member.unit)).count()
    }

    /// Lets time pass, and handles every deadline that has passed by then.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        for _ in 0..200 {
            let Some(id) = self.fleet.due(self.clock()) else { return };
            self.step(id, Event::Tick, &mut Choices(&[]));
        }
        panic!("a deadline never passes");
    }

    /// An event that can happen to the unit now.
    fn event(&mut self, id: UnitId, choices: &mut Choices) -> Option<Event> {
        let (kind, grace) = (choices.below(11), Duration::from_millis(choices.number() >> 48));
        let now = self.now;
        let member = self.fleet.get_mut(id)?;
        let (unit, world) = (&member.unit, &mut member.context);
        match kind {
            0 => return Some(Event::Stop),
            1 if unit.managed().is_some() => {
                let is_claimed = self.fleet.claim_for_restart(id).is_ok();
                return is_claimed.then_some(Event::Restart);
            }
            2 => return Some(Event::ShutDown(now + grace)),
            3 => return Some(Event::HangUp),
            4 if unit.awaits_tree() => return Some(Event::TreeGone),
            5 if world.exec => {
                world.exec = false;
                return Some(choices.one_of(&[true, false])).map(|is_ok| match is_ok {
                    true => Event::ExecOk,
                    false => Event::ExecFailed(Error::CommandNotFound("x".into())),
                });
            }
            6 if world.draining => {
                world.draining = false;
                return Some(Event::Drained);
            }
            7 if world.resolving => {
                world.resolving = false;
                return Some(Event::UserResolved);
            }
            8 => return Some(Event::Pause),
            9 => return Some(Event::Resume),
            _ => {}
        }
        world.child.take().map(|_| Event::Exited(choices.one_of(&[Exit::Code(0), Exit::Code(1), Exit::Signal(9)])))
    }

    /// Passes an event to a unit, and performs its actions.
    fn step(&mut self, id: UnitId, event: Event, choices: &mut Choices) {
        let mut actions = Vec::new();
        self.fleet.step(id, self.clock(), event, &mut actions);
        let mut forgotten = false;
        let mut at = 0;
        while let Some(action) = actions.get(at).cloned() {
            at += 1;
            let Some(member) = self.fleet.get_mut(id) else { return };
            let world = &mut member.context;
            match action {
                Action::ResolveUser => world.resolving = true,
                Action::Drain => world.draining = true,
                Action::Abandon(pid) => {
                    assert_eq!(world.child.take(), Some(pid));
                    world.exec = false;
                    self.fleet.abandon(id, pid);
                    self.abandoned.insert(pid, id);
                }
                Action::Spawn => {
                    let fails = choices.below(8) == 1;
                    let event = match self.free_pid(choices) {
                        Some(pid) if !fails => {
                            let world = &mut self.fleet.get_mut(id).unwrap().context;
                            (world.child, world.exec) = (Some(pid), true);
                            Event::Spawned(pid)
                        }
                        _ => Event::SpawnFailed(Error::out_of_resources("forks")),
                    };
                    self.fleet.step(id, self.clock(), event, &mut actions);
                    assert!(actions.len() < 1000, "endless attempts to start");
                }
                Action::Forget => forgotten = true,
                _ => {}
            }
        }
        if forgotten {
            assert!(self.fleet.remove(id).is_some());
            self.removed.insert(id);
        }
    }

    /// A PID that no process has. There are few, so that they are used again soon.
    fn free_pid(&self, choices: &mut Choices) -> Option<Pid> {
        let first = choices.below(12) as Pid;
        let used: HashSet<Pid> = self.fleet.iter().filter_map(|(_, member)| member.context.child).collect();
        let mut pids = (0..12).map(|n| 1 + (first + n) % 12);
        pids.find(|pid| !used.contains(pid) && !self.abandoned.contains_key(pid))
    }

    fn check(&self) {
        let units: Vec<_> = self.fleet.iter().map(|(id, member)| (id, &member.unit)).collect();
        let is_up = |unit: &Unit| !unit.is_down();
        let running = self.count(|unit| !unit.has_terminal() && is_up(unit));
        assert_eq!((self.fleet.running(), self.fleet.len()), (running, self.count(|unit| !unit.has_terminal())));
        assert_eq!(self.fleet.is_quiet(), units.iter().all(|(_, unit)| unit.is_down()));
        assert_eq!(self.fleet.deadline(), units.iter().filter_map(|(_, unit)| unit.deadline()).min());
        let led: HashSet<Pid> = units.iter().filter_map(|(_, unit)| unit.leader()).collect();
        let leaders = led.iter().copied().chain(self.abandoned.keys().copied());
        assert_eq!(*self.fleet.leaders(), leaders.collect());
        for (id, unit) in &units {
            if let Some(pid) = unit.leader() {
                assert_eq!(self.fleet.led_by(pid), Some(*id));
            }
            assert_eq!(self.fleet.find(&Target::Unit(*id)).is_ok(), !unit.has_terminal());
        }
        for pid in 0..14 {
            assert!(led.contains(&pid) || self.fleet.led_by(pid).is_none());
            if let Ok(id) = self.fleet.find(&Target::Pid(pid as u64)) {
                assert!(!self.removed.contains(&id));
            }
        }
        self.check_names(&units);
        let ended = |is_session: bool| {
            let unit = |(id, _): &&(UnitId, &Unit)| self.fleet.get(*id).unwrap();
            let is_kept = |id| self.abandoned.values().any(|other| *other == id);
            units
                .iter()
                .filter(move |(id, unit)| {
                    unit.is_down() && unit.has_terminal() == is_session && unit.deadline().is_none() && !is_kept(*id)
                })
                .map(move |entry| unit(&entry).weight)
        };
        assert!(ended(false).count() <= BOUNDS.keep_ended && ended(true).count() <= BOUNDS.max_sessions);
        assert!(ended(false).sum::<usize>() <= KEPT_BYTES, "the specs of ended units are too large");
    }

    /// A name belongs to one unit that was not stopped, and leads to that one.
    fn check_names(&self, units: &[(UnitId, &Unit)]) {
        for name in NAMES {
            let has_name = |unit: &Unit| unit.managed().is_some_and(|managed| managed.name.as_deref() == Some(name));
            let holders: Vec<_> = units.iter().filter(|(_, unit)| has_name(unit) && !unit.is_released()).collect();
            assert!(holders.len() <= 1, "{name} is the name of {holders:?}");
            match self.fleet.find(&Target::Name(name.to_owned())) {
                Ok(id) => {
                    assert!(units.iter().any(|(other, unit)| *other == id && has_name(unit)));
                    assert!(holders.iter().all(|(holder, _)| *holder == id));
                }
                Err(_) => assert!(holders.is_empty(), "{name} is not found: {holders:?}"),
            }
        }
    }
}
