//! Requests to the file endpoints.

use std::path::Path;

use super::{Daemon, Response};

/// The path and query of `/files` for `path`, form-encoded; `more` is appended to the query.
pub fn files(path: impl AsRef<Path>, more: &str) -> String {
    format!("/files?path={}{more}", encoded(path))
}

/// A path as a value of a form-encoded query.
pub fn encoded(path: impl AsRef<Path>) -> String {
    let bytes = path.as_ref().as_os_str().as_encoded_bytes();
    bytes
        .iter()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

pub fn put(daemon: &Daemon, path: impl AsRef<Path>, more: &str, content: &[u8]) -> Response {
    daemon.request("PUT", &files(path, more), Some(content))
}

pub fn get(daemon: &Daemon, path: impl AsRef<Path>, more: &str) -> Response {
    daemon.get(&files(path, more))
}

pub fn list(daemon: &Daemon, path: impl AsRef<Path>, more: &str) -> Response {
    daemon.get(&format!("/files/list?path={}{more}", encoded(path)))
}

/// The names in a directory, listed as root.
pub fn names(daemon: &Daemon, path: impl AsRef<Path>) -> Vec<String> {
    let listing = list(daemon, path, "&user=root").expect(200);
    let entries = listing["entries"].as_array().expect("entries");
    entries.iter().map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect()
}
