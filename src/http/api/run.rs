//! `POST /processes/run`: start, follow and report the end in one answer; a client that goes takes the process with it.

use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::error::{Error, SpecError};
use crate::logs::{StartAt, View};
use crate::model::{Exit, Leftovers, MAX_TIMEOUT, Millis, Pid, Pipes, ProcessSpec, RunEnd, StdinMode, Target, UnitId};
use crate::supervisor::Handle;

use crate::http::api::events;
use crate::http::api::events::Frames;
use crate::http::api::processes::command;
use crate::http::api::routes::Api;
use crate::http::json;
use crate::http::json::user::User;
use crate::http::json::value::{Base64, Choice, Pairs, Seconds, Text, Texts};
use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::Problem;

/// The body. The three modes of `POST /processes` are not looked at: whatever they are, they have no effect.
#[derive(Debug, Deserialize)]
struct RunBody {
    command: Text,
    args: Option<Texts>,
    env: Option<Pairs>,
    working_dir: Option<Text>,
    user: Option<User>,
    leftovers: Option<Choice<Leftovers>>,
    timeout: Option<Seconds>,
    timeout_secs: Option<Seconds>,
    stdin: Option<Text>,
    stdin_base64: Option<Base64>,
    name: Option<IgnoredAny>,
    restart: Option<IgnoredAny>,
    health_check: Option<IgnoredAny>,
}

impl RunBody {
    /// What to run, and what it gets as its standard input.
    fn into_spec(self) -> Result<(ProcessSpec, Option<Vec<u8>>), SpecError> {
        let managed = [("name", self.name), ("restart", self.restart), ("health_check", self.health_check)];
        if let Some((field, _)) = managed.iter().find(|(_, value)| value.is_some()) {
            return Err(SpecError::new(*field, "makes a process managed; start that with `POST /api/v1/processes`"));
        }
        let mut spec = command(self.command, self.args, self.env, self.working_dir, self.user, self.leftovers);
        if self.timeout.is_some() && self.timeout_secs.is_some() {
            return Err(SpecError::new("timeout", "and `timeout_secs` mean the same; send one of them"));
        }
        if let Some(Seconds(seconds)) = self.timeout.or(self.timeout_secs) {
            spec = spec.timeout(timeout(seconds));
        }
        let input = match (self.stdin, self.stdin_base64) {
            (Some(_), Some(_)) => {
                return Err(SpecError::new("stdin", "and `stdin_base64` exclude each other; send one of them"));
            }
            (Some(Text(text)), None) => Some(text.into_bytes()),
            (None, Some(Base64(bytes))) => Some(bytes),
            (None, None) => None,
        };
        if input.is_some() {
            spec = spec.stdio(Pipes { stdin: StdinMode::Pipe, ..Pipes::default() });
        }
        Ok((spec.build()?, input))
    }
}

fn timeout(seconds: f64) -> Duration {
    // What overflows is longer than the longest; what is not a nanosecond is not nothing.
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TIMEOUT);
    time.clamp(Duration::from_nanos(1), MAX_TIMEOUT)
}

/// The first event.
#[derive(Serialize)]
struct Begin {
    handle: UnitId,
    pid: Pid,
    started_at: Millis,
}

/// The last event. No `pid` and no `started_at`: clients would take it for the first one.
#[derive(Serialize)]
struct End {
    exit_code: Option<i32>,
    signal: Option<i32>,
    oom_killed: bool,
    reason: &'static str,
}

impl std::convert::From<RunEnd> for End {
    fn from(end: RunEnd) -> End {
        End {
            exit_code: end.exit.code(),
            signal: end.exit.signal(),
            oom_killed: end.exit == Exit::OomKilled,
            reason: end.reason(),
        }
    }
}

/// Kills the tree when it is dropped before the end: whatever the reason is that nobody listens any more.
struct KillUnheard {
    handle: Handle,
    unit: Option<UnitId>,
}

impl KillUnheard {
    fn ended(&mut self) {
        self.unit = None;
    }
}

impl Drop for KillUnheard {
    fn drop(&mut self) {
        if let Some(unit) = self.unit {
            // Nobody waits for the end of it either.
            drop(self.handle.begin_kill(&Target::Unit(unit)));
        }
    }
}

