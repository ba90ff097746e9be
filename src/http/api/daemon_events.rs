//! `GET /events`: what happens to processes, to terminal sessions and to the daemon, as server-sent events.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::events::ring::Read;
use crate::events::{Event, EventFilter, EventKind, EventStart, Events};
use crate::model::{HealthStatus, Millis, Pid, Port, Target, UnitId};
use tl_os::poll::Waker;

use crate::http::api::Api;
use crate::http::api::events::{self, KEEP_ALIVE};
use crate::http::api::output;
use crate::http::api::run::End;
use crate::http::message::{ApiError, BURST, Request, Response, ResponseStream};

/// The request header with the number of the last event that the client has seen.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// The pause of a stream after each burst of events, for each other stream. So all of them together are woken about a
/// thousand times a second, however many events there are and however many streams: a start does not wait for them.
const PAUSE_FOR_EACH: Duration = Duration::from_millis(1);

/// Maximum of that pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of texts from which an event is not collected as a whole, but sent while it is written. A name can be as long as
/// the body of a request, and an escape can make six bytes of one.
const LARGE: usize = BURST / 8;

/// Streams the events: from now on, or after the last one that the client has seen.
pub(crate) fn stream(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let start = start(request)?;
    let follow = flag(request, "follow")?.unwrap_or(true);
    let filter = EventFilter { handle: process(api, request)?, ports: flag(request, "ports")?.unwrap_or(false) };
    let waker = request.waker()?;
    let mut subscription = api.handle.events(start, filter, waker.clone().into());
    Ok(Response::events(move |stream| send(stream, &mut subscription, &waker, follow)))
}

/// Where the stream begins.
fn start(request: &Request<'_>) -> Result<EventStart, ApiError> {
    let mut values = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case(LAST_EVENT_ID));
    let Some((_, id)) = values.next() else { return Ok(EventStart::Now) };
    let id = String::from_utf8_lossy(id);
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        let problem = format!("the header `{LAST_EVENT_ID}` must be the number of an event, or 0, not {id:?}");
        return Err(ApiError::invalid(problem));
    }
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("the header `{LAST_EVENT_ID}` must be sent once")));
    }
    // A number too large for a u64 is not the number of any event, and neither is u64::MAX.
    Ok(EventStart::After(id.parse().unwrap_or(u64::MAX)))
}

fn flag(request: &Request<'_>, name: &str) -> Result<Option<bool>, ApiError> {
    let Some(value) = request.query(name) else { return Ok(None) };
    let wrong = |_| ApiError::invalid(format!("the query parameter `{name}` must be `true` or `false`, not {value:?}"));
    value.parse().map(Some).map_err(wrong)
}

/// The process to which the events are narrowed: that of `?handle=N`, else that of `?process=`, a PID or a name.
fn process(api: &Api, request: &Request<'_>) -> Result<Option<UnitId>, ApiError> {
    let named = request.query("process");
    if named.is_none() && request.query("handle").is_none() {
        return Ok(None);
    }
    let target = output::target(request, Target::parse(&named.unwrap_or_default()))?;
    Ok(Some(api.handle.get(&target)?.handle))
}

/// Sends all that `subscription` yields: up to the end of the daemon if `follow`, else what there is by now.
///
/// What is ready is collected into bursts. A stream that has sent a burst pauses before it can be woken again; the first
/// event after a quiet time is sent at once.
fn send(stream: &mut ResponseStream<'_>, subscription: &mut Events, waker: &Waker, follow: bool) -> io::Result<()> {
    let mut pauses = false;
    loop {
        let mut result = Ok(());
        while subscription.read_batch(!pauses && follow, |read| {
            if result.is_ok() {
                result = collect(stream, read);
            }
        }) {
            std::mem::replace(&mut result, Ok(()))?;
            pauses = true;
        }
        stream.flush()?;
        if subscription.has_ended() || !follow {
            return Ok(());
        }
        if std::mem::take(&mut pauses) {
            let others = subscription.subscriptions().saturating_sub(1);
            let pause = PAUSE_FOR_EACH.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX)).min(MAX_PAUSE);
            if !pause.is_zero() && !subscription.is_urgent() {
                stream.wait(waker, Some(Instant::now() + pause))?;
            }
        } else if !stream.wait(waker, Some(Instant::now() + KEEP_ALIVE))? {
            stream.release();
            stream.buffer().extend_from_slice(b": keep-alive\n\n");
        }
    }
}

/// Collects what was read, and sends what is collected if it is a burst.
fn collect(stream: &mut ResponseStream<'_>, read: Read) -> io::Result<()> {
    if read.text_bytes() >= LARGE {
        return write(stream, read);
    }
    write(stream.buffer(), read)?;
    if stream.is_burst() { stream.flush() } else { Ok(()) }
}

/// Writes what was read as a server-sent event.
fn write(out: &mut impl Write, read: Read) -> io::Result<()> {
    match read {
        Read::Event(event) => {
            write!(out, "id: {}\nevent: {}\n", event.id, event.kind.word())?;
            events::data(out, &Data::from(&event))
        }
        Read::Gap { lost, before } => write!(out, "id: {before}\nevent: gap\ndata: {{\"lost\":{lost}}}\n\n"),
    }
}

/// The data of an event.
#[derive(Serialize)]
struct Data<'e> {
    at: Millis,
    #[serde(flatten)]
    subject: Option<Subject<'e>>,
    #[serde(flatten)]
    more: More<'e>,
}

