//! `GET /boot` and `POST /shutdown`.

use std::time::Duration;

use serde::Deserialize;

use crate::error::SpecError;
use crate::model::MAX_MS;

use crate::http::api::Api;
use crate::http::api::system_control::EndAction;
use crate::http::json;
use crate::http::json::response;
use crate::http::json::value::{Choice, Integer, Keyword};
use crate::http::message::{ApiError, Request, Response};

impl Keyword for EndAction {
    const KEYWORDS: &'static [(&'static str, Self)] = &[
        ("poweroff", EndAction::PowerOff),
        ("reboot", EndAction::Reboot),
        ("halt", EndAction::Halt),
        ("exit", EndAction::Exit),
    ];
}

#[derive(Debug, Deserialize)]
struct ShutdownBody {
    action: Choice<EndAction>,
    grace_ms: Option<Integer<0, MAX_MS>>,
}

/// The report of the boot: empty if the program has none.
pub(crate) fn boot(api: &Api) -> Response {
    let report = api.system.as_ref().map(|system| system.boot()).unwrap_or_default();
    response::whole(200, &report)
}

/// Begins the shutdown, and answers at once.
pub(crate) fn shutdown(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = json::parse::<ShutdownBody>(&request.whole_body()?)?;
    let grace = body.grace_ms.map(|ms| Duration::from_millis(ms.0));
    let result = match &api.system {
        Some(system) => system.shut_down(body.action.0, grace),
        None => Err(SpecError::new("action", "cannot be done: this program cannot be shut down through its API")),
    };
    result.map_err(crate::error::Error::from)?;
    Ok(Response::json(202, "{}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_a_shutdown_is_parsed() {
        let parse = |body: &str| json::parse::<ShutdownBody>(body.as_bytes()).map_err(|error| error.to_string());
        for (word, right) in [
            ("poweroff", EndAction::PowerOff),
            ("reboot", EndAction::Reboot),
            ("halt", EndAction::Halt),
            ("exit", EndAction::Exit),
        ] {
            let body = parse(&format!(r#"{{"action":"{word}","grace_ms":5}}"#)).unwrap();
            assert_eq!((body.action.0, body.grace_ms), (right, Some(Integer(5))));
        }
        for (body, field) in [
            (r#"{"action":"PowerOff"}"#, "`action`"),
            (r#"{"grace_ms":1}"#, "`action`"),
            (r#"{"action":"halt","grace_ms":-1}"#, "`grace_ms`"),
            (r#"{"action":"halt","grace_ms":1.5}"#, "`grace_ms`"),
            ("", "the body"),
        ] {
            let sentence = parse(body).unwrap_err();
            assert!(sentence.contains(field), "{body}: {sentence}");
        }
    }
}
