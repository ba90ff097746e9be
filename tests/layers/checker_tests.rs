//! Each rule of the checker fails where it should.

use std::collections::BTreeMap;

use crate::{LONGEST_FILE, LONGEST_FUNCTION, check_library};

#[track_caller]
fn expect(path: &str, text: &str, want: &[&str]) {
    expect_all(&[(path, text)], want);
}

/// `want`: a part of each sentence that the checker gives, in order.
#[track_caller]
fn expect_all(files: &[(&str, &str)], want: &[&str]) {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    let wrong = check_library(&files);
    let right = wrong.len() == want.len() && wrong.iter().zip(want).all(|(wrong, want)| wrong.contains(want));
    assert!(right, "{files:?}\n{wrong:#?}\nnot {want:#?}");
}

#[test]
fn a_module_imports_from_its_own_layer_and_lower_ones() {
    expect("output.rs", "use crate::clock::wall; use crate::{model::Pid, error::Error};", &[]);
    expect("unit/mod.rs", "use crate::logs::View;", &["src/unit/mod.rs:1: `unit` (layer 1) must not import `logs`"]);
    expect(
        "logs/lines.rs",
        "\n\nuse crate::logs::View;",
        &["src/logs/lines.rs:3: `logs::lines` (layer 1) must not import `logs` (layer 2)"],
    );
    expect("logs/mod.rs", "use crate::supervisor::Handle;", &["must not import `supervisor` (layer 4)"]);
    expect("logs/mod.rs", "use crate::{clock, http};", &["must not import `http`"]);
    expect("logs/mod.rs", "use crate::{clock::{self, wall}, model::*, http::{a, b}};", &["`http`", "`http`"]);
    expect("supervisor/mod.rs", "pub(crate) use crate::health::Health as Probes;", &[]);
    expect("supervisor/mod.rs", "pub use crate::http::Server;", &["must not import `http`"]);
    expect("error.rs", "use crate::unit::Unit;", &["`unit`"]);
}

#[test]
fn the_longest_entry_of_the_table_decides() {
    expect("output.rs", "use crate::supervisor::fd_budget::Share;", &[]);
    expect("output.rs", "use crate::supervisor::Handle;", &["must not import `supervisor` (layer 4)"]);
    expect("health/mod.rs", "use crate::health::schedule::Schedule;", &[]);
    expect("health/schedule.rs", "use super::Health;", &["`health::schedule` (layer 1) must not import `health`"]);
}

#[test]
fn paths_outside_of_use_items_count() {
    expect("logs/lines.rs", "fn f() { crate::output::g(1) }", &["must not import `output`"]);
    expect("unit/mod.rs", "fn f(x: Vec<&'static crate::http::Y>) {}", &["must not import `http`"]);
    expect("unit/mod.rs", "fn f() { super::http::g() }", &["must not import `http`"]);
    expect("logs/deep/er.rs", "use super::super::super::http::X;", &["must not import `http`"]);
    expect("logs/deep/mod.rs", "use super::super::http::X;", &["must not import `http`"]);
    expect("logs/deep/mod.rs", "use super::index; use self::x; use super::super::clock;", &[]);
    expect(
        "unit/mod.rs",
        "// crate::http::X\n/* crate::http /* */ crate::os */ const A: &str = \"crate::http::X\";",
        &[],
    );
    let literals = "const A: &str = r#\"\"crate::http::X\"#; const B: char = '\"'; const C: u8 = b'\\'';";
    expect("unit/mod.rs", literals, &[]);
    expect("unit/mod.rs", "const B: char = '\"'; use crate::http::X; const D: char = '\"';", &["`http`"]);
}

#[test]
fn actors_do_not_import_each_other() {
    for (own, other) in [("trees", "output"), ("health", "oom"), ("output", "health"), ("health", "output")] {
        expect(&format!("{own}/mod.rs"), &format!("use crate::{other}::X;"), &["must not import each other"]);
    }
    expect("health/mod.rs", "use self::probe::Probe; use crate::health::probe;", &[]);
}

#[test]
fn the_server_core_imports_only_itself() {
    expect("http/server/mod.rs", "use crate::http::message::Request; use crate::http::ws;", &[]);
    expect("http/server/mod.rs", "use crate::http::api::Api;", &["must not import `http`"]);
    for lower in ["error::Error", "model::Pid", "logs::View", "files::list"] {
        expect("http/message/x.rs", &format!("use crate::{lower};"), &["`http::message` serves any handler"]);
    }
    expect("http/api/mod.rs", "use crate::http::server::Server; use crate::supervisor::Handle;", &[]);
}

#[test]
fn every_module_has_a_layer() {
    expect("novel.rs", "", &["the module is in no layer"]);
    expect("novel/deep.rs", "", &["the module is in no layer"]);
    expect("logs/mod.rs", "use crate::Handle;", &["`crate::Handle` names no module with a layer"]);
    expect("logs/mod.rs", "use crate::*;", &["`crate::*` names no module with a layer"]);
    expect("lib.rs", "pub mod novel; pub use novel::*;", &[]);
}

