//! Uploads, downloads, listings and removals of files; each client has a directory of its own on two disks.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::client::{Client, SOON};
use crate::harness::files::encoded;
use crate::harness::{Random, wait_until};
use crate::lines::bytes;

/// What a file must contain.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    seed: u64,
    length: usize,
    is_root: bool,
}

/// Number of names.
const NAMES: u64 = 6;

/// The directory of this client on the log disk, or on the large one; as the daemon sees it, and as the test does.
fn directory(client: &Client, is_on_log_disk: bool) -> (PathBuf, PathBuf) {
    let name = format!("files-{}", client.number);
    if is_on_log_disk {
        (client.shared.disk_inside.join(&name), client.shared.disk.join(&name))
    } else {
        let directory = client.shared.daemon.scratch().join(name);
        (directory.clone(), directory)
    }
}

/// Makes the directories of a client, which every user may write to.
pub fn make_directories(client: &Client) {
    for is_on_log_disk in [true, false] {
        let outside = directory(client, is_on_log_disk).1;
        for directory in [outside.clone(), outside.join("sub")] {
            std::fs::create_dir(&directory).expect("create a directory");
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).expect("open it for all");
        }
    }
}

/// A file by its key in the model: `log` or `big`, then its name.
fn path_of(client: &Client, key: &str) -> (PathBuf, PathBuf) {
    let (disk, name) = key.split_once('/').expect("a key");
    let (inside, outside) = directory(client, disk == "log");
    (inside.join(name), outside.join(name))
}

fn some_key(random: &mut Random) -> String {
    let disk = if random.below(3) == 0 { "log" } else { "big" };
    // Names that need encoding.
    let name = ["a", "b c", "sub/d%e", "sub/é", "+f", "g&h=1"][random.below(NAMES) as usize];
    format!("{disk}/{name}")
}

fn some_length(random: &mut Random) -> usize {
    match random.below(10) {
        0 => 0,
        1 => random.below(2 << 20) as usize,
        2..=4 => random.below(100_000) as usize,
        _ => random.below(2_000) as usize,
    }
}

fn query(client: &Client, key: &str, is_root: bool) -> String {
    let user = if is_root { "&user=root" } else { "" };
    format!("/files?path={}{user}", encoded(path_of(client, key).0))
}

/// Compares a file with the model, as the test sees it.
fn check_file(client: &Client, key: &str) {
    let outside = path_of(client, key).1;
    let Some(stored) = client.files.get(key) else {
        assert!(!outside.exists(), "{key}: {outside:?} exists");
        return;
    };
    let found = std::fs::read(&outside).unwrap_or_else(|error| panic!("{key}: {outside:?}: {error}"));
    let right = bytes(stored.seed, stored.length);
    assert!(found == right, "{key}: {} bytes that differ from the {} of {stored:?}", found.len(), right.len());
    let meta = outside.metadata().expect("its metadata");
    assert_eq!(meta.uid() == 0, stored.is_root, "{key}: the owner of {stored:?} is {}", meta.uid());
    client.shared.tally.checked(found.len() as u64);
}

pub fn upload(client: &mut Client, random: &mut Random) {
    let (key, length) = (some_key(random), some_length(random));
    let new = Stored { seed: random.next_u64(), length, is_root: random.below(5) == 0 };
    // A file keeps its owner when it is replaced; only root may replace one of root.
    let old = client.files.get(&key).copied();
    let is_root = new.is_root || old.is_some_and(|old| old.is_root);
    let query = query(client, &key, is_root);
    let headers = if random.below(6) == 0 { "If-None-Match: *\r\n" } else { "" };
    client.note(format_args!("upload {key} as root: {is_root}, {new:?}, {headers:?}"));
    let sent = Instant::now();
    let response = client.call_with("PUT", &query, headers, Some(&bytes(new.seed, length)));
    if response.status == 507 {
        assert!(key.starts_with("log") && client.shared.faults.disk_was_full_since(sent), "{key}: 507 without reason");
        response.expect_error(507, "NO_SPACE", "");
        client.shared.tally.loss("upload refused with 507");
    } else if !headers.is_empty() && old.is_some() {
        response.expect_error(412, "PRECONDITION_FAILED", "");
    } else {
        assert_eq!(response.expect(204), Value::Null);
        let is_root = old.map_or(new.is_root, |old| old.is_root);
        client.files.insert(key.clone(), Stored { is_root, ..new });
    }
    check_file(client, &key);
}

