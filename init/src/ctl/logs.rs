//! `tlctl logs`, and the lines of event streams.

use std::io::{self, Write};

use super::error::Error;
use super::http::{Client, Request, encode};
use super::json::Json;
use super::parse::Line;
use super::screen::{print, print_json};
use nix::sys::stat::fstat;

/// Prints the output of a process.
pub(crate) fn logs(client: &Client, line: &Line) -> Result<u8, Error> {
    let process = encode(line.process);
    let tail = line.value("lines").map_or(String::new(), |count| format!("?tail={count}"));
    let stream = line.value("stream");
    if line.has("follow") {
        let view = stream.unwrap_or("output");
        let path = format!("/processes/{process}/{view}/follow{tail}");
        return follow(client, &path, line.has("json"), view == "stderr");
    }
    let get = |view: &str, raw: bool| {
        let path = format!("/processes/{process}/{view}{tail}");
        client.send(Request { method: "GET", path: &path, raw, ..Request::default() })
    };
    let copy = |view: &str, out: &mut dyn Write| {
        let mut body = get(view, true)?.body;
        copy_all(client, &mut body, out)
    };
    if line.has("json") {
        copy_all(client, &mut get(stream.unwrap_or("output"), false)?.body, &mut io::stdout())?;
        return print(b"\n");
    }
    match stream {
        Some("stderr") => copy("stderr", &mut io::stderr())?,
        Some(stream) => copy(stream, &mut io::stdout())?,
        // In the order in which they were written, if both go to the same place.
        None if is_one_file() => copy("output", &mut io::stdout())?,
        None => {
            copy("stdout", &mut io::stdout())?;
            copy("stderr", &mut io::stderr())?;
        }
    }
    Ok(0)
}

/// Copies a response.
fn copy_all(client: &Client, body: &mut dyn io::BufRead, out: &mut dyn Write) -> Result<(), Error> {
    loop {
        let piece = body.fill_buf().map_err(|error| client.broken(&error))?;
        if piece.is_empty() {
            return out.flush().map_err(Error::output);
        }
        out.write_all(piece).map_err(Error::output)?;
        let count = piece.len();
        body.consume(count);
    }
}

/// Whether stdout and stderr are the same file, pipe or terminal.
fn is_one_file() -> bool {
    match (fstat(io::stdout()), fstat(io::stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

/// Prints lines until the process has ended.
fn follow(client: &Client, path: &str, json: bool, is_stderr: bool) -> Result<u8, Error> {
    let mut body = client.send(Request { method: "GET", path, ..Request::default() })?.body;
    while let Some(event) = body.next_event().map_err(|error| client.broken(&error))? {
        if event.name == "eof" {
            return Ok(0);
        }
        if event.data.is_empty() {
            continue;
        }
        if json {
            print_json(&event.data)?;
            continue;
        }
        print_event(client.parse(&event.data)?, is_stderr)?;
    }
    Err(client.broken(&io::ErrorKind::UnexpectedEof.into()))
}

/// Prints a line, or says how much output is missing. A line that does not name its stream is of the given one.
pub(crate) fn print_event(event: Json<'_>, is_stderr: bool) -> Result<u8, Error> {
    if let Some(lost) = event.get("lost_bytes").number() {
        let _ = writeln!(io::stderr(), "tlctl: {lost} bytes of the output are no longer kept");
    }
    let line = event.get("line");
    if !line.is_some() {
        return Ok(0);
    }
    let stream = event.get("stream");
    let is_stderr = if stream.is_some() { stream.is("\"stderr\"") } else { is_stderr };
    let mut line = line.text();
    // A piece of a long line is continued by the next one.
    if !event.get("partial").is("true") {
        line.push('\n');
    }
    if is_stderr {
        return io::stderr().write_all(line.as_bytes()).map(|()| 0).map_err(Error::output);
    }
    print(line.as_bytes())
}
