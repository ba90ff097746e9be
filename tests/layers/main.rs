//! Holds the architecture: who may import whom, which layers are pure, where `unsafe` may stand, how long a file may be.
//!
//! Reads the tokens of every file below `src/`; test code is exempt. No parser: a path is identifiers with `::` between
//! them, and nothing here depends on what they mean. What macros make of their arguments is not seen.

// All of this is a test: to die of what it did not expect is right.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Each row is a layer. A module imports from lower layers, and from modules before it in its own row.
const LAYERS: [&[&str]; 6] = [
    &["window", "model", "error"],
    &["unit", "fleet", "lines", "users", "retention", "schedule", "ring", "session", "budget", "tasks"],
    &["os", "worker", "pending", "logs", "files", "terminal"],
    &["signals", "oom", "output", "health", "trees"],
    &["supervisor"],
    &["http"],
];

/// `model` and `error` name each other: a spec is refused with an error, and an error names what was addressed.
const CYCLES: [(&str, &str); 1] = [("model", "error")];

/// Layers up to this one do no I/O and ask no clock.
const PURE: usize = 1;

/// The modules of this layer never import each other.
const ACTORS: usize = 3;

const IMPURE: [&str; 12] = [
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "nix",
    "libc",
    "mio",
    "signal_hook",
    "crossbeam_channel",
    "tiny_http",
];

/// `error` maps errno numbers: constants, no calls.
const IMPURE_ALL_THE_SAME: [(&str, &str); 1] = [("error.rs", "libc")];

/// Where `unsafe` may stand.
const UNSAFE_BELOW: &str = "os/";
/// And where else, each with its reason.
const UNSAFE_ALL_THE_SAME: [&str; 0] = [];

/// Lines of a file, its tests aside.
const LONGEST: usize = 450;

#[test]
fn the_layers_hold() {
    let mut files = BTreeMap::new();
    read_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    assert!(files.contains_key("lib.rs") && files.contains_key("model/mod.rs"), "{:?}", files.keys());
    let wrong = check(&files);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
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

/// What is wrong with these files, by their paths below `src/`.
fn check(files: &BTreeMap<String, String>) -> Vec<String> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| Source::read(path, text)).collect();
    let tests: BTreeSet<&Vec<String>> = sources.iter().flat_map(|source| &source.test_modules).collect();
    let is_test = |source: &&Source| (1..=source.module.len()).any(|n| tests.contains(&source.module[..n].to_vec()));
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !is_test(source)) {
        source.check(&mut wrong);
    }
    wrong
}

/// One file without its tests.
struct Source<'a> {
    path: &'a str,
    /// `logs/index.rs` and `logs/index/mod.rs` are `logs`, `index`; `lib.rs` is nothing.
    module: Vec<String>,
    tokens: Vec<Token>,
    lines: usize,
    /// The files that it declares as tests.
    test_modules: Vec<Vec<String>>,
}

