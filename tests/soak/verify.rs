//! Compares the output of a process with what it must have written, line by line.

use serde_json::Value;

use crate::lines::{first_line, is_stdout, line};
use crate::worker::{Plan, Progress, Then, last_line, signal_line};

/// The output that a process must have: what it is compared with.
pub struct Expected<'a> {
    pub tag: &'a str,
    pub plan: &'a Plan,
    /// What each run has counted, in the order of the runs.
    pub runs: &'a [Progress],
    /// Lines that follow the numbered ones on stdout: of the echo, or of signals of each run in order.
    pub tails: Tails<'a>,
    /// The process has ended by itself, with all its lines.
    pub is_complete: bool,
    /// The number of places at which the daemon says that output is missing.
    pub gaps: u64,
}

/// What follows the numbered lines on stdout.
pub enum Tails<'a> {
    None,
    /// The input that is echoed, and whether it ended.
    Echo(&'a [u8], bool),
    /// The number of signals of any run is at most this.
    Signals(u64),
}

/// The lines of one run on one stream, in order.
fn lines_of(expected: &Expected, run: &str, stream: usize) -> impl Iterator<Item = String> {
    let (tag, plan) = (expected.tag.to_owned(), *expected.plan);
    let run = run.to_owned();
    let mut tail: Vec<String> = Vec::new();
    if stream == 0 {
        match expected.tails {
            Tails::None => {}
            Tails::Signals(most) => tail.extend((1..=most).map(signal_line)),
            Tails::Echo(input, has_ended) => {
                let whole = input.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
                tail.extend(whole.map(|line| format!("echo {}", String::from_utf8_lossy(line))));
                tail.extend(has_ended.then(|| last_line(input)));
            }
        }
    }
    let first = first_line(&tag, &run);
    let numbers = (1..=plan.lines).filter({
        let tag = tag.clone();
        move |number| is_stdout(&tag, *number) == (stream == 0)
    });
    std::iter::once(first).chain(numbers.map(move |number| line(&tag, &run, number))).chain(tail)
}

/// Marks a line that an event shows as `partial`: the rest of it was dropped from the log while it was sent.
pub const PARTIAL: char = '\u{10ffff}';

/// The line of an event, with [`PARTIAL`] if that says so.
pub fn line_of(event: &Value) -> String {
    let line = event["line"].as_str().unwrap_or_else(|| panic!("no line: {event}"));
    if event["partial"] == true { format!("{line}{PARTIAL}") } else { line.to_owned() }
}

/// The part of a long line, for messages.
pub fn shown(line: &str) -> String {
    let part: String = line.chars().take(60).collect();
    format!("{part:?}… ({} bytes)", line.len())
}

