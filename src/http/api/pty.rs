//! `POST /pty`, `GET /pty`, and `GET`, `DELETE` and `POST resize` of one session.

use serde::{Deserialize, Serialize};

use crate::error::{Error, SpecError};
use crate::model::terminal_size::TerminalSize;
use crate::model::{Leftovers, Operation, ProcessSpec};
use crate::supervisor::SessionKey;
use crate::terminal::session::SessionInfo;

use crate::http::api::processes::Command;
use crate::http::api::{Api, idempotency};
use crate::http::json;
use crate::http::json::limits::LimitsBody;
use crate::http::json::response;
use crate::http::json::user::User;
use crate::http::json::value::{Choice, Integer, JsonString, Object, StringList, StringMap, Truth};
use crate::http::message::{ApiError, Request, Response};

type Size = Integer<0, { u32::MAX as u64 }>;

#[derive(Debug, Deserialize)]
struct OpenBody {
    command: JsonString,
    args: Option<StringList>,
    env: Option<StringMap>,
    working_dir: Option<JsonString>,
    user: Option<User>,
    leftovers: Option<Choice<Leftovers>>,
    limits: Option<Object<LimitsBody>>,
    no_new_privs: Option<Truth>,
    rows: Option<Size>,
    cols: Option<Size>,
}

impl OpenBody {
    fn into_spec(self) -> Result<ProcessSpec, SpecError> {
        let or_default = |size: Option<Size>| size.map_or(0, |size| size.0);
        let size = TerminalSize::new(or_default(self.rows), or_default(self.cols));
        let OpenBody { command, args, env, working_dir, user, leftovers, limits, no_new_privs, .. } = self;
        Command { command, args, env, working_dir, user, leftovers, limits, no_new_privs }.spec().stdio(size).build()
    }
}

/// The spec that a body describes, or why it is refused.
#[cfg(any(test, fuzzing))]
pub(super) fn spec_of(json: &[u8]) -> Result<ProcessSpec, String> {
    let body = json::parse::<OpenBody>(json).map_err(|error| error.to_string())?;
    body.into_spec().map_err(|error| error.to_string())
}

#[derive(Debug, Deserialize)]
struct ResizeBody {
    rows: Size,
    cols: Size,
}

#[derive(Serialize)]
struct Opened {
    session_id: String,
    token: String,
}

#[derive(Serialize)]
struct SessionList {
    sessions: Vec<SessionInfo>,
}

/// Opens a session. Answers once its program runs, or has failed to start.
pub(crate) fn open(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = request.whole_body()?;
    let key = idempotency::key_of(request, Operation::OpenPty, &body)?;
    let spec = json::parse::<OpenBody>(&body)?.into_spec().map_err(Error::from)?;
    drop(body);
    request.begin_start()?;
    let opened = api.handle.open_pty_or_repeat(spec.with_request(key))?;
    let SessionKey { session_id, token } = opened.result;
    Ok(idempotency::mark(response::whole(201, &Opened { session_id, token }), opened.is_repeat))
}

/// Lists the sessions, oldest first, without their tokens.
pub(crate) fn list(api: &Api) -> Result<Response, ApiError> {
    Ok(response::of(200, SessionList { sessions: api.handle.ptys()? }))
}

/// Gets one session.
pub(crate) fn get(api: &Api, session: &str) -> Result<Response, ApiError> {
    Ok(response::of(200, api.handle.pty(session)?))
}

/// Resizes the terminal. Answers once the program can read the new size.
pub(crate) fn resize(api: &Api, request: &mut Request<'_>, session: &str) -> Result<Response, ApiError> {
    let body = json::parse::<ResizeBody>(&request.whole_body()?)?;
    api.handle.resize_pty(session, TerminalSize::new(body.rows.0, body.cols.0))?;
    Ok(Response::empty(204))
}

/// Kills the session. Answers when its tree is gone, or after 2 s.
pub(crate) fn kill(api: &Api, session: &str) -> Result<Response, ApiError> {
    api.handle.kill_pty(session)?;
    Ok(Response::empty(204))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(body: &str) -> Result<ProcessSpec, String> {
        let body = json::parse::<OpenBody>(body.as_bytes()).map_err(|error| error.to_string())?;
        body.into_spec().map_err(|error| error.to_string())
    }

    #[test]
    fn the_bodies_of_open_and_resize_are_parsed() {
        let plain = || ProcessSpec::command("sh");
        for (fields, right) in [
            ("", plain().stdio(TerminalSize { rows: 24, cols: 80 })),
            (r#","rows":null,"cols":0,"args":null,"env":null,"user":null"#, plain().stdio(TerminalSize::default())),
            (r#","leftovers":"kill""#, plain().leftovers(Leftovers::Kill).stdio(TerminalSize::default())),
            (r#","no_new_privs":true"#, plain().no_new_privs(true).stdio(TerminalSize::default())),
            (r#","rows":40,"cols":4294967295"#, plain().stdio(TerminalSize { rows: 40, cols: 1000 })),
            (r#","args":["-i"],"env":{"A":"b"}"#, plain().args(["-i"]).env("A", "b").stdio(TerminalSize::default())),
        ] {
            let body = format!("{{\"command\":\"sh\"{fields}}}");
            assert_eq!(spec(&body).unwrap(), right.build().unwrap(), "{body}");
        }
        for (body, part) in [
            ("", "it is empty"),
            ("{", "EOF"),
            ("{}", "missing field `command`"),
            (r#"{"command":""}"#, "`command` must not be empty"),
            (r#"{"command":"sh","rows":-1}"#, "`rows`"),
            (r#"{"command":"sh","rows":1.5}"#, "`rows`"),
            (r#"{"command":"sh","cols":"80"}"#, "`cols`"),
            (r#"{"command":"sh","args":"-i"}"#, "`args`"),
            (r#"{"command":"sh","user":7}"#, "`user`"),
        ] {
            let sentence = spec(body).unwrap_err();
            assert!(sentence.contains(part), "{body}: {sentence}");
        }
        let sentence = json::parse::<ResizeBody>(br#"{"rows":5}"#).unwrap_err().to_string();
        assert!(sentence.contains("missing field `cols`"), "{sentence}");
    }
}
