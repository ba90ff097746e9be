//! `GET /processes/{process}/stdout`, `stderr` and `output`: as JSON, as raw bytes, and followed.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use crate::error::Error;
use crate::logs::{Cursor, LineText, Lines, LongText, OutputLog, PIECE, StartAt, Text, View};
use crate::model::Target;

use crate::http::api::events;
use crate::http::api::events::Frames;
use crate::http::api::routes::Api;
use crate::http::json::text;
use crate::http::message::request::Request;
use crate::http::message::response::{Answer, BURST, Stream};
use crate::http::message::response_head::{Problem, Reply};
use crate::http::server::socket::Patience;

const BYTES: &str = "application/octet-stream";

/// So many lines, or those of a log of so many bytes, are found in some milliseconds. More are looked for once the answer
/// has begun: only by what is sent to a client can it be told that it has gone.
const FEW: u64 = 10_000;
const QUICK: u64 = 4 << 20;

/// What is kept as of now.
pub(in crate::http) fn read(api: &Api, request: &Request<'_>, target: &Target, view: View) -> Result<Answer, Problem> {
    let tail = tail(request)?;
    let process = api.handle.look_up(target)?;
    let late = tail.filter(|n| *n > FEW && process.log.kept_bytes() > QUICK);
    let log = process.log;
    if request.accepts(BYTES) {
        return match late {
            Some(n) => Ok(Answer::download(BYTES, move |stream| {
                let bytes = log.last_raw(view, n, || stream.is_gone())?.ok_or(ErrorKind::ConnectionAborted)?;
                send_raw(stream, bytes)
            })),
            None => raw(log.raw(view, tail).map_err(unreadable)?),
        };
    }
    let head = format!("{{\"pid\":{},\"lines\":[", process.info.pid);
    if let Some(n) = late {
        return Ok(Answer::download("application/json", move |stream| {
            stream.buffer().extend_from_slice(head.as_bytes());
            let lines = log.last_lines(view, n, || stream.is_gone()).ok_or(ErrorKind::ConnectionAborted)?;
            let mut listing = Listing { lines, log, written: 0, begun: None };
            while !listing.more(stream.buffer())? {
                stream.flush()?;
            }
            Ok(())
        }));
    }
    let mut listing = Listing { lines: log.lines(view, tail), log, written: 0, begun: None };
    let mut head = Some(head);
    let more = move |out: &mut Vec<u8>| {
        out.extend(head.take().unwrap_or_default().into_bytes());
        listing.more(out)
    };
    Answer::in_bursts(Some(Patience::ForEver), more).map_err(unreadable)
}

/// Everything kept, or the last lines of it, or what came after the last event seen; then live, up to the end.
pub(in crate::http) fn follow(
    api: &Api,
    request: &Request<'_>,
    target: &Target,
    view: View,
) -> Result<Answer, Problem> {
    let tail = tail(request)?.map_or(StartAt::Beginning, StartAt::Tail);
    // An id that is none of ours can only be answered with everything: nothing is lost then.
    let last_seen =
        request.field("Last-Event-ID").map(|id| id.parse::<Cursor>().map_or(StartAt::Beginning, StartAt::After));
    let from = last_seen.unwrap_or(tail);
    let waker = request.waker()?;
    let log = api.handle.look_up(target)?.log;
    Ok(Answer::events(move |stream| {
        let follower = log.follow_unless(view, from, waker.clone(), || stream.is_gone());
        let mut follower = follower.ok_or(ErrorKind::ConnectionAborted)?;
        let frames = Frames { named: true, with_stream: view == View::Combined };
        events::pump(stream, &mut follower, &waker, frames, |out, _| {
            out.extend_from_slice(b"event: eof\ndata: {}\n\n");
            Ok(())
        })
    }))
}

fn tail(request: &Request<'_>) -> Result<Option<u64>, Problem> {
    let Some(tail) = request.query("tail") else { return Ok(None) };
    let wrong = |_| Problem::Invalid(format!("the query parameter `tail` must be a number of lines, not {tail:?}"));
    tail.parse().map(Some).map_err(wrong)
}

fn raw(mut bytes: impl Read + 'static) -> Result<Answer, Problem> {
    let mut begin = Vec::new();
    bytes.by_ref().take(BURST as u64).read_to_end(&mut begin).map_err(unreadable)?;
    if begin.len() < BURST {
        return Ok(Reply::bytes(200, BYTES, begin).into());
    }
    Ok(Answer::download(BYTES, move |stream| {
        stream.write_all(&begin)?;
        drop(begin);
        send_raw(stream, bytes)
    }))
}

fn send_raw(stream: &mut Stream<'_>, mut bytes: impl Read) -> io::Result<()> {
    let mut piece = vec![0; BURST];
    loop {
        match bytes.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => stream.write_all(piece.get(..read).unwrap_or_default())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn unreadable(error: io::Error) -> Problem {
    Problem::Refused(Error::from_io("reading the log", &error))
}

/// Writes the JSON of the lines while they are read.
struct Listing {
    lines: Lines,
    log: Arc<OutputLog>,
    written: u64,
    /// A line of which the beginning was written.
    begun: Option<Begun>,
}

/// What is left of a line.
enum Begun {
    Short(String),
    Long(Box<LongText>),
}

impl Listing {
    /// Appends lines until there is a burst of them; whether these were the last.
    fn more(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let full = out.len() + BURST;
        while out.len() < full {
            if let Some(begun) = self.begun.take() {
                self.begun = go_on(begun, out)?;
                continue;
            }
            let Some(line) = self.lines.next_text() else {
                self.lines.failure().map_or(Ok(()), Err)?;
                let truncated = if self.log.truncated() { ",\"truncated\":true" } else { "" };
                write!(out, "],\"line_count\":{}{truncated}}}", self.written)?;
                return Ok(true);
            };
            if self.written > 0 {
                out.push(b',');
            }
            self.written += 1;
            match line {
                LineText::Short(text) if text.len() <= PIECE => serde_json::to_writer(&mut *out, &text)?,
                LineText::Short(text) => {
                    text::begin(out);
                    self.begun = Some(Begun::Short(text));
                }
                LineText::Long(text) => {
                    text::begin(out);
                    self.begun = Some(Begun::Long(text));
                }
            }
        }
        Ok(false)
    }
}

/// Appends a piece of a line, or its end; what is left then.
fn go_on(begun: Begun, out: &mut Vec<u8>) -> io::Result<Option<Begun>> {
    let left = match begun {
        Begun::Short(mut text) => {
            let (first, rest) = text::split(&text);
            text::piece(out, first)?;
            let first = first.len();
            (!rest.is_empty()).then(|| {
                text.drain(..first);
                Begun::Short(text)
            })
        }
        Begun::Long(mut line) => match line.next()? {
            Text::Piece(piece) => {
                text::piece(out, &piece)?;
                Some(Begun::Long(line))
            }
            // What was dropped while it was read is missing, and `truncated` says so.
            Text::End | Text::Lost(_) => None,
        },
    };
    if left.is_none() {
        text::end(out);
    }
    Ok(left)
}
