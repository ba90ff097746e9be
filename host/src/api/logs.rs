//! `GET sandboxes/{sandbox}/logs` and `/processes`: what the processes of a sandbox have written, from its own tl-init.
//!
//! There is no other store of logs: they end with the sandbox. tl-init keeps the last processes, and of each the last
//! output. A suspended sandbox is resumed, as by any request to it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tl_supervisor::http::message::{ApiError, Request, Response};

use crate::api::daemon::{Daemon, Line, Process, Stream};
use crate::api::{Api, answers, errors};
use crate::proxy::{Directory, ReachError};
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Record, Status};
use crate::text;

/// How long to wait for a sandbox that is starting or being resumed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of records of an answer, unless the request says otherwise.
const PAGE: usize = 1_000;

/// Maximum number of records of an answer.
const MAX_PAGE: usize = 10_000;

/// Number of last lines of each process that are looked at and counted.
const MAX_LINES: u64 = 10_000;

/// Bytes of lines that are read for one request.
const MAX_BYTES: usize = 32 << 20;

/// Bytes of the output of one process that are read at least to count its lines.
const MIN_COUNTED: u64 = 64 << 10;

/// Length to which the command line of a process is shortened in each of its records, in bytes.
const MAX_COMMAND: usize = 1024;

/// How many requests are served at a time: each takes some memory.
const PARALLEL: usize = 4;

/// The numbers of the levels in the clients. Standard output is `info`, standard error is `error`.
const INFO: u8 = 3;
const ERROR: u8 = 5;

/// A line that a request asks for.
#[derive(Debug)]
struct Found {
    /// The index of its process, and its own among the lines of that.
    process: usize,
    at: usize,
    line: Line,
}

/// A record, in the shape of the clients' model. It is made only of lines that the answer has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRecord<'a> {
    /// Milliseconds since 1970.
    timestamp: u64,
    uuid: String,
    namespace: &'a str,
    application: &'static str,
    sandbox_id: &'a str,
    resource_attributes: [(&'static str, &'a str); 4],
    body: &'a str,
    /// An object as text. `tl` prints it in place of the body unless it is empty.
    log_attributes: &'static str,
    level: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    logs: Vec<LogRecord<'a>>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessInfo {
    process_id: String,
    process_pid: String,
    process_command: String,
    process_managed_id: String,
    process_managed_name: String,
    first_seen: u64,
    last_seen: u64,
    log_count: u64,
}

#[derive(Serialize)]
struct Processes {
    processes: Vec<ProcessInfo>,
}

/// The texts of a process that its records have.
struct Source {
    handle: u64,
    handle_text: String,
    pid: String,
    /// Shortened.
    command: String,
}

impl Source {
    fn new(process: &Process) -> Source {
        let mut command = process.command_line();
        if command.len() > MAX_COMMAND {
            command.truncate(text::prefix(&command, MAX_COMMAND).len());
            command.push('…');
        }
        Source {
            handle: process.handle,
            handle_text: process.handle.to_string(),
            pid: process.pid.to_string(),
            command,
        }
    }
}

/// How many requests for logs may begin.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Mutex<usize>,
    changed: Condvar,
}

struct Turn<'a>(&'a Turns);

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns { free: Mutex::new(PARALLEL), changed: Condvar::new() }
    }

    /// Waits until fewer than [`PARALLEL`] requests are being served.
    fn take(&self, patience: Duration) -> Result<Turn<'_>, ApiError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(free, patience, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let too_many = || ApiError::unavailable(format!("{PARALLEL} requests for logs are being served: try again"));
        *free = free.checked_sub(1).ok_or_else(too_many)?;
        Ok(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}

/// Which records are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    levels: Vec<u8>,
    processes: Vec<String>,
    /// In lower case.
    body: Option<String>,
    head: Option<usize>,
    tail: Option<usize>,
    /// Number of records that earlier pages had.
    skip: usize,
}

/// Lists what the processes have written: the oldest records, page by page, or the newest with `tail`.
pub(crate) fn logs(api: &Api, request: &Request<'_>, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    let query = parse(request.query_string())?;
    let (record, daemon) = reach(api, namespace, sandbox)?;
    let _turn = api.log_turns.take(PATIENCE)?;
    let mut processes = daemon.processes()?;
    processes.retain(|process| query.processes.is_empty() || query.processes.contains(&process.handle.to_string()));
    let mut budget = MAX_BYTES;
    let mut found = Vec::new();
    for (index, process) in processes.iter().enumerate() {
        let mut at = 0;
        let is_enough = daemon.lines(process, MAX_LINES, &mut budget, |line| {
            if query.wants(&line) {
                found.push(Found { process: index, at, line });
            }
            at += 1;
        })?;
        if !is_enough {
            let message =
                format!("the logs are longer than {MAX_BYTES} bytes: ask for those of some processes with `processId`");
            return Err(ApiError::invalid(message));
        }
    }
    // Stable: the lines of one process keep their order.
    found.sort_by_key(|found| found.line.timestamp);
    let sources: Vec<Source> = processes.iter().map(Source::new).collect();
    drop(processes);
    let (found, next_token) = query.page(&found);
    let logs = found.iter().filter_map(|found| Some(log_record(&record, sources.get(found.process)?, found))).collect();
    answers::json(200, &Page { logs, next_token })
}

