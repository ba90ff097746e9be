//! Signals, stdin, restart, pause, wait and `DELETE` of one process.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::model::{MAX_TIMEOUT, Signal, SignalScope, Target};

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

/// Waits for the end of the process or of the timeout.
pub(crate) fn wait(api: &Api, request: &Request<'_>, target: &Target) -> Result<Response, ApiError> {
    let deadline = timeout(request.query("timeout").as_deref())?.map(|time| Instant::now() + time);
    let waker = request.waker()?;
    let process = api.handle.look_up(target)?;
    let _watch = process.log.watch_end(waker.clone());
    while process.log.ended().is_none() && request.wait(&waker, deadline)? {}
    let end = process.log.ended();
    Ok(response::of(200, api.handle.after_wait(process.info, end)?))
}

/// The query parameter `timeout`.
pub(crate) fn timeout(query: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = query else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TIMEOUT).min(MAX_TIMEOUT)))
        }
        _ => Err(ApiError::invalid(format!(
            "the query parameter `timeout` must be a number of seconds, 0 or more, not {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_numbers_of_seconds() {
        assert_eq!(timeout(None).unwrap(), None);
        for (text, right) in [("0", 0), ("1.5", 1500), ("2", 2000)] {
            assert_eq!(timeout(Some(text)).unwrap(), Some(Duration::from_millis(right)), "{text}");
        }
        assert_eq!(timeout(Some("1e300")).unwrap(), Some(MAX_TIMEOUT));
        for text in ["", "-1", "inf", "NaN", "5s", "1e999"] {
            assert!(timeout(Some(text)).unwrap_err().to_string().contains("`timeout`"), "{text}");
        }
    }

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
