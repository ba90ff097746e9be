//! A client of the tl-init of a sandbox: its processes and what they have written.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tl_supervisor::http::message::ApiError;
use ureq::Agent;

use crate::proxy::Reached;

/// Time for one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time for all requests that are sent for one request of a client.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a running process gets to have its lines followed: a line that it has not finished yet is in the list but
/// is not followed.
const UNFINISHED: Duration = Duration::from_millis(500);

/// Maximum size of the list of processes, in bytes.
const MAX_LIST: u64 = 32 << 20;

/// Maximum length of a line of an event. A line of output has at most 1 MiB, of which JSON can make six times as much.
/// Root in the sandbox can take control of tl-init, so that its answers cannot be trusted to be short.
const MAX_EVENT: u64 = 8 << 20;

/// What a line is counted as beyond its own event, in bytes: about what it takes in memory.
pub(crate) const LINE_COST: usize = 128;

/// A process, as tl-init shows it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Process {
    /// Unique in the life of the daemon, unlike the PID.
    pub(crate) handle: u64,
    pub(crate) pid: i32,
    status: String,
    command: String,
    args: Words,
    pub(crate) started_at: u64,
    pub(crate) ended_at: Option<u64>,
    pub(crate) managed: Option<Managed>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Managed {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    status: String,
}

impl Process {
    /// Whether no more output can follow.
    fn is_over(&self) -> bool {
        match &self.managed {
            Some(managed) => managed.status == "stopped",
            None => self.status != "running",
        }
    }

    pub(crate) fn command_line(&self) -> String {
        format!("{}{}", self.command, self.args.0)
    }
}

/// Words, each after a space. They take no more memory than in the answer, which a list of empty strings would.
#[derive(Clone, Debug)]
struct Words(String);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Words, D::Error> {
        struct Join;
        impl<'de> Visitor<'de> for Join {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut all = String::new();
                while let Some(word) = list.next_element::<String>()? {
                    all.push(' ');
                    all.push_str(&word);
                }
                Ok(Words(all))
            }
        }
        from.deserialize_seq(Join)
    }
}

/// A line of output.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) line: String,
    pub(crate) timestamp: u64,
    pub(crate) stream: Stream,
}

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
    /// A word that is not known.
    #[serde(other)]
    Other,
}

impl Stream {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Other => "other",
        }
    }
}

#[derive(Deserialize)]
struct List {
    processes: Vec<Process>,
}

/// The number of lines that were read of an answer that is longer than was allowed, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) lines: u64,
    pub(crate) is_all: bool,
}

/// The daemon of one sandbox, for one request of a client.
pub(crate) struct Daemon {
    until: Instant,
    agent: Agent,
    base: String,
    authorization: String,
}

impl Daemon {
    pub(crate) fn new(reached: &Reached) -> Daemon {
        // The daemon is on this machine: a proxy of the environment does not lead to it.
        let config = Agent::config_builder().proxy(None).max_redirects(0).timeout_global(Some(TIMEOUT));
        Daemon {
            until: Instant::now() + WHOLE_TIMEOUT,
            agent: config.build().into(),
            base: format!("http://{}/api/v1/processes", reached.daemon),
            authorization: format!("Bearer {}", reached.token),
        }
    }

    /// The processes that the daemon remembers.
    pub(crate) fn processes(&self) -> Result<Vec<Process>, ApiError> {
        let mut response = self.get("", TIMEOUT)?;
        let list: List = response.body_mut().with_config().limit(MAX_LIST).read_json().map_err(unavailable)?;
        Ok(list.processes)
    }

    /// Number of lines that the log of a process has, up to `most`, of which `max_bytes` are read at most.
    pub(crate) fn count_lines(&self, process: &Process, most: u64, max_bytes: u64) -> Result<Counted, ApiError> {
        let Some(mut response) = self.get_if_known(&output_path(process, "output", most), TIMEOUT)? else {
            return Ok(Counted { lines: 0, is_all: true });
        };
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        count(reader, most, max_bytes).map_err(invalid)
    }

