//! `tlctl run`, and the start of a new process by `tlctl start`.

use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tl_os::{disposition, sigmask, signal_thread::SignalThread, thread};

use super::commands::post;
use super::error::Error;
use super::http::{Body, Client, Request};
use super::limit;
use super::logs::print_event;
use super::parse::Line;
use super::process::Process;
use super::screen::{print, print_error, print_json};
use super::table::LIMITS;
use crate::exit_status;

/// Bytes of standard input that are sent at once.
const PIECE: usize = 64 << 10;

/// The signals that end the command.
const SIGNALS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The process that ends with this program, if the end of a connection does not end it: its PID.
type Remote = Arc<Mutex<Option<u64>>>;

/// `tlctl run`.
pub(crate) fn run(client: &'static Client, line: &Line) -> Result<u8, Error> {
    let remote = Remote::default();
    let _signals = end_by_signal(client, &remote)?;
    let result = if has_input() { run_with_input(client, line, &remote) } else { run_without_input(client, line) };
    match result {
        // As in a shell.
        Err(error) if error.has_code("COMMAND_NOT_FOUND") => Ok(failed(error, 127)),
        Err(error) if error.has_code("NOT_EXECUTABLE") => Ok(failed(error, 126)),
        result => result,
    }
}

fn failed(error: Error, status: u8) -> u8 {
    print_error(error);
    status
}

/// `tlctl start` with a command: prints the PID.
pub(crate) fn start(client: &Client, line: &Line) -> Result<u8, Error> {
    let mut body = spec(line);
    if let Some(name) = line.value("name") {
        add_field(&mut body, "name", name);
    }
    if let Some(policy) = line.value("restart") {
        body += ",\"restart\":{\"policy\":";
        add_string(&mut body, policy);
        body.push('}');
    }
    body.push('}');
    let info = post(client, "/processes", &body)?;
    if line.has("json") {
        return print_json(&info);
    }
    print(format!("{}\n", Process(client.parse(&info)?).pid()).as_bytes())
}

/// The body of a request, without the `}` at its end: what to start.
fn spec(line: &Line) -> String {
    let mut body = "{\"args\":[".to_owned();
    for (at, word) in line.words.iter().enumerate().skip(1) {
        body += if at > 1 { "," } else { "" };
        add_string(&mut body, word);
    }
    body.push(']');
    add_field(&mut body, "command", line.words.first().copied().unwrap_or_default());
    body += ",\"env\":{";
    // Of a variable that is given twice, the last value counts.
    let mut names = Vec::new();
    for pair in line.values("env").collect::<Vec<_>>().into_iter().rev() {
        let (name, value) = pair.split_once('=').unwrap_or_default();
        if names.contains(&name) {
            continue;
        }
        body += if names.is_empty() { "" } else { "," };
        add_string(&mut body, name);
        body.push(':');
        add_string(&mut body, value);
        names.push(name);
    }
    body.push('}');
    for (option, field) in [("user", "user"), ("dir", "working_dir")] {
        if let Some(value) = line.value(option) {
            add_field(&mut body, field, value);
        }
    }
    let mut limits = String::new();
    // Of a limit that is given twice, the last value counts, as the API takes each once.
    for (name, _) in LIMITS {
        let given = line.values("limit").filter(|value| value.split_once('=').is_some_and(|(given, _)| given == name));
        if let Some((field, number)) = given.last().and_then(|value| limit::field(value).ok()) {
            limits += if limits.is_empty() { "" } else { "," };
            limits += &format!("\"{field}\":{number}");
        }
    }
    if !limits.is_empty() {
        body += &format!(",\"limits\":{{{limits}}}");
    }
    if line.has("no-new-privs") {
        body += ",\"no_new_privs\":true";
    }
    body
}

/// Adds a field to a JSON object that has others already.
fn add_field(body: &mut String, name: &str, value: &str) {
    *body += ",\"";
    *body += name;
    *body += "\":";
    add_string(body, value);
}

/// Adds a JSON string.
#[inline(never)]
fn add_string(body: &mut String, text: &str) {
    *body += &serde_json::to_string(text).unwrap_or_default();
}

/// Whether stdin has something to send: it is not a terminal, and no other device such as /dev/null.
fn has_input() -> bool {
    let stdin = io::stdin();
    let file_type = std::fs::metadata("/proc/self/fd/0").map(|meta| meta.file_type());
    !stdin.is_terminal() && !file_type.is_ok_and(|kind| kind.is_char_device())
}

/// Runs a command without standard input, by one request. The daemon kills the command if the connection ends early.
fn run_without_input(client: &Client, line: &Line) -> Result<u8, Error> {
    let mut body = spec(line);
    if let Some(seconds) = line.seconds("timeout") {
        body += &format!(",\"timeout\":{seconds}");
    }
    body.push('}');
    let request = Request { method: "POST", path: "/processes/run", body: body.as_bytes(), ..Request::default() };
    let mut body = client.send(request)?.body;
    while let Some(event) = body.next_event().map_err(|error| client.broken(&error))? {
        if event.data.is_empty() {
            continue;
        }
        if line.has("json") {
            print_json(&event.data)?;
        }
        let event = client.parse(&event.data)?;
        let reason = event.get("reason");
        if reason.is_some() {
            if reason.is("\"timed_out\"") {
                print_error(TIMED_OUT);
            }
            return Ok(Process(event).exit_status());
        }
        if !line.has("json") {
            print_event(event, false)?;
        }
    }
    Err(client.broken(&io::ErrorKind::UnexpectedEof.into()))
}

