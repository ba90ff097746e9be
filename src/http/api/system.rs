//! `GET /boot`, `POST /shutdown`: what the program around the server has to say and can do.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, SpecError};
use crate::model::{MAX_MS, Pid};

use crate::http::api::routes::Api;
use crate::http::json;
use crate::http::json::value::{Choice, Whole, Words};
use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::{Problem, Reply};

/// The program that serves the API: how it came up, and how it can be ended.
pub trait Host: fmt::Debug + Send + Sync {
    /// What the boot did.
    fn boot(&self) -> BootReport;

    /// Begins the ordered end, and does not wait for it. Without a `grace` it is the host's own.
    ///
    /// # Errors
    /// When `action` is nothing that can be done here, with what would be right.
    fn shut_down(&self, action: EndAction, grace: Option<Duration>) -> Result<(), SpecError>;
}

/// What a boot did, in the order in which it did it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BootReport {
    /// What was done for the machine.
    pub steps: Vec<BootStep>,
    /// What was started from files.
    pub services: Vec<BootService>,
}

/// One step of a boot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootStep {
    /// What it is about.
    pub name: String,
    /// Whether all is as it should be.
    pub ok: bool,
    /// What was done or found, or why not.
    pub detail: String,
    /// Milliseconds that it took.
    pub ms: f64,
}

/// One service that was to be started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootService {
    /// The name of its file.
    pub file: String,
    /// Whether it was started.
    pub ok: bool,
    /// Why not.
    pub detail: String,
    /// What it was started as.
    pub pid: Option<Pid>,
}

/// What is left when everything has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndAction {
    /// The machine is switched off.
    PowerOff,
    /// The machine starts anew.
    Reboot,
    /// The machine stands still.
    Halt,
    /// The program ends.
    Exit,
}

impl Words for EndAction {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("poweroff", EndAction::PowerOff),
        ("reboot", EndAction::Reboot),
        ("halt", EndAction::Halt),
        ("exit", EndAction::Exit),
    ];
}

#[derive(Debug, Deserialize)]
struct ShutdownBody {
    action: Choice<EndAction>,
    grace_ms: Option<Whole<0, MAX_MS>>,
}

/// Nothing, where no host was given.
pub(in crate::http) fn boot(api: &Api) -> Answer {
    let report = api.host.as_ref().map(|host| host.boot()).unwrap_or_default();
    Reply::json(200, &report).into()
}

/// Answers at once: the end takes its time.
pub(in crate::http) fn shutdown(api: &Api, request: &mut Request<'_>) -> Result<Answer, Problem> {
    let body = json::parse::<ShutdownBody>(&request.whole_body()?)?;
    let grace = body.grace_ms.map(|ms| Duration::from_millis(ms.0));
    match &api.host {
        Some(host) => host.shut_down(body.action.0, grace).map_err(Error::from)?,
        None => {
            return Err(Error::from(SpecError::new("action", "is not for this program, which ends by itself")).into());
        }
    }
    Ok(Reply::json(202, &serde_json::json!({})).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shutdown_is_asked_with() {
        let parse = |body: &str| json::parse::<ShutdownBody>(body.as_bytes()).map_err(|problem| problem.to_string());
        for (word, right) in [
            ("poweroff", EndAction::PowerOff),
            ("reboot", EndAction::Reboot),
            ("halt", EndAction::Halt),
            ("exit", EndAction::Exit),
        ] {
            let body = parse(&format!(r#"{{"action":"{word}","grace_ms":5}}"#)).unwrap();
            assert_eq!((body.action.0, body.grace_ms), (right, Some(Whole(5))));
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
