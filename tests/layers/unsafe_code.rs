//! Holds the list of `unsafe` code in `docs/security.md`.
//!
//! The compiler sees to it that there is none outside of `tl-os`: all other crates have `#![forbid(unsafe_code)]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::tokens::{Token, tokens};
use crate::{read, read_sources, without_tests};

/// How often `unsafe` stands in a file: blocks, functions, and others, which are implementations and attributes.
type Counts = [usize; 3];

/// The name of the row of the sum, and of the row of the tests.
const SUM: &str = "all files";
const TESTS: &str = "their unit tests";

fn count(tokens: &[Token]) -> Counts {
    let mut counts = [0; 3];
    for pair in tokens.windows(2).filter(|pair| pair[0].text == "unsafe") {
        let kind = match pair[1].text.as_str() {
            "{" => 0,
            "fn" => 1,
            _ => 2,
        };
        counts[kind] += 1;
    }
    counts
}

fn add(a: Counts, b: Counts) -> Counts {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// What the source has: a row for each file of `os/src` with `unsafe` outside of tests, one for their sum, one for tests.
fn counted() -> BTreeMap<String, Counts> {
    let files = read("os/src", &["lib.rs"]);
    let sources = read_sources(&files);
    let rows =
        without_tests(&sources).into_iter().map(|source| (format!("os/src/{}", source.path), count(&source.tokens)));
    let mut rows: BTreeMap<String, Counts> = rows.filter(|(_, counts)| counts.iter().sum::<usize>() > 0).collect();
    let sum = rows.values().copied().reduce(add).unwrap_or_default();
    let everything = files.values().map(|text| count(&tokens(text))).reduce(add).unwrap_or_default();
    rows.insert(SUM.to_owned(), sum);
    rows.insert(TESTS.to_owned(), [everything[0] - sum[0], everything[1] - sum[1], everything[2] - sum[2]]);
    rows
}

/// The rows of a Markdown text whose second to fourth cells are numbers, by the first cell.
fn documented(text: &str) -> BTreeMap<String, Counts> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(|cell| cell.trim().trim_matches('`'));
        let name = cells.next()?.to_owned();
        let mut number = || cells.next()?.parse().ok();
        Some((name, [number()?, number()?, number()?]))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn the_document_counts_all_unsafe_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let text = fs::read_to_string(path).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("How the code is checked\n"));
    let documented = documented(section.expect("docs/security.md has the section"));
    let counted = counted();
    let row = |(name, [blocks, functions, others]): (&String, &Counts)| {
        format!("| `{name}` | {blocks} | {functions} | {others} |")
    };
    let wrong: Vec<String> =
        counted.iter().filter(|(name, counts)| documented.get(*name) != Some(counts)).map(row).collect();
    assert!(wrong.is_empty(), "docs/security.md must have these rows:\n{}", wrong.join("\n"));
    let gone: Vec<&String> =
        documented.keys().filter(|name| name.starts_with("os/") && !counted.contains_key(*name)).collect();
    assert!(gone.is_empty(), "docs/security.md has rows for files without `unsafe`: {gone:?}");
}

#[test]
fn unsafe_is_counted_by_its_kind_and_not_in_comments() {
    let text = "// unsafe {\nunsafe impl A for B {}\n#[unsafe(no_mangle)] fn c() { unsafe { d() } }\nunsafe fn e() {} unsafe{}";
    assert_eq!(count(&tokens(text)), [2, 1, 2]);
    let rows =
        documented("| file | blocks | functions |\n|---|---|---|\n| `a.rs` | 1 | 2 | 3 | why |\nx | 1 | 1 | 1 |");
    assert_eq!(rows, BTreeMap::from([("a.rs".to_owned(), [1, 2, 3])]));
}
