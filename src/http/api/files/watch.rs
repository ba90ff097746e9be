//! `GET /files/watch`: the changes of a directory, as server-sent events.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::files::watch::{ChangeKind, Progress, Watch, WatchEvent};
use crate::http::api::Api;
use crate::http::api::events::{KEEP_ALIVE, data};
use crate::http::api::files::acting::act_as_user;
use crate::http::connection::wait::Input;
use crate::http::message::{ApiError, Request, Response, ResponseStream};

/// Pause after events were sent, in which more are collected. The first event after a quiet time is sent at once.
const PAUSE: Duration = Duration::from_millis(1);

/// Streams the changes of a directory or a file, until it is gone.
pub(crate) fn watch(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let is_recursive = match request.query("recursive").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let problem = format!("the query parameter `recursive` must be `true` or `false`, not {other:?}");
            return Err(ApiError::invalid(problem));
        }
    };
    let (acting, path) = act_as_user(api, request)?;
    let watch = Watch::begin(&path, is_recursive)?;
    Ok(Response::events(move |stream| {
        let _acting = acting;
        send(stream, watch)
    }))
}

fn send(stream: &mut ResponseStream<'_>, mut watch: Watch) -> io::Result<()> {
    stream.buffer().extend_from_slice(b"event: ready\ndata: {}\n\n");
    stream.flush()?;
    let mut last = Instant::now();
    loop {
        let mut has_reported = false;
        let progress = watch.advance(&mut |event| {
            has_reported = true;
            write(stream.buffer(), event)?;
            if stream.is_burst() { stream.flush() } else { Ok(()) }
        })?;
        let until = match progress {
            Progress::Ended => return Ok(()),
            Progress::Failed(error) => return failed(stream.buffer(), &error.into()),
            Progress::More => None,
            Progress::Wait(until) => Some(until),
        };
        if has_reported {
            stream.flush()?;
            last = Instant::now();
            stream.pause(PAUSE)?;
        }
        let Some(until) = until else { continue };
        let keep_alive = last + KEEP_ALIVE;
        match stream.wait_for_input(&watch, Some(until.map_or(keep_alive, |until| until.min(keep_alive))))? {
            Input::Stopping => return Ok(()),
            Input::Deadline if Instant::now() >= keep_alive => {
                stream.release();
                stream.buffer().extend_from_slice(b": keep-alive\n\n");
                stream.flush()?;
                last = Instant::now();
                watch.check();
            }
            Input::Ready | Input::Deadline => {}
        }
    }
}

#[derive(Serialize)]
struct ChangeJson<'e> {
    path: &'e str,
    to: Option<&'e str>,
    is_dir: bool,
}

/// Writes a server-sent event.
fn write(out: &mut impl Write, event: WatchEvent<'_>) -> io::Result<()> {
    let WatchEvent::Change { kind, path, to, is_dir } = event else {
        return out.write_all(b"event: overflow\ndata: {}\n\n");
    };
    let name = match kind {
        ChangeKind::Created => "created",
        ChangeKind::Modified => "modified",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Moved => "moved",
    };
    writeln!(out, "event: {name}")?;
    let to = to.map(String::from_utf8_lossy);
    data(out, &ChangeJson { path: &String::from_utf8_lossy(path), to: to.as_deref(), is_dir })
}

#[derive(Serialize)]
struct ErrorJson<'e> {
    error: String,
    code: &'e str,
}

/// Writes the last event of a watch that cannot go on.
fn failed(out: &mut impl Write, error: &ApiError) -> io::Result<()> {
    out.write_all(b"event: error\n")?;
    data(out, &ErrorJson { error: error.to_string(), code: error.code() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_fields_of_their_type() {
        let written = |event| {
            let mut out = Vec::new();
            write(&mut out, event).unwrap();
            String::from_utf8(out).unwrap()
        };
        let change = |kind, to| WatchEvent::Change { kind, path: b"/a \"\xff", to, is_dir: to.is_none() };
        for (kind, name) in
            [(ChangeKind::Created, "created"), (ChangeKind::Modified, "modified"), (ChangeKind::Deleted, "deleted")]
        {
            let right =
                format!("event: {name}\ndata: {{\"path\":\"/a \\\"\u{fffd}\",\"to\":null,\"is_dir\":true}}\n\n");
            assert_eq!(written(change(kind, None)), right);
        }
        let moved = "event: moved\ndata: {\"path\":\"/a \\\"\u{fffd}\",\"to\":\"/b\",\"is_dir\":false}\n\n";
        assert_eq!(written(change(ChangeKind::Moved, Some(b"/b"))), moved);
        assert_eq!(written(WatchEvent::Overflow), "event: overflow\ndata: {}\n\n");
        let mut out = Vec::new();
        failed(&mut out, &ApiError::new(400, "CODE", "why")).unwrap();
        assert_eq!(out, b"event: error\ndata: {\"error\":\"why\",\"code\":\"CODE\"}\n\n");
    }
}
