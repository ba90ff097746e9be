//! What is right for a sandbox, by its record and what the engine says of its container. Pure.
//!
//! It is asked when no operation on the sandbox is going on: at the start, for what an earlier run of tl-host has left
//! half done; after the engine has reported something; and after an operation has failed.
//!
//! | record \ container | runs | is paused | has ended or is gone |
//! |---|---|---|---|
//! | `pending` | end: `failed` | end: `failed` | end: `failed` |
//! | `running` | – | named: `suspended`; unnamed: unpause | remove |
//! | `suspending` | `running` | `suspended` | remove |
//! | `suspended` | `running` | – | remove |
//! | `snapshotting` of a running one | `running` | unpause, `running` | remove |
//! | `snapshotting` of a suspended one | `running` | `suspended` | remove |
//! | `terminated` | remove the container | remove the container | – |
//! | `ending` is set | remove | remove | remove |

use crate::engine::{Container, ContainerState};
use crate::sandbox::model::{Reason, Record, Status};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Record and container agree.
    Keep,
    /// The record gets this status.
    Become(Status),
    /// The container is unpaused; then the sandbox is running.
    Unpause,
    /// What is left of the container is removed, and the sandbox is terminated.
    End(Reason, String),
    /// An ending that has begun is finished: its reason is in the record.
    FinishEnding,
    /// The sandbox is terminated: only its container is still there.
    RemoveContainer,
}

/// Decides what is right for the sandbox of `record`, whose container is `container`; `boot` is the boot that the
/// machine is in.
pub(crate) fn decide(record: &Record, container: Option<&Container>, boot: &str) -> Decision {
    if record.status == Status::Terminated {
        return container.map_or(Decision::Keep, |_| Decision::RemoveContainer);
    }
    if record.ending.is_some() {
        return Decision::FinishEnding;
    }
    if record.status == Status::Pending {
        return Decision::End(Reason::Failed, "its start was interrupted".to_owned());
    }
    match container.map(|container| container.state) {
        Some(ContainerState::Running) => become_unless(record.status, Status::Running),
        Some(ContainerState::Paused) => paused(record),
        None | Some(ContainerState::Created | ContainerState::Exited | ContainerState::Other) => {
            let (reason, details) = why_ended(record, container, boot);
            Decision::End(reason, details)
        }
    }
}

fn become_unless(status: Status, right: Status) -> Decision {
    if status == right { Decision::Keep } else { Decision::Become(right) }
}

/// The container is paused: is the sandbox suspended, or was it paused for something that has not been finished?
fn paused(record: &Record) -> Decision {
    let is_named = record.spec.name.is_some();
    match record.status {
        Status::Snapshotting if record.returns_to != Some(Status::Suspended) => Decision::Unpause,
        // Without a name it cannot be resumed by a client.
        Status::Running if !is_named => Decision::Unpause,
        status => become_unless(status, Status::Suspended),
    }
}