    /// Passes the last `most` lines of a process on to `keep`. `budget` is the number of bytes that may still be read, and
    /// is reduced by those of each line and [`LINE_COST`]. Returns whether that was enough.
    pub(crate) fn lines(
        &self,
        process: &Process,
        most: u64,
        budget: &mut usize,
        mut keep: impl FnMut(Line),
    ) -> Result<bool, ApiError> {
        let wanted = self.count_lines(process, most, *budget as u64)?;
        if !wanted.is_all {
            // As events they are longer still.
            return Ok(false);
        }
        let wanted = wanted.lines;
        if wanted == 0 {
            return Ok(true);
        }
        let patience = if process.is_over() { TIMEOUT } else { UNFINISHED };
        let path = output_path(process, "output/follow", wanted);
        let Some(mut response) = self.get_if_known(&path, patience)? else { return Ok(true) };
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let begun = Instant::now();
        let mut passed_on = 0;
        let mut events = Events { reader: BufReader::new(reader), budget };
        while passed_on < wanted {
            match events.next() {
                Ok(Event::Line(line)) => {
                    keep(line);
                    passed_on += 1;
                }
                Ok(Event::End) => break,
                Ok(Event::TooMuch) => return Ok(false),
                // The rest is a line that is not finished.
                Err(_) if !process.is_over() && begun.elapsed() >= patience / 2 => break,
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(true)
    }

    fn get(&self, path: &str, timeout: Duration) -> Result<ureq::http::Response<ureq::Body>, ApiError> {
        self.call(path, timeout).map_err(unavailable)
    }

    /// None if the daemon has forgotten the process meanwhile.
    fn get_if_known(
        &self,
        path: &str,
        timeout: Duration,
    ) -> Result<Option<ureq::http::Response<ureq::Body>>, ApiError> {
        match self.call(path, timeout) {
            Ok(response) => Ok(Some(response)),
            Err(ureq::Error::StatusCode(404)) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    fn call(&self, path: &str, timeout: Duration) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let timeout = timeout.min(self.until.saturating_duration_since(Instant::now()));
        if timeout.is_zero() {
            return Err(ureq::Error::Timeout(ureq::Timeout::Global));
        }
        let request = self.agent.get(format!("{}{path}", self.base)).header("Authorization", &self.authorization);
        request.config().timeout_global(Some(timeout)).build().call()
    }
}

/// The path of the last lines of a process, by its handle: since it was listed, its PID may have passed to another one.
/// A tl-init from before version 0.3 does not know `handle`, and goes by the PID.
fn output_path(process: &Process, what: &str, most: u64) -> String {
    format!("/{}/{what}?handle={}&tail={most}", process.pid, process.handle)
}

fn unavailable(error: ureq::Error) -> ApiError {
    ApiError::new(503, "SANDBOX_UNAVAILABLE", format!("the sandbox does not answer: {error}"))
}

fn invalid(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(503, "SANDBOX_UNAVAILABLE", format!("the sandbox's answer is not complete: {error}"))
}

/// Counts the lines of an answer while it is read.
fn count(reader: impl Read, most: u64, max_bytes: u64) -> serde_json::Result<Counted> {
    let seen = Cell::new(0);
    let mut reader = BufReader::new(reader).take(max_bytes);
    let answer = CountedAnswer { seen: &seen }.deserialize(&mut serde_json::Deserializer::from_reader(&mut reader));
    match answer {
        Ok(()) => Ok(Counted { lines: seen.get().min(most), is_all: true }),
        Err(_) if reader.limit() == 0 => Ok(Counted { lines: seen.get().min(most), is_all: false }),
        Err(error) => Err(error),
    }
}

/// What is read of an answer with lines.
struct CountedAnswer<'c> {
    seen: &'c Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for CountedAnswer<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for CountedAnswer<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with lines")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::Lines => map.next_value_seed(CountedLines { seen: self.seen })?,
                Name::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Lines,
    #[serde(other)]
    Other,
}

struct CountedLines<'c> {
    seen: &'c Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for CountedLines<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for CountedLines<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lines")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {
            self.seen.set(self.seen.get() + 1);
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Event {
    Line(Line),
    /// Nothing can follow.
    End,
    /// The budget is spent.
    TooMuch,
}

/// Reads server-sent events, each of which reduces the budget. Of `gap` and comments nothing is shown.
struct Events<'b, R> {
    reader: R,
    budget: &'b mut usize,
}

impl<R: BufRead> Events<'_, R> {
    fn next(&mut self) -> io::Result<Event> {
        let mut is_end = false;
        let mut is_output = false;
        let mut line = String::new();
        loop {
            line.clear();
            match self.reader.by_ref().take(MAX_EVENT).read_line(&mut line)? {
                0 => return Ok(Event::End),
                length if length as u64 == MAX_EVENT => return Err(io::ErrorKind::FileTooLarge.into()),
                _ => {}
            }
            // What is not shown was read too.
            let cost = line.len() + if line.starts_with("data: ") { LINE_COST } else { 0 };
            let Some(left) = self.budget.checked_sub(cost) else { return Ok(Event::TooMuch) };
            *self.budget = left;
            match line.trim_end_matches(['\r', '\n']).split_once(": ") {
                Some(("event", word)) => (is_output, is_end) = (word == "output", word == "eof"),
                Some(("data", _)) if is_end => return Ok(Event::End),
                Some(("data", json)) if is_output => {
                    return serde_json::from_str(json).map(Event::Line).map_err(io::Error::from);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_and_an_end() {
        let text = ": keep-alive\n\nid: 1\nevent: output\ndata: {\"line\":\"a\",\"timestamp\":5,\"stream\":\"stderr\"}\n\n\
                    event: gap\ndata: {\"lost_bytes\":5}\n\nevent: eof\ndata: {}\n\n";
        let mut budget = 1000;
        let mut events = Events { reader: text.as_bytes(), budget: &mut budget };
        let Event::Line(line) = events.next().unwrap() else { panic!("no line") };
        assert_eq!((&*line.line, line.timestamp, line.stream), ("a", 5, Stream::Stderr));
        assert!(matches!(events.next().unwrap(), Event::End));
        let read = text.len() - 1;
        assert_eq!(budget, 1000 - 3 * LINE_COST - read);
    }

    #[test]
    fn everything_that_is_read_reduces_the_budget() {
        let word = "x".repeat(1000);
        for event in [
            format!("event: output\ndata: {{\"line\":\"\",\"timestamp\":5,\"stream\":\"{word}\"}}\n\n"),
            "event: output\ndata: {\"line\":\"\",\"timestamp\":5,\"stream\":\"\"}\n\n".to_owned(),
            ": comment\n".to_owned(),
            "\n".to_owned(),
        ] {
            let text = event.repeat(100_000 / event.len());
            let mut budget = 50_000;
            let mut events = Events { reader: text.as_bytes(), budget: &mut budget };
            let mut lines = 0;
            loop {
                match events.next().unwrap() {
                    Event::Line(line) => assert_eq!(line.stream, Stream::Other),
                    Event::End => panic!("all of {event:?} was read"),
                    Event::TooMuch => break,
                }
                lines += 1;
            }
            assert!(lines <= 50_000 / (LINE_COST + 40), "{lines} of {event:?}");
        }
    }

    #[test]
    fn lines_are_counted_up_to_a_number_and_within_the_bytes_that_are_read() {
        let answer = |lines: u64| {
            let lines = vec!["\"a line\""; usize::try_from(lines).unwrap()].join(",");
            format!("{{\"pid\":1,\"lines\":[{lines}],\"line_count\":18446744073709551615}}")
        };
        let count = |lines, most, max_bytes| count(answer(lines).as_bytes(), most, max_bytes).unwrap();
        assert_eq!(count(0, 10, 1000), Counted { lines: 0, is_all: true });
        assert_eq!(count(7, 10, 1000), Counted { lines: 7, is_all: true });
        assert_eq!(count(20, 10, 1000), Counted { lines: 10, is_all: true });
        let cut = count(1000, 500, 1000);
        assert!(!cut.is_all && (100..=112).contains(&cut.lines), "{cut:?}");
        assert!(super::count(&answer(7).as_bytes()[..40], 10, 1000).is_err(), "an answer that is cut off");
    }

    #[test]
    fn a_command_line_has_all_words() {
        let json = r#"{"handle":7,"pid":305,"status":"exited","command":"sh","args":["-c","","x"],"started_at":1}"#;
        let process: Process = serde_json::from_str(json).unwrap();
        assert_eq!(process.command_line(), "sh -c  x");
    }

    #[test]
    fn output_is_asked_for_by_handle() {
        let json = r#"{"handle":7,"pid":305,"status":"exited","command":"a","args":[],"started_at":1}"#;
        let process: Process = serde_json::from_str(json).unwrap();
        assert_eq!(output_path(&process, "output/follow", 5), "/305/output/follow?handle=7&tail=5");
    }

    #[test]
    fn a_line_without_an_end_is_an_error() {
        let endless = BufReader::new(io::repeat(b'x'));
        let mut budget = usize::MAX;
        let error = Events { reader: endless, budget: &mut budget }.next().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
