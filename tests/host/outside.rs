//! Sandboxes whose containers are changed by somebody else: tl-host follows the engine's events.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::harness::{Host, IMAGE, init, podman, start_host, wait_until};
use crate::podman::Podman;

/// Waits until the sandbox has this status, and returns what the API says of it.
fn wait_for(host: &Host, id: &str, status: &str) -> Value {
    wait_until(&format!("{id} to be {status}"), || {
        let body = host.request("GET", &format!("/sandboxes/{id}"), None).body;
        (body["status"] == status).then_some(body)
    })
}

#[test]
fn one_that_is_killed_or_removed_from_outside_is_terminated() {
    let Some(host) = start_host(&[]) else { return };
    for words in [["kill"].as_slice(), &["rm", "--force"], &["stop", "--time", "20"]] {
        let id = host.create(json!({ "name": "env" }));
        let container = format!("tl-{id}");
        host.podman().run(&[words, &[&container]].concat());
        let info = wait_for(&host, &id, "terminated");
        // `stop` lets tl-init shut down by itself.
        let reasons = if words[0] == "stop" { ["main_process_ended"; 2] } else { ["engine"; 2] };
        assert!(reasons.contains(&info["termination_reason"].as_str().unwrap()), "{words:?}: {info}");
        // Its name is free, and nothing is left of it.
        assert_eq!(host.request("GET", "/sandboxes/env", None).status, 404);
        assert_eq!(host.containers(), [""; 0]);
        assert!(!host.state_dir().join("tokens").join(&id).exists());
    }
}

#[test]
fn one_that_is_paused_from_outside_is_suspended_unless_it_has_no_name() {
    let Some(host) = start_host(&[]) else { return };
    let named = host.create(json!({ "name": "env" }));
    let unnamed = host.create(json!({}));
    let state = |id: &str| host.podman().run(&["inspect", "--format", "{{.State.Status}}", &format!("tl-{id}")]);
    for id in [&named, &unnamed] {
        host.podman().run(&["pause", &format!("tl-{id}")]);
    }
    wait_for(&host, &named, "suspended");
    wait_until("the unnamed one to run again", || (state(&unnamed) == "running").then_some(()));
    host.podman().run(&["unpause", &format!("tl-{named}")]);
    wait_for(&host, &named, "running");
}

#[test]
fn a_record_that_is_damaged_costs_neither_the_others_nor_its_container() {
    let Some(mut host) = start_host(&[]) else { return };
    let (damaged, good) = (host.create(json!({})), host.create(json!({})));
    host.kill(nix::sys::signal::Signal::SIGKILL);
    let record = host.state_dir().join(format!("sandboxes/{damaged}.json"));
    std::fs::write(&record, "{\"id\": ").unwrap();
    host.restart();
    assert_eq!(host.request("GET", &format!("/sandboxes/{damaged}"), None).status, 404);
    assert_eq!(host.request("GET", &format!("/sandboxes/{good}"), None).body["status"], "running");
    assert!(!record.exists() && host.state_dir().join(format!("damaged/{damaged}.json")).exists());
    assert_eq!(host.containers().len(), 2);
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{good}"), None).status, 200);
    assert_eq!(host.containers(), [format!("tl-{damaged}")]);
}

#[test]
fn a_container_that_somebody_else_has_made_from_a_snapshot_is_left_alone() {
    let Some(mut host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let answer = host.request("POST", &format!("/sandboxes/{id}/snapshot"), None);
    let snapshot = answer.body["snapshot_id"].as_str().expect("the id of the snapshot").to_owned();
    // It has all labels of the sandbox and of the snapshot.
    host.podman().run(&["create", "--name", "theirs", &format!("localhost/tl-snapshot:{snapshot}")]);
    host.restart();
    assert_eq!(host.request("GET", &format!("/sandboxes/{id}"), None).body["status"], "running");
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    host.restart();
    assert_eq!(host.containers(), ["theirs"]);
    host.podman().run(&["rm", "theirs"]);
    assert_eq!(host.request("DELETE", &format!("/snapshots/{snapshot}"), None).status, 200);
}

/// Asks the proxy for a file, and returns the whole answer.
fn ask_proxy(host: &Host, name: &str) -> String {
    let address = host.proxy.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).expect("connect to the proxy");
    let key = &host.key;
    write!(stream, "GET /etc/passwd HTTP/1.0\r\nHost: {name}.local\r\nAuthorization: Bearer {key}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer of the proxy");
    answer
}

#[test]
fn a_request_does_not_reach_the_container_that_got_the_address_of_a_sandbox() {
    if podman().is_none() {
        return;
    }
    let Some(init) = init() else { return };
    let host = Host::start(Box::leak(Box::new(Podman::start(None))), init, &[]);
    let id = host.create(json!({ "name": "old", "exposed_ports": [8080] }));
    let podman = host.podman();
    let address = podman.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &format!("tl-{id}")]);
    // Without the engine, tl-host does not learn that the container is gone.
    podman.kill_service();
    podman.run(&["rm", "--force", "--time", "0", &format!("tl-{id}")]);
    let serve = "httpd -p 8080 -h / && exec httpd -f -p 9501 -h /";
    podman.run(&["run", "--detach", "--name", "other", "--ip", &address, IMAGE, "sh", "-c", serve]);
    for (port, name) in [(8080, "8080-old"), (9501, "old")] {
        wait_until("the other container to listen", || TcpStream::connect((address.as_str(), port)).ok());
        let answer = ask_proxy(&host, name);
        assert!(answer.contains(" 503 ") && answer.contains("SANDBOX_UNREACHABLE"), "{name}: {answer}");
    }
    podman.run(&["rm", "--force", "--time", "0", "other"]);
    podman.start_service();
    wait_for(&host, &id, "terminated");
    assert!(ask_proxy(&host, "old").contains("SANDBOX_NOT_FOUND"));
}

#[test]
fn a_container_that_the_engine_makes_late_is_removed() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let instance = std::fs::read_to_string(host.state_dir().join("instance")).unwrap();
    let make = |id: &str| {
        let (name, sandbox) = (format!("tl-{id}"), format!("tl-host.sandbox={id}"));
        let instance = format!("tl-host.instance={}", instance.trim());
        host.podman()
            .run(&["create", "--name", &name, "--label", &instance, "--label", &sandbox, IMAGE, "sleep", "1000"]);
    };
    let others = || host.containers().into_iter().filter(|name| *name != format!("tl-{id}")).count();
    let gone = host.create(json!({}));
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{gone}"), None).status, 200);
    for late in [gone.as_str(), "0123456789abcdefghijk"] {
        make(late);
        wait_until("it to be removed", || (others() == 0).then_some(()));
    }
    assert_eq!(host.request("GET", &format!("/sandboxes/{id}"), None).body["status"], "running");
    assert_eq!(host.containers(), [format!("tl-{id}")]);
}
