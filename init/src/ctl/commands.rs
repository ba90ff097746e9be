//! The commands that send one request or a few, and print the response.

use std::time::Duration;

use serde_json::Value;

use super::error::Error;
use super::http::{Client, Request, encode};
use super::parse::Line;
use super::process::{COLUMNS, Process, now};
use super::screen::{Cell, Colour, Column, Screen, escape, print};

/// Exit status of `status` for a process that is not running, as systemctl has it.
const NOT_RUNNING: u8 = 3;

/// Exit status of `status` if there is no such process, as systemctl has it.
const NO_SUCH_PROCESS: u8 = 4;

/// Time after which a wait for a process is asked for again, in seconds: it shows that the daemon is still there.
const WAIT_SECS: u64 = 30;

const STEPS: &[Column] = &[
    Column { head: "STEP", is_fixed: false },
    Column { head: "RESULT", is_fixed: true },
    Column { head: "MS", is_fixed: true },
    Column { head: "DETAIL", is_fixed: false },
];

const SERVICES: &[Column] = &[
    Column { head: "SERVICE", is_fixed: false },
    Column { head: "RESULT", is_fixed: true },
    Column { head: "PID", is_fixed: true },
    Column { head: "DETAIL", is_fixed: false },
];

fn get(client: &Client, path: &str) -> Result<(Value, Vec<u8>), Error> {
    client.fetch_json(Request { method: "GET", path, ..Request::default() })
}

/// Sends a POST whose response may take any time.
pub(crate) fn post(client: &Client, path: &str, body: &str) -> Result<(Value, Vec<u8>), Error> {
    let body = body.as_bytes();
    client.fetch_json(Request { method: "POST", path, body, is_unbounded: true, ..Request::default() })
}

/// Prints a response as it is.
fn print_json(body: &[u8]) -> Result<(), Error> {
    print(&[body.trim_ascii(), b"\n"].concat())
}

/// The path of the process that the line names.
fn path(line: &Line, rest: &str) -> String {
    format!("/processes/{}{rest}", encode(&line.process))
}

/// The list of processes, and how many rows of it there are.
pub(crate) fn list(screen: &Screen, listing: &Value, all: bool, most: usize) -> String {
    let now = now();
    let shown = Process::list(listing).filter(|process| all || process.is_running() || process.is_managed());
    let rows: Vec<Vec<Cell>> = shown.take(most).map(|process| process.row(now)).collect();
    screen.table(COLUMNS, &rows)
}

/// `tlctl ps`.
pub(crate) fn ps(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let (listing, body) = get(client, "/processes")?;
    if line.has("json") {
        return print_json(&body).map(|()| 0);
    }
    print(list(screen, &listing, line.has("all"), usize::MAX).as_bytes()).map(|()| 0)
}

/// `tlctl status`.
pub(crate) fn status(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let (info, body) = match get(client, &path(line, "")) {
        Err(error) if error.has_code("NOT_FOUND") => {
            super::print_error(&error);
            return Ok(NO_SUCH_PROCESS);
        }
        result => result?,
    };
    let process = Process(&info);
    if line.has("json") {
        print_json(&body)?;
    } else {
        let mut text = String::new();
        for (name, value, colour) in process.details(now()) {
            let value = escape(&value);
            let value =
                screen.width.map_or(value.clone(), |most| super::screen::cut(&value, most.saturating_sub(12).max(1)));
            text += &format!("{:<12}{}\n", format!("{name}:"), screen.paint(&value, colour));
        }
        print(text.as_bytes())?;
    }
    Ok(if process.is_running() { 0 } else { NOT_RUNNING })
}

/// `tlctl start` with a process. The start of a new one is in `run.rs`.
pub(crate) fn start_again(client: &Client, line: &Line) -> Result<u8, Error> {
    let (info, body) = get(client, &path(line, ""))?;
    if Process(&info).is_running() {
        return print_if_json(line, &body);
    }
    restart(client, line)
}

/// `tlctl restart`.
pub(crate) fn restart(client: &Client, line: &Line) -> Result<u8, Error> {
    let (_, body) = post(client, &path(line, "/restart"), "")?;
    print_if_json(line, &body)
}

