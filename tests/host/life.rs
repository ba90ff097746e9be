//! The life of a sandbox, and what is left of it.

use serde_json::json;

use crate::harness::{start_host, wait_until};

#[test]
fn a_sandbox_is_made_listed_and_deleted_and_nothing_is_left() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let answer = host.request("GET", "/sandboxes", None);
    assert_eq!(answer.body["sandboxes"][0]["status"], "running", "{answer:?}");
    assert_eq!(host.containers(), [format!("tl-{id}")]);
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    assert_eq!(host.containers(), [""; 0]);
    let answer = host.request("GET", &format!("/sandboxes/{id}"), None);
    assert!(answer.status == 404 || answer.body["status"] == "terminated", "{answer:?}");
}

#[test]
fn a_restart_of_tl_host_changes_no_sandbox() {
    let Some(mut host) = start_host(&[]) else { return };
    let id = host.create(json!({ "name": "kept" }));
    host.kill(nix::sys::signal::Signal::SIGKILL);
    host.restart();
    let answer = host.request("GET", "/sandboxes/kept", None);
    assert_eq!((&answer.body["id"], &answer.body["status"]), (&json!(id), &json!("running")), "{answer:?}");
    assert_eq!(host.request("DELETE", "/sandboxes/kept", None).status, 200);
}

#[test]
fn a_sandbox_that_is_being_deleted_takes_no_more_requests() {
    let Some(host) = start_host(&[]) else { return };
    // tl-init gives it 10 s to end.
    let id = host.create(json!({ "entrypoint": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"] }));
    let ask = || host.ask("GET", &id, "/health", "").status;
    assert_eq!(ask(), 200);
    std::thread::scope(|scope| {
        let deletion = scope.spawn(|| host.request("DELETE", &format!("/sandboxes/{id}"), None).status);
        wait_until("the proxy to refuse requests", || (ask() == 404).then_some(()));
        assert!(!deletion.is_finished());
        assert_eq!(deletion.join().unwrap(), 200);
    });
}
