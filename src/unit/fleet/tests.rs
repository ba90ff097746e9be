//! Addressing, limits and bounded memory of the fleet.

use std::sync::Arc;

use crate::model::{Exit, ManagedSpec, Policy};
use crate::unit::fleet::*;

const BOUNDS: Bounds = Bounds { max_running: 3, keep_ended: 2, max_sessions: 2 };

fn at(secs: u64) -> Now {
    Now { mono: Duration::from_secs(secs), wall: secs * 1000 }
}

fn start(fleet: &mut Fleet<()>, id: u64, pid: Pid, managed: Option<ManagedSpec>) -> Result<UnitId, Error> {
    let id = UnitId(id);
    fleet.admit(id, Unit::new(managed.map(Arc::new), None), 0, || ())?;
    for event in [Event::Start, Event::UserResolved, Event::Spawned(pid), Event::ExecOk] {
        fleet.step(id, at(0), event, &mut Vec::new());
    }
    Ok(id)
}

fn end(fleet: &mut Fleet<()>, id: UnitId) {
    for event in [Event::Exited(Exit::Code(0)), Event::Drained, Event::TreeGone] {
        fleet.step(id, at(1), event, &mut Vec::new());
    }
}

fn named(name: &str, policy: Policy) -> Option<ManagedSpec> {
    Some(ManagedSpec { name: Some(name.to_owned()), ..ManagedSpec::new(policy) })
}

#[test]
fn a_pid_addresses_the_newest_process_that_had_it() {
    let mut fleet = Fleet::new(BOUNDS);
    let old = start(&mut fleet, 1, 300, None).unwrap();
    assert_eq!(fleet.led_by(300), Some(old));
    end(&mut fleet, old);
    assert_eq!(fleet.find(&Target::Pid(300)), Ok(old));
    assert_eq!(fleet.led_by(300), None, "its leader was reaped");
    let new = start(&mut fleet, 2, 300, None).unwrap();
    assert_eq!(fleet.find(&Target::Pid(300)), Ok(new));
    fleet.remove(old);
    assert_eq!(fleet.find(&Target::Pid(300)), Ok(new), "removing the old unit leaves the index of the new one");
    for pid in [0, 301, u64::MAX] {
        assert_eq!(fleet.find(&Target::Pid(pid)), Err(Error::NotFound(Target::Pid(pid))));
    }
}

#[test]
fn a_managed_process_can_be_addressed_by_the_pids_of_earlier_runs() {
    let mut fleet = Fleet::new(BOUNDS);
    let web = start(&mut fleet, 1, 300, named("web", Policy::Always)).unwrap();
    fleet.step(web, at(1), Event::Exited(Exit::Code(1)), &mut Vec::new());
    fleet.step(web, at(1), Event::Drained, &mut Vec::new());
    fleet.step(web, at(1), Event::TreeGone, &mut Vec::new());
    assert_eq!(fleet.due(at(1)), None);
    assert_eq!(fleet.due(at(2)), Some(web));
    fleet.step(web, at(2), Event::Tick, &mut Vec::new());
    fleet.step(web, at(2), Event::UserResolved, &mut Vec::new());
    fleet.step(web, at(2), Event::Spawned(301), &mut Vec::new());
    for target in [Target::Pid(300), Target::Pid(301), Target::Name("web".into()), Target::Unit(web)] {
        assert_eq!(fleet.find(&target), Ok(web), "{target}");
    }
    let other = start(&mut fleet, 2, 300, None).unwrap();
    assert_eq!(fleet.find(&Target::Pid(300)), Ok(other), "until another process has that PID");
}

#[test]
fn a_name_is_taken_until_its_unit_is_stopped() {
    let mut fleet = Fleet::new(BOUNDS);
    let first = start(&mut fleet, 1, 300, named("web", Policy::Never)).unwrap();
    assert_eq!(start(&mut fleet, 2, 301, named("web", Policy::Never)), Err(Error::NameInUse("web".into())));
    fleet.step(first, at(1), Event::Stop, &mut Vec::new());
    let second = start(&mut fleet, 3, 302, named("web", Policy::Never)).unwrap();
    assert_eq!(fleet.find(&Target::Name("web".into())), Ok(second), "the name is free while the first unit still ends");
    assert_eq!(fleet.claim_for_restart(first), Err(Error::NameInUse("web".into())));
    end(&mut fleet, second);
    assert_eq!(fleet.claim_for_restart(first), Ok(()));
    assert_eq!(fleet.find(&Target::Name("web".into())), Ok(first), "the restarted unit has its name again");
}

#[test]
fn running_units_are_limited_and_the_unit_that_ended_first_is_forgotten_first() {
    let mut fleet = Fleet::new(BOUNDS);
    let ids: Vec<UnitId> = (1..=3).map(|n| start(&mut fleet, n, 300 + n as Pid, None).unwrap()).collect();
    assert_eq!(start(&mut fleet, 4, 400, None), Err(Error::TooManyProcesses(3)));
    for id in [ids[1], ids[0], ids[2]] {
        end(&mut fleet, id);
    }
    assert_eq!((fleet.running(), fleet.len()), (0, 3));
    assert!(fleet.pop_surplus().is_some());
    assert!(fleet.pop_surplus().is_none());
    assert_eq!(
        fleet.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        [ids[0], ids[2]],
        "the unit that ended first was removed"
    );
}