impl Expected<'_> {
    /// Checks the lines of one stream: nothing is missing, nothing is twice, nothing is in the wrong place, unless the
    /// daemon says that output is missing. Returns the number of bytes that the lines stand for.
    pub fn check(&self, stream: usize, lines: &[String]) -> Result<u64, String> {
        let name = ["stdout", "stderr"][stream];
        let checked = if self.gaps > 0 { self.check_kept(stream, lines) } else { self.check_runs(stream, lines) };
        checked.map_err(|error| format!("{name}: {error}"))
    }

    /// Checks lines of which some may be missing. If the log has kept only the rest of a line after a gap, and no other
    /// line begins after that, this rest is shown.
    fn check_kept(&self, stream: usize, lines: &[String]) -> Result<u64, String> {
        let mut rests = Vec::new();
        loop {
            match self.check_order(stream, lines, &rests) {
                Err((at, _)) if (rests.len() as u64) < self.gaps && !rests.contains(&at) => rests.push(at),
                checked => return checked.map_err(|(_, error)| error),
            }
        }
    }

    /// Checks that each line is one of those that were written, or the rest of one for the numbers in `rests`, and that
    /// they are in order. An error has the number of the line.
    fn check_order(&self, stream: usize, lines: &[String], rests: &[usize]) -> Result<u64, (usize, String)> {
        let mut bytes = 0;
        let mut at = 0;
        for run in self.runs {
            let mut right = lines_of(self, &run.run, stream);
            while let Some(found) = lines.get(at) {
                // The last line of a run that was killed may be unfinished, and then ends where the run does.
                let is_part =
                    |whole: &String| !self.is_complete && whole.starts_with(found.trim_end_matches('\u{fffd}'));
                let mut next = right.next();
                let mut parts = false;
                let partial = found.strip_suffix(PARTIAL);
                let is_rest = rests.contains(&at);
                // It may begin inside a character.
                let rest = partial.unwrap_or(found).trim_start_matches('\u{fffd}');
                // The last one may be unfinished as well.
                let is_last = at + 1 == lines.len();
                let is_same = |line: &String| match partial {
                    Some(_) if is_rest => line.contains(rest),
                    Some(found) => line.starts_with(found),
                    None if is_rest && is_last && !self.is_complete => line.contains(rest.trim_end_matches('\u{fffd}')),
                    None if is_rest => line.ends_with(rest),
                    None => line == found,
                };
                while next.as_ref().is_some_and(|line| !is_same(line)) {
                    parts = parts || next.as_ref().is_some_and(is_part);
                    next = right.next();
                }
                if next.is_none() {
                    at += usize::from(parts);
                    bytes += if parts { found.len() as u64 } else { 0 };
                    break;
                }
                bytes += partial.map_or(found.len() as u64 + 1, |found| found.len() as u64);
                at += 1;
            }
        }
        match lines.get(at) {
            None => Ok(bytes),
            Some(found) => {
                let before = at.checked_sub(1).map(|before| shown(&lines[before]));
                let parts: Vec<String> = self.runs.iter().map(|run| self.parts_of(&run.run, stream, found)).collect();
                Err((at, format!("line {at} of a truncated log: {}, after {before:?}; {parts:?}", shown(found))))
            }
        }
    }

    /// Checks lines of which none is missing.
    fn check_runs(&self, stream: usize, lines: &[String]) -> Result<u64, String> {
        let prefix = format!("run {} ", self.tag);
        let mut bytes = 0;
        let mut rest = lines;
        for progress in self.runs {
            let begins = rest.first().and_then(|line| line.strip_prefix(&prefix)) == Some(&progress.run);
            if !begins && progress.bytes[stream] == 0 {
                continue;
            }
            let end = rest.iter().skip(1).position(|line| line.starts_with(&prefix)).map_or(rest.len(), |at| at + 1);
            bytes += self.check_run(progress, stream, &rest[..end.min(rest.len())])?;
            rest = &rest[end.min(rest.len())..];
        }
        match rest.first() {
            None => Ok(bytes),
            Some(line) => Err(format!("no run has written {}; {:?}", shown(line), self.runs)),
        }
    }

    /// Of which lines a wrong line has the beginning and the end, for messages.
    fn parts_of(&self, run: &str, stream: usize, found: &str) -> String {
        let same = |one: &str, other: &str| one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let same_end =
            |one: &str, other: &str| one.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
        let all: Vec<String> = lines_of(self, run, stream).collect();
        let begin = all.iter().max_by_key(|line| same(line, found));
        let end = all.iter().max_by_key(|line| same_end(line, found));
        let begin = begin.map(|line| format!("the first {} bytes are those of {}", same(line, found), shown(line)));
        let end = end.map(|line| format!("the last {} bytes are those of {}", same_end(line, found), shown(line)));
        format!("{}, {}", begin.unwrap_or_default(), end.unwrap_or_default())
    }

    fn check_run(&self, progress: &Progress, stream: usize, lines: &[String]) -> Result<u64, String> {
        let mut right = lines_of(self, &progress.run, stream);
        let mut bytes = 0;
        for (at, found) in lines.iter().enumerate() {
            bytes += found.len() as u64 + 1;
            let next = right.next();
            if next.as_ref() == Some(found) {
                continue;
            }
            // The last write of a process that was killed may be a part of a line.
            let is_part = |whole: String| whole.starts_with(found.trim_end_matches('\u{fffd}'));
            if at + 1 == lines.len() && !self.is_complete && next.clone().is_some_and(is_part) {
                bytes -= 1;
                break;
            }
            let (wanted, place) = (next.map(|line| shown(&line)), format!("line {at} of run {}", progress.run));
            let before = at.checked_sub(1).map(|before| shown(&lines[before]));
            let parts = self.parts_of(&progress.run, stream, found);
            return Err(format!(
                "{place}: {} instead of {wanted:?}, after {before:?}; {parts}; {progress:?}",
                shown(found)
            ));
        }
        if bytes < progress.bytes[stream] {
            return Err(format!("{bytes} bytes are shown, but it has written {progress:?}"));
        }
        if self.is_complete && !matches!(self.tails, Tails::Signals(_)) && right.next().is_some() {
            return Err(format!("the end of the run is missing after {} lines: {progress:?}", lines.len()));
        }
        Ok(bytes)
    }
}

/// Whether a process with this plan writes all its lines before it ends, if nobody else ends it.
pub fn is_finite(plan: &Plan) -> bool {
    matches!(plan.then, Then::Exit(_) | Then::Signal(_))
}
