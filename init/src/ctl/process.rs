//! What a ProcessInfo (docs/api.md, Data model) says, as text.

use std::time::{SystemTime, UNIX_EPOCH};

use super::json::Json;
use super::screen::{Cell, Colour, Column};
use crate::exit_status;

/// The columns of a list of processes.
pub(crate) const COLUMNS: &[Column] = &[
    Column { head: "PID", is_fixed: true },
    Column { head: "NAME", is_fixed: false },
    Column { head: "STATUS", is_fixed: true },
    Column { head: "SINCE", is_fixed: true },
    Column { head: "RESTARTS", is_fixed: false },
    Column { head: "COMMAND", is_fixed: false },
];

/// A ProcessInfo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process<'a>(pub(crate) Json<'a>);

impl Process<'_> {
    pub(crate) fn text(self, path: &str) -> String {
        self.0.get(path).text()
    }

    pub(crate) fn number(self, path: &str) -> Option<u64> {
        self.0.get(path).number()
    }

    pub(crate) fn pid(self) -> u64 {
        self.number("pid").unwrap_or_default()
    }

    pub(crate) fn is_running(self) -> bool {
        self.0.get("status").is("\"running\"")
    }

    pub(crate) fn is_managed(self) -> bool {
        self.0.get("managed").is_some()
    }

    /// Whether it has ended and will not be started again by itself.
    pub(crate) fn is_over(self) -> bool {
        !self.is_running() && (!self.is_managed() || self.0.get("managed/status").is("\"stopped\""))
    }

    /// The exit status as a shell has it.
    pub(crate) fn exit_status(self) -> u8 {
        status_of(self.number("exit_code"), self.number("signal"))
    }

    /// How its last run ended.
    pub(crate) fn ending(self) -> (String, Colour) {
        match (self.number("exit_code"), self.number("signal")) {
            _ if self.0.get("status").is("\"oom_killed\"") => ("oom_killed".to_owned(), Colour::Red),
            (Some(0), _) => ("exit 0".to_owned(), Colour::None),
            (Some(code), _) => (format!("exit {code}"), Colour::Red),
            (None, Some(signal)) => (format!("signal {signal}"), Colour::Red),
            (None, None) => (String::new(), Colour::None),
        }
    }

    /// Its state, and the colour of that.
    pub(crate) fn state(self) -> (String, Colour) {
        let managed = self.text("managed/status");
        match managed.as_str() {
            "backing_off" => (managed, Colour::Yellow),
            _ if !self.is_running() => self.ending(),
            _ if self.0.get("paused").is("true") => ("paused".to_owned(), Colour::Yellow),
            "starting" => (managed, Colour::Yellow),
            _ if self.0.get("managed/health_status").is("\"unhealthy\"") => ("unhealthy".to_owned(), Colour::Red),
            _ => ("running".to_owned(), Colour::Green),
        }
    }

    /// The time since it was started or has ended.
    fn since(self, now: u64) -> String {
        let since = self.number("ended_at").or(self.number("started_at")).unwrap_or(now);
        age(now.saturating_sub(since))
    }

    /// The command and its arguments.
    pub(crate) fn command(self) -> String {
        let mut line = String::new();
        quote(&self.text("command"), &mut line);
        let mut args = self.0.get("args").members();
        loop {
            let arg = args.next();
            if !arg.is_some() {
                return line;
            }
            line.push(' ');
            quote(&arg.text(), &mut line);
        }
    }

    /// Its row of a list.
    pub(crate) fn add_row(self, now: u64, cells: &mut Vec<Cell>) {
        let (state, colour) = self.state();
        cells.push(Cell::of_number(self.number("pid")));
        cells.push(Cell::plain(&self.text("managed/name")));
        cells.push(Cell::new(&state, colour));
        cells.push(Cell::plain(&self.since(now)));
        cells.push(Cell::of_number(self.number("managed/restart_count")));
        cells.push(Cell::plain(&self.command()));
    }

    /// Its row of `top`, with what it has used.
    pub(crate) fn add_row_with(self, used: [Cell; 3], cells: &mut Vec<Cell>) {
        let (state, colour) = self.state();
        cells.push(Cell::of_number(self.number("pid")));
        cells.push(Cell::plain(&self.text("managed/name")));
        cells.push(Cell::new(&state, colour));
        cells.extend(used);
        cells.push(Cell::plain(&self.command()));
    }

    /// All that is known about it: a name and a value each.
    pub(crate) fn details(self, now: u64) -> Vec<(&'static str, Cell)> {
        let mut details = Vec::new();
        let (state, colour) = self.state();
        details.push(("Status", Cell::new(&state, colour)));
        details.push(("PID", Cell::of_number(self.number("pid"))));
        details.push(("Command", Cell::plain(&self.command())));
        for (name, path) in [("Started", "started_at"), ("Ended", "ended_at")] {
            if let Some(at) = self.number(path) {
                details.push((name, Cell::plain(&(age(now.saturating_sub(at)) + " ago"))));
            }
        }
        for (name, path) in [
            ("Managed", "managed/status"),
            ("Policy", "managed/restart/policy"),
            ("Health", "managed/health_status"),
            ("Last error", "managed/last_error"),
        ] {
            details.push((name, Cell::plain(&self.text(path))));
        }
        details.push(("Restarts", Cell::of_number(self.number("managed/restart_count"))));
        if let Some(at) = self.number("managed/next_restart_at") {
            details.push(("Restart in", Cell::plain(&age(at.saturating_sub(now)))));
        }
        details.push(("Last exit", Cell::plain(&Process(self.0.get("managed/last_exit")).ending().0)));
        details
    }
}

