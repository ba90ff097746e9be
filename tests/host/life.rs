//! The life of a sandbox, and what is left of it.

use std::io::Read;
use std::net::TcpListener;
use std::process::Command;

use serde_json::json;

use crate::harness::{Host, init, podman, start_host, wait_until};

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

#[test]
fn a_copy_that_cannot_be_started_is_422_and_nothing_is_left_of_any() {
    let Some(host) = start_host(&[]) else { return };
    let script = "test -e /tmp/begun && { echo twice; exit 3; }; touch /tmp/begun; exec sleep 1000";
    let source = host.create(json!({ "entrypoint": ["sh", "-c", script] }));
    let begun = || host.podman().run(&["exec", &format!("tl-{source}"), "ls", "/tmp"]).contains("begun");
    wait_until("the main process to begin", || begun().then_some(()));
    let answer = host.request("POST", &format!("/sandboxes/{source}/copy?times=3"), None);
    assert_eq!((answer.status, &answer.body["status"]), (422, &json!("failed")), "{answer:?}");
    assert_eq!(
        (&answer.body["code"], answer.body["error_details"]["message"].is_string()),
        (&json!("START_FAILED"), true)
    );
    let copy = answer.body["sandbox_id"].as_str().expect("its id");
    let info = host.request("GET", &format!("/sandboxes/{copy}"), None).body;
    assert_eq!((&info["status"], &info["termination_reason"]), (&json!("terminated"), &json!("failed")), "{info}");
    wait_until("the source to be all that is left", || (host.containers() == [format!("tl-{source}")]).then_some(()));
    let snapshots = std::fs::read_dir(host.state_dir().join("snapshots")).expect("list the snapshots");
    assert_eq!(snapshots.count(), 0);
}

#[test]
fn what_is_made_of_a_sandbox_has_its_ports_unless_the_request_says_otherwise() {
    let Some(host) = start_host(&[]) else { return };
    let open = json!({ "exposed_ports": [8080], "allow_unauthenticated_access": true });
    let id = host.create(open.clone());
    let snapshot = host.post(&format!("/sandboxes/{id}/snapshot")).body["snapshot_id"].clone();
    let ports = |id: &str| {
        let info = host.request("GET", &format!("/sandboxes/{id}"), None).body;
        json!({ "exposed_ports": info["exposed_ports"], "allow_unauthenticated_access": info["allow_unauthenticated_access"] })
    };
    assert_eq!(ports(&host.create(json!({ "snapshot_id": snapshot }))), open);
    let closed = json!({ "exposed_ports": [], "allow_unauthenticated_access": false });
    let mut request = closed.clone();
    request["snapshot_id"] = snapshot;
    assert_eq!(ports(&host.create(request)), closed);
    let copied = host.post(&format!("/sandboxes/{id}/copy")).body;
    assert_eq!(ports(copied["sandboxes"][0]["sandbox_id"].as_str().unwrap()), open);
}

#[test]
fn a_terminated_sandbox_is_in_the_wrong_state_for_everything() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({ "name": "gone" }));
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    for (method, what) in [
        ("POST", "suspend"),
        ("POST", "resume"),
        ("POST", "snapshot"),
        ("POST", "copy"),
        ("GET", "logs"),
        ("GET", "processes"),
    ] {
        let answer = host.request(method, &format!("/sandboxes/{id}/{what}"), None);
        assert_eq!((answer.status, &answer.body["code"]), (409, &json!("INVALID_STATE")), "{what}: {answer:?}");
    }
}

/// The most memory that tl-host has taken so far, in KiB.
fn peak_memory(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn many_lines_of_a_long_script_take_little_memory() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let comment = "x".repeat(100 << 10);
    host.shell(&id, &format!("i=0; while [ $i -lt 10000 ]; do echo $i; i=$((i + 1)); done # {comment}"));
    let before = peak_memory(&host);
    let answer = host.request("GET", &format!("/sandboxes/{id}/logs?head=10000"), None);
    let logs = answer.body["logs"].as_array().unwrap_or_else(|| panic!("{}", answer.status));
    assert_eq!((logs.len(), logs[9999]["body"].as_str()), (10_000, Some("9999")));
    let processes = host.request("GET", &format!("/sandboxes/{id}/processes"), None).body;
    assert_eq!(processes["processes"][0]["logCount"], 10_000);
    let taken = peak_memory(&host) - before;
    assert!(taken < 100 << 10, "{taken} KiB");
}

#[test]
fn a_tl_host_that_cannot_start_leaves_no_state_directory() {
    let (Some(podman), Some(init)) = (podman(), init()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, engine) = (listener.local_addr().unwrap().to_string(), podman.url());
    for (options, part) in [
        (["--api", &taken, "--engine", &engine], "--api: cannot listen"),
        (["--proxy", &taken, "--engine", &engine], "--proxy: cannot listen"),
        (["--api", "127.0.0.1:0", "--engine", "unix:///nowhere.sock"], "/nowhere.sock cannot be reached"),
        (["--key-file", "/nowhere", "--engine", &engine], "--key-file: /nowhere"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tl-host"));
        command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0", "--init"]).arg(&init);
        let output = command.arg("--state-dir").arg(directory.path().join("new")).args(options).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && errors.contains(part), "{options:?}: {errors}");
        assert!(!directory.path().join("new").exists(), "{options:?} has made it");
    }
}

#[test]
fn stop_all_does_not_send_the_key_to_somebody_who_listens_where_a_killed_tl_host_did() {
    let Some(mut host) = start_host(&[]) else { return };
    host.create(json!({}));
    let address = host.api.strip_prefix("http://").unwrap().to_owned();
    host.kill(nix::sys::signal::Signal::SIGKILL);
    let stranger = TcpListener::bind(&address).expect("listen where tl-host did");
    // Who holds the lock of the state directory but does not serve it.
    let lock = std::fs::File::open(host.state_dir().join("lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    // It closes the connection once it has received something.
    let stranger = std::thread::spawn(move || {
        let (mut connection, _) = stranger.accept().unwrap();
        let mut received = [0; 4096];
        connection.read(&mut received).map(|count| String::from_utf8_lossy(&received[..count]).into_owned()).unwrap()
    });
    let output = host.command(&["stop", "--all"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && errors.contains("has ended"), "{errors}");
    assert_eq!(stranger.join().unwrap(), "");
    drop(lock);
    // Without the lock, this program ends the sandboxes itself; with a tl-host that runs, that one does.
    host.restart();
    let output = host.command(&["stop", "--all"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.containers(), [""; 0]);
}
