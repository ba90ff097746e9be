//! `GET sandboxes/{sandbox}/logs` and `/processes`: what the processes of a sandbox have written, from its own tl-init.
//!
//! There is no other store of logs: they end with the sandbox. tl-init keeps the last processes, and of each the last
//! output. A suspended sandbox is resumed, as by any request to it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tl_supervisor::http::message::{ApiError, Request, Response};

use crate::api::daemon::{Daemon, Line, Process};
use crate::api::{Api, answers, errors};
use crate::proxy::{Directory, ReachError};
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Record, Status};

/// How long to wait for a sandbox that is starting or being resumed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of records of an answer, unless the request says otherwise.
const PAGE: usize = 1_000;

/// Number of last lines of each process that are looked at and counted.
const MAX_LINES: u64 = 10_000;

/// Bytes of lines that are read for one request.
const MAX_BYTES: usize = 32 << 20;

/// The numbers of the levels in the clients. Standard output is `info`, standard error is `error`.
const INFO: u8 = 3;
const ERROR: u8 = 5;

/// A record, in the shape of the clients' model.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRecord {
    /// Milliseconds since 1970.
    timestamp: u64,
    uuid: String,
    namespace: String,
    application: &'static str,
    sandbox_id: String,
    resource_attributes: Vec<(&'static str, String)>,
    body: String,
    /// An object as text. `tl` prints it in place of the body unless it is empty.
    log_attributes: &'static str,
    level: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    logs: Vec<LogRecord>,
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
    let mut processes = daemon.processes()?;
    processes.retain(|process| query.processes.is_empty() || query.processes.contains(&process.handle.to_string()));
    let mut budget = MAX_BYTES;
    let mut logs = Vec::new();
    for process in &processes {
        let Some(lines) = daemon.lines(process, MAX_LINES, &mut budget)? else {
            let message =
                format!("the logs are longer than {MAX_BYTES} bytes: ask for those of some processes with `processId`");
            return Err(ApiError::invalid(message));
        };
        let records = lines.into_iter().enumerate().map(|(at, line)| log_record(&record, process, at, line));
        logs.extend(records.filter(|record| query.wants(record)));
    }
    // Stable: the lines of one process keep their order.
    logs.sort_by_key(|record| record.timestamp);
    answers::json(200, &query.page(logs))
}

/// Lists the processes by which records can be filtered.
pub(crate) fn processes(api: &Api, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    let (_, daemon) = reach(api, namespace, sandbox)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    let mut infos = Vec::new();
    for process in daemon.processes()? {
        let managed = process.managed.as_ref();
        infos.push(ProcessInfo {
            process_id: process.handle.to_string(),
            process_pid: process.pid.to_string(),
            process_command: process.command_line(),
            process_managed_id: managed.map_or_else(String::new, |managed| managed.id.clone()),
            process_managed_name: managed.and_then(|managed| managed.name.clone()).unwrap_or_default(),
            first_seen: process.started_at,
            last_seen: process.ended_at.unwrap_or(now),
            log_count: daemon.count_lines(&process, MAX_LINES)?,
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

fn log_record(record: &Record, process: &Process, at: usize, line: Line) -> LogRecord {
    let uuid = uuid(&(&record.id, process.handle, at, line.timestamp, &line.line));
    let level = if line.stream == "stderr" { ERROR } else { INFO };
    LogRecord {
        timestamp: line.timestamp,
        uuid,
        namespace: record.namespace.clone(),
        application: "",
        sandbox_id: record.id.clone(),
        resource_attributes: vec![
            ("process.id", process.handle.to_string()),
            ("process.pid", process.pid.to_string()),
            ("process.command", process.command_line()),
            ("stream", line.stream),
        ],
        level,
        log_attributes: "{}",
        body: line.line,
    }
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
    fn wants(&self, record: &LogRecord) -> bool {
        let has_level = self.levels.is_empty() || self.levels.contains(&record.level);
        has_level && self.body.as_ref().is_none_or(|part| record.body.to_lowercase().contains(part))
    }

    /// The records of one answer, of all that match, oldest first.
    fn page(&self, mut logs: Vec<LogRecord>) -> Page {
        if let Some(tail) = self.tail {
            return Page { logs: logs.split_off(logs.len().saturating_sub(tail)), next_token: None };
        }
        let end = self.skip.saturating_add(self.head.unwrap_or(PAGE));
        let next_token = (end < logs.len()).then(|| end.to_string());
        logs.truncate(end);
        Page { logs: logs.split_off(self.skip.min(logs.len())), next_token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(level: u8, body: &str) -> LogRecord {
        LogRecord {
            timestamp: 1,
            uuid: uuid(&body),
            namespace: "default".to_owned(),
            application: "",
            sandbox_id: "x".to_owned(),
            resource_attributes: Vec::new(),
            body: body.to_owned(),
            log_attributes: "{}",
            level,
        }
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
        assert!(query.wants(&log(ERROR, "a Warning")));
        assert!(!query.wants(&log(INFO, "a Warning")) && !query.wants(&log(ERROR, "fine")));
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let logs: Vec<LogRecord> = (0..5).map(|at| log(INFO, &at.to_string())).collect();
        let bodies = |page: &Page| page.logs.iter().map(|log| log.body.clone()).collect::<String>();
        let page = |query: &str| parse(query).unwrap().page(logs.clone());
        assert_eq!((bodies(&page("")), page("").next_token), ("01234".to_owned(), None));
        assert_eq!(bodies(&page("tail=2")), "34");
        assert_eq!(bodies(&page("tail=9")), "01234");
        let mut seen = String::new();
        let mut token = Some(String::new());
        while let Some(next) = token {
            let page = page(&format!("head=2&nextToken={next}"));
            seen += &bodies(&page);
            token = page.next_token;
        }
        assert_eq!(seen, "01234");
        assert_eq!(bodies(&page("nextToken=99")), "");
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
        let json = serde_json::to_value(log(INFO, "a")).unwrap();
        for field in ["timestamp", "uuid", "namespace", "application", "sandboxId", "body", "logAttributes", "level"] {
            assert!(json.get(field).is_some(), "{field}: {json}");
        }
    }
}
