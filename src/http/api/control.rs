//! Signals, stdin, restart, pause and `DELETE` of one process.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::model::{Signal, SignalScope, Target};

use crate::http::api::Api;
use crate::http::json;
use crate::http::json::response;
use crate::http::json::value::{Choice, SignalNumber};
use crate::http::message::{ApiError, Request, Response};

/// Bytes of a body that are given to stdin at once.
const PIECE: usize = 64 << 10;

#[derive(Debug, Deserialize)]
struct SignalBody {
    signal: SignalNumber,
    scope: Option<Choice<SignalScope>>,
}

#[derive(Serialize)]
struct Success {
    success: bool,
}

/// Sends a signal: to the process group, or SIGKILL to the whole tree, unless `scope` says otherwise.
pub(crate) fn signal(api: &Api, request: &mut Request<'_>, target: &Target) -> Result<Response, ApiError> {
    let body = json::parse::<SignalBody>(&request.whole_body()?)?;
    api.handle.signal(target, Signal::try_from(body.signal.0)?, body.scope.map(|scope| scope.0))?;
    Ok(response::whole(200, &Success { success: true }))
}

/// Kills the process. Answers when its tree is gone, or after 2 s.
pub(crate) fn kill(api: &Api, target: &Target) -> Result<Response, ApiError> {
    api.handle.kill(target)?;
    Ok(Response::empty(204))
}

/// Restarts a managed process. Answers with the new run.
pub(crate) fn restart(api: &Api, target: &Target) -> Result<Response, ApiError> {
    Ok(response::of(200, api.handle.restart(target)?))
}

/// Pauses the process. Answers when its tree stands still, or after 2 s.
pub(crate) fn pause(api: &Api, target: &Target) -> Result<Response, ApiError> {
    Ok(response::of(200, api.handle.pause(target)?))
}

/// Resumes the process. Succeeds if it is not paused.
pub(crate) fn resume(api: &Api, target: &Target) -> Result<Response, ApiError> {
    Ok(response::of(200, api.handle.resume(target)?))
}

/// Streams the body into stdin, one piece at a time: a process that does not read holds up this request only.
pub(crate) fn write_stdin(api: &Api, request: &mut Request<'_>, target: &Target) -> Result<Response, ApiError> {
    let waker = request.waker()?;
    let mut stdin = api.handle.stdin(target)?;
    while let Some(piece) = request.body_piece(PIECE)? {
        let writing = stdin.begin_write(piece);
        writing.set_waker(waker.clone().into());
        loop {
            if let Some(written) = writing.try_take() {
                // The error names the process as the client does, not by its handle.
                written.map_err(|error| match error {
                    Error::StdinClosed(_) => Error::StdinClosed(target.clone()),
                    error => error,
                })?;
                break;
            }
            request.wait(&waker, None)?;
        }
    }
    Ok(Response::empty(204))
}

/// Closes stdin. Succeeds if it is closed already.
pub(crate) fn close_stdin(api: &Api, target: &Target) -> Result<Response, ApiError> {
    api.handle.close_stdin(target)?;
    Ok(Response::empty(204))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_a_signal_is_parsed() {
        let signal = |body: &str| json::parse::<SignalBody>(body.as_bytes()).map(|body| body.signal.0);
        assert_eq!(signal(r#"{"signal":15}"#).unwrap(), 15);
        assert_eq!(signal(r#"{"signal":-1}"#).unwrap(), -1);
        assert_eq!(signal(r#"{"signal":15.0}"#).unwrap(), 15);
        for body in [r#"{"signal":"TERM"}"#, r#"{"signal":1.5}"#, r#"{"signal":null}"#, "{}"] {
            let sentence = signal(body).unwrap_err().to_string();
            assert!(sentence.contains("`signal`"), "{body}: {sentence}");
        }
        let scope = |body: &str| json::parse::<SignalBody>(body.as_bytes()).map(|body| body.scope.map(|scope| scope.0));
        assert_eq!(scope(r#"{"signal":1,"scope":null}"#).unwrap(), None);
        for (word, right) in
            [("leader", SignalScope::Leader), ("group", SignalScope::Group), ("tree", SignalScope::Tree)]
        {
            assert_eq!(scope(&format!(r#"{{"signal":1,"scope":"{word}"}}"#)).unwrap(), Some(right));
        }
        let sentence = scope(r#"{"signal":1,"scope":"all"}"#).unwrap_err().to_string();
        assert!(sentence.contains("`scope`: must be one of `leader`, `group`, `tree`"), "{sentence}");
    }
}