#[test]
fn pure_modules_do_no_io_and_read_no_clock() {
    for what in ["std::fs", "std::net", "std::os", "nix", "libc", "tl_os"] {
        let problem = format!("`{what}` is for layer 2 and up");
        expect("users/passwd.rs", &format!("use {what}::x;"), &[&problem]);
        expect("users/passwd.rs", &format!("fn f() {{ {what}::x() }}"), &[&problem]);
        expect("users/mod.rs", &format!("use {what}::x;"), &[]);
    }
    expect("unit/mod.rs", "use std::{fs, collections::HashMap};", &["`std::fs` in a pure layer"]);
    expect("unit/mod.rs", "use nixon::x; use std::fmt;", &[]);
    expect("unit/mod.rs", "fn f() { Instant::now() }", &["`Instant::now` in a pure layer"]);
    expect("unit/mod.rs", "fn f() { std::time::SystemTime::now() }", &["`std::time::SystemTime::now` in a pure"]);
    expect("unit/mod.rs", "use std::time::Instant; fn f(now: Instant) {}", &[]);
    expect("unit/mod.rs", "fn f() { began.elapsed() }", &["`elapsed` reads the clock"]);
    expect("model/mod.rs", "use libc;", &["`libc`"]);
    expect("error.rs", "fn f() { libc::EMFILE; std::fs::read() }", &["`std::fs`"]);
    expect("health/mod.rs", "fn f() { Instant::now().elapsed() }", &[]);
}

#[test]
fn files_and_functions_have_a_greatest_length() {
    expect("logs/mod.rs", &"fn f() {}\n".repeat(LONGEST_FILE), &[]);
    let too_long = format!("{} lines without tests", LONGEST_FILE + 1);
    expect("logs/mod.rs", &"// so\n".repeat(LONGEST_FILE + 1), &[&too_long]);
    let function = |lines: usize| format!("impl X {{ fn f(a: [u8; 2]) -> Y {{\n{}}} }}", "g();\n".repeat(lines - 2));
    expect("logs/mod.rs", &function(LONGEST_FUNCTION), &[]);
    expect("logs/mod.rs", &function(LONGEST_FUNCTION + 1), &["src/logs/mod.rs:1: `f` has 71 lines"]);
}

#[test]
fn files_that_import_each_other_in_a_circle_are_found() {
    let leaf = ("logs/b.rs", "pub struct B;");
    expect_all(&[("logs/a.rs", "use super::b::B;"), leaf, ("logs/mod.rs", "mod a; mod b;")], &[]);
    // A parent that declares its child and re-exports from it does not import it.
    expect_all(&[("logs/mod.rs", "mod b; pub(crate) use b::B; pub struct C;"), ("logs/b.rs", "use super::C;")], &[]);
    let both = [("logs/mod.rs", "mod b; use b::B; pub struct C;"), ("logs/b.rs", "use super::C;")];
    expect_all(&both, &["files import each other in a circle: logs/b.rs:1 imports logs/mod.rs, logs/mod.rs:1 imports"]);
    // Through a re-export, it is the file behind it that counts.
    let through = [
        ("logs/mod.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
        ("logs/a.rs", "use super::B;"),
        ("logs/b.rs", "\nfn f() { crate::logs::A::new() }"),
    ];
    expect_all(&through, &["logs/a.rs:1 imports logs/b.rs, logs/b.rs:2 imports logs/a.rs"]);
    let three = [("logs/a.rs", "use super::b;"), ("logs/b.rs", "use super::c::C;"), ("logs/c.rs", "use super::a::A;")];
    expect_all(&[&three[..], &[("logs/mod.rs", "mod a; mod b; mod c;")]].concat(), &["logs/c.rs:1 imports logs/a.rs"]);
    expect("logs/a.rs", "pub(in crate::logs) fn f() {}", &[]);
    let in_tests = "pub struct A; #[cfg(test)] mod tests { use super::super::b::B; }";
    expect_all(&[("logs/a.rs", in_tests), ("logs/b.rs", "use super::a::A;"), ("logs/mod.rs", "")], &[]);
}

#[test]
fn test_code_is_exempt() {
    let body = "{ use crate::http::X; fn f() { std::fs::x(Instant::now()) } }";
    expect("unit/mod.rs", &format!("#[cfg(test)]\nmod tests {body}"), &[]);
    expect("unit/mod.rs", &format!("#[cfg(any(test, fuzzing))] mod tests {body}"), &[]);
    expect("unit/mod.rs", &format!("#[cfg(all(test, unix))] #[allow(x)] mod tests {body}"), &[]);
    let all = ["`http`", "`std::fs", "`Instant::now`"];
    expect("unit/mod.rs", &format!("#[cfg(not(test))] mod tests {body}"), &all);
    expect("unit/mod.rs", "#[cfg(test)] use crate::http; fn f() { std::fs::x() }", &["`std::fs"]);
    let long = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn t() {}\n".repeat(1000));
    expect("unit/mod.rs", &long, &[]);
    let longer = format!("{long}{}", "fn f() {}\n".repeat(LONGEST_FILE));
    expect("unit/mod.rs", &longer, &[&format!("{} lines", LONGEST_FILE + 1)]);

    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let mut files = BTreeMap::from([
        file("unit.rs", "#[cfg(test)]\nmod tests;"),
        file("unit/tests.rs", "use crate::http::X;"),
        file("unit/tests/more.rs", "use crate::http::X;"),
    ]);
    assert!(check_library(&files).is_empty());
    files.insert("unit.rs".into(), "mod tests;".into());
    assert_eq!(check_library(&files).len(), 2);
}
