//! `GET /processes/{process}/wait`: for the end of a process, or for a condition.

use std::time::Instant;

use serde::Serialize;

use crate::error::Error;
use crate::model::{Condition, LineQuery, Met, Port, ProcessInfo, Stream, Target};

use crate::http::api::{Api, parameters};
use crate::http::json::response;
use crate::http::message::{ApiError, Request, Response};

/// The answer to a wait for a condition.
#[derive(Serialize)]
struct Answer {
    met: bool,
    process: ProcessInfo,
    #[serde(flatten)]
    more: Option<More>,
}

/// What else the answer has; null if the condition was not met.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum More {
    Line(Option<String>),
    Port(Option<Port>),
}

/// Waits for the condition, for the end of the process or of the timeout.
pub(crate) fn wait(api: &Api, request: &Request<'_>, target: &Target) -> Result<Response, ApiError> {
    let condition = condition(|name| request.query(name))?;
    let deadline = parameters::timeout(request.query("timeout").as_deref())?.map(|time| Instant::now() + time);
    let waker = request.waker()?;
    let awaited = condition.as_ref().unwrap_or(&Condition::End);
    let mut watch = api.handle.watch_condition(target, awaited, waker.clone().into())?;
    let met = loop {
        let met = watch.try_take();
        let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if met.is_some() || is_over {
            break met.transpose()?.flatten();
        }
        request.wait(&waker, [deadline, watch.again()].into_iter().flatten().min())?;
    };
    let waited = watch.finish(met)?;
    Ok(match condition {
        None => response::of(200, waited.process),
        Some(condition) => response::of(200, answer(&condition, waited.met, waited.process)),
    })
}

fn answer(condition: &Condition, met: Option<Met>, process: ProcessInfo) -> Answer {
    let is_met = met.is_some();
    let more = match (condition, met) {
        (_, Some(Met::Line(line))) => Some(More::Line(Some(line))),
        (_, Some(Met::Port(port))) => Some(More::Port(Some(port))),
        (Condition::Line(_), _) => Some(More::Line(None)),
        (Condition::Port(_), _) => Some(More::Port(None)),
        (Condition::End | Condition::Healthy, _) => None,
    };
    Answer { met: is_met, process, more }
}

/// The parameters that only one kind of condition has, with that kind.
const PARAMETERS: [(&str, &str); 3] = [("contains", "line"), ("stream", "line"), ("port", "port")];

/// The condition that the query parameters describe. None without `for`.
fn condition(query: impl Fn(&str) -> Option<String>) -> Result<Option<Condition>, ApiError> {
    let kind = query("for");
    let misplaced = |(name, of): &&(&str, &str)| kind.as_deref() != Some(of) && query(name).is_some();
    if let Some((name, of)) = PARAMETERS.iter().find(misplaced) {
        return Err(ApiError::invalid(format!("the query parameter `{name}` is only for `for={of}`")));
    }
    let Some(kind) = kind else { return Ok(None) };
    let condition = match kind.as_str() {
        "end" => Condition::End,
        "healthy" => Condition::Healthy,
        "line" => Condition::Line(line(query("contains"), query("stream"))?),
        "port" => {
            let text = query("port").ok_or_else(|| missing("port", "port"))?;
            Condition::Port(parameters::port(&text).ok_or_else(|| {
                ApiError::invalid(format!("the query parameter `port` must be a number from 1 to 65535, not {text:?}"))
            })?)
        }
        other => {
            return Err(ApiError::invalid(format!(
                "the query parameter `for` must be one of `end`, `healthy`, `line`, `port`, not {other:?}"
            )));
        }
    };
    Ok(Some(condition))
}

fn line(contains: Option<String>, stream: Option<String>) -> Result<LineQuery, ApiError> {
    let contains = contains.ok_or_else(|| missing("contains", "line"))?;
    let query = LineQuery::new(contains).map_err(Error::from)?;
    Ok(match stream.as_deref() {
        None => query,
        Some("stdout") => query.on(Stream::Stdout),
        Some("stderr") => query.on(Stream::Stderr),
        Some(other) => {
            let problem = format!("the query parameter `stream` must be `stdout` or `stderr`, not {other:?}");
            return Err(ApiError::invalid(problem));
        }
    })
}

fn missing(parameter: &str, kind: &str) -> ApiError {
    ApiError::invalid(format!("the query parameter `{parameter}` is missing, which `for={kind}` needs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The condition of these parameters, or the sentence of the error.
    fn parsed(parameters: &[(&str, &str)]) -> Result<Option<Condition>, String> {
        let find = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        condition(find).map_err(|error| error.to_string())
    }

    #[test]
    fn conditions_are_parsed() {
        let ready = || LineQuery::new("is ready").unwrap();
        let line = [("for", "line"), ("contains", "is ready")];
        for (parameters, right) in [
            (&[][..], None),
            (&[("for", "end")], Some(Condition::End)),
            (&[("for", "healthy")], Some(Condition::Healthy)),
            (&line, Some(Condition::Line(ready()))),
            (&[line[0], line[1], ("stream", "stdout")], Some(Condition::Line(ready().on(Stream::Stdout)))),
            (&[line[0], line[1], ("stream", "stderr")], Some(Condition::Line(ready().on(Stream::Stderr)))),
            (&[("for", "port"), ("port", "65535")], Some(Condition::Port(65535))),
        ] {
            assert_eq!(parsed(parameters), Ok(right), "{parameters:?}");
        }
        for (parameters, part) in [
            (&[("for", "")][..], "`for` must be one of `end`, `healthy`, `line`, `port`, not \"\""),
            (&[("for", "End")], "`for`"),
            (&[("for", "line")], "`contains` is missing, which `for=line` needs"),
            (&[("for", "line"), ("contains", "")], "`contains` must not be empty"),
            (&[line[0], line[1], ("stream", "output")], "`stream` must be `stdout` or `stderr`, not \"output\""),
            (&[("contains", "x")], "`contains` is only for `for=line`"),
            (&[("for", "port"), ("port", "1"), ("stream", "stdout")], "`stream` is only for `for=line`"),
            (&[("for", "end"), ("port", "1")], "`port` is only for `for=port`"),
            (&[("for", "port")], "`port` is missing, which `for=port` needs"),
            (&[("for", "port"), ("port", "0")], "`port` must be a number from 1 to 65535, not \"0\""),
            (&[("for", "port"), ("port", "70000")], "`port`"),
            (&[("for", "port"), ("port", "http")], "`port`"),
        ] {
            let sentence = parsed(parameters).unwrap_err();
            assert!(sentence.contains(part), "{parameters:?}: {sentence}");
        }
    }
}
