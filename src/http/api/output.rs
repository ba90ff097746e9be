//! `GET /processes/{process}/stdout`, `stderr` and `output`: as JSON, as raw bytes, and as events.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use crate::error::Error;
use crate::logs::{Cursor, LineText, Lines, LongText, OutputLog, PIECE, Raw, StartAt, Text, View};
use crate::model::{Target, UnitId};

use crate::http::api::Api;
use crate::http::api::events::{self, EventFormat};
use crate::http::connection::wait::SendDeadline;
use crate::http::json::{response, text};
use crate::http::message::{ApiError, BURST, Request, Response};

const BYTES: &str = "application/octet-stream";

/// Number of last lines, or size of a log in bytes, up to which the lines are found within milliseconds. Beyond both,
/// the response begins before the lines are looked for, as only sending can show that the client has disconnected.
const FEW_LINES: u64 = 10_000;
const SMALL_LOG: u64 = 4 << 20;

/// The process that a request for output is about: that of `?handle=N` if it is there, else the one that the path names.
/// A PID can belong to another process since the client has read it, a handle cannot.
pub(crate) fn target(request: &Request<'_>, of_path: Target) -> Result<Target, ApiError> {
    let Some(handle) = request.query("handle") else { return Ok(of_path) };
    let wrong = |_| {
        ApiError::invalid(format!("the query parameter `handle` must be the whole number of a process, not {handle:?}"))
    };
    handle.parse::<u64>().map(|handle| Target::Unit(UnitId::from(handle))).map_err(wrong)
}

/// Reads the kept output.
pub(crate) fn read(api: &Api, request: &Request<'_>, target: &Target, view: View) -> Result<Response, ApiError> {
    let tail = tail(request)?;
    let process = api.handle.look_up(target)?;
    let late = tail.filter(|n| *n > FEW_LINES && process.log.kept_bytes() > SMALL_LOG);
    let log = process.log;
    if request.accepts(BYTES) {
        return match late {
            Some(n) => Ok(Response::stream(200, BYTES, None, move |stream| {
                let bytes = log.last_raw(view, n, || stream.is_disconnected())?;
                bytes.ok_or(ErrorKind::ConnectionAborted)?.write_to(stream)
            })),
            None => raw(log.raw(view, tail).map_err(unreadable)?),
        };
    }
    let head = format!("{{\"pid\":{},\"lines\":[", process.info.pid);
    if let Some(n) = late {
        return Ok(Response::stream(200, "application/json", None, move |stream| {
            stream.buffer().extend_from_slice(head.as_bytes());
            let lines = log.last_lines(view, n, || stream.is_disconnected()).ok_or(ErrorKind::ConnectionAborted)?;
            let mut json = LinesJson { lines, log, written: 0, begun: None };
            while !json.more(stream.buffer())? {
                stream.flush()?;
            }
            Ok(())
        }));
    }
    let mut json = LinesJson { lines: log.lines(view, tail), log, written: 0, begun: None };
    let mut head = Some(head);
    let more = move |out: &mut Vec<u8>| {
        out.extend(head.take().unwrap_or_default().into_bytes());
        json.more(out)
    };
    response::in_bursts(Some(SendDeadline::Never), more).map_err(unreadable)
}

/// Follows the output: from the beginning, from the last lines, or after the last event that the client has seen, up to
/// the end of the run.
pub(crate) fn follow(api: &Api, request: &Request<'_>, target: &Target, view: View) -> Result<Response, ApiError> {
    let tail = tail(request)?.map_or(StartAt::Beginning, StartAt::Tail);
    // With an unknown id everything is sent, so that nothing is lost.
    let last_seen =
        request.header("Last-Event-ID").map(|id| id.parse::<Cursor>().map_or(StartAt::Beginning, StartAt::After));
    let from = last_seen.unwrap_or(tail);
    let waker = request.waker()?;
    let log = api.handle.look_up(target)?.log;
    Ok(Response::events(move |stream| {
        let follower = log.follow_unless(view, from, waker.clone(), || stream.is_disconnected());
        let mut follower = follower.ok_or(ErrorKind::ConnectionAborted)?;
        let format = EventFormat { named: true, with_stream: view == View::Combined };
        events::send_output(stream, &mut follower, &waker, format, |out, _| {
            out.extend_from_slice(b"event: eof\ndata: {}\n\n");
            Ok(())
        })
    }))
}

fn tail(request: &Request<'_>) -> Result<Option<u64>, ApiError> {
    let Some(tail) = request.query("tail") else { return Ok(None) };
    let wrong =
        |_| ApiError::invalid(format!("the query parameter `tail` must be a whole number of lines, not {tail:?}"));
    tail.parse().map(Some).map_err(wrong)
}

