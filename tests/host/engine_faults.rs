//! The engine is gone or does not answer, or tl-host is killed in the middle of an operation: nothing is half done.

use std::collections::BTreeSet;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Host, start_host_alone, wait_until};
use crate::order::{disorder, ids, record};

fn status(host: &Host, id: &str) -> Value {
    host.request("GET", &format!("/sandboxes/{id}"), None).body["status"].clone()
}

#[test]
fn while_the_engine_is_gone_what_needs_it_is_503_and_the_rest_works() {
    let Some(host) = start_host_alone(None) else { return };
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| host.create(json!({ "name": name })));
    assert_eq!(host.post("/sandboxes/b/suspend").status, 200);
    host.podman().kill_service();
    for (method, path) in [
        ("POST", "/sandboxes"),
        ("POST", "/sandboxes/a/suspend"),
        ("POST", "/sandboxes/a/snapshot"),
        ("POST", "/sandboxes/b/resume"),
        ("DELETE", "/sandboxes/c"),
    ] {
        let body = (path == "/sandboxes").then(|| json!({}));
        let answer = host.request(method, path, body);
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!("ENGINE_UNAVAILABLE")), "{path}: {answer:?}");
    }
    assert_eq!([status(&host, &a), status(&host, &b)], ["running", "suspended"]);
    assert_eq!(host.request("GET", "/snapshots", None).body["snapshots"], json!([]));
    assert_eq!(host.request("PATCH", "/sandboxes/a", Some(json!({ "name": "a2" }))).status, 200);
    // Ends while nobody can tell.
    host.podman().run(&["kill", &format!("tl-{d}")]);
    host.podman().start_service();
    // What was answered with 503 has not been done: the client repeats it.
    assert_eq!(status(&host, &c), "running");
    let deleted = || host.request("DELETE", &format!("/sandboxes/{c}"), None).status;
    wait_until("the engine to be there", || (deleted() == 200).then_some(()));
    wait_until("the end to be seen", || (status(&host, &d) == "terminated").then_some(()));
    assert_eq!(host.request("GET", &format!("/sandboxes/{d}"), None).body["termination_reason"], "engine");
    wait_until("order", || {
        disorder(&host).map_or(Some(()), |disorder| {
            eprintln!("{disorder}");
            None
        })
    });
    assert_eq!(host.post("/sandboxes/b/resume").status, 200);
    assert_eq!(host.post("/sandboxes/a2/suspend").status, 200);
    // Events are followed again.
    host.podman().run(&["kill", &format!("tl-{b}")]);
    wait_until("the end to be seen", || (status(&host, &b) == "terminated").then_some(()));
}

/// Waits until the record of a sandbox or snapshot says that something has begun.
fn wait_for_intent(host: &Host, operation: &str, known: &BTreeSet<String>, env: &str) {
    wait_until(&format!("the intent of {operation}"), || {
        let is_there = match operation {
            "create" => ids(host, "sandboxes").difference(known).next().is_some(),
            "suspend" => record(host, env)["status"] == "suspending",
            "snapshot" => record(host, env)["status"] == "snapshotting",
            "delete" => !record(host, env)["ending"].is_null(),
            // Nothing is written before: the request itself must have begun.
            _ => true,
        };
        is_there.then_some(())
    });
}

