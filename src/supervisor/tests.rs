//! The supervisor thread, driven by the test: it forks nothing and reaps no children.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::actor::{Actor, Parts};
use super::builder::probes;
use super::cgroups::Cgroups;
use super::context::UnitContext;
use super::fd_budget::Share;
use super::limits::DefaultLimits;
use super::mailbox::{Inbox, Wake, mailbox};
use super::probes::Probes;
use super::resolver::Resolver;
use super::*;
use crate::error::Error;
use crate::events::EventLog;
use crate::health::{Health, Verdict};
use crate::logs::{LogLimits, LogStore};
use crate::model::{HealthCheck, HealthKind, ManagedSpec, Policy, ProcessSpec, UnitId, UserSpec};
use crate::output::Output;
use crate::ports::{FindUnits, Ports};
use crate::trees::Trees;
use crate::unit::fleet::{Bounds, Fleet};
use crate::unit::{Event, Unit};
use tl_os::spawn::Spawner;

const LONG: Duration = Duration::from_secs(60);

fn actor(dir: &std::path::Path, inbox: Inbox, probes: Probes) -> Actor {
    let events = EventLog::new();
    let ports = Ports::new(FindUnits(Box::new(|candidates| vec![None; candidates.len()])), &events);
    let parts = Parts {
        inbox,
        fleet: Fleet::new(Bounds { max_running: 10, keep_ended: 10, max_sessions: 10 }),
        logs: LogStore::open(dir, LogLimits { per_unit: 1 << 20, total: 1 << 20 }).unwrap(),
        events,
        ports,
        output: Output::start(|_, _| {}, |_| {}).unwrap(),
        probes,
        trees: Trees::start(|_| {}, || {}).unwrap(),
        resolver: Resolver::start(|_| {}, || {}).unwrap(),
        on_main_thread: Box::new(drop),
        on_managed_start: Box::new(drop),
        spawner: Spawner::new(None, false).unwrap(),
        cgroups: Cgroups::none(),
        default_limits: DefaultLimits::default(),
        default_user: UserSpec::Uid { uid: 0, gid: None },
        base_env: Vec::new(),
        descriptors: Share::of(1_000, 100),
        session_idle: LONG,
    };
    Actor::new(parts, LONG)
}

fn checked(port: u16) -> ProcessSpec {
    let check = HealthCheck {
        kind: HealthKind::Tcp,
        port,
        path: None,
        initial_delay_ms: 0,
        interval_ms: 20,
        timeout_ms: 60_000,
        failure_threshold: 1,
    };
    let managed = ManagedSpec { health: Some(check), ..ManagedSpec::new(Policy::Never) };
    ProcessSpec::command("true").managed(managed).build().unwrap()
}

/// Handles messages until one matches `want`.
fn until(actor: &mut Actor, mut want: impl FnMut(&Message) -> bool) {
    let deadline = Instant::now() + LONG;
    loop {
        let wake = actor.next_wake().map_or(deadline, |at| actor.clock.instant(at));
        let message = match actor.parts.inbox.wait(Some(wake.min(deadline))) {
            Wake::Message(message) => Some(message),
            _ => None,
        };
        let wanted = message.as_ref().is_some_and(&mut want);
        assert!(wanted || Instant::now() < deadline, "no matching message in time");
        if let Some(message) = message {
            actor.receive(message);
        }
        actor.tick();
        if wanted {
            return;
        }
    }
}

#[test]
fn after_a_panic_a_new_health_thread_probes_all_running_units_again() {
    let dir = tempfile::tempdir().unwrap();
    let (messages, inbox) = mailbox().unwrap();
    let (doomed, died) = (messages.clone(), AtomicBool::new(false));
    // The first thread panics at its first verdict.
    let start = move |_| {
        let first = !died.swap(true, Ordering::SeqCst);
        let (to_self, died) = (doomed.clone(), doomed.clone());
        let report = move |verdict: Verdict| {
            assert!(!first, "on purpose");
            to_self.send(Message::Health(verdict));
        };
        Health::start(report, move || died.send(Message::HealthDied))
    };
    let mut actor = actor(dir.path(), inbox, Probes::new(start).unwrap());
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = checked(service.local_addr().unwrap().port());
    let now = actor.clock.now();
    for n in 1..=3 {
        let (id, spec) = (UnitId(n), spec.clone());
        let (log, managed) = (actor.parts.logs.create(id), spec.managed.clone());
        let context = || UnitContext::new(spec, log);
        actor.parts.fleet.admit(id, Unit::new(managed, None), 0, context).unwrap();
        // Pretends that the unit was forked. No process has this PID: the kernel gives none above 4,194,304.
        for event in [Event::Start, Event::UserResolved, Event::Spawned(5_000_000 + n as i32)] {
            actor.parts.fleet.step(id, now, event, &mut Vec::new());
        }
        // The third unit has ended.
        actor.step(id, now, Event::ExecOk);
        if n == 3 {
            actor.step(id, now, Event::Exited(crate::model::Exit::Code(0)));
        }
    }
    until(&mut actor, |message| matches!(message, Message::HealthDied));
    let mut seen = Vec::new();
    until(&mut actor, |message| {
        if let Message::Health(verdict) = message {
            assert_eq!(verdict.outcome, Ok(()));
            seen.push(verdict.unit.0);
        }
        seen.contains(&1) && seen.contains(&2)
    });
    assert!(!seen.contains(&3), "{seen:?}");
}

#[test]
fn a_shutdown_with_the_longest_possible_grace_does_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, inbox) = mailbox().unwrap();
    let mut actor = actor(dir.path(), inbox, probes(sender).unwrap());
    actor.begin_shutdown(Duration::MAX, None, false);
    assert!(actor.shutdown.is_some());
}

#[test]
fn a_spec_that_is_invalid_for_the_operation_is_rejected_before_any_command_is_sent() {
    let (messages, inbox) = mailbox().unwrap();
    let default_user = Arc::new(UserSpec::Uid { uid: 0, gid: None });
    let events = EventLog::new();
    let ports = ports::ports(messages.clone(), &events);
    let handle = Handle { messages, ids: Arc::new(AtomicU64::new(1)), default_user, events, ports };
    let invalid = |error: Error, right: &str| assert!(matches!(error, Error::Invalid(wrong) if wrong.field == right));
    let on_terminal = || ProcessSpec::command("sh").stdio(crate::model::TerminalSize::default());
    invalid(handle.start(on_terminal().build().unwrap()).unwrap_err(), "terminal");
    invalid(handle.begin_start(on_terminal().build().unwrap()).1.wait().unwrap_err(), "terminal");
    invalid(handle.open_pty(on_terminal().timeout(LONG).build().unwrap()).unwrap_err(), "timeout");
    assert!(inbox.is_empty());
}
