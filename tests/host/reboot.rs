//! A restart of the machine: all processes are killed, and what was in memory is gone.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::start_host_alone;
use crate::order::disorder;

#[test]
fn after_a_restart_of_the_machine_sandboxes_are_terminated_and_snapshots_can_be_used() {
    let Some(mut host) = start_host_alone(None) else { return };
    let named = host.create(json!({ "name": "named", "timeout_secs": 1000 }));
    let unnamed = host.create(json!({}));
    let suspended = host.create(json!({ "name": "suspended", "network": { "allow_internet_access": false } }));
    host.shell(&named, "echo kept >/tmp/kept");
    let answer = host.post("/sandboxes/named/snapshot");
    let snapshot = answer.body["snapshot_id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    assert_eq!(host.post("/sandboxes/suspended/suspend").status, 200);
    let ended_before = host.create(json!({}));
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{ended_before}"), None).status, 200);
    host.kill(Signal::SIGKILL);
    host.podman().reboot();
    host.change_boot();
    host.restart();
    for id in [&named, &unnamed, &suspended] {
        let info = host.request("GET", &format!("/sandboxes/{id}"), None).body;
        assert_eq!((&info["status"], &info["termination_reason"]), (&json!("terminated"), &json!("machine_restarted")));
        assert!(info["error_details"]["message"].as_str().is_some_and(|text| text.contains("restarted")), "{info}");
        assert_eq!(host.ask("GET", id, "/health", "").status, 404);
        assert_eq!(host.post(&format!("/sandboxes/{id}/resume")).status, 409);
    }
    let info = host.request("GET", &format!("/sandboxes/{ended_before}"), None).body;
    assert_eq!(info["termination_reason"], "deleted");
    assert_eq!((disorder(&host), host.containers()), (None, Vec::new()));
    // Names are free again, networks are made again, and snapshots are what they were.
    let again = host.create(json!({ "name": "named", "snapshot_id": snapshot }));
    assert_eq!(host.shell(&again, "cat /tmp/kept"), "kept");
    host.create(json!({ "name": "suspended", "network": { "allow_internet_access": false } }));
    assert_eq!(host.request("GET", "/snapshots", None).body["snapshots"][0]["id"], json!(snapshot));
    assert_eq!(disorder(&host), None);
}
