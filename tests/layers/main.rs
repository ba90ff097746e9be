//! Holds the architecture of `docs/design.md`: which module may import which, which are pure, that no files import each
//! other in a circle, and how long a file and a function may be.
//!
//! Reads the tokens of every file below `src/`, `host/src/`, `init/src/` and `os/src/`; test code is exempt. This is no
//! parser: a path is words with `::` between them. What macros make of their arguments is not seen.

// This whole crate is a test: it may end at the first thing that it does not expect.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
#![allow(missing_docs, unreachable_pub)]

mod checker_tests;
mod circles;
mod source;
mod tokens;
mod unsafe_code;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use circles::Imports;
use source::{Named, Source};

/// The layers of the library, lowest first. A module imports from its own layer and from lower ones. The longest entry
/// that a path begins with counts: `logs::lines` is pure, the rest of `logs` is not.
const LAYERS: [&[&str]; 6] = [
    &["model", "error"],
    &[
        "metrics",
        "rate_limit",
        "shrink",
        "unit",
        "events::event",
        "events::ring",
        "logs::line_search",
        "logs::lines",
        "logs::retention",
        "health::schedule",
        "ports::schedule",
        "ports::table",
        "terminal::ring",
        "terminal::session",
        "users::passwd",
        "supervisor::fd_budget",
        "supervisor::keyed_requests",
        "supervisor::memory_return",
        "supervisor::reap_scan",
        "supervisor::task_limit",
    ],
    &[
        "clock",
        "users",
        "pending",
        "probe",
        "events",
        "logs",
        "files",
        "terminal",
        "http::connection",
        "http::server",
        "http::message",
        "http::ws",
        "program_log",
    ],
    &["oom", "output", "health", "trees", "ports"],
    &["supervisor"],
    &["http"],
];

/// Layers up to this one do no I/O and read no clock.
const LAST_PURE: usize = 1;

/// The modules of this layer, threads of their own, never import each other.
const ACTORS: usize = 3;

/// The core of the HTTP server, which serves any handler: it imports nothing of the library but itself.
const SERVER_CORE: [&str; 4] = ["http::connection", "http::server", "http::message", "http::ws"];

/// What a pure module must not name.
const IMPURE: [&str; 13] = [
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "tl_os",
    "nix",
    "libc",
    "mio",
    "signal_hook",
    "crossbeam_channel",
    "tiny_http",
];

/// Exceptions: a file, and what it may name although it is pure. `error` maps errno numbers, which are constants of libc.
/// `std::net` has the type of an address, which is plain data.
const ALLOWED_IMPURE: [(&str, &str); 2] = [("error.rs", "libc"), ("model/port.rs", "std::net")];

/// The greatest number of lines of a file, without its tests.
const LONGEST_FILE: usize = 400;

/// The greatest number of lines of a function.
const LONGEST_FUNCTION: usize = 70;

#[test]
fn the_library_keeps_its_layers() {
    let files = read("src", &["lib.rs", "model/mod.rs"]);
    expect_nothing_wrong(&check_library(&files));
}

#[test]
fn the_programs_and_tl_os_have_no_circles_and_no_long_files() {
    for (dir, root) in [("host/src", "main.rs"), ("init/src", "main.rs"), ("os/src", "lib.rs")] {
        expect_nothing_wrong(&check_form(dir, &read(dir, &[root])));
    }
}

#[track_caller]
fn expect_nothing_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The source files below a directory of the repository, by their paths below it. `known` must be among them.
fn read(dir: &str, known: &[&str]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    read_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), "", &mut files);
    assert!(known.iter().all(|file| files.contains_key(*file)), "{dir}: {:?}", files.keys());
    files
}