impl<'a> Source<'a> {
    fn read(path: &'a str, text: &str) -> Source<'a> {
        let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        let mut source = Source { path, module, tokens: Vec::new(), lines: text.lines().count(), test_modules: vec![] };
        source.drop_tests(tokens(text));
        source
    }

    /// Takes over everything but the items under `#[cfg(test)]`.
    fn drop_tests(&mut self, tokens: Vec<Token>) {
        let mut rest = &tokens[..];
        while let Some(token) = rest.first() {
            let is = |words: &[&str]| {
                rest.iter().take(words.len()).map(|token| token.text.as_str()).eq(words.iter().copied())
            };
            if !is(&["#", "[", "cfg", "(", "test", ")", "]"]) && !is(&["#", "[", "cfg", "(", "all", "(", "test"]) {
                self.tokens.push(token.clone());
                rest = &rest[1..];
                continue;
            }
            let (item, after) = rest.split_at(item_length(rest));
            self.lines -= item.last().map_or(0, |last| last.line + 1 - token.line);
            if let [.., keyword, name, end] = item
                && (keyword.text.as_str(), end.text.as_str()) == ("mod", ";")
            {
                self.test_modules.push([&self.module[..], std::slice::from_ref(&name.text)].concat());
            }
            rest = after;
        }
    }

    fn check(&self, wrong: &mut Vec<String>) {
        if self.lines > LONGEST {
            wrong.push(format!("src/{}: {} lines without tests, more than {LONGEST}: split it", self.path, self.lines));
        }
        let unsafe_may_be = self.path.starts_with(UNSAFE_BELOW) || UNSAFE_ALL_THE_SAME.contains(&self.path);
        for token in self.tokens.iter().filter(|token| token.text == "unsafe" && !unsafe_may_be) {
            wrong.push(format!("src/{}:{}: `unsafe` belongs below src/{UNSAFE_BELOW}", self.path, token.line));
        }
        // The root only declares and re-exports.
        let Some(own) = self.module.first() else { return };
        let Some(at) = place(own) else {
            wrong.push(format!(
                "src/{}: the module `{own}` is in no layer: give it a place in tests/layers.rs",
                self.path
            ));
            return;
        };
        for (line, path) in paths(&self.tokens) {
            let path = self.resolve(path);
            let problem = match path.split_first() {
                Some((first, path)) if first == "crate" => import(own, at, path.first().map_or("", String::as_str)),
                _ if at.0 <= PURE => self.impure(&path),
                _ => None,
            };
            wrong.extend(problem.map(|problem| format!("src/{}:{line}: {problem}", self.path)));
        }
        for three in self.tokens.windows(3).filter(|_| at.0 <= PURE) {
            if [".", "elapsed", "("].iter().zip(three).all(|(want, token)| *want == token.text) {
                wrong.push(format!(
                    "src/{}:{}: `elapsed` asks the clock: take the time as a parameter",
                    self.path, three[1].line
                ));
            }
        }
    }

    /// `self::` and `super::` made into `crate::`.
    fn resolve(&self, mut path: Vec<String>) -> Vec<String> {
        let up = path.iter().take_while(|segment| *segment == "super").count();
        let here = path.first().is_some_and(|first| first == "self");
        if up == 0 && !here {
            return path;
        }
        let own = &self.module[..self.module.len().saturating_sub(up)];
        let rest = path.split_off(up.max(usize::from(here)));
        [&["crate".to_owned()], own, &rest].concat()
    }

    fn impure(&self, path: &[String]) -> Option<String> {
        let full = path.join("::");
        let asks_a_clock = |clock: &str| path.ends_with(&[clock.to_owned(), "now".to_owned()]);
        if asks_a_clock("Instant") || asks_a_clock("SystemTime") {
            return Some(format!("`{full}` in a pure layer: take the time as a parameter"));
        }
        let within = |module: &str| full == module || full.starts_with(&format!("{module}::"));
        let found = IMPURE.iter().find(|module| within(module))?;
        let excepted = IMPURE_ALL_THE_SAME.contains(&(self.path, found));
        (!excepted).then(|| format!("`{full}` in a pure layer: `{found}` is for layer {} and up", PURE + 1))
    }
}

/// The layer and the place in it.
fn place(module: &str) -> Option<(usize, usize)> {
    LAYERS.iter().enumerate().find_map(|(layer, row)| Some((layer, row.iter().position(|name| *name == module)?)))
}

/// What is wrong with `crate::target` in the module `own`.
fn import(own: &str, at: (usize, usize), target: &str) -> Option<String> {
    if own == target || CYCLES.contains(&(own, target)) {
        return None;
    }
    let Some(to) = place(target) else {
        return Some(format!("`crate::{target}` is no module with a layer: name it by the module that it is in"));
    };
    if at.0 == ACTORS && to.0 == ACTORS {
        return Some(format!("the actors `{own}` and `{target}` must not know each other"));
    }
    (to >= at).then(|| format!("`{own}` (layer {}) must not import `{target}` (layer {})", at.0, to.0))
}

/// An identifier, a number, `::` or one character of punctuation. Literals and comments are none.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(is_word)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (length, is_token) = match first {
            _ if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), false),
            _ if rest.starts_with("/*") => (comment_length(rest), false),
            _ if literal_length(rest).is_some() => (literal_length(rest).unwrap(), false),
            _ if rest.starts_with("::") => (2, true),
            _ if is_word(first) => (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true),
            _ => (first.len_utf8(), !first.is_whitespace()),
        };
        let (token, after) = rest.split_at(length);
        if is_token {
            tokens.push(Token { text: token.to_owned(), line });
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Block comments nest.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// A string or character, raw and byte and C strings included; a lifetime is none.
fn literal_length(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = &text[..text.len() - body.len()];
    if !["", "b", "c", "r", "br", "cr"].contains(&prefix) {
        return None;
    }
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let inner = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", &body[..hashes]);
        return Some(inner.find(&end).map_or(text.len(), |at| text.len() - inner.len() + at + end.len()));
    }
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut chars = body.char_indices().skip(1);
    if quote == '\'' {
        let (_, first) = chars.next()?;
        if first != '\\' && chars.clone().next()?.1 != '\'' {
            return None;
        }
        chars = body.char_indices().skip(1);
    }
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Some(prefix.len() + at + 1);
        }
    }
    Some(text.len())
}