fn print_if_json(line: &Line, body: &[u8]) -> Result<u8, Error> {
    if line.has("json") {
        print_json(body)?;
    }
    Ok(0)
}

/// `tlctl stop`.
pub(crate) fn stop(client: &Client, line: &Line) -> Result<u8, Error> {
    let (info, _) = get(client, &path(line, ""))?;
    // Afterwards another process may get the name.
    let process = format!("/processes/{}", Process(&info).pid());
    client.fetch(Request { method: "DELETE", path: &path(line, ""), ..Request::default() })?;
    let (_, body) = wait_for_end(client, &process)?;
    print_if_json(line, &body)
}

/// `tlctl wait`.
pub(crate) fn wait(client: &Client, line: &Line) -> Result<u8, Error> {
    let (info, body) = wait_for_end(client, &path(line, ""))?;
    print_if_json(line, &body)?;
    Ok(Process(&info).exit_status())
}

/// Waits until the process has ended; its ProcessInfo.
fn wait_for_end(client: &Client, process: &str) -> Result<(Value, Vec<u8>), Error> {
    loop {
        let (info, body) = get(client, &format!("{process}/wait?timeout={WAIT_SECS}"))?;
        if Process(&info).is_over() {
            return Ok((info, body));
        }
    }
}

/// `tlctl signal`.
pub(crate) fn signal(client: &Client, line: &Line) -> Result<u8, Error> {
    let scope = line.value("scope").map_or(String::new(), |scope| format!(",\"scope\":\"{scope}\""));
    let (_, body) = post(client, &path(line, "/signal"), &format!("{{\"signal\":{}{scope}}}", line.signal))?;
    print_if_json(line, &body)
}

/// `tlctl boot`.
pub(crate) fn boot(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let (report, body) = get(client, "/boot")?;
    if line.has("json") {
        return print_json(&body).map(|()| 0);
    }
    let mut text = report_table(screen, STEPS, &report, "steps", "/name", "/ms");
    if report.pointer("/services/0").is_some() {
        text.push('\n');
        text += &report_table(screen, SERVICES, &report, "services", "/file", "/pid");
    }
    print(text.as_bytes()).map(|()| 0)
}

fn report_table(screen: &Screen, columns: &[Column], report: &Value, list: &str, name: &str, number: &str) -> String {
    let entries = report.get(list).and_then(Value::as_array).into_iter().flatten().map(Process);
    let row = |entry: Process<'_>| {
        let is_ok = entry.0.get("ok").and_then(Value::as_bool).unwrap_or_default();
        let (result, colour) = if is_ok { ("ok", Colour::Green) } else { ("failed", Colour::Red) };
        let number = entry.number(number).map_or(String::new(), |number| number.to_string());
        vec![
            entry.text(name).to_owned().into(),
            Cell::new(result, colour),
            number.into(),
            entry.text("/detail").to_owned().into(),
        ]
    };
    screen.table(columns, &entries.map(row).collect::<Vec<_>>())
}

/// `tlctl shutdown`.
pub(crate) fn shutdown(client: &Client, line: &Line) -> Result<u8, Error> {
    let given: Vec<&str> = ["poweroff", "reboot", "halt", "exit"].into_iter().filter(|name| line.has(name)).collect();
    if let [first, second, ..] = given[..] {
        return Err(Error::Usage(format!("shutdown: --{first} and --{second} are mutually exclusive")));
    }
    let grace = line.seconds("grace").map(Duration::from_secs_f64);
    let grace = grace.map_or(String::new(), |grace| format!(",\"grace_ms\":{}", grace.as_millis()));
    let request = |action: &str| post(client, "/shutdown", &format!("{{\"action\":\"{action}\"{grace}}}"));
    let (_, body) = match given.first() {
        Some(action) => request(action)?,
        // A machine is powered off; elsewhere only `exit` is valid.
        None => match request("poweroff") {
            Err(error) if error.has_code("INVALID_REQUEST") => request("exit")?,
            result => result?,
        },
    };
    print_if_json(line, &body)
}
