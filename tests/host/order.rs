//! Whether what tl-host has written agrees with what the engine has.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::harness::Host;

/// The ids of the files in a directory of the state directory.
pub fn ids(host: &Host, directory: &str) -> BTreeSet<String> {
    let names = fs::read_dir(host.state_dir().join(directory)).expect("list the state directory");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap().trim_end_matches(".json").to_owned();
    names.map(|entry| name(entry.unwrap())).collect()
}

pub fn record(host: &Host, id: &str) -> Value {
    let text = fs::read(host.state_dir().join(format!("sandboxes/{id}.json"))).expect("read the record");
    serde_json::from_slice(&text).expect("the record is JSON")
}

/// What is not in order; None if records, containers, tokens and images agree and nothing is half there.
pub fn disorder(host: &Host) -> Option<String> {
    let mut living = BTreeSet::new();
    for id in ids(host, "sandboxes") {
        let record = record(host, &id);
        let container = || host.podman().run(&["inspect", "--format", "{{.State.Status}}", &format!("tl-{id}")]);
        match record["status"].as_str().unwrap_or_default() {
            "terminated" => continue,
            "running" if container() == "running" => {}
            "suspended" if container() == "paused" => {}
            _ => return Some(format!("the container is {}: {record}", container())),
        }
        if !record["ending"].is_null() || !record["returns_to"].is_null() {
            return Some(format!("unfinished: {record}"));
        }
        living.insert(id);
    }
    let containers: BTreeSet<String> =
        host.containers().iter().map(|name| name.trim_start_matches("tl-").to_owned()).collect();
    let images = host.podman().run(&["images", "--format", "{{.Tag}}", "localhost/tl-snapshot"]);
    let images: BTreeSet<String> = images.lines().map(str::to_owned).collect();
    let (tokens, snapshots) = (ids(host, "tokens"), ids(host, "snapshots"));
    if containers == living && tokens == living && images == snapshots && ids(host, "damaged").is_empty() {
        return None;
    }
    Some(format!(
        "living {living:?}, containers {containers:?}, tokens {tokens:?}, images {images:?}, snapshots {snapshots:?}"
    ))
}