#[test]
fn sessions_have_limits_of_their_own_and_are_not_found_by_pid_or_id() {
    let mut fleet = Fleet::new(BOUNDS);
    let begin = |fleet: &mut Fleet<()>, id: u64| {
        let id = UnitId(id);
        fleet.admit(id, Unit::with_terminal(), 0, || ())?;
        for event in [Event::Start, Event::UserResolved, Event::Spawned(100 + id.0 as Pid), Event::ExecOk] {
            fleet.step(id, at(0), event, &mut Vec::new());
        }
        Ok(id)
    };
    let first = begin(&mut fleet, 1).unwrap();
    let second = begin(&mut fleet, 2).unwrap();
    assert_eq!(begin(&mut fleet, 3), Err(Error::TooManySessions(2)));
    assert_eq!((fleet.running(), fleet.len(), fleet.is_quiet()), (0, 0, false));
    assert_eq!(fleet.led_by(101), Some(first));
    assert!(fleet.find(&Target::Pid(101)).is_err() && fleet.find(&Target::Unit(first)).is_err());
    end(&mut fleet, first);
    let third = begin(&mut fleet, 4).unwrap();
    let plain = start(&mut fleet, 5, 300, None).unwrap();
    assert_eq!((fleet.running(), fleet.len()), (1, 1));
    for id in [plain, second, third] {
        end(&mut fleet, id);
    }
    assert!(fleet.is_quiet());
    assert!(fleet.pop_surplus().is_some(), "three sessions have ended, and two are remembered");
    assert!(fleet.pop_surplus().is_none() && fleet.get(first).is_none());
    for id in [second, third, plain] {
        fleet.remove(id);
    }
    assert!(fleet.is_quiet() && fleet.members.is_empty() && fleet.ended_sessions.units.is_empty());
}

#[test]
fn the_number_of_pids_of_earlier_runs_is_limited() {
    let mut fleet = Fleet::new(BOUNDS);
    let mut spec = ManagedSpec::new(Policy::Always);
    spec.restart.max_backoff_ms = 0;
    let id = start(&mut fleet, 1, 1, Some(spec)).unwrap();
    for run in 0..2 * OLD_PIDS as u64 {
        fleet.step(id, at(run * 2), Event::Exited(Exit::Code(1)), &mut Vec::new());
        fleet.step(id, at(run * 2), Event::Drained, &mut Vec::new());
        fleet.step(id, at(run * 2 + 1), Event::Tick, &mut Vec::new());
        fleet.step(id, at(run * 2 + 1), Event::UserResolved, &mut Vec::new());
        fleet.step(id, at(run * 2 + 1), Event::Spawned(2 + run as Pid), &mut Vec::new());
        fleet.step(id, at(run * 2 + 1), Event::ExecOk, &mut Vec::new());
    }
    assert_eq!(fleet.by_pid.len(), OLD_PIDS);
    let newest = 2 * OLD_PIDS as u64 + 1;
    for pid in [1, newest, newest - OLD_PIDS as u64 + 2] {
        assert_eq!(fleet.find(&Target::Pid(pid)), Ok(id), "the first PID and the newest ones: {pid}");
    }
    assert!(fleet.find(&Target::Pid(2)).is_err());
    fleet.remove(id);
    assert!(
        fleet.by_pid.is_empty() && fleet.by_name.is_empty() && fleet.due.is_empty() && fleet.ended.units.is_empty()
    );
}

#[test]
fn the_size_of_all_remembered_specs_is_limited() {
    let mut fleet = Fleet::new(Bounds { max_running: 100, keep_ended: 100, max_sessions: 0 });
    for n in 1..=10 {
        let id = UnitId(n);
        fleet.admit(id, Unit::new(None, None), KEPT_BYTES / 4, || ()).unwrap();
        for event in [Event::Start, Event::UserResolved, Event::Spawned(n as Pid), Event::ExecOk] {
            fleet.step(id, at(0), event, &mut Vec::new());
        }
        end(&mut fleet, id);
        while fleet.pop_surplus().is_some() {}
    }
    assert_eq!(fleet.len(), 4);
}

#[test]
fn a_shutdown_terminates_managed_processes_first_and_newer_ones_before_older_ones() {
    let mut fleet = Fleet::new(Bounds { max_running: 9, ..BOUNDS });
    for (id, managed) in [(1, None), (2, named("a", Policy::Never)), (4, named("b", Policy::Always)), (5, None)] {
        start(&mut fleet, id, 300 + id as Pid, managed).unwrap();
    }
    fleet.admit(UnitId(3), Unit::with_terminal(), 0, || ()).unwrap();
    fleet.admit(UnitId(6), Unit::with_terminal(), 0, || ()).unwrap();
    assert_eq!(fleet.shutdown_order(), [4, 2, 6, 3, 5, 1].map(UnitId));
}

#[test]
fn an_abandoned_leader_keeps_its_unit_and_counts_as_running_until_it_is_reaped() {
    let mut fleet = Fleet::new(Bounds { keep_ended: 0, ..BOUNDS });
    for n in 1..=3 {
        start(&mut fleet, n, 300 + n as Pid, None).unwrap();
    }
    let stuck = UnitId(1);
    fleet.abandon(stuck, 301);
    end(&mut fleet, stuck);
    assert!(fleet.leaders().contains(&301));
    assert!(fleet.pop_surplus().is_none(), "the unit can still be looked up");
    assert_eq!(start(&mut fleet, 4, 400, None), Err(Error::TooManyProcesses(3)));
    assert_eq!(fleet.reaped(302), None);
    assert_eq!(fleet.reaped(301), Some(stuck));
    assert!(fleet.pop_surplus().is_some() && fleet.find(&Target::Unit(stuck)).is_err());
    start(&mut fleet, 5, 301, None).unwrap();
    assert_eq!(*fleet.leaders(), HashSet::from([301, 302, 303]));
    fleet.remove(UnitId(5));
    assert_eq!(*fleet.leaders(), HashSet::from([302, 303]));
}
