//! The disk of the engine is full: what needs it is an error that says so, and everything else goes on.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Host, start_host_alone};
use crate::order::disorder;

/// Fills the storage of the engine up to `left` bytes; returns the file that does.
fn fill(host: &Host, left: u64) -> PathBuf {
    let path = host.podman().storage().join("filler");
    let found = nix::sys::statvfs::statvfs(&host.podman().storage()).expect("ask for the room on the disk");
    let room = found.blocks_available() * found.block_size() - left;
    let written = File::create(&path).and_then(|mut file| file.write_all(&vec![1; usize::try_from(room).unwrap()]));
    written.expect("fill the disk");
    path
}

/// All images and all layers that the engine stores.
fn images(host: &Host) -> (String, usize) {
    let layers = host.podman().storage().join("overlay");
    // One of the entries is that of the links to all others.
    (host.podman().run(&["images", "--all", "--quiet"]), fs::read_dir(layers).expect("list the layers").count())
}

#[test]
fn a_snapshot_that_does_not_fit_on_the_disk_is_an_error_and_the_sandbox_goes_on() {
    let Some(host) = start_host_alone(Some("64m")) else { return };
    let id = host.create(json!({ "name": "env" }));
    host.shell(&id, "dd if=/dev/urandom of=/tmp/file bs=1M count=12; echo kept >/tmp/kept");
    let before = images(&host);
    let filler = fill(&host, 4 << 20);
    for path in ["/sandboxes/env/snapshot", "/sandboxes/env/copy"] {
        let answer = host.post(path);
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert!(answer.status >= 500 && error.contains("no space left on device"), "{path}: {answer:?}");
        assert_eq!(images(&host), before, "{path}");
        assert_eq!(disorder(&host), None);
        assert_eq!(host.request("GET", "/snapshots", None).body["snapshots"], json!([]));
        assert_eq!(host.request("GET", "/sandboxes/env", None).body["status"], "running");
        assert_eq!(host.shell(&id, "cat /tmp/kept"), "kept");
    }
    fs::remove_file(filler).unwrap();
    let answer = host.post("/sandboxes/env/snapshot");
    let snapshot = answer.body["snapshot_id"].as_str().unwrap_or_else(|| panic!("{answer:?}"));
    assert_eq!(host.request("DELETE", "/sandboxes/env", None).status, 200);
    let restored = host.create(json!({ "snapshot_id": snapshot }));
    assert_eq!(host.shell(&restored, "cat /tmp/kept"), "kept");
}

#[test]
fn a_sandbox_that_does_not_fit_on_the_disk_is_an_error_and_nothing_is_left_of_it() {
    let Some(host) = start_host_alone(Some("64m")) else { return };
    let id = host.create(json!({}));
    let before = images(&host);
    let filler = fill(&host, 0);
    let answer = host.request("POST", "/sandboxes", Some(json!({})));
    let message = format!("{}{}", answer.body["error"], answer.body["error_details"]);
    assert!(answer.status >= 400 && message.contains("no space left on device"), "{answer:?}");
    assert_eq!(disorder(&host), None);
    assert_eq!(images(&host), before);
    assert_eq!(host.request("GET", &format!("/sandboxes/{id}"), None).body["status"], Value::from("running"));
    fs::remove_file(filler).unwrap();
    host.create(json!({}));
}