/// Runs a command.
pub(in crate::http) fn run(api: &Api, request: &mut Request<'_>) -> Result<Answer, Problem> {
    let body = json::parse::<RunBody>(&request.whole_body()?)?;
    let (spec, input) = body.into_spec().map_err(Error::from)?;
    let input = input.map(|input| request.hold_input(input.len()).map(|grant| (input, grant))).transpose()?;
    let waker = request.waker()?;
    let (unit, starting) = api.handle.begin_start_with_user(spec);
    starting.set_waker(waker.clone().into());
    let mut guard = KillUnheard { handle: api.handle.clone(), unit: Some(unit) };
    let started = loop {
        if let Some(started) = starting.try_take() {
            break started;
        }
        request.wait(&waker, None)?;
    };
    let started = started.inspect_err(|_| guard.ended())?;
    if let Some((input, grant)) = input {
        match api.handle.stdin(&Target::Unit(unit)) {
            Ok(stdin) => stdin.feed(input, Box::new(grant)),
            // It has ended, or has closed its stdin: it wants none of it.
            Err(error) => log::debug!("unit {unit}: no input: {error}"),
        }
    }
    Ok(Answer::events(move |stream| {
        let info = &started.info;
        events::data(stream.buffer(), &Begin { handle: info.handle, pid: info.pid, started_at: info.started_at })?;
        let mut follower = started.log.follow(View::Combined, StartAt::Beginning, waker.clone());
        let frames = Frames { named: false, with_stream: true };
        events::pump(stream, &mut follower, &waker, frames, |out, end| {
            guard.ended();
            events::data(out, &End::from(end))
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(fields: &str) -> Result<ProcessSpec, String> {
        let body = format!("{{\"command\":\"sh\"{fields}}}");
        let body = json::parse::<RunBody>(body.as_bytes()).map_err(|problem| problem.to_string())?;
        body.into_spec().map(|(spec, _)| spec).map_err(|error| error.to_string())
    }

    #[test]
    fn inputs() {
        let input = |fields: &str| {
            let body = format!("{{\"command\":\"sh\",{fields}}}");
            let body = json::parse::<RunBody>(body.as_bytes()).map_err(|problem| problem.to_string())?;
            body.into_spec().map(|(spec, input)| (spec.stdio, input)).map_err(|error| error.to_string())
        };
        for (fields, right) in [
            (r#""stdin":null,"stdin_base64":null"#, None),
            (r#""stdin":"é\n\u0000""#, Some("é\n\0".as_bytes())),
            (r#""stdin":"""#, Some(b"")),
            (r#""stdin_base64":"/wAK""#, Some(b"\xff\0\n")),
            (r#""stdin_base64":"aGk=","stdin":null"#, Some(b"hi")),
            (r#""stdin_base64":"""#, Some(b"")),
        ] {
            let stdin = if right.is_some() { StdinMode::Pipe } else { StdinMode::Closed };
            let stdio = Pipes { stdin, ..Pipes::default() }.into();
            assert_eq!(input(fields), Ok((stdio, right.map(<[u8]>::to_vec))), "{fields}");
        }
        for (fields, part) in [
            (r#""stdin":"","stdin_base64":"""#, "`stdin` and `stdin_base64` exclude each other"),
            (r#""stdin":1"#, "`stdin`: must be a string, not 1"),
            (r#""stdin_base64":"aGk""#, "`stdin_base64`: must be a string in base64 with padding"),
            (r#""stdin_base64":"a-k=""#, "`stdin_base64`: "),
            (r#""stdin_base64":"aGk=\n""#, "`stdin_base64`: "),
            (r#""stdin_base64":["aGk="]"#, "`stdin_base64`: "),
        ] {
            let sentence = input(fields).unwrap_err();
            assert!(sentence.contains(part), "{fields}: {sentence}");
        }
    }

    #[test]
    fn bodies() {
        let plain = || ProcessSpec::command("sh");
        let wrong_modes = r#","stdin_mode":"pipe","stdout_mode":5,"stderr_mode":"discard","stop_grace_ms":-1"#;
        for (fields, right) in [
            ("", plain()),
            (r#","name":null,"restart":null,"health_check":null,"timeout":null"#, plain()),
            (wrong_modes, plain()),
            (r#","timeout":2"#, plain().timeout(Duration::from_secs(2))),
            (r#","timeout":0.25"#, plain().timeout(Duration::from_millis(250))),
            (r#","timeout_secs":2.5,"timeout":null"#, plain().timeout(Duration::from_millis(2500))),
            (r#","timeout":2,"timeout_secs":null"#, plain().timeout(Duration::from_secs(2))),
            (r#","timeout":1e300"#, plain().timeout(MAX_TIMEOUT)),
            (r#","leftovers":"kill""#, plain().leftovers(Leftovers::Kill)),
            (r#","timeout":1e-300"#, plain().timeout(Duration::from_nanos(1))),
        ] {
            assert_eq!(spec(fields), Ok(right.build().unwrap()), "{fields}");
        }
        for (fields, part) in [
            (r#","timeout":0"#, "`timeout`: must be a number of seconds above 0, not 0"),
            (r#","timeout":-0.0"#, "`timeout`: must be a number of seconds above 0, not -0.0"),
            (r#","timeout":-1"#, "`timeout`: must be a number of seconds above 0, not -1"),
            (r#","timeout":1e999"#, "`timeout`"),
            (r#","timeout":"1""#, "`timeout`"),
            (r#","timeout_secs":0"#, "`timeout_secs`: must be a number of seconds above 0, not 0"),
            (r#","timeout_secs":"5""#, "`timeout_secs`"),
            (r#","timeout":5,"timeout_secs":5"#, "`timeout` and `timeout_secs` mean the same"),
            (r#","name":"web""#, "`name` makes a process managed"),
            (r#","restart":{}"#, "`restart` makes a process managed"),
            (r#","health_check":0"#, "`health_check` makes a process managed"),
        ] {
            let sentence = spec(fields).unwrap_err();
            assert!(sentence.contains(part), "{fields}: {sentence}");
        }
    }

    #[test]
    fn the_last_event() {
        let end = |exit, timed_out| {
            let mut out = Vec::new();
            events::data(&mut out, &End::from(RunEnd { exit, timed_out, ended_at: 1 })).unwrap();
            String::from_utf8(out).unwrap()
        };
        for (exit, timed_out, right) in [
            (Exit::Code(3), false, r#"{"exit_code":3,"signal":null,"oom_killed":false,"reason":"exited"}"#),
            (Exit::Signal(15), false, r#"{"exit_code":null,"signal":15,"oom_killed":false,"reason":"signaled"}"#),
            (Exit::OomKilled, false, r#"{"exit_code":null,"signal":9,"oom_killed":true,"reason":"oom_killed"}"#),
            (Exit::Signal(9), true, r#"{"exit_code":null,"signal":9,"oom_killed":false,"reason":"timed_out"}"#),
        ] {
            assert_eq!(end(exit, timed_out), format!("data: {right}\n\n"));
        }
    }
}