/// The process or the session that an event is about. An event about a port has these fields itself.
#[derive(Serialize)]
struct Subject<'e> {
    handle: Option<UnitId>,
    pid: Option<Pid>,
    name: Option<&'e str>,
}

/// The fields that only events of one type have.
#[derive(Serialize)]
#[serde(untagged)]
enum More<'e> {
    Started { command: &'e str, restart_count: u64 },
    Ended(End),
    Restarting { delay_ms: u64, reason: &'static str },
    Stopped { last_error: Option<&'e str> },
    Health { health_status: HealthStatus, error: Option<&'e str> },
    PtyOpened { session_id: &'e str },
    PtyEnded { session_id: &'e str, exit_code: i32 },
    Port(&'e Port),
    Nothing {},
}

impl<'e> From<&'e Event> for Data<'e> {
    fn from(event: &'e Event) -> Data<'e> {
        let subject = event.subject.as_ref();
        let more = match &event.kind {
            EventKind::ProcessStarted { command, restart_count } => {
                More::Started { command, restart_count: *restart_count }
            }
            EventKind::ProcessEnded(end) => More::Ended(End::from(*end)),
            EventKind::ProcessRestarting { delay_ms, reason } => More::Restarting { delay_ms: *delay_ms, reason },
            EventKind::ProcessStopped { last_error } => More::Stopped { last_error: last_error.as_deref() },
            EventKind::ProcessHealth { status, error } => {
                More::Health { health_status: *status, error: error.as_deref() }
            }
            EventKind::PtyOpened { session_id } => More::PtyOpened { session_id },
            EventKind::PtyEnded { session_id, exit_code } => More::PtyEnded { session_id, exit_code: *exit_code },
            EventKind::PortOpened(port) | EventKind::PortClosed(port) => More::Port(port),
            EventKind::ProcessPaused
            | EventKind::ProcessResumed
            | EventKind::OutputTruncated
            | EventKind::DaemonShutdown => More::Nothing {},
        };
        let subject = (!event.kind.is_about_port()).then(|| Subject {
            handle: subject.map(|subject| subject.handle),
            pid: subject.and_then(|subject| subject.pid),
            name: subject.and_then(|subject| subject.name.as_deref()),
        });
        Data { at: event.at, subject, more }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::EventSubject;
    use crate::model::{Exit, RunEnd};

    #[test]
    fn events_have_the_fields_of_their_type() {
        let written = |read| {
            let mut out = Vec::new();
            write(&mut out, read).unwrap();
            String::from_utf8(out).unwrap()
        };
        let end = RunEnd { exit: Exit::Code(3), timed_out: false, ended_at: 1 };
        let text = |text: &str| Arc::<str>::from(text);
        for (kind, name, fields) in [
            (
                EventKind::ProcessStarted { command: text("a\"b"), restart_count: 2 },
                "process.started",
                r#","command":"a\"b","restart_count":2"#,
            ),
            (
                EventKind::ProcessEnded(end),
                "process.ended",
                r#","exit_code":3,"signal":null,"oom_killed":false,"reason":"exited""#,
            ),
            (
                EventKind::ProcessRestarting { delay_ms: 5, reason: "unhealthy" },
                "process.restarting",
                r#","delay_ms":5,"reason":"unhealthy""#,
            ),
            (EventKind::ProcessStopped { last_error: None }, "process.stopped", r#","last_error":null"#),
            (
                EventKind::ProcessHealth { status: HealthStatus::Unhealthy, error: Some(text("late")) },
                "process.health",
                r#","health_status":"unhealthy","error":"late""#,
            ),
            (EventKind::PtyOpened { session_id: text("s") }, "pty.opened", r#","session_id":"s""#),
            (
                EventKind::PtyEnded { session_id: text("s"), exit_code: 137 },
                "pty.ended",
                r#","session_id":"s","exit_code":137"#,
            ),
            (EventKind::OutputTruncated, "output.truncated", ""),
        ] {
            let subject = Some(EventSubject::new(UnitId(7), Some(12), Some(text("web"))));
            let event = Event { id: 5, at: 9, subject, kind };
            let data = format!(r#"{{"at":9,"handle":7,"pid":12,"name":"web"{fields}}}"#);
            assert_eq!(written(Read::Event(event)), format!("id: 5\nevent: {name}\ndata: {data}\n\n"));
        }
        let event = Event { id: 5, at: 9, subject: None, kind: EventKind::DaemonShutdown };
        let data = r#"{"at":9,"handle":null,"pid":null,"name":null}"#;
        assert_eq!(written(Read::Event(event)), format!("id: 5\nevent: daemon.shutdown\ndata: {data}\n\n"));
        let port = Port {
            port: 80,
            address: "::".parse().unwrap(),
            pid: Some(12),
            handle: Some(UnitId(7)),
            name: None,
            command: Some(text("node")),
        };
        let subject = Some(EventSubject::new(UnitId(7), Some(11), None));
        let event = Event { id: 5, at: 9, subject, kind: EventKind::PortClosed(Arc::new(port)) };
        let data = r#"{"at":9,"port":80,"address":"::","pid":12,"handle":7,"name":null,"command":"node"}"#;
        assert_eq!(written(Read::Event(event)), format!("id: 5\nevent: port.closed\ndata: {data}\n\n"));
        let gap = Read::Gap { lost: 3, before: 8 };
        assert_eq!(written(gap), "id: 8\nevent: gap\ndata: {\"lost\":3}\n\n");
    }
}
