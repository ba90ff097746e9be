//! What is timed inside a sandbox while the sandbox is suspended: deadlines are moments of real time.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Host, start_host, wait_until};

/// Longer than each deadline of the test.
const SUSPENDED: Duration = Duration::from_secs(7);

/// What has passed its deadline must end within this time of the resumption; the margin is for a busy machine. Each of
/// them, begun anew, would take 6 s.
const PROMPT: Duration = Duration::from_secs(5);

/// Sends a request to the tl-init of the sandbox `env`, and returns the status and the whole body of the answer.
fn ask(host: &Host, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    send(&host.proxy, &host.key, method, path, body)
}

/// Sends a request to tl-init through the proxy, or to its own address.
fn send(server: &str, key: &str, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{server}/api/v1{path}"))
        .header("Authorization", format!("Bearer {key}"))
        .header("X-Tensorlake-Sandbox-Id", "env");
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let response = ureq::Agent::from(config).run(request.body(body).expect("build the request"));
    let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    let mut text = String::new();
    response.body_mut().as_reader().read_to_string(&mut text).expect("read the answer");
    (response.status().as_u16(), text)
}

fn process(host: &Host, name: &str) -> Value {
    let (status, text) = ask(host, "GET", &format!("/processes/{name}"), None);
    assert_eq!(status, 200, "{name}: {text}");
    serde_json::from_str(&text).expect("a process")
}

fn start(host: &Host, body: Value) {
    let (status, text) = ask(host, "POST", "/processes", Some(body));
    assert_eq!(status, 201, "{text}");
}

#[test]
fn a_deadline_that_passes_while_a_sandbox_is_suspended_takes_effect_when_it_is_resumed() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({ "name": "env" }));
    // The proxy would resume the sandbox for a request that it has passed on within the second before.
    let (direct, token) = (format!("http://{}", host.address_of(&id)), host.token_of(&id));
    // One that waits 6 s for its next start, and one that has 6 s to end.
    start(
        &host,
        json!({"command": "false", "name": "flaky",
        "restart": {"policy": "always", "initial_backoff_ms": 6000, "max_backoff_ms": 6000}}),
    );
    let script = "trap 'echo asked to end' TERM; echo ready; while :; do sleep 0.1; done";
    start(&host, json!({"command": "sh", "args": ["-c", script], "name": "stubborn", "stop_grace_ms": 6000}));
    wait_until("it to be ready for SIGTERM", || {
        ask(&host, "GET", "/processes/stubborn/stdout", None).1.contains("ready").then_some(())
    });
    wait_until("the backoff to begin", || {
        (process(&host, "flaky")["managed"]["status"] == "backing_off").then_some(())
    });
    let starts = process(&host, "flaky")["managed"]["restart_count"].as_u64();
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            let body = json!({"command": "sleep", "args": ["1000"], "timeout": 6});
            (send(&direct, &token, "POST", "/processes/run", Some(body)), Instant::now())
        });
        let restart =
            scope.spawn(|| (send(&direct, &token, "POST", "/processes/stubborn/restart", None), Instant::now()));
        wait_until("the run to begin", || ask(&host, "GET", "/processes", None).1.contains("1000").then_some(()));
        wait_until("the grace to begin", || {
            ask(&host, "GET", "/processes/stubborn/stdout", None).1.contains("asked to end").then_some(())
        });
        assert_eq!(host.request("POST", "/sandboxes/env/suspend", None).status, 200);
        thread::sleep(SUSPENDED);
        assert!(!run.is_finished() && !restart.is_finished());
        assert_eq!(host.request("POST", "/sandboxes/env/resume", None).status, 200);
        let resumed = Instant::now();
        let ((status, events), ended) = run.join().unwrap();
        assert!(status == 200 && events.contains("\"timed_out\""), "{status}: {events}");
        assert!(
            ended.saturating_duration_since(resumed) < PROMPT,
            "the run has ended {:?} after the resumption",
            ended.saturating_duration_since(resumed)
        );
        let ((status, text), ended) = restart.join().unwrap();
        assert_eq!(status, 200, "{text}");
        assert!(
            ended.saturating_duration_since(resumed) < PROMPT,
            "the restart was over {:?} after the resumption",
            ended.saturating_duration_since(resumed)
        );
        wait_until("the next start", || {
            (process(&host, "flaky")["managed"]["restart_count"].as_u64() > starts).then_some(())
        });
        assert!(resumed.elapsed() < PROMPT, "the backoff was over {:?} after the resumption", resumed.elapsed());
    });
}
