//! The commands that wait for something: `tlctl wait` and `tlctl stop`.

use std::time::Instant;

use super::commands::{path, print_if_json};
use super::error::Error;
use super::http::{Client, Request, encode};
use super::json::Json;
use super::parse::Line;
use super::process::Process;
use super::screen::print;

/// Time after which a wait is asked for again, in seconds: it shows that the daemon is still there.
pub(crate) const WAIT_SECS: f64 = 30.0;

/// The options that only one kind of wait has, with that kind.
const OPTIONS_OF_KINDS: [(&str, &str); 3] = [("contains", "line"), ("stream", "line"), ("port", "port")];

/// Asks again and again, for at most `longest` seconds each time, until `is_over` says that the response is the last one,
/// or until `timeout` seconds have passed. `path` ends with a `?`, or with a parameter and a `&`.
pub(crate) fn until(
    client: &Client,
    path: &str,
    timeout: Option<f64>,
    longest: f64,
    is_over: impl Fn(Json<'_>) -> bool,
) -> Result<Vec<u8>, Error> {
    let begun = Instant::now();
    loop {
        let left = timeout.map(|seconds| (seconds - begun.elapsed().as_secs_f64()).max(0.0));
        let seconds = left.unwrap_or(longest).min(longest);
        let path = format!("{path}timeout={seconds}");
        let request = Request { method: "GET", path: &path, is_unbounded: true, ..Request::default() };
        let body = client.fetch(request)?;
        if is_over(client.parse(&body)?) || left.is_some_and(|left| left <= seconds) {
            return Ok(body);
        }
    }
}

/// `tlctl wait`.
pub(crate) fn wait(client: &Client, line: &Line) -> Result<u8, Error> {
    let kind = line.value("for").unwrap_or("end");
    if let Some((name, of)) = OPTIONS_OF_KINDS.iter().find(|(name, of)| line.has(name) && *of != kind) {
        return Err(Error::usage(format_args!("wait: --{name} is only for --for {of}")));
    }
    match kind {
        "end" => wait_for_end(client, line, &path(line, "")),
        _ => wait_for(client, line, kind),
    }
}

/// `tlctl stop`.
pub(crate) fn stop(client: &Client, line: &Line) -> Result<u8, Error> {
    let info = client.get(&path(line, ""))?;
    // Afterwards another process may get the name.
    let process = format!("/processes/{}", Process(client.parse(&info)?).pid());
    client.fetch(Request { method: "DELETE", path: &path(line, ""), ..Request::default() })?;
    wait_for_end(client, line, &process)?;
    Ok(0)
}

/// Waits until the process has ended; its exit status.
fn wait_for_end(client: &Client, line: &Line, process: &str) -> Result<u8, Error> {
    let timeout = line.seconds("timeout");
    let is_over = |answer: Json<'_>| Process(answer).is_over();
    let body = until(client, &format!("{process}/wait?"), timeout, WAIT_SECS, is_over)?;
    let process = Process(client.parse(&body)?);
    print_if_json(line, &body)?;
    if process.is_over() {
        return Ok(process.exit_status());
    }
    let timeout = timeout.unwrap_or_default();
    Err(Error::local(format_args!("wait: the process has not ended after {timeout} s")))
}

/// Waits until the process meets another condition. It may also end before that, or the time may pass: an error.
fn wait_for(client: &Client, line: &Line, kind: &str) -> Result<u8, Error> {
    let mut query = format!("/wait?for={kind}&");
    for (name, of) in OPTIONS_OF_KINDS {
        match line.value(name) {
            Some(value) => query += &format!("{name}={}&", encode(value)),
            None if of == kind && name != "stream" => {
                return Err(Error::usage(format_args!("wait: --for {kind} needs --{name}")));
            }
            None => {}
        }
    }
    let timeout = line.seconds("timeout");
    let is_met = |answer: Json<'_>| answer.get("met").is("true");
    let has_ended = |answer: Json<'_>| Process(answer.get("process")).is_over();
    let is_last = |answer: Json<'_>| is_met(answer) || has_ended(answer);
    let body = until(client, &path(line, &query), timeout, WAIT_SECS, is_last)?;
    let answer = client.parse(&body)?;
    print_if_json(line, &body)?;
    if is_met(answer) {
        if kind == "line" && !line.has("json") {
            print(format!("{}\n", answer.get("line").text()).as_bytes())?;
        }
        return Ok(0);
    }
    let what = match kind {
        "line" => "has not written such a line",
        "port" => "does not listen on that port",
        _ => "is not healthy",
    };
    if has_ended(answer) {
        return Err(Error::local(format_args!("wait: the process {what} and has ended")));
    }
    let timeout = timeout.unwrap_or_default();
    Err(Error::local(format_args!("wait: the process {what} after {timeout} s")))
}