/// Lists the processes by which records can be filtered.
pub(crate) fn processes(api: &Api, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    let (_, daemon) = reach(api, namespace, sandbox)?;
    let _turn = api.log_turns.take(PATIENCE)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    let processes = daemon.processes()?;
    // To transfer all output only to count its lines would take too long.
    let max_bytes = (MAX_BYTES as u64).checked_div(processes.len() as u64).unwrap_or(0).max(MIN_COUNTED);
    let mut infos = Vec::new();
    for process in processes {
        let managed = process.managed.as_ref();
        infos.push(ProcessInfo {
            process_id: process.handle.to_string(),
            process_pid: process.pid.to_string(),
            process_command: process.command_line(),
            process_managed_id: managed.map_or_else(String::new, |managed| managed.id.clone()),
            process_managed_name: managed.and_then(|managed| managed.name.clone()).unwrap_or_default(),
            first_seen: process.started_at,
            last_seen: process.ended_at.unwrap_or(now),
            log_count: daemon.count_lines(&process, MAX_LINES, max_bytes)?.lines,
        });
    }
    answers::json(200, &Processes { processes: infos })
}

/// The sandbox and a client of its daemon. Should the daemon's address belong to another sandbox by now, that one refuses
/// the token.
fn reach(api: &Api, namespace: &str, sandbox: &str) -> Result<(Record, Daemon), ApiError> {
    let record = api.sandboxes.get(namespace, sandbox).ok_or_else(|| errors::no_sandbox(sandbox))?;
    if record.status == Status::Terminated {
        let operation = "read: its logs have ended with it";
        return Err(SandboxError::InvalidState { id: record.id, status: record.status, operation }.into());
    }
    let reached = api.sandboxes.reach(&record.id, Instant::now() + PATIENCE).map_err(|error| match error {
        ReachError::Unknown(_) => errors::no_sandbox(sandbox),
        error => ApiError::new(503, "SANDBOX_UNAVAILABLE", error.to_string()),
    })?;
    Ok((record, Daemon::new(&reached)))
}

fn log_record<'a>(record: &'a Record, source: &'a Source, found: &'a Found) -> LogRecord<'a> {
    let Line { line, timestamp, stream } = &found.line;
    LogRecord {
        timestamp: *timestamp,
        uuid: uuid(&(&record.id, source.handle, found.at, timestamp, line)),
        namespace: &record.namespace,
        application: "",
        sandbox_id: &record.id,
        resource_attributes: [
            ("process.id", &source.handle_text),
            ("process.pid", &source.pid),
            ("process.command", &source.command),
            ("stream", stream.as_str()),
        ],
        level: level(*stream),
        log_attributes: "{}",
        body: line,
    }
}

fn level(stream: Stream) -> u8 {
    if stream == Stream::Stderr { ERROR } else { INFO }
}

/// A UUID (RFC 9562, version 8) that is the same for the same content.
fn uuid(content: &impl Hash) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, content).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half(1) & !0xf000 | 0x8000, half(2) & !(0b11 << 62) | 0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// Parses the query. `level` and `processId` may be repeated.
fn parse(query: &str) -> Result<Query, ApiError> {
    let mut parsed = Query::default();
    let number = |name: &str, value: &str| {
        let wrong = |_| ApiError::invalid(format!("the query parameter `{name}` must be a number, not {value:?}"));
        value.parse::<usize>().map_err(wrong)
    };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "level" => {
                let level = value.parse().ok().filter(|level| (1..=6).contains(level));
                let wrong =
                    || ApiError::invalid(format!("the query parameter `level` must be from 1 to 6, not {value:?}"));
                parsed.levels.push(level.ok_or_else(wrong)?);
            }
            "processId" => parsed.processes.push(value.into_owned()),
            "body" => parsed.body = Some(value.to_lowercase()),
            "head" => parsed.head = Some(number("head", &value)?),
            "tail" => parsed.tail = Some(number("tail", &value)?),
            "nextToken" if !value.is_empty() => parsed.skip = number("nextToken", &value)?,
            _ => {}
        }
    }
    Ok(parsed)
}

impl Query {
    fn wants(&self, line: &Line) -> bool {
        let has_level = self.levels.is_empty() || self.levels.contains(&level(line.stream));
        has_level && self.body.as_ref().is_none_or(|part| line.line.to_lowercase().contains(part))
    }