const TIMED_OUT: Error = Error::Local("the command was killed: it has run for the time of --timeout");

/// Runs a command with the standard input of this program: starts it, follows its output, and meanwhile sends the
/// input.
fn run_with_input(client: &'static Client, line: &Line, remote: &Remote) -> Result<u8, Error> {
    let mut body = spec(line);
    body += ",\"stdin_mode\":\"pipe\"}";
    let deadline = line.seconds("timeout").map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    // A write to a pipe without a reader must fail instead of ending this program, so that the command is ended first.
    let _ = sigmask::block(&[libc::SIGPIPE]);
    let (pid, handle) = {
        // A signal that arrives meanwhile ends the process as soon as its PID is known.
        let mut remote = lock(remote);
        let body = body.as_bytes();
        let info = client.fetch(Request { method: "POST", path: "/processes", body, ..Request::default() })?;
        let process = Process(client.parse(&info)?);
        *remote = Some(process.pid());
        (process.pid(), process.number("handle"))
    };
    let send = move || {
        send_input(client, pid);
        Ok(())
    };
    let started = thread::spawn("stdin", send, || {});
    let started = started.map_err(|error| Error::local(format_args!("cannot start a thread: {error}")));
    let result = started.and_then(|_| follow(client, line, pid, deadline));
    let killed = lock(remote).take();
    match (result, killed) {
        (Ok(true), _) => {}
        (result, _) => {
            // Its output can no longer be followed, or its time is over.
            let ended = kill(client, pid);
            // A pending one ends this program now.
            let _ = sigmask::unblock(&[libc::SIGPIPE]);
            result?;
            ended?;
            print_error(TIMED_OUT);
            return Ok(exit_status::of_signal(libc::SIGKILL));
        }
    }
    let info = client.get(&format!("/processes/{pid}"))?;
    let process = Process(client.parse(&info)?);
    if process.number("handle") != handle {
        return Err(Error::Local("the exit status is lost: another process has got the PID of the command"));
    }
    if line.has("json") {
        print_json(&info)?;
    }
    Ok(process.exit_status())
}

/// Prints the output of the process until it has ended, or until the deadline. Returns whether it has ended.
fn follow(client: &Client, line: &Line, pid: u64, deadline: Option<Instant>) -> Result<bool, Error> {
    let path = format!("/processes/{pid}/output/follow");
    let mut body = client.send(Request { method: "GET", path: &path, ..Request::default() })?.body;
    loop {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_for_event(&mut body, left, client)? {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                continue;
            }
        }
        let event = body.next_event().map_err(|error| client.broken(&error))?;
        let Some(event) = event else { return Err(client.broken(&io::ErrorKind::UnexpectedEof.into())) };
        match event.name.as_str() {
            "eof" => return Ok(true),
            _ if event.data.is_empty() => continue,
            _ if line.has("json") => print_json(&event.data)?,
            _ => print_event(client.parse(&event.data)?, false)?,
        };
    }
}

/// Waits until a part of an event was received. Returns false after the time.
fn wait_for_event(body: &mut Body, time: Duration, client: &Client) -> Result<bool, Error> {
    use std::io::BufRead;
    let waited = body.set_timeout(time).and_then(|()| body.fill_buf().map(|_| true));
    match waited.and_then(|_| body.set_timeout(Duration::MAX).map(|()| true)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        waited => waited.map_err(|error| client.broken(&error)),
    }
}

/// Sends standard input to the process until its end, and then closes the process's standard input. Ends early if the
/// process has ended or has closed its standard input.
fn send_input(client: &Client, pid: u64) {
    let path = format!("/processes/{pid}/stdin");
    let mut piece = vec![0; PIECE];
    loop {
        let body = match io::stdin().lock().read(&mut piece) {
            Ok(count) => piece.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                print_error(Error::local(format_args!("cannot read the standard input: {error}")));
                &[]
            }
        };
        if body.is_empty() {
            break;
        }
        let request = Request { method: "POST", path: &path, body, is_unbounded: true, ..Request::default() };
        match client.fetch(request) {
            Ok(_) => {}
            Err(error) => {
                if !["STDIN_CLOSED", "NOT_FOUND"].iter().any(|code| error.has_code(code)) {
                    print_error(error);
                }
                return;
            }
        }
    }
    let path = format!("{path}/close");
    // It fails only if the process is gone.
    let _ = client.fetch(Request { method: "POST", path: &path, ..Request::default() });
}

fn kill(client: &Client, pid: u64) -> Result<(), Error> {
    client.fetch(Request { method: "DELETE", path: &format!("/processes/{pid}"), ..Request::default() }).map(drop)
}

fn lock(remote: &Remote) -> MutexGuard<'_, Option<u64>> {
    remote.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the remote process and then this program at a signal that would end this program.
fn end_by_signal(client: &'static Client, remote: &Remote) -> Result<SignalThread, Error> {
    let remote = remote.clone();
    // Those that are ignored, as under nohup, stay ignored.
    let signals: Vec<i32> = SIGNALS.into_iter().filter(|signal| !disposition::is_ignored(*signal)).collect();
    let notice = move |received: tl_os::signal_thread::Received| {
        if let Some(pid) = lock(&remote).take() {
            // The program ends in any case.
            let _ = kill(client, pid);
        }
        // The end of the connection ends any other command.
        std::process::exit(exit_status::of_signal(received.signal).into());
    };
    let started = SignalThread::start("signals", &signals, notice);
    started.map_err(|error| Error::local(format_args!("cannot handle signals: {error}")))
}