/// The exit status as a shell has it, of an exit code or a signal.
pub(crate) fn status_of(code: Option<u64>, signal: Option<u64>) -> u8 {
    match (code, signal.and_then(|signal| i8::try_from(signal).ok())) {
        (Some(code), _) => (code & 0xFF) as u8,
        (None, Some(signal)) => exit_status::of_signal(signal.into()),
        (None, None) => exit_status::FAILURE,
    }
}

/// Adds a word as a shell would have to get it, if it has characters that a shell treats specially.
fn quote(word: &str, line: &mut String) {
    let is_plain = |byte: u8| byte > 127 || byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        *line += word;
        return;
    }
    line.push('\'');
    for letter in word.chars() {
        *line += if letter == '\'' { "'\\'" } else { "" };
        line.push(letter);
    }
    line.push('\'');
}

/// A duration in milliseconds: `5s`, `3m05s`, `2h10m` or `4d03h`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (large, small, letters) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3600 => (60, 1, ('m', 's')),
        3600..86400 => (3600, 60, ('h', 'm')),
        _ => (86400, 3600, ('d', 'h')),
    };
    format!("{}{}{:02}{}", seconds / large, letters.0, seconds % large / small, letters.1)
}

/// The time: milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn ages_have_at_most_two_units() {
        for (ms, text) in [
            (0, "0s"),
            (59_999, "59s"),
            (60_000, "1m00s"),
            (3_599_000, "59m59s"),
            (7_800_000, "2h10m"),
            (356_400_000, "4d03h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        let info = json!({"command": "sh", "args": ["-c", "echo $A", "it's", "", "a=b"]}).to_string();
        assert_eq!(Process(Json::object(info.as_bytes()).unwrap()).command(), r#"sh -c 'echo $A' 'it'\''s' '' a=b"#);
    }

    #[test]
    fn the_state_says_what_matters_most() {
        let state = |status: &str, code: Option<u8>, signal: Option<u8>, managed: Value| {
            let info = json!({"status": status, "exit_code": code, "signal": signal, "managed": managed});
            let info = info.to_string();
            let process = Process(Json::object(info.as_bytes()).unwrap());
            (process.state().0, process.is_over(), process.exit_status())
        };
        let managed = |status: &str, health: &str| json!({"status": status, "health_status": health});
        let expect = |text: &str, is_over, status: u8| (text.to_owned(), is_over, status);
        assert_eq!(state("running", None, None, Value::Null), expect("running", false, 1));
        assert_eq!(state("exited", Some(3), None, Value::Null), expect("exit 3", true, 3));
        assert_eq!(state("signaled", None, Some(15), Value::Null), expect("signal 15", true, 143));
        assert_eq!(
            state("signaled", None, Some(200), Value::Null),
            expect("signal 200", true, 1),
            "of another service"
        );
        assert_eq!(state("oom_killed", None, Some(9), Value::Null), expect("oom_killed", true, 137));
        assert_eq!(state("running", None, None, managed("running", "healthy")), expect("running", false, 1));
        assert_eq!(state("running", None, None, managed("running", "unhealthy")), expect("unhealthy", false, 1));
        assert_eq!(state("running", None, None, managed("starting", "starting")), expect("starting", false, 1));
        assert_eq!(state("exited", Some(1), None, managed("backing_off", "disabled")), expect("backing_off", false, 1));
        assert_eq!(state("exited", Some(0), None, managed("stopped", "disabled")), expect("exit 0", true, 0));
    }
}
