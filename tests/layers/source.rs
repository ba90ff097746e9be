//! One source file without its tests, and the paths that it names.

use crate::tokens::{Token, item_length, tokens};

/// A source file without its test code.
pub struct Source {
    /// The path below the crate's source directory: `logs/store.rs`.
    pub path: String,
    /// The module: `logs/store.rs` is `["logs", "store"]`, `logs/mod.rs` is `["logs"]`, the crate root is empty.
    pub module: Vec<String>,
    /// The tokens outside of test code.
    pub tokens: Vec<Token>,
    /// The number of lines outside of test code.
    pub lines: usize,
    /// The modules that this file declares as tests, in files of their own.
    pub test_modules: Vec<Vec<String>>,
}

/// A path in the source, from the crate root where it begins with `crate`, `self` or `super`.
pub struct Named {
    /// The line that it stands on.
    pub line: usize,
    /// Its segments: `["crate", "logs", "View"]` or `["std", "fs", "File"]`.
    pub path: Vec<String>,
    /// Whether a `pub use` re-exports it.
    pub is_reexport: bool,
}

impl Source {
    pub fn read(path: &str, text: &str) -> Source {
        let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod") || matches!(path, "lib.rs" | "main.rs") {
            module.pop();
        }
        let mut source =
            Source { path: path.to_owned(), module, tokens: vec![], lines: text.lines().count(), test_modules: vec![] };
        source.keep_all_but_tests(&tokens(text));
        source
    }

    fn keep_all_but_tests(&mut self, tokens: &[Token]) {
        let mut rest = tokens;
        while let Some(token) = rest.first() {
            let begins_with = |words: &[&str]| {
                rest.iter().take(words.len()).map(|token| token.text.as_str()).eq(words.iter().copied())
            };
            let is_test = begins_with(&["#", "[", "cfg", "(", "test", ")", "]"])
                || begins_with(&["#", "[", "cfg", "(", "all", "(", "test"])
                // The invariants that fuzz targets check, in unit tests too.
                || begins_with(&["#", "[", "cfg", "(", "any", "(", "test", ",", "fuzzing", ")", ")", "]"]);
            if !is_test {
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

    /// Every path of two or more segments, those of `use` items in full.
    pub fn paths(&self) -> Vec<Named> {
        let mut paths = Vec::new();
        let mut at = 0;
        while let Some(token) = self.tokens.get(at) {
            // `impl Trait + use<'a>` imports nothing.
            if token.text == "use" && self.tokens.get(at + 1).is_some_and(|next| next.text != "<") {
                let is_reexport = self.is_public(at);
                let mut used = Vec::new();
                at = use_tree(&self.tokens, at + 1, &[], &mut used);
                paths.extend(used.into_iter().map(|(line, path)| self.named(line, path, is_reexport)));
                continue;
            }
            let mut path = vec![token.text.clone()];
            while token.is_word()
                && let [colons, next, ..] = &self.tokens[(at + 1).min(self.tokens.len())..]
                && colons.text == "::"
                && next.is_word()
            {
                path.push(next.text.clone());
                at += 2;
            }
            // `pub(in crate::logs)` says who may import, and imports nothing.
            let is_visibility =
                self.tokens[..at.saturating_sub(2 * (path.len() - 1))].last().is_some_and(|word| word.text == "in");
            if path.len() > 1 && !is_visibility {
                paths.push(self.named(token.line, path, false));
            }
            at += 1;
        }
        paths
    }

    /// Whether `pub` or `pub(…)` stands before the token.
    fn is_public(&self, at: usize) -> bool {
        let before = &self.tokens[..at];
        match before.last().map(|token| token.text.as_str()) {
            Some("pub") => true,
            Some(")") => {
                let open = before.iter().rposition(|token| token.text == "(");
                open.is_some_and(|open| open > 0 && before[open - 1].text == "pub")
            }
            _ => false,
        }
    }

    fn named(&self, line: usize, path: Vec<String>, is_reexport: bool) -> Named {
        Named { line, path: self.rooted(path), is_reexport }
    }

    /// Replaces `self` and `super` by the path from the crate root.
    fn rooted(&self, mut path: Vec<String>) -> Vec<String> {
        let up = path.iter().take_while(|segment| *segment == "super").count();
        let here = path.first().is_some_and(|first| first == "self");
        if up == 0 && !here {
            return path;
        }
        let own = &self.module[..self.module.len().saturating_sub(up)];
        let rest = path.split_off(up.max(usize::from(here)));
        [&["crate".to_owned()], own, &rest].concat()
    }

    /// The name, the first line and the number of lines of each function with a body.
    pub fn functions(&self) -> Vec<(&str, usize, usize)> {
        let mut functions = Vec::new();
        for (at, pair) in self.tokens.windows(2).enumerate() {
            if pair[0].text != "fn" || !pair[1].is_word() {
                continue;
            }
            let rest = &self.tokens[at..];
            let last = item_length(rest) - 1;
            if rest[last].text == "}" {
                functions.push((pair[1].text.as_str(), pair[0].line, rest[last].line + 1 - pair[0].line));
            }
        }
        functions
    }
}

/// Reads `a::{b, c::*}` from `at`; returns the position after it.
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
