//! Checks that every path and link of a document leads somewhere, that every test that a document names exists, and that
//! every heading of `docs/api.md` that a comment cites exists.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// Top-level directories whose paths documents mention.
const DIRECTORIES: [&str; 9] = ["benches/", "docs/", "examples/", "fuzz/", "host/", "init/", "os/", "src/", "tests/"];

/// How a comment cites a section of the API: this, then the heading.
const CITATION: &str = "docs/api.md, ";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` with this extension.
fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found
}

/// The documents at the top of the repository, in `docs/`, `examples/` and `src/`.
fn documents() -> Vec<PathBuf> {
    let top = fs::read_dir(root()).unwrap().flatten().map(|entry| entry.path());
    let top = top.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let below = ["docs", "examples", "src"].map(|directory| files_below(&root().join(directory), "md"));
    top.chain(below.into_iter().flatten()).collect()
}

/// Paths below [`DIRECTORIES`] that a text mentions. `{a,b}` is expanded.
fn mentioned_paths(text: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-./{},*".contains(letter);
    let words = text.split(|letter: char| !is_part(letter));
    let words = words.map(|word| word.trim_end_matches(['.', ',']).trim_start_matches(['{', ',']));
    let paths = words.filter(|word| DIRECTORIES.iter().any(|directory| word.starts_with(directory)));
    paths.flat_map(expand).collect()
}

/// All paths that a path with at most one `{a,b}` stands for.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        // Without braces, a comma ends the path.
        return vec![path.split(',').next().unwrap_or_default().to_owned()];
    };
    let Some((choices, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    let after = after.split(',').next().unwrap_or_default();
    choices.split(',').map(|choice| format!("{before}{choice}{after}")).collect()
}

/// Whether a path exists. Of a path with a `*` only the directory before it must.
fn exists(path: &str) -> bool {
    let fixed = match path.split_once('*') {
        Some((before, _)) => before.rsplit_once('/').map_or("", |(directory, _)| directory),
        None => path,
    };
    root().join(fixed).exists()
}

/// Targets of the links of a Markdown text that lead into the repository: the path, which is empty for a link to the
/// text itself, and the anchor.
fn link_targets(text: &str) -> Vec<(&str, Option<&str>)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let targets = targets.filter(|target| !target.contains("://"));
    targets.map(|target| target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)))).collect()
}

/// The anchors of the headings of a Markdown text, as GitHub forms them: lower case, spaces as hyphens, without other
/// punctuation.
fn anchors(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2).collect::<String>();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let letters = heading.to_lowercase().replace(' ', "-");
        letters.chars().filter(|&letter| letter.is_alphanumeric() || "-_".contains(letter)).collect()
    };
    headings.map(anchor).collect()
}

/// What is wrong with a link of a document, if anything.
fn problem_of_link(document: &Path, (path, anchor): (&str, Option<&str>)) -> Option<String> {
    let target = if path.is_empty() { document.to_path_buf() } else { document.parent().unwrap().join(path) };
    if !target.exists() {
        return Some(format!("link to {path}"));
    }
    let anchor = anchor?;
    let found = anchors(&fs::read_to_string(&target).unwrap()).iter().any(|own| own == anchor);
    (!found).then(|| format!("link to {path}#{anchor}: no such heading"))
}

/// A source text with each comment on one line.
fn joined_comments(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.trim_start();
        ["//! ", "/// ", "// "].iter().find_map(|marker| line.strip_prefix(marker)).unwrap_or(line)
    });
    lines.collect::<Vec<_>>().join(" ").replace('`', "")
}

/// The beginnings of all citations in a source text: what follows [`CITATION`].
fn citations(text: &str) -> Vec<String> {
    let text = joined_comments(text);
    text.split(CITATION).skip(1).map(|rest| rest.chars().take(60).collect()).collect()
}

/// Whether a citation begins with one of the headings.
fn is_heading(citation: &str, headings: &[&str]) -> bool {
    headings.iter().any(|heading| {
        citation.strip_prefix(heading).is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
    })
}