/// Why a sandbox has ended without an operation of tl-host.
fn why_ended(record: &Record, container: Option<&Container>, boot: &str) -> (Reason, String) {
    if record.boot != boot {
        return (Reason::MachineRestarted, "the machine has been restarted".to_owned());
    }
    let Some(container) = container else {
        return (Reason::Engine, "its container was removed from outside".to_owned());
    };
    match (container.state, container.exit_code) {
        (ContainerState::Exited, _) if container.is_oom_killed => {
            (Reason::Engine, "the out-of-memory killer has ended its PID 1".to_owned())
        }
        (ContainerState::Exited, Some(137)) => (Reason::Engine, "its container was killed from outside".to_owned()),
        (ContainerState::Exited, Some(code)) if record.spec.entrypoint.is_empty() => {
            (Reason::MainProcessEnded, format!("its PID 1 has ended with exit code {code}"))
        }
        (ContainerState::Exited, Some(code)) => {
            (Reason::MainProcessEnded, format!("its main process has ended with exit code {code}"))
        }
        _ => (Reason::Engine, "its container was ended from outside".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::model::Termination;
    use crate::sandbox::testing::record;

    const ENDED: [(ContainerState, Option<i64>, bool); 5] = [
        (ContainerState::Created, None, false),
        (ContainerState::Exited, Some(0), false),
        (ContainerState::Exited, Some(137), false),
        (ContainerState::Exited, Some(137), true),
        (ContainerState::Other, None, false),
    ];

    fn container(state: ContainerState, exit_code: Option<i64>, is_oom_killed: bool) -> Container {
        Container {
            id: "c".to_owned(),
            state,
            pid: None,
            exit_code,
            is_oom_killed,
            address: None,
            name: String::new(),
            published_at: None,
            labels: Vec::new(),
        }
    }

    fn of(status: Status, name: Option<&str>, returns_to: Option<Status>) -> Record {
        let mut record = record("x", status);
        record.spec.name = name.map(str::to_owned);
        record.returns_to = returns_to;
        record
    }

    fn running() -> Container {
        container(ContainerState::Running, None, false)
    }

    fn paused() -> Container {
        container(ContainerState::Paused, None, false)
    }

    /// All states that a container can be in, and that it is gone.
    fn all_containers() -> Vec<Option<Container>> {
        let ended = ENDED.map(|(state, code, is_oom)| Some(container(state, code, is_oom)));
        [None, Some(running()), Some(paused())].into_iter().chain(ended).collect()
    }

    #[test]
    fn the_table_of_living_sandboxes() {
        use Status::{Running, Snapshotting, Suspended, Suspending};
        let become_suspended = || Decision::Become(Suspended);
        let become_running = || Decision::Become(Running);
        for (status, returns_to, name, if_running, if_paused) in [
            (Running, None, Some("a"), Decision::Keep, become_suspended()),
            (Running, None, None, Decision::Keep, Decision::Unpause),
            (Suspending, None, Some("a"), become_running(), become_suspended()),
            (Suspended, None, Some("a"), become_running(), Decision::Keep),
            (Snapshotting, Some(Running), Some("a"), become_running(), Decision::Unpause),
            (Snapshotting, Some(Running), None, become_running(), Decision::Unpause),
            (Snapshotting, None, None, become_running(), Decision::Unpause),
            (Snapshotting, Some(Suspended), Some("a"), become_running(), become_suspended()),
        ] {
            let record = of(status, name, returns_to);
            assert_eq!(decide(&record, Some(&running()), "boot"), if_running, "{status:?} {name:?}, runs");
            assert_eq!(decide(&record, Some(&paused()), "boot"), if_paused, "{status:?} {name:?}, is paused");
        }
    }

    #[test]
    fn every_living_sandbox_whose_container_has_ended_is_ended_with_the_reason() {
        for status in [Status::Running, Status::Suspending, Status::Suspended, Status::Snapshotting] {
            for (boot, entrypoint, found, reason, part) in [
                ("boot", false, None, Reason::Engine, "removed from outside"),
                ("boot", false, Some(ENDED[0]), Reason::Engine, "ended from outside"),
                ("boot", false, Some(ENDED[1]), Reason::MainProcessEnded, "PID 1 has ended with exit code 0"),
                ("boot", true, Some(ENDED[1]), Reason::MainProcessEnded, "main process has ended with exit code 0"),
                ("boot", true, Some(ENDED[2]), Reason::Engine, "killed from outside"),
                ("boot", true, Some(ENDED[3]), Reason::Engine, "out-of-memory"),
                ("boot", false, Some(ENDED[4]), Reason::Engine, "ended from outside"),
                ("other", true, None, Reason::MachineRestarted, "restarted"),
                ("other", true, Some(ENDED[1]), Reason::MachineRestarted, "restarted"),
                ("other", true, Some(ENDED[2]), Reason::MachineRestarted, "restarted"),
            ] {
                let mut record = of(status, Some("a"), None);
                record.spec.entrypoint = if entrypoint { vec!["sh".to_owned()] } else { Vec::new() };
                let found = found.map(|(state, code, is_oom)| container(state, code, is_oom));
                let decision = decide(&record, found.as_ref(), boot);
                let Decision::End(is, details) = &decision else { panic!("{status:?} {found:?}: {decision:?}") };
                assert!(*is == reason && details.contains(part), "{status:?} {found:?}: {decision:?}");
            }
        }
    }

    #[test]
    fn a_pending_one_has_failed_and_an_ending_one_is_ended_whatever_its_container_does() {
        for container in all_containers() {
            let decision = decide(&of(Status::Pending, None, None), container.as_ref(), "boot");
            assert!(matches!(decision, Decision::End(Reason::Failed, _)), "{container:?}: {decision:?}");
            for status in Status::ALL.into_iter().filter(|status| *status != Status::Terminated) {
                let mut record = of(status, None, None);
                record.ending = Some(Termination { at: 1, reason: Reason::Deleted, details: String::new() });
                assert_eq!(decide(&record, container.as_ref(), "boot"), Decision::FinishEnding, "{status:?}");
            }
        }
    }

    #[test]
    fn a_terminated_one_has_no_container() {
        for container in all_containers() {
            let right = if container.is_some() { Decision::RemoveContainer } else { Decision::Keep };
            for boot in ["boot", "other"] {
                assert_eq!(decide(&of(Status::Terminated, None, None), container.as_ref(), boot), right);
            }
        }
    }

    /// What is decided is right once it is done: a second look finds nothing to do.
    #[test]
    fn every_decision_leads_to_agreement() {
        let names = [None, Some("a")];
        let returns = [None, Some(Status::Running), Some(Status::Suspended)];
        for status in Status::ALL {
            for (name, returns_to) in names.into_iter().flat_map(|name| returns.map(|status| (name, status))) {
                for container in all_containers() {
                    let mut record = of(status, name, returns_to);
                    let mut container = container.clone();
                    let decision = decide(&record, container.as_ref(), "boot");
                    match decision {
                        Decision::Keep => {}
                        Decision::Become(status) => record.status = status,
                        Decision::Unpause => (record.status, container) = (Status::Running, Some(running())),
                        Decision::End(..) | Decision::FinishEnding | Decision::RemoveContainer => {
                            (record.status, container) = (Status::Terminated, None);
                        }
                    }
                    record.returns_to = None;
                    let then = decide(&record, container.as_ref(), "boot");
                    // An unnamed sandbox cannot be suspended; one that is nevertheless stays so.
                    assert_eq!(then, Decision::Keep, "{status:?} {name:?} {returns_to:?} {container:?}: {decision:?}");
                }
            }
        }
    }
}
