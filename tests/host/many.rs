//! Many sandboxes: at once, one after another, copies, and those that were started ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Host, start_host, start_host_alone, wait_until};

fn small() -> Value {
    json!({ "resources": { "cpus": 0.5, "memory_mb": 64 } })
}

fn descriptors(host: &Host) -> usize {
    fs::read_dir(format!("/proc/{}/fd", host.pid())).expect("list the descriptors").count()
}

fn threads(host: &Host) -> usize {
    fs::read_dir(format!("/proc/{}/task", host.pid())).expect("list the threads").count()
}

fn files(host: &Host, directory: &str) -> usize {
    fs::read_dir(host.state_dir().join(directory)).expect("list the state directory").count()
}

fn images(host: &Host) -> String {
    host.podman().run(&["images", "--format", "{{.Tag}}", "localhost/tl-snapshot"])
}

#[test]
fn fifty_creates_at_once_and_reads_do_not_wait_for_them() {
    let Some(host) = start_host(&[]) else { return };
    let ids: Vec<String> = thread::scope(|scope| {
        let creates: Vec<_> = (0..50).map(|_| scope.spawn(|| host.create(small()))).collect();
        let is_done = || creates.iter().all(thread::ScopedJoinHandle::is_finished);
        while !is_done() {
            let begin = std::time::Instant::now();
            assert_eq!(host.request("GET", "/sandboxes", None).status, 200);
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        creates.into_iter().map(|create| create.join().unwrap()).collect()
    });
    assert_eq!(host.containers().len(), 50);
    thread::scope(|scope| {
        let host = &host;
        for id in &ids {
            let delete = move || host.request("DELETE", &format!("/sandboxes/{id}"), None).status;
            scope.spawn(move || assert_eq!(delete(), 200));
        }
    });
    assert_eq!((host.containers().len(), files(&host, "tokens")), (0, 0));
}

/// Everything that a sandbox needs a part of: the lists must not change.
fn everything(host: &Host) -> BTreeMap<&'static str, BTreeSet<String>> {
    let podman = |words: &[&str]| host.podman().run(words).lines().map(str::to_owned).collect();
    let engine = host.podman().storage().parent().expect("its directory").display().to_string();
    let lines = |path: &str| -> BTreeSet<String> {
        fs::read_to_string(path)
            .expect("read a list")
            .lines()
            .filter(|line| line.contains(&engine))
            .map(str::to_owned)
            .collect()
    };
    let walked = Command::new("find").arg(host.state_dir()).args(["-type", "f"]).output().expect("run find");
    let files = String::from_utf8(walked.stdout).unwrap();
    let is_record = |file: &&str| file.contains("/sandboxes/");
    let conmons = Command::new("pgrep").args(["--full", "--list-full", &format!("conmon.*{engine}")]).output();
    BTreeMap::from([
        ("containers", podman(&["ps", "--all", "--external", "--format", "{{.Names}}"])),
        ("images", podman(&["images", "--all", "--format", "{{.ID}} {{.Repository}}"])),
        ("networks", podman(&["network", "ls", "--format", "{{.Name}}"])),
        ("volumes", podman(&["volume", "ls", "--format", "{{.Name}}"])),
        ("mounts", lines("/proc/mounts")),
        ("processes", String::from_utf8(conmons.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()),
        ("state", files.lines().filter(|file| !is_record(file)).map(str::to_owned).collect()),
        (
            "layers",
            fs::read_dir(host.podman().storage().join("overlay"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect(),
        ),
    ])
}

/// With `TL_TEST_TURNS=200` it takes a few minutes.
#[test]
fn creates_and_deletes_in_a_row_leave_nothing() {
    let Some(host) = start_host_alone(None) else { return };
    let turns: usize = std::env::var("TL_TEST_TURNS").map_or(20, |turns| turns.parse().expect("TL_TEST_TURNS"));
    let turn = || {
        let id = host.create(small());
        assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
        assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 404);
    };
    turn();
    let (before, threads_before, descriptors_before) = (everything(&host), threads(&host), descriptors(&host));
    (0..turns).for_each(|_| turn());
    wait_until("everything to be as before", || (everything(&host) == before).then_some(()));
    // A connection to the engine may be open still.
    let descriptors_after = descriptors(&host);
    assert!(descriptors_after <= descriptors_before + 3, "{descriptors_before}, then {descriptors_after}");
    wait_until("no more threads than before", || (threads(&host) <= threads_before).then_some(()));
    // Of those that are terminated, which are listed for an hour, there is a record only.
    assert_eq!((files(&host, "sandboxes"), files(&host, "damaged")), (turns + 1, 0));
}

#[test]
fn the_image_of_a_copy_is_shown_to_nobody_and_goes_with_the_last_copy() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(small());
    let answer = host.request("POST", &format!("/sandboxes/{id}/copy?times=2"), None);
    let copies: Vec<&str> =
        answer.body["sandboxes"].as_array().unwrap().iter().map(|copy| copy["sandbox_id"].as_str().unwrap()).collect();
    assert_eq!((answer.status, copies.len()), (200, 2), "{answer:?}");
    assert_eq!(host.request("GET", "/snapshots", None).body["snapshots"], json!([]));
    for copy in copies {
        assert_eq!(files(&host, "snapshots"), 1);
        assert_eq!(host.request("DELETE", &format!("/sandboxes/{copy}"), None).status, 200);
    }
    assert_eq!(files(&host, "snapshots"), 0);
    // A snapshot that is deleted while a sandbox uses it.
    let answer = host.request("POST", &format!("/sandboxes/{id}/snapshot"), None);
    let snapshot = answer.body["snapshot_id"].as_str().expect("its id").to_owned();
    let restored = host.create(json!({ "snapshot_id": snapshot }));
    assert_eq!(host.request("DELETE", &format!("/snapshots/{snapshot}"), None).status, 200);
    assert_eq!(host.request("GET", &format!("/snapshots/{snapshot}"), None).status, 404);
    let again = host.request("POST", "/sandboxes", Some(json!({ "snapshot_id": snapshot })));
    assert_eq!((again.status, &again.body["code"]), (404, &json!("SNAPSHOT_NOT_FOUND")));
    assert!(images(&host).contains(&snapshot));
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{restored}"), None).status, 200);
    assert!(!images(&host).contains(&snapshot) && files(&host, "snapshots") == 0);
}

#[test]
fn the_time_of_a_suspended_sandbox_does_not_go_on() {
    let Some(mut host) = start_host(&[]) else { return };
    let id = host.create(json!({ "name": "env", "timeout_secs": 1000 }));
    let record = |host: &Host| -> Value {
        serde_json::from_slice(&fs::read(host.state_dir().join(format!("sandboxes/{id}.json"))).unwrap()).unwrap()
    };
    assert_eq!(host.request("POST", "/sandboxes/env/suspend?wait_ms=30000", None).status, 200);
    let left = record(&host)["time_left"].as_u64().expect("what is left of its time");
    assert!(left > 900_000 && left <= 1_000_000, "{left}");
    assert_eq!(record(&host)["expires_at"], Value::Null);
    host.restart();
    assert_eq!(record(&host)["time_left"], left);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let before = now();
    assert_eq!(host.request("POST", "/sandboxes/env/resume?wait_ms=30000", None).status, 200);
    let expires = u128::from(record(&host)["expires_at"].as_u64().expect("when its time is over"));
    assert!((before + u128::from(left)..=now() + u128::from(left)).contains(&expires), "{expires}");
}

#[test]
fn warm_containers_are_found_again_and_replaced_when_they_die() {
    let Some(mut host) = start_host(&["--warm", "2"]) else { return };
    let warm = |host: &Host| wait_until("a full pool", || Some(host.containers()).filter(|names| names.len() == 2));
    let running = |host: &Host, name: &str| {
        host.podman().run(&["ps", "--filter", &format!("name={name}"), "--format", "{{.Status}}"])
    };
    warm(&host);
    // Both are ready, and not only made, as soon as a restart finds them.
    wait_until("both to run", || warm(&host).iter().all(|name| running(&host, name).starts_with("Up")).then_some(()));
    wait_until("the metrics to say so", || {
        let page = host.request("GET", "/metrics", None).body;
        page.as_str().is_some_and(|page| page.lines().any(|line| line == "tl_host_warm_containers 2")).then_some(())
    });
    let names = warm(&host);
    host.kill(nix::sys::signal::Signal::SIGKILL);
    host.restart();
    assert_eq!(warm(&host), names);
    let id = host.create(json!({}));
    assert!(names.contains(&format!("tl-{id}")), "{names:?} {id}");
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    let victim = warm(&host).remove(0);
    host.podman().run(&["kill", &victim]);
    wait_until("another", || (!host.containers().contains(&victim)).then_some(()));
    warm(&host);
}