fn read_below(dir: &Path, name: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = format!("{name}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_below(&entry.path(), &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// Every violation of a rule in the library, a sentence each.
fn check_library(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut wrong = check_form("src", files);
    let sources = read_sources(files);
    for source in without_tests(&sources) {
        // The crate root only declares and re-exports.
        if source.module.is_empty() {
            continue;
        }
        let Some(own) = layer_of(&source.module) else {
            wrong.push(format!("src/{}: the module is in no layer: add it to tests/layers/main.rs", source.path));
            continue;
        };
        for named in source.paths() {
            let problem = check_path(source, own, &named);
            wrong.extend(problem.map(|problem| format!("src/{}:{}: {problem}", source.path, named.line)));
        }
        if own.0 <= LAST_PURE {
            wrong.extend(elapsed_calls(source));
        }
    }
    wrong
}

/// Violations that any crate can have: circles of imports, long files and long functions.
fn check_form(dir: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let sources = read_sources(files);
    let sources = without_tests(&sources);
    let mut wrong = Vec::new();
    for source in &sources {
        if source.lines > LONGEST_FILE {
            let lines = source.lines;
            wrong.push(format!("{dir}/{}: {lines} lines without tests, more than {LONGEST_FILE}", source.path));
        }
        for (name, line, lines) in source.functions().into_iter().filter(|(_, _, lines)| *lines > LONGEST_FUNCTION) {
            wrong.push(format!(
                "{dir}/{}:{line}: `{name}` has {lines} lines, more than {LONGEST_FUNCTION}",
                source.path
            ));
        }
    }
    let circles = Imports::of(&sources).circles();
    wrong.extend(circles.into_iter().map(|sentence| format!("{dir}: {sentence}")));
    wrong
}

fn read_sources(files: &BTreeMap<String, String>) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::read(path, text)).collect()
}

/// The files that are not declared as tests.
fn without_tests(sources: &[Source]) -> Vec<&Source> {
    let tests: BTreeSet<&Vec<String>> = sources.iter().flat_map(|source| &source.test_modules).collect();
    let is_test = |source: &&Source| (1..=source.module.len()).any(|n| tests.contains(&source.module[..n].to_vec()));
    sources.iter().filter(|source| !is_test(source)).collect()
}

/// The layer of a module or of what is in it, with the entry of the table that says so.
fn layer_of(path: &[String]) -> Option<(usize, &'static str)> {
    let full = path.join("::");
    let covers = |entry: &str| full == entry || full.starts_with(&format!("{entry}::"));
    let entries = LAYERS.iter().enumerate().flat_map(|(layer, row)| row.iter().map(move |entry| (layer, *entry)));
    entries.filter(|(_, entry)| covers(entry)).max_by_key(|(_, entry)| entry.len())
}

/// What is wrong with a path in a file of the layer `own`.
fn check_path(source: &Source, own: (usize, &str), named: &Named) -> Option<String> {
    match named.path.split_first() {
        Some((first, path)) if first == "crate" => check_import(own, path),
        _ if own.0 <= LAST_PURE => check_purity(source, &named.path),
        _ => None,
    }
}

fn check_import(own: (usize, &str), target: &[String]) -> Option<String> {
    let full = target.join("::");
    let Some(target) = layer_of(target) else {
        return Some(format!("`crate::{full}` names no module with a layer: name it by the module that it is in"));
    };
    if own.1 == target.1 {
        return None;
    }
    if SERVER_CORE.contains(&own.1) && !SERVER_CORE.contains(&target.1) {
        return Some(format!("`{}` serves any handler: it must not import `{}`", own.1, target.1));
    }
    if own.0 == ACTORS && target.0 == ACTORS {
        return Some(format!("the actors `{}` and `{}` must not import each other", own.1, target.1));
    }
    let is_higher = target.0 > own.0;
    is_higher.then(|| format!("`{}` (layer {}) must not import `{}` (layer {})", own.1, own.0, target.1, target.0))
}

fn check_purity(source: &Source, path: &[String]) -> Option<String> {
    let full = path.join("::");
    let reads = |clock: &str| path.ends_with(&[clock.to_owned(), "now".to_owned()]);
    if reads("Instant") || reads("SystemTime") {
        return Some(format!("`{full}` in a pure layer: take the time as a parameter"));
    }
    let within = |module: &str| full == module || full.starts_with(&format!("{module}::"));
    let found = IMPURE.iter().find(|module| within(module))?;
    let is_allowed = ALLOWED_IMPURE.contains(&(source.path.as_str(), found));
    (!is_allowed).then(|| format!("`{full}` in a pure layer: `{found}` is for layer {} and up", LAST_PURE + 1))
}

fn elapsed_calls(source: &Source) -> Vec<String> {
    let calls =
        source.tokens.windows(3).filter(|three| three.iter().map(|token| &*token.text).eq([".", "elapsed", "("]));
    calls
        .map(|call| {
            format!("src/{}:{}: `elapsed` reads the clock: take the time as a parameter", source.path, call[1].line)
        })
        .collect()
}
