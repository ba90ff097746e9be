//! `POST /processes/run`: starts a command and streams its output and its end in one response. If the client
//! disconnects, the process is killed, with an idempotency key after a while.

use std::io::ErrorKind;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::error::{Error, SpecError};
use crate::logs::{StartAt, View};
use crate::model::{
    Exit, Leftovers, MAX_TIMEOUT, Millis, Operation, Pid, Pipes, ProcessSpec, RunEnd, StdinMode, Target, UnitId,
};
use crate::supervisor::Handle;

use crate::http::api::events;
use crate::http::api::events::EventFormat;
use crate::http::api::processes::Command;
use crate::http::api::{Api, idempotency};
use crate::http::connection::memory::MemoryGrant;
use crate::http::json;
use crate::http::json::limits::LimitsBody;
use crate::http::json::user::User;
use crate::http::json::value::{Base64, Choice, JsonString, Object, Seconds, StringList, StringMap, Truth};
use crate::http::message::{ApiError, Request, Response};

/// The body. The fields `stdin_mode`, `stdout_mode` and `stderr_mode` of `POST /processes` are ignored, whatever their
/// value.
#[derive(Debug, Deserialize)]
struct RunBody {
    command: JsonString,
    args: Option<StringList>,
    env: Option<StringMap>,
    working_dir: Option<JsonString>,
    user: Option<User>,
    leftovers: Option<Choice<Leftovers>>,
    limits: Option<Object<LimitsBody>>,
    no_new_privs: Option<Truth>,
    timeout: Option<Seconds>,
    timeout_secs: Option<Seconds>,
    stdin: Option<JsonString>,
    stdin_base64: Option<Base64>,
    name: Option<IgnoredAny>,
    restart: Option<IgnoredAny>,
    health_check: Option<IgnoredAny>,
}

impl RunBody {
    /// The spec of the command, and its standard input.
    fn into_spec(self) -> Result<(ProcessSpec, Option<Vec<u8>>), SpecError> {
        let managed = [("name", self.name), ("restart", self.restart), ("health_check", self.health_check)];
        if let Some((field, _)) = managed.iter().find(|(_, value)| value.is_some()) {
            return Err(SpecError::new(*field, "makes a process managed; start that with `POST /api/v1/processes`"));
        }
        let RunBody { command, args, env, working_dir, user, leftovers, limits, no_new_privs, .. } = self;
        let mut spec = Command { command, args, env, working_dir, user, leftovers, limits, no_new_privs }.spec();
        if self.timeout.is_some() && self.timeout_secs.is_some() {
            return Err(SpecError::new("timeout", "and `timeout_secs` mean the same; send one of them"));
        }
        if let Some(Seconds(seconds)) = self.timeout.or(self.timeout_secs) {
            spec = spec.timeout(timeout(seconds));
        }
        let input = match (self.stdin, self.stdin_base64) {
            (Some(_), Some(_)) => {
                return Err(SpecError::new("stdin", "and `stdin_base64` are mutually exclusive; send one of them"));
            }
            (Some(JsonString(text)), None) => Some(text.into_bytes()),
            (None, Some(Base64(bytes))) => Some(bytes),
            (None, None) => None,
        };
        if input.is_some() {
            spec = spec.stdio(Pipes { stdin: StdinMode::Pipe, ..Pipes::default() });
        }
        Ok((spec.build()?, input))
    }
}

/// The spec that a body describes, or why it is refused.
#[cfg(any(test, fuzzing))]
pub(super) fn spec_of(json: &[u8]) -> Result<ProcessSpec, String> {
    let body = json::parse::<RunBody>(json).map_err(|error| error.to_string())?;
    body.into_spec().map(|(spec, _)| spec).map_err(|error| error.to_string())
}

fn timeout(seconds: f64) -> Duration {
    // A time that overflows becomes the maximum, and one below a nanosecond becomes a nanosecond.
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TIMEOUT);
    time.clamp(Duration::from_nanos(1), MAX_TIMEOUT)
}

/// The data of the first event.
#[derive(Serialize)]
struct Begin {
    handle: UnitId,
    pid: Pid,
    started_at: Millis,
}

/// The data of the last event. It must not have a field `pid` or `started_at`, by which clients recognise the first
/// one.
#[derive(Serialize)]
pub(crate) struct End {
    exit_code: Option<i32>,
    signal: Option<i32>,
    oom_killed: bool,
    reason: &'static str,
}

impl From<RunEnd> for End {
    fn from(end: RunEnd) -> End {
        End {
            exit_code: end.exit.code(),
            signal: end.exit.signal(),
            oom_killed: end.exit == Exit::OomKilled,
            reason: end.reason(),
        }
    }
}