/// An upload that is cut leaves the old file, and nothing else.
pub fn cut_upload(client: &mut Client, random: &mut Random) {
    let (key, length) = (some_key(random), some_length(random) + 1);
    let content = bytes(random.next_u64(), length);
    let framing = format!("Content-Length: {length}\r\n");
    let head = client.shared.daemon.request_head("PUT", &query(client, &key, true), &framing);
    let part = random.below(length as u64) as usize;
    client.note(format_args!("upload of {key}, cut after {part} of {length} bytes"));
    client.shared.tally.fault("upload reset");
    client.send_cut(&[head.as_bytes(), &content[..part]].concat());
    check_file(client, &key);
    wait_until(SOON, "nothing is left of the upload", || check_names(client, key.starts_with("log")).ok());
    check_file(client, &key);
}

pub fn download(client: &mut Client, random: &mut Random) {
    let key = some_key(random);
    let query = query(client, &key, random.below(2) == 0);
    let Some(stored) = client.files.get(&key).copied() else {
        return client.get(&query).expect_error(404, "NOT_FOUND", "");
    };
    let content = bytes(stored.seed, stored.length);
    let (mut from, mut to) = (random.below(stored.length as u64 + 1) as usize, stored.length);
    to = (from + random.below(5_000) as usize).min(to);
    let is_range = random.below(2) == 0 && from < to;
    if !is_range {
        (from, to) = (0, stored.length);
    }
    let headers = if is_range { format!("Range: bytes={from}-{}\r\n", to - 1) } else { String::new() };
    client.note(format_args!("download {key} {headers:?}"));
    let response = client.call_with("GET", &query, &headers, None);
    assert_eq!(response.status, if is_range { 206 } else { 200 }, "{}", response.request);
    assert!(response.body == content[from..to], "{key} from {from} to {to}: {} bytes that differ", response.body.len());
    client.shared.tally.checked((to - from) as u64);
}

pub fn remove_or_list(client: &mut Client, random: &mut Random) {
    let key = some_key(random);
    if random.below(2) == 0 {
        client.note(format_args!("list the directory of {key}"));
        return check_names(client, key.starts_with("log")).unwrap_or_else(|error| panic!("{error}"));
    }
    client.note(format_args!("delete {key}"));
    let query = query(client, &key, true);
    let response = client.call("DELETE", &query, None);
    match client.files.remove(&key) {
        Some(_) => assert_eq!(response.expect(204), Value::Null),
        None => response.expect_error(404, "NOT_FOUND", ""),
    }
    check_file(client, &key);
}

/// The names in the directory of this client, with those in its directory `sub`, compared with the model.
fn check_names(client: &mut Client, is_on_log_disk: bool) -> Result<(), String> {
    let disk = if is_on_log_disk { "log/" } else { "big/" };
    let inside = directory(client, is_on_log_disk).0;
    let mut found = Vec::new();
    for (directory, prefix) in [(inside.clone(), ""), (inside.join("sub"), "sub/")] {
        let response = client.get(&format!("/files/list?path={}&user=root", encoded(Path::new(&directory))));
        if response.status == 404 {
            continue;
        }
        let listing = response.expect(200);
        for entry in listing["entries"].as_array().expect("entries") {
            let name = format!("{prefix}{}", entry["name"].as_str().expect("a name"));
            if entry["is_dir"] != true {
                found.push((name, entry["size"].as_u64()));
            }
        }
    }
    let right = client
        .files
        .iter()
        .filter_map(|(key, stored)| key.strip_prefix(disk).map(|name| (name.to_owned(), Some(stored.length as u64))));
    let mut right: Vec<_> = right.collect();
    found.sort();
    right.sort();
    if found == right { Ok(()) } else { Err(format!("the directory has {found:?} instead of {right:?}")) }
}

/// Checks all files of this client, then removes them.
pub fn finish(client: &mut Client) {
    for is_on_log_disk in [true, false] {
        check_names(client, is_on_log_disk).unwrap_or_else(|error| panic!("{error}"));
    }
    let keys: Vec<String> = client.files.keys().cloned().collect();
    for key in keys {
        check_file(client, &key);
        let query = query(client, &key, true);
        client.call("DELETE", &query, None).expect(204);
        client.files.remove(&key);
    }
}
