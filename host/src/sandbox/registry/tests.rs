use super::*;
use crate::sandbox::model::{Reason, Termination};
use crate::sandbox::testing::record;
use std::time::Duration;

fn registry(records: Vec<Record>) -> (tempfile::TempDir, Arc<Store>, Arc<Registry>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&directory.path().join("state")).unwrap());
    (directory, store, Registry::new(records, Vec::new()))
}

fn named(letter: &str, name: &str, status: Status) -> Record {
    let mut record = record(letter, status);
    record.spec.name = Some(name.to_owned());
    record
}

#[test]
fn a_name_belongs_to_one_living_sandbox() {
    let terminated = named("t", "env", Status::Terminated);
    let (_directory, store, registry) = registry(vec![terminated]);
    assert!(registry.lock().find("env").is_none());
    let mut first = registry.add(named("a", "env", Status::Running), &store).unwrap();
    assert!(matches!(registry.add(named("b", "env", Status::Running), &store), Err(SandboxError::NameTaken(_))));
    let mut second = registry.add(named("b", "other", Status::Running), &store).unwrap();
    assert!(matches!(second.reserve_name("env"), Err(SandboxError::NameTaken(_))));
    // A reserved name is taken, but finds nothing yet; without a change of the record it is free again.
    second.reserve_name("third").unwrap();
    assert!(first.reserve_name("third").is_err() && registry.lock().find("third").is_none());
    second.save(|record| record.spec.exposed_ports = vec![80]).unwrap();
    first.reserve_name("third").unwrap();
    first.save(|record| record.spec.name = Some("third".to_owned())).unwrap();
    assert_eq!(registry.lock().find("third").unwrap().record.id, first.id());
    assert!(registry.lock().find("env").is_none());
    // The end of a sandbox frees its name.
    first.save(|record| record.status = Status::Terminated).unwrap();
    registry.add(named("c", "third", Status::Running), &store).unwrap();
}

#[test]
fn there_is_one_operation_at_a_time_and_reads_do_not_wait() {
    let (_directory, store, registry) = registry(vec![named("a", "env", Status::Running)]);
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    let operation = registry.begin(None, "env", &store, None).unwrap();
    assert!(matches!(registry.begin(None, "env", &store, soon()), Err(SandboxError::Busy(_))));
    assert!(registry.begin_any(operation.id(), &store).is_none());
    assert_eq!(registry.lock().find("env").unwrap().record.status, Status::Running);
    let (waits_for, waiting_store) = (Arc::clone(&registry), Arc::clone(&store));
    let waiter = std::thread::spawn(move || waits_for.begin(None, "env", &waiting_store, None).map(|_| ()));
    drop(operation);
    waiter.join().unwrap().unwrap();
    assert!(matches!(registry.begin(Some("other"), "env", &store, None), Err(SandboxError::Unknown(_))));
}

#[test]
fn who_waits_for_a_sandbox_that_is_terminated_meanwhile_does_not_get_it() {
    let (_directory, store, registry) = registry(vec![named("a", "env", Status::Running)]);
    let mut operation = registry.begin(None, "env", &store, None).unwrap();
    let (waits_for, waiting_store) = (Arc::clone(&registry), Arc::clone(&store));
    let waiter = std::thread::spawn(move || waits_for.begin(None, "env", &waiting_store, None).map(|_| ()));
    operation.save(|record| record.status = Status::Terminated).unwrap();
    drop(operation);
    assert!(matches!(waiter.join().unwrap(), Err(SandboxError::Unknown(_))));
}

#[test]
fn a_check_waits_for_the_operation_that_is_going_on() {
    let (_directory, store, registry) = registry(vec![record("a", Status::Running)]);
    let id = "a".repeat(21);
    let operation = registry.begin(None, &id, &store, None).unwrap();
    registry.change(|state| state.ask_for_check(&id));
    let (waits_for, waiting_store) = (Arc::clone(&registry), Arc::clone(&store));
    let (tell, told) = std::sync::mpsc::channel();
    let checks = std::thread::spawn(move || tell.send(waits_for.begin_check("", &waiting_store).id().to_owned()));
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    drop(operation);
    assert_eq!(told.recv().unwrap(), id);
    checks.join().unwrap().unwrap();
}

