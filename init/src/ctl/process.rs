//! What a ProcessInfo (docs/api.md, Data model) says, as text.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

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
pub(crate) struct Process<'a>(pub(crate) &'a Value);

impl<'a> Process<'a> {
    /// The processes of a listing.
    pub(crate) fn list(listing: &'a Value) -> impl Iterator<Item = Process<'a>> {
        listing.get("processes").and_then(Value::as_array).into_iter().flatten().map(Process)
    }

    fn field(self, pointer: &str) -> Option<&'a Value> {
        self.0.pointer(pointer)
    }

    pub(crate) fn text(self, pointer: &str) -> &'a str {
        self.field(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn number(self, pointer: &str) -> Option<u64> {
        self.field(pointer).and_then(Value::as_u64)
    }

    pub(crate) fn pid(self) -> u64 {
        self.number("/pid").unwrap_or_default()
    }

    pub(crate) fn is_running(self) -> bool {
        self.text("/status") == "running"
    }

    pub(crate) fn is_managed(self) -> bool {
        self.field("/managed").is_some_and(Value::is_object)
    }

    /// Whether it has ended and will not be started again by itself.
    pub(crate) fn is_over(self) -> bool {
        !self.is_running() && matches!(self.text("/managed/status"), "" | "stopped")
    }

    /// The exit status as a shell has it.
    pub(crate) fn exit_status(self) -> u8 {
        status_of(self.number("/exit_code"), self.number("/signal"))
    }

    /// How its last run ended.
    fn ending(self) -> (String, Colour) {
        match (self.number("/exit_code"), self.number("/signal")) {
            _ if self.text("/status") == "oom_killed" => ("oom_killed".to_owned(), Colour::Red),
            (Some(0), _) => ("exit 0".to_owned(), Colour::None),
            (Some(code), _) => (format!("exit {code}"), Colour::Red),
            (None, Some(signal)) => (format!("signal {signal}"), Colour::Red),
            (None, None) => (String::new(), Colour::None),
        }
    }

    /// Its state, and the colour of that.
    pub(crate) fn state(self) -> (String, Colour) {
        let managed = self.text("/managed/status");
        match managed {
            "backing_off" => (managed.to_owned(), Colour::Yellow),
            _ if !self.is_running() => self.ending(),
            "starting" => (managed.to_owned(), Colour::Yellow),
            _ if self.text("/managed/health_status") == "unhealthy" => ("unhealthy".to_owned(), Colour::Red),
            _ => ("running".to_owned(), Colour::Green),
        }
    }

    /// The time since it was started or has ended.
    fn since(self, now: u64) -> String {
        let since = self.number("/ended_at").or(self.number("/started_at")).unwrap_or(now);
        age(now.saturating_sub(since))
    }

    /// The command and its arguments.
    pub(crate) fn command(self) -> String {
        let mut line = quote(self.text("/command"));
        for arg in self.field("/args").and_then(Value::as_array).into_iter().flatten() {
            line.push(' ');
            line += &quote(arg.as_str().unwrap_or_default());
        }
        line
    }

    /// Its row of a list.
    pub(crate) fn row(self, now: u64) -> Vec<Cell> {
        let (state, colour) = self.state();
        vec![
            self.pid().to_string().into(),
            self.text("/managed/id").to_owned().into(),
            Cell::new(&state, colour),
            self.since(now).into(),
            self.number("/managed/restart_count").map_or(String::new(), |count| count.to_string()).into(),
            self.command().into(),
        ]
    }

    /// All that is known about it: names and values.
    pub(crate) fn details(self, now: u64) -> Vec<(&'static str, String, Colour)> {
        let plain = |name, text: String| (name, text, Colour::None);
        let (state, colour) = self.state();
        let ago = |pointer: &str| self.number(pointer).map_or(String::new(), |at| age(now.saturating_sub(at)) + " ago");
        let mut details = vec![
            ("Status", state, colour),
            plain("PID", self.pid().to_string()),
            plain("Command", self.command()),
            plain("Started", ago("/started_at")),
            plain("Ended", ago("/ended_at")),
        ];
        if self.is_managed() {
            let last = Process(self.field("/managed/last_exit").unwrap_or(&Value::Null));
            let next = self.number("/managed/next_restart_at").map(|at| format!("in {}", age(at.saturating_sub(now))));
            let restarts = self.number("/managed/restart_count").unwrap_or_default();
            details.extend([
                plain("Managed", self.text("/managed/status").to_owned()),
                plain("Restarts", format!("{restarts} (policy {})", self.text("/managed/restart/policy"))),
                plain("Restart", next.unwrap_or_default()),
                plain("Health", self.text("/managed/health_status").to_owned()),
                plain("Last exit", last.ending().0),
                plain("Last error", self.text("/managed/last_error").to_owned()),
            ]);
        }
        details.retain(|(_, text, _)| !text.is_empty());
        details
    }
}

/// The exit status as a shell has it, of an exit code or a signal.
pub(crate) fn status_of(code: Option<u64>, signal: Option<u64>) -> u8 {
    match (code, signal.and_then(|signal| i32::try_from(signal).ok())) {
        (Some(code), _) => (code & 0xFF) as u8,
        (None, Some(signal)) => exit_status::of_signal(signal),
        (None, None) => exit_status::FAILURE,
    }
}

/// A word as a shell would have to get it, if it has characters that a shell treats specially.
fn quote(word: &str) -> String {
    let is_special = |letter: char| letter.is_whitespace() || "'\"\\$`&|;<>()*?[]#~!{}".contains(letter);
    if !word.is_empty() && !word.contains(is_special) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A duration in milliseconds: `5s`, `3m05s`, `2h10m` or `4d03h`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let pair = |large: u64, letter: char, small: u64, other: char| {
        format!("{}{letter}{:02}{other}", seconds / large, seconds % large / small)
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => pair(60, 'm', 1, 's'),
        3600..86400 => pair(3600, 'h', 60, 'm'),
        _ => pair(86400, 'd', 3600, 'h'),
    }
}

/// The time: milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        let info = json!({"command": "sh", "args": ["-c", "echo $A", "it's", "", "a=b"]});
        assert_eq!(Process(&info).command(), r#"sh -c 'echo $A' 'it'\''s' '' a=b"#);
    }