/// When it is dropped, whatever has ended the response: kills the tree if the run has not ended or, with an idempotency key,
/// tells the supervisor that this client has gone.
struct ClientGuard {
    handle: Handle,
    /// The id that the request has reserved: that of the unit, unless the request repeats another.
    id: UnitId,
    has_key: bool,
    has_ended: bool,
}

impl ClientGuard {
    fn ended(&mut self) {
        self.has_ended = true;
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        if self.has_key {
            self.handle.leave_run(self.id);
        } else if !self.has_ended {
            // Nothing waits for the result.
            drop(self.handle.begin_kill(&Target::Unit(self.id)));
        }
    }
}

/// Runs a command, or follows the run that an earlier request with the same key has started.
pub(crate) fn run(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = request.whole_body()?;
    let key = idempotency::key_of(request, Operation::Run, &body)?;
    let has_key = key.is_some();
    let (spec, input) = json::parse::<RunBody>(&body)?.into_spec().map_err(Error::from)?;
    drop(body);
    let input = input.map(|input| hold_input(api, input.len()).map(|grant| (input, grant))).transpose()?;
    let waker = request.waker()?;
    let (unit, starting) = api.handle.begin_start_with_user(spec.with_request(key));
    starting.set_waker(waker.clone().into());
    let mut guard = ClientGuard { handle: api.handle.clone(), id: unit, has_key, has_ended: false };
    let (started, connected) = loop {
        if let Some(started) = starting.try_take() {
            break (started, Ok(false));
        }
        match request.wait(&waker, None) {
            // The run goes on for a while without this client, and its input comes from here.
            Err(disconnected) if has_key => break (starting.wait(), Err(disconnected)),
            waited => drop(waited?),
        }
    };
    let started = started.inspect_err(|_| guard.ended())?;
    let is_repeat = started.info.handle != unit;
    if let Some((input, grant)) = input.filter(|_| !is_repeat) {
        match api.handle.stdin(&Target::Unit(unit)) {
            Ok(stdin) => stdin.feed(input, Box::new(grant)),
            // The process has ended or has closed its stdin, so it does not read the input.
            Err(error) => log::debug!("unit {unit}: its input was dropped: {error}"),
        }
    }
    connected?;
    let response = Response::events(move |stream| {
        let info = &started.info;
        events::data(stream.buffer(), &Begin { handle: info.handle, pid: info.pid, started_at: info.started_at })?;
        let mut follower = started.log.follow(View::Combined, StartAt::Beginning, waker.clone());
        let format = EventFormat { named: false, with_stream: true };
        events::send_output(stream, &mut follower, &waker, format, |out, end| {
            guard.ended();
            events::data(out, &End::from(end))
        })
    });
    Ok(idempotency::mark(response, is_repeat))
}

/// Counts the input of a run until its command has read it.
///
/// # Errors
/// 503 if the inputs of all runs hold as much as they may.
fn hold_input(api: &Api, bytes: usize) -> Result<MemoryGrant, ApiError> {
    let mut grant = api.run_inputs.grant();
    if grant.grow_to(bytes) {
        return Ok(grant);
    }
    Err(ApiError::out_of("the input of the command", &ErrorKind::OutOfMemory.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::limits::parse_limits;

    fn spec(fields: &str) -> Result<ProcessSpec, String> {
        let body = format!("{{\"command\":\"sh\"{fields}}}");
        let body = json::parse::<RunBody>(body.as_bytes()).map_err(|error| error.to_string())?;
        body.into_spec().map(|(spec, _)| spec).map_err(|error| error.to_string())
    }

    #[test]
    fn the_input_is_text_or_base64() {
        let input = |fields: &str| {
            let body = format!("{{\"command\":\"sh\",{fields}}}");
            let body = json::parse::<RunBody>(body.as_bytes()).map_err(|error| error.to_string())?;
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
            (r#""stdin":"","stdin_base64":"""#, "`stdin` and `stdin_base64` are mutually exclusive"),
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
    fn the_body_is_parsed() {
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
            (r#","no_new_privs":true"#, plain().no_new_privs(true)),
            (r#","no_new_privs":false"#, plain()),
            (r#","limits":null"#, plain()),
            (r#","limits":{}"#, plain()),
            (r#","limits":{"open_files":9}"#, plain().limits(parse_limits(r#"{"open_files":9}"#).unwrap())),
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
            (r#","limits":{"processes":0}"#, "`limits.processes`: must be a whole number from 1 to"),
            (r#","name":"web""#, "`name` makes a process managed"),
            (r#","restart":{}"#, "`restart` makes a process managed"),
            (r#","health_check":0"#, "`health_check` makes a process managed"),
        ] {
            let sentence = spec(fields).unwrap_err();
            assert!(sentence.contains(part), "{fields}: {sentence}");
        }
    }

    #[test]
    fn the_last_event_says_how_the_run_ended() {
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
