//! `sandboxes` and what is below: made, shown, changed, suspended, copied and deleted.

use std::time::Duration;

use tl_supervisor::http::json;
use tl_supervisor::http::message::{ApiError, Request, Response};

use crate::api::answers::{self, Copied, Created, Empty, Failed, List, Pending, TimedOut};
use crate::api::create::{CreateBody, UpdateBody, Wanted};
use crate::api::{Api, errors};
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Progress, Snapshot, Status};

/// How long `suspend` and `resume` wait without `wait_ms`: they take milliseconds, and a client that finds the sandbox
/// in another state asks again only a second later.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// Maximum of `wait_ms`.
const MAX_WAIT: Duration = Duration::from_secs(10 * 60);

/// Time for an answer to reach a client that waits for it.
const LEAST_GRACE: Duration = Duration::from_millis(200);

/// Maximum number of copies that one request makes.
const MAX_COPIES: u32 = 100;

/// Makes a sandbox. Answers once it runs, unless the client does not wait.
pub(crate) fn create(api: &Api, request: &mut Request<'_>, namespace: &str) -> Result<Response, ApiError> {
    let wanted = json::parse::<CreateBody>(&request.whole_body()?)?.check()?;
    let snapshot = snapshot_of(api, namespace, &wanted)?;
    let wait = wanted.wait;
    let spec = wanted.into_spec(snapshot.as_ref(), &api.default_image);
    let urls = api.urls(request);
    if !wait {
        let record = api.sandboxes.begin_create(namespace, spec)?;
        return answers::json(202, &Pending::new(&record, &urls));
    }
    let made = match patience(request) {
        Some(patience) => api.sandboxes.create_within(namespace, spec, patience),
        None => api.sandboxes.create(namespace, spec),
    };
    match made {
        Ok(record) if record.status == Status::Pending => answers::json(504, &TimedOut::new(&record, &urls)),
        Ok(record) => answers::json(200, &Created::new(&record, &urls)),
        Err(SandboxError::Failed { id, details }) => answers::json(422, &Failed::new(&id, &details)),
        Err(error) => Err(error.into()),
    }
}

/// How long the client waits for a sandbox, if it says so, without the time that the answer takes. After that it would
/// never learn the id of the sandbox.
fn patience(request: &Request<'_>) -> Option<Duration> {
    let millis = |name: &str| request.header(name)?.trim().parse().ok().map(Duration::from_millis);
    let timeout = millis("X-Tensorlake-Request-Timeout-Ms")?;
    let grace = millis("X-Tensorlake-Request-Timeout-Grace-Ms").unwrap_or_default().max(LEAST_GRACE).min(timeout / 2);
    Some(timeout.saturating_sub(grace))
}

/// The snapshot that a new sandbox starts from: that of `snapshot_id`, or one whose name is that of the image.
fn snapshot_of(api: &Api, namespace: &str, wanted: &Wanted) -> Result<Option<Snapshot>, ApiError> {
    if let Some(id) = &wanted.snapshot_id {
        return api.sandboxes.get_snapshot(namespace, id).map(Some).ok_or_else(|| errors::no_snapshot(id));
    }
    Ok(wanted.image.as_ref().and_then(|image| api.sandboxes.get_snapshot(namespace, image)))
}

/// Lists the sandboxes of a namespace. The parameter `status` limits the list to one status.
pub(crate) fn list(api: &Api, request: &Request<'_>, namespace: &str) -> Result<Response, ApiError> {
    let status = request.query("status").map(|word| status(&word)).transpose()?;
    let mut records = api.sandboxes.list(namespace);
    records.retain(|record| status.is_none_or(|status| record.status == status));
    let urls = api.urls(request);
    answers::json(200, &List { sandboxes: records.iter().map(|record| api.info(record, &urls)).collect() })
}

fn status(word: &str) -> Result<Status, ApiError> {
    Status::ALL.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
        let all = Status::ALL.map(Status::as_str).join(", ");
        ApiError::invalid(format!("the query parameter `status` must be one of {all}, not {word:?}"))
    })
}

/// Shows one sandbox.
pub(crate) fn get(api: &Api, request: &Request<'_>, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    let record = api.sandboxes.get(namespace, sandbox).ok_or_else(|| errors::no_sandbox(sandbox))?;
    answers::json(200, &api.info(&record, &api.urls(request)))
}

/// Changes the name or the ports.
pub(crate) fn update(
    api: &Api,
    request: &mut Request<'_>,
    namespace: &str,
    sandbox: &str,
) -> Result<Response, ApiError> {
    let change = json::parse::<UpdateBody>(&request.whole_body()?)?.check()?;
    let record = api.sandboxes.update(namespace, sandbox, change)?;
    answers::json(200, &api.info(&record, &api.urls(request)))
}

/// Ends a sandbox.
pub(crate) fn delete(api: &Api, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    progress(api.sandboxes.delete(namespace, sandbox)?)
}

/// Suspends a sandbox.
pub(crate) fn suspend(api: &Api, request: &Request<'_>, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    progress(api.sandboxes.suspend(namespace, sandbox, wait(request)?)?)
}

/// Resumes a sandbox.
pub(crate) fn resume(api: &Api, request: &Request<'_>, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    progress(api.sandboxes.resume(namespace, sandbox, wait(request)?)?)
}

fn progress(progress: Progress) -> Result<Response, ApiError> {
    let status = match progress {
        Progress::Done => 200,
        Progress::GoesOn => 202,
    };
    answers::json(status, &Empty {})
}

fn wait(request: &Request<'_>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = request.query("wait_ms") else { return Ok(Some(DEFAULT_WAIT)) };
    let wrong =
        |_| ApiError::invalid(format!("the query parameter `wait_ms` must be a number of milliseconds, not {text:?}"));
    let millis = text.parse().map_err(wrong)?;
    Ok(Some(Duration::from_millis(millis).min(MAX_WAIT)))
}

/// Makes copies of a sandbox.
pub(crate) fn copy(api: &Api, request: &Request<'_>, namespace: &str, sandbox: &str) -> Result<Response, ApiError> {
    let times = match request.query("times") {
        None => 1,
        Some(text) => text.parse().ok().filter(|times| (1..=MAX_COPIES).contains(times)).ok_or_else(|| {
            let expected = format!("must be a number from 1 to {MAX_COPIES}");
            ApiError::invalid(format!("the query parameter `times` {expected}, not {text:?}"))
        })?,
    };
    let source = api.sandboxes.get(namespace, sandbox).ok_or_else(|| errors::no_sandbox(sandbox))?;
    let copies = match api.sandboxes.copy(namespace, &source.id, times) {
        Err(SandboxError::Failed { id, details }) => return answers::json(422, &Failed::new(&id, &details)),
        copies => copies?,
    };
    let urls = api.urls(request);
    let sandboxes = copies.iter().map(|record| Created::new(record, &urls)).collect();
    answers::json(200, &Copied { source_sandbox_id: &source.id, sandboxes })
}