/// How many tokens the item takes that begins here, attributes first: to its `;`, or to the end of its braces.
fn item_length(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(token.text.as_str(), ";" | "}") {
            return i + 1;
        }
    }
    tokens.len()
}

/// Every path with its line, those of `use` in full.
fn paths(tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let mut paths = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        // `impl Trait + use<'a>` imports nothing.
        let is_use = token.text == "use" && tokens.get(at + 1).is_some_and(|next| next.text != "<");
        if is_use {
            at = use_tree(tokens, at + 1, &[], &mut paths);
            continue;
        }
        let mut path = vec![token.text.clone()];
        while token.is_word()
            && let [colons, next, ..] = &tokens[(at + 1).min(tokens.len())..]
            && colons.text == "::"
            && next.is_word()
        {
            path.push(next.text.clone());
            at += 2;
        }
        if path.len() > 1 {
            paths.push((token.line, path));
        }
        at += 1;
    }
    paths
}

/// Reads `a::{b, c::*}` from `at`; returns where it ends.
fn use_tree(tokens: &[Token], mut at: usize, prefix: &[String], paths: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut path = prefix.to_vec();
    let mut line = 0;
    let mut is_group = false;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token.text.as_str() {
            "::" => {}
            "as" => at += 1,
            "{" => {
                is_group = true;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, &path, paths);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                at += 1;
            }
            "," | "}" | ";" => {
                at -= 1;
                break;
            }
            text => {
                path.push(text.to_owned());
                line = token.line;
            }
        }
    }
    if !is_group && path.len() > prefix.len() {
        paths.push((line, path));
    }
    at
}

/// The checker has to fail where it should.
mod of_the_checker {
    use super::*;

    #[track_caller]
    fn expect(path: &str, text: &str, want: &[&str]) {
        let wrong = check(&BTreeMap::from([(path.to_owned(), text.to_owned())]));
        let right = wrong.len() == want.len() && wrong.iter().zip(want).all(|(wrong, want)| wrong.contains(want));
        assert!(right, "{path}: {text}\n{wrong:#?}\nnot {want:#?}");
    }

    #[test]
    fn imports() {
        expect("output.rs", "use crate::os::poll; use crate::{model::Pid, error::Error};", &[]);
        expect("fleet.rs", "use crate::unit::Unit;", &[]);
        expect("unit.rs", "use crate::fleet::Fleet;", &["src/unit.rs:1: `unit` (layer 1) must not import `fleet`"]);
        expect(
            "lines.rs",
            "\n\nuse crate::os::poll::Waker;",
            &["src/lines.rs:3: `lines` (layer 1) must not import `os`"],
        );
        expect("logs/mod.rs", "use crate::supervisor::Handle;", &["must not import `supervisor` (layer 4)"]);
        expect("logs/mod.rs", "use crate::{os::poll, http};", &["must not import `http`"]);
        expect("logs/mod.rs", "use crate::{os::{self, poll}, model::*, http::{a, b}};", &["`http`", "`http`"]);
        expect("os/spawn.rs", "use crate::worker;", &["must not import `worker`"]);
        expect("os/spawn.rs", "use crate::os::poll; use super::wait;", &[]);
        expect("supervisor/mod.rs", "pub(crate) use crate::health::Health as Probes;", &[]);
        expect("model/mod.rs", "use crate::error::SpecError;", &[]);
        expect("error.rs", "use crate::model::Target;", &[]);
        expect("error.rs", "use crate::unit::Unit;", &["`unit`"]);
    }

    #[test]
    fn paths_without_use() {
        expect("lines.rs", "fn f() { crate::logs::g(1) }", &["must not import `logs`"]);
        expect("lines.rs", "fn f(x: Vec<&'static crate::http::Y>) {}", &["must not import `http`"]);
        expect("lines.rs", "fn f() { super::http::g() }", &["must not import `http`"]);
        expect("logs/deep/er.rs", "use super::super::super::http::X;", &["must not import `http`"]);
        expect("logs/deep/mod.rs", "use super::super::http::X;", &["must not import `http`"]);
        expect("logs/deep/mod.rs", "use super::index; use self::x; use super::super::os;", &[]);
        expect(
            "lines.rs",
            "// crate::http::X\n/* crate::http /* */ crate::os */ const A: &str = \"crate::http::X\";",
            &[],
        );
        expect("lines.rs", "const A: &str = r#\"\"crate::http::X\"#; const B: char = '\"'; const C: u8 = b'\\'';", &[]);
        expect("lines.rs", "const B: char = '\"'; use crate::http::X; const D: char = '\"';", &["`http`"]);
    }