fn raw(mut bytes: Raw) -> Result<Response, ApiError> {
    let mut begin = Vec::new();
    bytes.by_ref().take(BURST as u64).read_to_end(&mut begin).map_err(unreadable)?;
    if begin.len() < BURST {
        return Ok(Response::new(200, BYTES, begin));
    }
    Ok(Response::stream(200, BYTES, None, move |stream| {
        stream.write_all(&begin)?;
        drop(begin);
        bytes.write_to(stream)
    }))
}

fn unreadable(error: io::Error) -> ApiError {
    Error::from_io("reading the log", &error).into()
}

/// Writes lines as JSON while they are read.
struct LinesJson {
    lines: Lines,
    log: Arc<OutputLog>,
    written: u64,
    /// A line of which only the beginning has been written.
    begun: Option<LineRest>,
}

/// The part of a line that has not been written.
enum LineRest {
    Short(String),
    Long(Box<LongText>),
}

impl LinesJson {
    /// Appends a burst of lines. Returns whether these were the last.
    fn more(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let full = out.len() + BURST;
        while out.len() < full {
            if let Some(begun) = self.begun.take() {
                self.begun = continue_line(begun, out)?;
                continue;
            }
            self.short_lines(out, full)?;
            if out.len() >= full {
                break;
            }
            let Some(line) = self.lines.next_text() else {
                self.lines.failure().map_or(Ok(()), Err)?;
                let truncated = if self.log.truncated() { ",\"truncated\":true" } else { "" };
                write!(out, "],\"line_count\":{}{truncated}}}", self.written)?;
                return Ok(true);
            };
            separate(out, &mut self.written);
            match line {
                LineText::Short(line) if line.len() <= PIECE => text::short(out, &line)?,
                LineText::Short(text) => {
                    text::begin(out);
                    self.begun = Some(LineRest::Short(text));
                }
                LineText::Long(text) => {
                    text::begin(out);
                    self.begun = Some(LineRest::Long(text));
                }
            }
        }
        Ok(false)
    }

    /// Appends the next lines that can be read without a copy, until `out` has `full` bytes. Usually more lines follow.
    fn short_lines(&mut self, out: &mut Vec<u8>, full: usize) -> io::Result<()> {
        let mut result = Ok(());
        self.lines.short_texts(|line| {
            separate(out, &mut self.written);
            result = text::short(out, line);
            result.is_ok() && out.len() < full
        });
        result
    }
}

/// Appends the comma before all lines but the first, and counts the line.
fn separate(out: &mut Vec<u8>, written: &mut u64) {
    if *written > 0 {
        out.push(b',');
    }
    *written += 1;
}

/// Appends a piece of a line, or its end. Returns the rest of the line.
fn continue_line(begun: LineRest, out: &mut Vec<u8>) -> io::Result<Option<LineRest>> {
    let left = match begun {
        LineRest::Short(mut text) => {
            let (first, rest) = text::split(&text);
            text::piece(out, first)?;
            let first = first.len();
            (!rest.is_empty()).then(|| {
                text.drain(..first);
                LineRest::Short(text)
            })
        }
        LineRest::Long(mut line) => match line.next()? {
            Text::Piece(piece) => {
                text::piece(out, &piece)?;
                Some(LineRest::Long(line))
            }
            // A part that the log has dropped meanwhile is missing: `truncated` says so.
            Text::End | Text::Lost(_) => None,
        },
    };
    if left.is_none() {
        text::end(out);
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogLimits, LogStore};
    use crate::model::{Stream, UnitId};

    #[test]
    fn a_burst_of_lines_exceeds_its_size_by_one_piece_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { per_unit: 64 << 20, total: 64 << 20 };
        let log = LogStore::open(&dir.path().join("logs"), limits).unwrap().create(UnitId(1));
        let mut written = Vec::new();
        for length in [0, 10, 1000, PIECE - 1, PIECE, PIECE + 1, 4 * PIECE, 20 * PIECE] {
            // JSON takes six bytes for each of these.
            let line = "\u{1}".repeat(length);
            let lines = vec![line.as_str(); 1 + 2 * BURST / (length + 1)];
            log.append(0, Stream::Stdout, format!("{}\n", lines.join("\n")).as_bytes());
            written.extend(lines.into_iter().map(str::to_owned));
        }
        let mut json = LinesJson { lines: log.lines(View::Stdout, None), log, written: 0, begun: None };
        let (mut all, mut burst) = (br#"{"lines":["#.to_vec(), Vec::new());
        loop {
            let is_last = json.more(&mut burst).unwrap();
            assert!(burst.len() < BURST + 6 * (PIECE + 10), "{} bytes", burst.len());
            all.append(&mut burst);
            if is_last {
                break;
            }
        }
        let all: serde_json::Value = serde_json::from_slice(&all).unwrap();
        assert!(all == serde_json::json!({"lines": written, "line_count": written.len()}));
    }
}