    #[test]
    fn the_state_says_what_matters_most() {
        let state = |status: &str, code: Option<u8>, signal: Option<u8>, managed: Value| {
            let info = json!({"status": status, "exit_code": code, "signal": signal, "managed": managed});
            (Process(&info).state().0, Process(&info).is_over(), Process(&info).exit_status())
        };
        let managed = |status: &str, health: &str| json!({"status": status, "health_status": health});
        let expect = |text: &str, is_over, status: u8| (text.to_owned(), is_over, status);
        assert_eq!(state("running", None, None, Value::Null), expect("running", false, 1));
        assert_eq!(state("exited", Some(3), None, Value::Null), expect("exit 3", true, 3));
        assert_eq!(state("signaled", None, Some(15), Value::Null), expect("signal 15", true, 143));
        assert_eq!(state("oom_killed", None, Some(9), Value::Null), expect("oom_killed", true, 137));
        assert_eq!(state("running", None, None, managed("running", "healthy")), expect("running", false, 1));
        assert_eq!(state("running", None, None, managed("running", "unhealthy")), expect("unhealthy", false, 1));
        assert_eq!(state("running", None, None, managed("starting", "starting")), expect("starting", false, 1));
        assert_eq!(state("exited", Some(1), None, managed("backing_off", "disabled")), expect("backing_off", false, 1));
        assert_eq!(state("exited", Some(0), None, managed("stopped", "disabled")), expect("exit 0", true, 0));
    }
}