    /// What one answer has of all that match, oldest first, and the token of the next one.
    fn page<'f, T>(&self, found: &'f [T]) -> (&'f [T], Option<String>) {
        if let Some(tail) = self.tail {
            let first = found.len().saturating_sub(tail.min(MAX_PAGE));
            return (found.get(first..).unwrap_or_default(), None);
        }
        let end = self.skip.saturating_add(self.head.unwrap_or(PAGE).min(MAX_PAGE));
        let page = found.get(self.skip.min(found.len())..end.min(found.len())).unwrap_or_default();
        (page, (end < found.len()).then(|| end.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: Stream, text: &str) -> Line {
        Line { line: text.to_owned(), timestamp: 1, stream }
    }

    #[test]
    fn the_query_of_the_clients_is_read() {
        let query = parse("level=3&level=5&processId=1&processId=2&nextToken=7&head=3&tail=4&body=X+y&new=1").unwrap();
        let right = Query {
            levels: vec![3, 5],
            processes: vec!["1".to_owned(), "2".to_owned()],
            body: Some("x y".to_owned()),
            head: Some(3),
            tail: Some(4),
            skip: 7,
        };
        assert_eq!(query, right);
        assert_eq!(parse("").unwrap(), Query::default());
        for wrong in ["level=7", "level=info", "head=-1", "tail=x", "nextToken=x"] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("`{}`", wrong.split_once('=').unwrap().0)), "{error}");
        }
    }

    #[test]
    fn records_are_filtered_by_level_and_text() {
        let query = parse("level=5&body=WARN").unwrap();
        assert!(query.wants(&line(Stream::Stderr, "a Warning")));
        assert!(!query.wants(&line(Stream::Stdout, "a Warning")) && !query.wants(&line(Stream::Stderr, "fine")));
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let all = ["0", "1", "2", "3", "4"];
        let page = |query: &str| {
            let (page, next) = parse(query).unwrap().page(&all);
            (page.concat(), next)
        };
        assert_eq!(page(""), ("01234".to_owned(), None));
        assert_eq!(page("tail=2").0, "34");
        assert_eq!(page("tail=9").0, "01234");
        let mut seen = String::new();
        let mut token = Some(String::new());
        while let Some(next) = token {
            let (page, next) = page(&format!("head=2&nextToken={next}"));
            seen += &page;
            token = next;
        }
        assert_eq!(seen, "01234");
        assert_eq!(page("nextToken=99").0, "");
    }

    #[test]
    fn no_answer_has_more_than_the_maximum() {
        let all = vec![(); 2 * MAX_PAGE + 1];
        let page = |query: &str| {
            let (page, next) = parse(query).unwrap().page(&all);
            (page.len(), next)
        };
        assert_eq!(page("head=999999999"), (MAX_PAGE, Some(MAX_PAGE.to_string())));
        assert_eq!(page("tail=999999999"), (MAX_PAGE, None));
        assert_eq!(page("head=999999999&nextToken=20000"), (1, None));
    }

    #[test]
    fn one_request_more_than_the_maximum_waits_for_its_turn() {
        let turns = Turns::new();
        let mut taken: Vec<Turn<'_>> = (0..PARALLEL).map(|_| turns.take(Duration::ZERO).unwrap()).collect();
        assert_eq!(turns.take(Duration::ZERO).err().map(|error| error.status()), Some(503));
        taken.pop();
        taken.push(turns.take(Duration::ZERO).unwrap());
    }

    #[test]
    fn a_uuid_is_stable_and_has_the_form_of_one() {
        let id = uuid(&("x", 1));
        assert_eq!(id, uuid(&("x", 1)));
        assert_ne!(id, uuid(&("x", 2)));
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(id.chars().nth(14) == Some('8') && "89ab".contains(id.chars().nth(19).unwrap()), "{id}");
    }

    #[test]
    fn a_record_has_the_names_of_the_clients_model() {
        let process = format!(
            r#"{{"handle":7,"pid":305,"status":"exited","command":"sh","args":["{}"],"started_at":1}}"#,
            "é".repeat(100_000)
        );
        let source = Source::new(&serde_json::from_str(&process).unwrap());
        let found = Found { process: 0, at: 0, line: line(Stream::Stdout, "a") };
        let record = crate::sandbox::testing::record("x", Status::Running);
        let json = serde_json::to_value(log_record(&record, &source, &found)).unwrap();
        let command = json["resourceAttributes"][2][1].as_str().unwrap();
        assert!(command.starts_with("sh é") && command.ends_with("é…") && command.len() < MAX_COMMAND + 5, "{command}");
        for field in ["timestamp", "uuid", "namespace", "application", "sandboxId", "body", "logAttributes", "level"] {
            assert!(json.get(field).is_some(), "{field}: {json}");
        }
    }
}
