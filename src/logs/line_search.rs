//! [`LineSearch`]: finds a text in the lines of a log, also in a line that comes in pieces. Pure.

use memchr::memmem::Finder;

use crate::model::Stream;

/// Maximum length in bytes of the line that is returned; of a longer one it is a part.
pub(super) const SHOWN: usize = 16 << 10;

/// Number of bytes of the beginning of a line that are kept until its next piece comes: more than a text that is
/// searched has, so that one across two pieces is found.
const KEPT: usize = SHOWN / 2;

/// Searches the lines of two streams for a text.
#[derive(Debug)]
pub(super) struct LineSearch {
    finder: Finder<'static>,
    /// Of each stream, the end of a line of which another piece follows.
    begun: [String; 2],
}

impl LineSearch {
    /// `text` has at most [`KEPT`] bytes, and at least one.
    pub(super) fn new(text: &str) -> LineSearch {
        LineSearch { finder: Finder::new(text).into_owned(), begun: Default::default() }
    }

    /// Searches the next piece of a line; `ends` if it is the last one, or the whole line. Returns the line, or the part of
    /// it around the text.
    pub(super) fn piece(&mut self, stream: Stream, piece: &str, ends: bool) -> Option<String> {
        let begun = index(&mut self.begun, stream);
        if begun.is_empty() && ends {
            return self.finder.find(piece.as_bytes()).map(|at| part(piece, at, self.finder.needle().len()));
        }
        begun.push_str(piece);
        let found = self.finder.find(begun.as_bytes()).map(|at| part(begun, at, self.finder.needle().len()));
        if ends {
            *begun = String::new();
        } else {
            begun.drain(..ceil(begun, begun.len().saturating_sub(KEPT)));
        }
        found
    }

    /// Searches a line that is not finished; `rest` is what has come of it after the last piece.
    pub(super) fn unfinished(&self, stream: Stream, rest: &[u8]) -> Option<String> {
        let [out, err] = &self.begun;
        let begun = if stream == Stream::Stdout { out } else { err };
        let line = [begun.as_str(), &String::from_utf8_lossy(rest)].concat();
        self.finder.find(line.as_bytes()).map(|at| part(&line, at, self.finder.needle().len()))
    }

    /// A part of the output is missing here: what comes next continues no line.
    pub(super) fn gap(&mut self) {
        self.begun = Default::default();
    }
}

fn index(begun: &mut [String; 2], stream: Stream) -> &mut String {
    let [out, err] = begun;
    if stream == Stream::Stdout { out } else { err }
}

/// The line, or a part of at most [`SHOWN`] bytes with the `length` bytes from `at` on.
fn part(line: &str, at: usize, length: usize) -> String {
    let from = if line.len() <= SHOWN { 0 } else { ceil(line, (at + length).saturating_sub(SHOWN)) };
    let mut to = line.len().min(from + SHOWN);
    while !line.is_char_boundary(to) {
        to -= 1;
    }
    line.get(from..to).unwrap_or_default().to_owned()
}

/// The first boundary of a character at or after `at`.
fn ceil(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Stream::{Stderr as ERR, Stdout as OUT};

    #[test]
    fn whole_lines_are_searched() {
        let mut search = LineSearch::new("ready");
        assert_eq!(search.piece(OUT, "not yet", true), None);
        assert_eq!(search.piece(ERR, "", true), None);
        assert_eq!(search.piece(OUT, "is ready now", true).as_deref(), Some("is ready now"));
        assert_eq!(search.piece(ERR, "ready", true).as_deref(), Some("ready"));
        // No line continues the one before it, nor one of the other stream.
        assert_eq!(search.piece(OUT, "rea", true), None);
        assert_eq!(search.piece(OUT, "dy", true), None);
        assert_eq!(search.piece(OUT, "rea", false), None);
        assert_eq!(search.piece(ERR, "dy", true), None);
        assert_eq!(search.piece(OUT, "dy", false).as_deref(), Some("ready"));
    }

    #[test]
    fn a_gap_separates_what_it_is_between() {
        let mut search = LineSearch::new("ab");
        assert_eq!(search.piece(OUT, "a", false), None);
        search.gap();
        assert_eq!(search.piece(OUT, "b", true), None);
    }

    #[test]
    fn a_text_is_found_wherever_a_long_line_is_cut() {
        let text = "é€needle😀";
        for before in [0, 1, 4090, SHOWN, 3 * SHOWN] {
            let line = format!("{}{text}{}", "ü".repeat(before), "z".repeat(2 * SHOWN));
            for piece in [1 << 10, 4 << 10, SHOWN] {
                let mut search = LineSearch::new(text);
                let (mut rest, mut found) = (line.as_str(), None);
                while !rest.is_empty() && found.is_none() {
                    let (this, more) = rest.split_at(ceil(rest, piece.min(rest.len())));
                    found = search.piece(OUT, this, more.is_empty());
                    rest = more;
                    assert!(search.begun[0].len() <= KEPT);
                }
                let found = found.unwrap();
                assert!(found.contains(text) && line.contains(&found) && found.len() <= SHOWN, "{before}, {piece}");
            }
            let found = LineSearch::new(text).piece(ERR, &line, true).unwrap();
            assert!(found.contains(text) && line.contains(&found) && found.len() > SHOWN - 4 && found.len() <= SHOWN);
        }
    }

    #[test]
    fn the_longest_text_is_found_across_pieces() {
        let text = "x".repeat(KEPT - 1) + "y";
        let line = "x".repeat(3 * SHOWN) + "y";
        let mut search = LineSearch::new(&text);
        let found = line.as_bytes().chunks(4 << 10).find_map(|piece| {
            let piece = std::str::from_utf8(piece).unwrap();
            search.piece(OUT, piece, piece.ends_with('y'))
        });
        assert!(found.unwrap().ends_with(&text));
    }

    #[test]
    fn an_unfinished_line_is_searched_with_its_beginning() {
        let mut search = LineSearch::new("login:");
        assert_eq!(search.unfinished(OUT, b"logi"), None);
        assert_eq!(search.unfinished(OUT, b"\xfflogin: ").as_deref(), Some("\u{fffd}login: "));
        assert_eq!(search.piece(ERR, "your lo", false), None);
        assert_eq!(search.unfinished(OUT, b"gin:"), None);
        assert_eq!(search.unfinished(ERR, b"gin:").as_deref(), Some("your login:"));
        assert_eq!(search.piece(ERR, "gin:", true).as_deref(), Some("your login:"));
    }
}