/// `freeze`: the engine gets the request and answers only after tl-host is dead. Otherwise: killed at some moment.
fn kill_during(host: &mut Host, operation: &str, freeze: bool, delay: u64) {
    let listed = host.request("GET", "/sandboxes/env", None);
    let env = match listed.body["id"].as_str() {
        Some(id) if listed.status == 200 => id.to_owned(),
        _ => host.create(json!({ "name": "env" })),
    };
    let before = if operation == "resume" { "suspend" } else { "resume" };
    assert_eq!(host.post(&format!("/sandboxes/{env}/{before}?wait_ms=30000")).status, 200);
    let known = ids(host, "sandboxes");
    if freeze && operation != "create" {
        host.podman().freeze_service();
    }
    thread::scope(|scope| {
        let (api, key) = (host.api.clone(), host.key.clone());
        let path = match operation {
            "create" => "/sandboxes".to_owned(),
            "delete" => format!("/sandboxes/{env}"),
            "copy" => format!("/sandboxes/{env}/copy?times=2"),
            operation => format!("/sandboxes/{env}/{operation}"),
        };
        let method = if operation == "delete" { "DELETE" } else { "POST" };
        let body = if operation == "create" { r#"{"name": "new"}"# } else { "" };
        scope.spawn(move || {
            let request = ureq::http::Request::builder().method(method).uri(format!("{api}{path}"));
            let request = request.header("Authorization", format!("Bearer {key}")).body(body).unwrap();
            // It is cut off, or done already.
            let _ = ureq::agent().run(request);
        });
        if freeze {
            wait_for_intent(host, operation, &known, &env);
        } else {
            // The moment of the fault, not a condition that is waited for.
            thread::sleep(std::time::Duration::from_millis(delay));
        }
        host.kill(Signal::SIGKILL);
    });
    if freeze && operation != "create" {
        host.podman().thaw_service();
    }
    host.restart();
    wait_until("order", || match disorder(host) {
        None => Some(()),
        Some(disorder) => {
            eprintln!("after {operation}, {delay} ms: {disorder}");
            None
        }
    });
    let list = host.request("GET", "/sandboxes", None).body;
    for info in list["sandboxes"].as_array().unwrap() {
        if info["name"] == "new" || info["status"] == "running" && info["name"].is_null() {
            let path = format!("/sandboxes/{}", info["id"].as_str().unwrap());
            host.request("DELETE", &path, None);
        }
    }
}

#[test]
fn killed_in_the_middle_of_an_operation_nothing_is_half_there() {
    let Some(mut host) = start_host_alone(None) else { return };
    for operation in ["create", "suspend", "snapshot", "delete"] {
        kill_during(&mut host, operation, true, 0);
    }
    for (operation, delays) in [
        ("create", [60, 200]),
        ("suspend", [10, 30]),
        ("resume", [10, 30]),
        ("snapshot", [40, 120]),
        ("copy", [150, 500]),
        ("delete", [100, 250]),
    ] {
        for delay in delays {
            kill_during(&mut host, operation, false, delay);
        }
    }
    for snapshot in ids(&host, "snapshots") {
        host.request("DELETE", &format!("/snapshots/{snapshot}"), None);
    }
    host.request("DELETE", "/sandboxes/env", None);
    assert_eq!(disorder(&host), None);
    assert!(host.containers().is_empty() && ids(&host, "snapshots").is_empty());
}

#[test]
fn a_deletion_that_was_interrupted_ends_the_processes_in_order() {
    let Some(mut host) = start_host_alone(None) else { return };
    // It takes a while to end, and says with which exit code.
    let script = "trap 'sleep 1; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let id = host.create(json!({ "entrypoint": ["sh", "-c", script] }));
    wait_until("it to be ready for SIGTERM", || {
        host.ask("GET", &id, "/processes", "").body["processes"][0]["pid"].as_u64()
    });
    host.podman().freeze_service();
    thread::scope(|scope| {
        let request = || host.request("DELETE", &format!("/sandboxes/{id}"), None).status;
        let deletion = scope.spawn(request);
        wait_for_intent(&host, "delete", &BTreeSet::new(), &id);
        assert_eq!(deletion.join().unwrap(), 202);
    });
    host.kill(Signal::SIGKILL);
    host.podman().thaw_service();
    host.restart();
    wait_until("the deletion to be finished", || (status(&host, &id) == "terminated").then_some(()));
    let filter = format!("container=tl-{id}");
    let format = "{{.Status}} {{.ContainerExitCode}}";
    let events = host.podman().run(&["events", "--stream=false", "--filter", &filter, "--format", format]);
    assert!(events.lines().any(|event| event == "died 7"), "{events}");
}

#[test]
fn what_a_slow_engine_does_after_all_is_seen() {
    let Some(host) = start_host_alone(None) else { return };
    let id = host.create(json!({ "name": "env" }));
    host.podman().freeze_service();
    assert_eq!(host.post("/sandboxes/env/suspend?wait_ms=0").status, 202);
    wait_until("the intent", || (status(&host, &id) == "suspending").then_some(()));
    // Longer than tl-host waits for the engine.
    let gave_up = || {
        let page = host.request("GET", "/metrics", None).body;
        let page = page.as_str().unwrap_or_default().to_owned();
        page.lines().any(|line| line.starts_with("tl_host_engine_errors") && !line.ends_with(" 0")).then_some(())
    };
    wait_until("tl-host to give up", gave_up);
    host.podman().thaw_service();
    wait_until("the suspension to be seen", || (status(&host, &id) == "suspended").then_some(()));
    assert_eq!(host.post("/sandboxes/env/resume?wait_ms=30000").status, 200);
    assert_eq!(disorder(&host), None);
}

#[test]
fn a_stop_that_the_engine_prevents_is_an_error_and_tl_host_goes_on() {
    let Some(host) = start_host_alone(None) else { return };
    let id = host.create(json!({}));
    host.podman().kill_service();
    let answer = host.post("/stop");
    assert_eq!((answer.status, &answer.body["code"]), (500, &json!("NOT_ENDED")), "{answer:?}");
    host.podman().start_service();
    wait_until("the deletion to be finished", || (status(&host, &id) == "terminated").then_some(()));
    host.create(json!({}));
}
