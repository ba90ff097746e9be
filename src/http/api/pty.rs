//! `POST /pty`, `GET /pty`, and what can be asked of one session.

use serde::{Deserialize, Serialize};

use crate::error::{Error, SpecError};
use crate::model::terminal_size::TerminalSize;
use crate::model::{Leftovers, ProcessSpec};
use crate::terminal::session::SessionInfo;

use crate::http::api::processes::command;
use crate::http::api::routes::Api;
use crate::http::json;
use crate::http::json::user::User;
use crate::http::json::value::{Choice, Pairs, Text, Texts, Whole};
use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::{Problem, Reply};

type Size = Whole<0, { u32::MAX as u64 }>;

#[derive(Debug, Deserialize)]
struct OpenBody {
    command: Text,
    args: Option<Texts>,
    env: Option<Pairs>,
    working_dir: Option<Text>,
    user: Option<User>,
    leftovers: Option<Choice<Leftovers>>,
    rows: Option<Size>,
    cols: Option<Size>,
}

impl OpenBody {
    fn into_spec(self) -> Result<ProcessSpec, SpecError> {
        let size = |size: Option<Size>| size.map_or(0, |size| size.0);
        let window = TerminalSize::new(size(self.rows), size(self.cols));
        command(self.command, self.args, self.env, self.working_dir, self.user, self.leftovers).stdio(window).build()
    }
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
struct List {
    sessions: Vec<SessionInfo>,
}

/// Answers once the program runs, or has failed to.
pub(in crate::http) fn open(api: &Api, request: &mut Request<'_>) -> Result<Answer, Problem> {
    let spec = json::parse::<OpenBody>(&request.whole_body()?)?.into_spec().map_err(Error::from)?;
    let key = api.handle.open_pty(spec)?;
    Ok(Reply::json(201, &Opened { session_id: key.session_id, token: key.token }).into())
}

/// Oldest first, without their tokens.
pub(in crate::http) fn list(api: &Api) -> Result<Answer, Problem> {
    Ok(Answer::json(200, List { sessions: api.handle.ptys()? }))
}

/// One session.
pub(in crate::http) fn get(api: &Api, session: &str) -> Result<Answer, Problem> {
    Ok(Answer::json(200, api.handle.pty(session)?))
}

/// Answers once the program sees it.
pub(in crate::http) fn resize(api: &Api, request: &mut Request<'_>, session: &str) -> Result<Answer, Problem> {
    let body = json::parse::<ResizeBody>(&request.whole_body()?)?;
    api.handle.resize_pty(session, TerminalSize::new(body.rows.0, body.cols.0))?;
    Ok(Reply::no_content().into())
}

/// Answers when it is gone, or after 2 s.
pub(in crate::http) fn kill(api: &Api, session: &str) -> Result<Answer, Problem> {
    api.handle.kill_pty(session)?;
    Ok(Reply::no_content().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(body: &str) -> Result<ProcessSpec, String> {
        let body = json::parse::<OpenBody>(body.as_bytes()).map_err(|problem| problem.to_string())?;
        body.into_spec().map_err(|error| error.to_string())
    }

    #[test]
    fn bodies() {
        let plain = || ProcessSpec::command("sh");
        for (fields, right) in [
            ("", plain().stdio(TerminalSize { rows: 24, cols: 80 })),
            (r#","rows":null,"cols":0,"args":null,"env":null,"user":null"#, plain().stdio(TerminalSize::default())),
            (r#","leftovers":"kill""#, plain().leftovers(Leftovers::Kill).stdio(TerminalSize::default())),
            (r#","rows":40,"cols":4294967295"#, plain().stdio(TerminalSize { rows: 40, cols: 1000 })),
            (r#","args":["-i"],"env":{"A":"b"}"#, plain().args(["-i"]).env("A", "b").stdio(TerminalSize::default())),
        ] {
            let body = format!("{{\"command\":\"sh\"{fields}}}");
            assert_eq!(spec(&body).unwrap(), right.build().unwrap(), "{body}");
        }
        for (body, part) in [
            ("", "there is none"),
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
