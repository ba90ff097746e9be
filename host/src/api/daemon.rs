//! A client of the tl-init of a sandbox: its processes and what they have written.

use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tl_supervisor::http::message::ApiError;
use ureq::Agent;

use crate::proxy::Reached;

/// Time for one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a running process gets to have its lines followed: a line that it has not finished yet is in the list but
/// is not followed.
const UNFINISHED: Duration = Duration::from_millis(500);

/// Maximum size of the list of processes, in bytes.
const MAX_LIST: u64 = 64 << 20;

/// Maximum length of a line of an event. A line of output has at most 1 MiB, of which JSON can make six times as much.
/// Root in the sandbox can take control of tl-init, so that its answers cannot be trusted to be short.
const MAX_EVENT: u64 = 8 << 20;

/// Maximum length of the answer in which lines are counted, in bytes: more than tl-init keeps of a process.
const MAX_COUNTED: u64 = 1 << 30;

/// A process, as tl-init shows it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Process {
    /// Unique in the life of the daemon, unlike the PID.
    pub(crate) handle: u64,
    pub(crate) pid: i32,
    status: String,
    pub(crate) command: String,
    pub(crate) args: Vec<String>,
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
        [std::slice::from_ref(&self.command), &self.args].concat().join(" ")
    }
}

/// A line of output.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) line: String,
    pub(crate) timestamp: u64,
    pub(crate) stream: String,
}

#[derive(Deserialize)]
struct List {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Count {
    line_count: u64,
}

/// The daemon of one sandbox.
pub(crate) struct Daemon {
    agent: Agent,
    base: String,
    authorization: String,
}

impl Daemon {
    pub(crate) fn new(reached: &Reached) -> Daemon {
        // The daemon is on this machine: a proxy of the environment does not lead to it.
        let config = Agent::config_builder().proxy(None).max_redirects(0).timeout_global(Some(TIMEOUT));
        Daemon {
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

    /// Number of lines that the log of a process has, up to `most`.
    pub(crate) fn count_lines(&self, process: &Process, most: u64) -> Result<u64, ApiError> {
        let Some(mut response) = self.get_if_known(&output_path(process, "output", most), TIMEOUT)? else {
            return Ok(0);
        };
        // The lines are skipped while they are read.
        let reader = response.body_mut().with_config().limit(MAX_COUNTED).reader();
        let count: Count = serde_json::from_reader(BufReader::new(reader)).map_err(invalid)?;
        Ok(count.line_count)
    }

    /// The last `most` lines of a process. `budget` is the number of bytes that may still be read, and is reduced. None
    /// if that is not enough.
    pub(crate) fn lines(
        &self,
        process: &Process,
        most: u64,
        budget: &mut usize,
    ) -> Result<Option<Vec<Line>>, ApiError> {
        let wanted = self.count_lines(process, most)?;
        let mut lines = Vec::new();
        if wanted == 0 {
            return Ok(Some(lines));
        }
        let patience = if process.is_over() { TIMEOUT } else { UNFINISHED };
        let path = output_path(process, "output/follow", wanted);
        let Some(mut response) = self.get_if_known(&path, patience)? else { return Ok(Some(lines)) };
        let reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let begun = Instant::now();
        for event in Events(BufReader::new(reader)) {
            match event {
                Ok(Event::Line(line)) => {
                    let Some(left) = budget.checked_sub(line.line.len()) else { return Ok(None) };
                    *budget = left;
                    lines.push(line);
                    if lines.len() as u64 == wanted {
                        break;
                    }
                }
                Ok(Event::End) => break,
                // The rest is a line that is not finished.
                Err(_) if !process.is_over() && begun.elapsed() >= patience / 2 => break,
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(Some(lines))
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

#[derive(Debug)]
enum Event {
    Line(Line),
    /// Nothing can follow.
    End,
}

/// Reads server-sent events. Of `gap` and comments nothing is shown.
struct Events<R>(R);

impl<R: BufRead> Iterator for Events<R> {
    type Item = io::Result<Event>;

    fn next(&mut self) -> Option<io::Result<Event>> {
        let mut name = String::new();
        let mut line = String::new();
        loop {
            line.clear();
            match self.0.by_ref().take(MAX_EVENT).read_line(&mut line) {
                Ok(0) => return None,
                Ok(length) if length as u64 == MAX_EVENT => return Some(Err(io::ErrorKind::FileTooLarge.into())),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            match line.trim_end_matches(['\r', '\n']).split_once(": ") {
                Some(("event", word)) => name = word.to_owned(),
                Some(("data", _)) if name == "eof" => return Some(Ok(Event::End)),
                Some(("data", json)) if name == "output" => {
                    return Some(serde_json::from_str(json).map(Event::Line).map_err(io::Error::from));
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
        let events: Vec<Event> = Events(text.as_bytes()).map(Result::unwrap).collect();
        let [Event::Line(line), Event::End] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&*line.line, line.timestamp, &*line.stream), ("a", 5, "stderr"));
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
        assert!(matches!(Events(endless).next(), Some(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge));
    }
}
