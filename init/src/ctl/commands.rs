//! The commands that send one request or a few, and print the response.

use super::error::Error;
use super::http::{Client, Request, encode};
use super::json::Json;
use super::parse::Line;
use super::process::{COLUMNS, Process, now};
use super::screen::{Cell, Colour, Column, Screen, print, print_error, print_json};

/// Exit status of `status` for a process that is not running, as systemctl has it.
const NOT_RUNNING: u8 = 3;

/// Exit status of `status` if there is no such process, as systemctl has it.
const NO_SUCH_PROCESS: u8 = 4;

/// Maximum grace of `shutdown`, in seconds, as the API has it.
const MAX_GRACE: f64 = 86_400.0;

/// Width of the names of `status` and of `usage`.
const NAME_WIDTH: usize = 12;

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

/// Sends a POST whose response may take any time.
pub(crate) fn post(client: &Client, path: &str, body: &str) -> Result<Vec<u8>, Error> {
    let body = body.as_bytes();
    client.fetch(Request { method: "POST", path, body, is_unbounded: true, ..Request::default() })
}

/// The path of the process that the line names.
pub(crate) fn path(line: &Line, rest: &str) -> String {
    format!("/processes/{}{rest}", encode(line.process))
}

/// The list of processes.
fn list(screen: &Screen, listing: Json<'_>, all: bool) -> String {
    let now = now();
    let mut cells = Vec::new();
    let mut processes = listing.get("processes").members();
    loop {
        let process = processes.next();
        if !process.is_some() {
            return screen.table(COLUMNS, &cells);
        }
        let process = Process(process);
        if all || process.is_running() || process.is_managed() {
            process.add_row(now, &mut cells);
        }
    }
}

/// `tlctl ps`.
pub(crate) fn ps(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let body = client.get("/processes")?;
    if line.has("json") {
        return print_json(&body);
    }
    print(list(screen, client.parse(&body)?, line.has("all")).as_bytes())
}

/// `tlctl status`.
pub(crate) fn status(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let body = match client.get(&path(line, "")) {
        Err(error) if error.has_code("NOT_FOUND") => {
            print_error(error);
            return Ok(NO_SUCH_PROCESS);
        }
        result => result?,
    };
    let process = Process(client.parse(&body)?);
    if line.has("json") {
        print_json(&body)?;
    } else {
        print_fields(screen, &process.details(now()))?;
    }
    Ok(if process.is_running() { 0 } else { NOT_RUNNING })
}

/// Prints names and values, one pair on each line. Pairs without a value are left out.
pub(crate) fn print_fields(screen: &Screen, fields: &[(&'static str, Cell)]) -> Result<u8, Error> {
    let mut text = String::new();
    let most = screen.width.map_or(usize::MAX, |width| width.saturating_sub(NAME_WIDTH).max(1));
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        text += name;
        text.push(':');
        for _ in name.len() + 1..NAME_WIDTH {
            text.push(' ');
        }
        screen.add(&mut text, value, most);
        text.push('\n');
    }
    print(text.as_bytes())
}

/// `tlctl start` with a process. The start of a new one is in `run.rs`.
pub(crate) fn start_again(client: &Client, line: &Line) -> Result<u8, Error> {
    let body = client.get(&path(line, ""))?;
    if Process(client.parse(&body)?).is_running() {
        return print_if_json(line, &body);
    }
    post_to_process(client, line, "/restart")
}

/// `tlctl restart`, `pause` and `resume`: the end of the path says which.
pub(crate) fn post_to_process(client: &Client, line: &Line, end: &str) -> Result<u8, Error> {
    let body = post(client, &path(line, end), "")?;
    print_if_json(line, &body)
}

/// Prints the response if the line has `--json`.
pub(crate) fn print_if_json(line: &Line, body: &[u8]) -> Result<u8, Error> {
    if line.has("json") { print_json(body) } else { Ok(0) }
}

/// `tlctl signal`.
pub(crate) fn signal(client: &Client, line: &Line) -> Result<u8, Error> {
    let scope = line.value("scope").map_or(String::new(), |scope| format!(",\"scope\":\"{scope}\""));
    let body = post(client, &path(line, "/signal"), &format!("{{\"signal\":{}{scope}}}", line.signal))?;
    print_if_json(line, &body)
}

/// `tlctl boot`.
pub(crate) fn boot(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let body = client.get("/boot")?;
    if line.has("json") {
        return print_json(&body);
    }
    let report = client.parse(&body)?;
    let mut text = report_table(screen, STEPS, report.get("steps"), "name", "ms");
    let services = report.get("services");
    if services.members().next().is_some() {
        text.push('\n');
        text += &report_table(screen, SERVICES, services, "file", "pid");
    }
    print(text.as_bytes())
}

fn report_table(screen: &Screen, columns: &[Column], list: Json<'_>, name: &str, number: &str) -> String {
    let mut cells = Vec::new();
    let mut entries = list.members();
    loop {
        let entry = entries.next();
        if !entry.is_some() {
            return screen.table(columns, &cells);
        }
        let is_ok = entry.get("ok").is("true");
        let (result, colour) = if is_ok { ("ok", Colour::Green) } else { ("failed", Colour::Red) };
        cells.push(Cell::plain(&entry.get(name).text()));
        cells.push(Cell::new(result, colour));
        cells.push(Cell::plain(entry.get(number).digits()));
        cells.push(Cell::plain(&entry.get("detail").text()));
    }
}

/// `tlctl shutdown`.
pub(crate) fn shutdown(client: &Client, line: &Line) -> Result<u8, Error> {
    let mut given = None;
    for name in ["poweroff", "reboot", "halt", "exit"] {
        match given {
            _ if !line.has(name) => {}
            None => given = Some(name),
            Some(first) => {
                return Err(Error::usage(format_args!("shutdown: --{first} and --{name} are mutually exclusive")));
            }
        }
    }
    if line.seconds("grace").is_some_and(|seconds| seconds > MAX_GRACE) {
        return Err(Error::usage(format_args!("--grace must be at most {MAX_GRACE} seconds")));
    }
    let grace = line.seconds("grace").map(|seconds| format!(",\"grace_ms\":{}", (seconds * 1000.0) as u64));
    let grace = grace.unwrap_or_default();
    let request = |action: &str| post(client, "/shutdown", &format!("{{\"action\":\"{action}\"{grace}}}"));
    let mut result = request(given.unwrap_or("poweroff"));
    // A machine is powered off; elsewhere only `exit` is valid.
    if given.is_none() && matches!(result, Err(error) if error.has_code("INVALID_REQUEST")) {
        result = request("exit");
    }
    print_if_json(line, &result?)
}