    #[test]
    fn actors() {
        for (own, other) in [("signals", "output"), ("health", "signals"), ("output", "health"), ("health", "output")] {
            expect(&format!("{own}/mod.rs"), &format!("use crate::{other}::X;"), &["must not know each other"]);
        }
        expect("health/mod.rs", "use self::probe::Probe; use crate::health::probe;", &[]);
    }

    #[test]
    fn modules_without_a_layer() {
        expect("novel.rs", "", &["the module `novel` is in no layer"]);
        expect("novel/deep.rs", "", &["the module `novel` is in no layer"]);
        expect("logs/mod.rs", "use crate::Handle;", &["`crate::Handle` is no module with a layer"]);
        expect("logs/mod.rs", "use crate::*;", &["`crate::*` is no module with a layer"]);
        expect("lib.rs", "pub mod novel; pub use novel::*;", &[]);
    }

    #[test]
    fn purity() {
        for what in ["std::fs", "std::net", "std::os", "nix", "libc"] {
            expect("users.rs", &format!("use {what}::x;"), &[&format!("`{what}` is for layer 2 and up")]);
            expect("users.rs", &format!("fn f() {{ {what}::x() }}"), &[&format!("`{what}` is for layer 2 and up")]);
            expect("os/x.rs", &format!("use {what}::x;"), &[]);
        }
        expect("users.rs", "use std::{fs, collections::HashMap};", &["`std::fs` in a pure layer"]);
        expect("users.rs", "use nixon::x; use std::fmt;", &[]);
        expect("unit.rs", "fn f() { Instant::now() }", &["`Instant::now` in a pure layer"]);
        expect("unit.rs", "fn f() { std::time::SystemTime::now() }", &["`std::time::SystemTime::now` in a pure layer"]);
        expect("unit.rs", "use std::time::Instant; fn f(now: Instant) {}", &[]);
        expect("unit.rs", "fn f() { began.elapsed() }", &["`elapsed` asks the clock"]);
        expect("model/mod.rs", "use libc;", &["`libc`"]);
        expect("error.rs", "fn f() { libc::EMFILE; std::fs::read() }", &["`std::fs`"]);
        expect("health/mod.rs", "fn f() { Instant::now().elapsed() }", &[]);
    }

    #[test]
    fn unsafe_and_length() {
        expect("logs/mod.rs", "fn f() { unsafe { x() } }", &["src/logs/mod.rs:1: `unsafe` belongs below src/os/"]);
        expect("lib.rs", "unsafe fn f() {}", &["`unsafe`"]);
        expect("os/x.rs", "fn f() { unsafe { x() } }", &[]);
        expect("logs/mod.rs", "// unsafe\nfn unsafe_not() {}", &[]);
        expect("lines.rs", &"fn f() {}\n".repeat(LONGEST), &[]);
        expect("lines.rs", &"// so\n".repeat(LONGEST + 1), &["451 lines without tests"]);
    }

    #[test]
    fn tests_are_exempt() {
        let body = "{ use crate::http::X; fn f() { unsafe { std::fs::x(Instant::now()) } } }";
        expect("lines.rs", &format!("#[cfg(test)]\nmod tests {body}"), &[]);
        expect("lines.rs", &format!("#[cfg(all(test, unix))] #[allow(x)] mod tests {body}"), &[]);
        let all = ["`unsafe`", "`http`", "`std::fs", "`Instant::now`"];
        expect("lines.rs", &format!("#[cfg(not(test))] mod tests {body}"), &all);
        expect("lines.rs", "#[cfg(test)] use crate::http; fn f() { unsafe {} }", &["`unsafe`"]);
        let long = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn t() {}\n".repeat(1000));
        expect("lines.rs", &long, &[]);
        expect("lines.rs", &format!("{long}{}", "fn f() {}\n".repeat(LONGEST)), &["451 lines"]);

        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let mut files = BTreeMap::from([
            file("unit.rs", "#[cfg(test)]\nmod tests;"),
            file("unit/tests.rs", "use crate::http::X;"),
            file("unit/tests/more.rs", "use crate::http::X;"),
        ]);
        assert!(check(&files).is_empty());
        files.insert("unit.rs".into(), "mod tests;".into());
        assert_eq!(check(&files).len(), 2);
    }
}