#[test]
fn checks_take_turns() {
    let (_directory, store, registry) = registry(["a", "b", "c"].map(|id| record(id, Status::Running)).to_vec());
    let mut last = String::new();
    let mut order = String::new();
    for _ in 0..6 {
        registry.change(|state| ["a", "b", "c"].map(|id| state.ask_for_check(&id.repeat(21))));
        registry.begin_check(&last, &store).id().clone_into(&mut last);
        order.push_str(last.get(..1).unwrap());
    }
    assert_eq!(order, "abcabc");
}

#[test]
fn what_the_disk_has_not_taken_is_not_seen() {
    let (directory, store, registry) = registry(Vec::new());
    let mut operation = registry.add(record("a", Status::Running), &store).unwrap();
    std::fs::remove_dir_all(directory.path().join("state/sandboxes")).unwrap();
    operation.save(|record| record.status = Status::Suspending).unwrap_err();
    assert_eq!(registry.lock().find(operation.id()).unwrap().record.status, Status::Running);
    operation.save_anyway(|record| record.status = Status::Suspended, |_| {}).unwrap_err();
    assert_eq!(registry.lock().find(operation.id()).unwrap().record.status, Status::Suspended);
}

#[test]
fn what_an_operation_has_left_half_done_is_checked() {
    let (_directory, store, registry) = registry(Vec::new());
    let is_asked_for = |id: &str| registry.lock().unchecked.contains_key(&id.repeat(21));
    drop(registry.add(record("a", Status::Pending), &store).unwrap());
    assert!(is_asked_for("a"));
    let mut whole = registry.add(record("b", Status::Pending), &store).unwrap();
    whole.save(|record| record.status = Status::Running).unwrap();
    drop(whole);
    assert!(!is_asked_for("b"));
}

#[test]
fn a_check_that_is_postponed_keeps_no_other_waiting() {
    let (_directory, store, registry) = registry(["a", "b"].map(|id| record(id, Status::Running)).to_vec());
    let begun = Instant::now();
    let pause = Duration::from_millis(200);
    registry.change(|state| {
        state.postpone_check(&"a".repeat(21), begun + pause);
        state.ask_for_check(&"b".repeat(21));
    });
    assert_eq!(registry.begin_check("", &store).id(), "b".repeat(21));
    // The other is due after its pause, and at once if something happens to it.
    assert_eq!(registry.begin_check("", &store).id(), "a".repeat(21));
    assert!(begun.elapsed() >= pause);
    registry.change(|state| state.postpone_check(&"a".repeat(21), begun + Duration::from_secs(3600)));
    registry.change(|state| state.ask_for_check(&"a".repeat(21)));
    assert_eq!(registry.begin_check("", &store).id(), "a".repeat(21));
}

#[test]
fn a_name_is_free_once_the_end_of_its_sandbox_has_begun() {
    let named = |letter: &str| {
        let mut record = record(letter, Status::Pending);
        record.spec.name = Some("env".to_owned());
        record
    };
    let (_directory, store, registry) = registry(Vec::new());
    let mut first = registry.add(named("a"), &store).unwrap();
    assert!(matches!(registry.add(named("b"), &store), Err(SandboxError::NameTaken(_))));
    let ending = Termination { at: 1, reason: Reason::Failed, details: String::new() };
    first.save(|record| record.ending = Some(ending)).unwrap();
    assert!(registry.lock().find("env").is_none());
    let second = registry.add(named("b"), &store).unwrap();
    assert_eq!(registry.lock().find("env").map(|entry| entry.record.id.clone()), Some("b".repeat(21)));
    drop((first, second));
    // Also after a restart.
    let records = registry.lock().sandboxes.values().map(|entry| entry.record.clone()).collect();
    let again = Registry::new(records, Vec::new());
    assert_eq!(again.lock().find("env").map(|entry| entry.record.id.clone()), Some("b".repeat(21)));
}
