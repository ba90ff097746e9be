//! `tlctl ports`: which processes listen for TCP connections, or a wait for one that does.

use super::error::Error;
use super::http::{Client, encode};
use super::json::Json;
use super::parse::Line;
use super::screen::{Cell, Column, Screen, print, print_json};
use super::wait::{WAIT_SECS, until};

/// [`WAIT_SECS`] with `--http-path`, where the service may take long to answer, and is asked again each time.
const HTTP_WAIT_SECS: f64 = 3_600.0;

const COLUMNS: &[Column] = &[
    Column { head: "PORT", is_fixed: true },
    Column { head: "ADDRESS", is_fixed: true },
    Column { head: "PID", is_fixed: true },
    Column { head: "NAME", is_fixed: false },
    Column { head: "COMMAND", is_fixed: false },
];

/// `tlctl ports`.
pub(crate) fn ports(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    if let Some(port) = line.value("wait") {
        return wait(client, line, screen, port);
    }
    if let Some(name) = ["timeout", "http-path"].into_iter().find(|name| line.has(name)) {
        return Err(Error::usage(format_args!("ports: --{name} is only for --wait")));
    }
    let body = client.get("/ports")?;
    if line.has("json") {
        return print_json(&body);
    }
    let mut cells = Vec::new();
    let mut ports = client.parse(&body)?.get("ports").members();
    loop {
        let port = ports.next();
        if !port.is_some() {
            return print(screen.table(COLUMNS, &cells).as_bytes());
        }
        add_row(port, &mut cells);
    }
}

fn add_row(port: Json<'_>, cells: &mut Vec<Cell>) {
    cells.push(Cell::plain(port.get("port").digits()));
    cells.push(Cell::plain(&port.get("address").text()));
    cells.push(Cell::plain(port.get("pid").digits()));
    cells.push(Cell::plain(&port.get("name").text()));
    cells.push(Cell::plain(&port.get("command").text()));
}

/// Waits until the port is open, or until the timeout, after which the exit status is 1.
fn wait(client: &Client, line: &Line, screen: &Screen, port: &str) -> Result<u8, Error> {
    let timeout = line.seconds("timeout");
    let http_path = line.value("http-path").map(|path| format!("http_path={}&", encode(path))).unwrap_or_default();
    let longest = if http_path.is_empty() { WAIT_SECS } else { HTTP_WAIT_SECS };
    let path = format!("/ports/{port}/wait?{http_path}");
    let body = until(client, &path, timeout, longest, |answer| answer.get("open").is("true"))?;
    let answer = client.parse(&body)?;
    let is_open = answer.get("open").is("true");
    if line.has("json") {
        print_json(&body)?;
    } else if is_open {
        let mut cells = Vec::new();
        add_row(answer.get("port"), &mut cells);
        print(screen.table(COLUMNS, &cells).as_bytes())?;
    } else {
        let what = if line.has("http-path") { "answers HTTP requests" } else { "listens" };
        let timeout = timeout.unwrap_or_default();
        return Err(Error::local(format_args!("nothing {what} on port {port} after {timeout} s")));
    }
    Ok(if is_open { 0 } else { crate::exit_status::FAILURE })
}