#[test]
fn every_path_and_link_of_a_document_leads_somewhere() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let name = document.strip_prefix(root()).unwrap().display();
        let absent = mentioned_paths(&text).into_iter().filter(|path| !exists(path));
        missing.extend(absent.map(|path| format!("{name}: {path}")));
        let dead = link_targets(&text).into_iter().filter_map(|target| problem_of_link(&document, target));
        missing.extend(dead.map(|problem| format!("{name}: {problem}")));
    }
    assert!(missing.is_empty(), "no such file or directory:\n{}", missing.join("\n"));
}

/// The documents that name the test of each claim.
const DOCUMENTS_WITH_TESTS: [&str; 2] = ["docs/reliability.md", "docs/security.md"];

/// The tests that a text names: a file of Rust or Python in a code span, then names in code spans of their own in the same
/// cell of a table or the same line.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let cells = text.split(['|', '\n']);
    cells.flat_map(named_tests_of_cell).collect()
}

fn named_tests_of_cell(cell: &str) -> Vec<(&str, &str)> {
    let (mut file, mut named) = ("", Vec::new());
    for span in cell.split('`').skip(1).step_by(2) {
        let is_name = span.contains('_') && span.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if span.ends_with(".rs") || span.ends_with(".py") {
            file = span;
        } else if is_name && !file.is_empty() {
            named.push((file, span));
        } else {
            file = "";
        }
    }
    named
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut missing = Vec::new();
    for document in DOCUMENTS_WITH_TESTS {
        let text = fs::read_to_string(root().join(document)).unwrap_or_default();
        for (file, name) in named_tests(&text) {
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !["fn ", "def "].iter().any(|keyword| source.contains(&format!("{keyword}{name}("))) {
                missing.push(format!("{document}: {file} {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}

#[test]
fn every_heading_of_the_api_that_a_comment_cites_exists() {
    let api = fs::read_to_string(root().join("docs/api.md")).unwrap();
    let headings: Vec<&str> = api.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' ')).collect();
    let mut wrong = Vec::new();
    for directory in ["src", "init", "os", "tests", "benches", "examples"] {
        for file in files_below(&root().join(directory), "rs") {
            if file.ends_with("tests/docs.rs") {
                continue;
            }
            let cited = citations(&fs::read_to_string(&file).unwrap()).into_iter();
            let absent = cited.filter(|citation| !is_heading(citation, &headings));
            wrong.extend(absent.map(|citation| format!("{}: {CITATION}{citation}…", file.display())));
        }
    }
    assert!(wrong.is_empty(), "docs/api.md has no such heading:\n{}", wrong.join("\n"));
}

#[test]
fn paths_and_citations_are_found_in_text() {
    let text = "See `src/unit/{run,stop}.rs`, (tests/vm) and /etc/tl-init/x; `examples/*.rs`. Not dist/src/x.";
    assert_eq!(mentioned_paths(text), ["src/unit/run.rs", "src/unit/stop.rs", "tests/vm", "examples/*.rs"]);
    let targets = link_targets("[a](docs/api.md#errors) [b](https://x.example) [c](#here) [d](a.svg)");
    assert_eq!(targets, [("docs/api.md", Some("errors")), ("", Some("here")), ("a.svg", None)]);
    assert_eq!(anchors("# A `b`\n```\n# no\n```\n## What it's, c_d\n"), ["a-b", "what-its-c_d"]);
    let row = "| `http-conn` | `tests/a.rs` `one_test`, `another_2` | `src/x.rs` `Type` `not_one` |";
    assert_eq!(named_tests(row), [("tests/a.rs", "one_test"), ("tests/a.rs", "another_2")]);
    let comment = "    /// The limits (docs/api.md,\n    /// Limits) and `docs/api.md`, Errors.\n";
    let found = citations(comment);
    assert!(found[0].starts_with("Limits)") && found[1].starts_with("Errors."), "{found:?}");
    assert!(is_heading("Limits).", &["Errors", "Limits"]) && !is_heading("Limitsx", &["Limits"]));
}
