//! [`LineWatch`]: waits until a line with a certain text is in the log.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::follower::{Follower, Part};
use super::line_search::LineSearch;
use super::log::OutputLog;
use super::long::{LongText, Text};
use super::{Item, StartAt, View};
use crate::model::{LineQuery, Stream};

/// Time after which an unfinished line counts as a line if nothing was added to it: it may be a prompt, which has no
/// newline, or the first part of a line of which the rest comes soon.
const QUIET: Duration = Duration::from_millis(100);

/// Number of bytes that are searched before the caller can look whether anybody still waits.
const BURST: usize = 256 << 10;

/// Number of bytes that a line counts for in addition to its text.
const PER_LINE: usize = 64;

/// A wait for a line. It searches the lines that are kept, then those that come.
pub(crate) struct LineWatch {
    follower: Follower,
    search: LineSearch,
    /// The line that is unfinished and has the text, and since when it has been so.
    unfinished: Option<(String, Instant)>,
}

/// How far a wait for a line has got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LineProgress {
    /// The line, or a part of it.
    Found(String),
    /// The process has ended without such a line.
    Ended,
    /// There is more to search.
    Busy,
    /// There is nothing more to search until the waker is woken, or until this time.
    Waiting(Option<Instant>),
}

impl LineWatch {
    /// `waker` is woken when [`LineWatch::advance`] has something to do.
    pub(crate) fn new(log: &Arc<OutputLog>, query: &LineQuery, waker: Waker) -> LineWatch {
        let view = match query.stream {
            None => View::Combined,
            Some(Stream::Stdout) => View::Stdout,
            Some(Stream::Stderr) => View::Stderr,
        };
        let follower = log.follow(view, StartAt::Beginning, waker);
        LineWatch { follower, search: LineSearch::new(&query.contains), unfinished: None }
    }

    /// Searches what has come.
    ///
    /// # Errors
    /// If the log cannot be read now because descriptors or memory have run out.
    pub(crate) fn advance(&mut self, now: Instant) -> io::Result<LineProgress> {
        let mut searched = 0;
        while searched < BURST {
            let found = match self.follower.next_part(Some(now))? {
                Some(Part::Item(Item::Line(line, _))) => {
                    searched += line.text.len() + PER_LINE;
                    self.search.piece(line.stream, &line.text, !line.partial)
                }
                Some(Part::Long(text, _)) => {
                    searched += PER_LINE;
                    search_long(&mut self.search, *text, &mut searched)?
                }
                Some(Part::Item(Item::Gap { .. })) => {
                    self.search.gap();
                    None
                }
                Some(Part::Item(Item::End(..))) => return Ok(LineProgress::Ended),
                None => return Ok(self.look_at_unfinished(now)),
            };
            if let Some(line) = found {
                return Ok(LineProgress::Found(line));
            }
        }
        Ok(LineProgress::Busy)
    }

    fn look_at_unfinished(&mut self, now: Instant) -> LineProgress {
        let search = &self.search;
        let found = self.follower.unfinished().find_map(|(stream, rest)| search.unfinished(stream, rest));
        let Some(line) = found else {
            self.unfinished = None;
            return LineProgress::Waiting(None);
        };
        let since = self.unfinished.take().filter(|(same, _)| *same == line).map_or(now, |(_, since)| since);
        if now.saturating_duration_since(since) >= QUIET {
            return LineProgress::Found(line);
        }
        self.unfinished = Some((line, since));
        LineProgress::Waiting(Some(since + QUIET))
    }
}

fn search_long(search: &mut LineSearch, mut text: LongText, searched: &mut usize) -> io::Result<Option<String>> {
    let (stream, partial) = (text.long().stream, text.long().partial);
    loop {
        let found = match text.next()? {
            Text::Piece(piece) => {
                *searched += piece.len();
                search.piece(stream, &piece, false)
            }
            Text::Lost(_) => {
                search.gap();
                return Ok(None);
            }
            Text::End if partial => return Ok(None),
            Text::End => return Ok(search.piece(stream, "", true)),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
}
