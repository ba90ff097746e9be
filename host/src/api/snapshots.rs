//! `snapshots`, and the snapshots of a sandbox.

use tl_supervisor::http::json;
use tl_supervisor::http::message::{ApiError, Request, Response};

use crate::api::answers::{self, Empty, SnapshotCreated, SnapshotInfo, Snapshots};
use crate::api::create::SnapshotBody;
use crate::api::{Api, errors};

/// Keeps the file system of a sandbox. The body may be empty.
pub(crate) fn create(
    api: &Api,
    request: &mut Request<'_>,
    namespace: &str,
    sandbox: &str,
) -> Result<Response, ApiError> {
    let bytes = request.whole_body()?;
    let body: SnapshotBody = if bytes.is_empty() { SnapshotBody::default() } else { json::parse(&bytes)? };
    body.check()?;
    let snapshot = api.sandboxes.snapshot(namespace, sandbox, body.name.map(|name| name.0))?;
    answers::json(200, &SnapshotCreated::new(&snapshot))
}

/// Lists the snapshots of a namespace, or those of one sandbox.
pub(crate) fn list(api: &Api, namespace: &str, of: Option<&str>) -> Result<Response, ApiError> {
    let snapshots = match of {
        None => api.sandboxes.snapshots(namespace, None),
        Some(sandbox) => {
            let record = api.sandboxes.get(namespace, sandbox).ok_or_else(|| errors::no_sandbox(sandbox))?;
            api.sandboxes.snapshots(namespace, Some(&record.id))
        }
    };
    answers::json(200, &Snapshots { snapshots: snapshots.iter().map(SnapshotInfo::new).collect() })
}

/// Shows one snapshot.
pub(crate) fn get(api: &Api, namespace: &str, snapshot: &str) -> Result<Response, ApiError> {
    let snapshot = api.sandboxes.get_snapshot(namespace, snapshot).ok_or_else(|| errors::no_snapshot(snapshot))?;
    answers::json(200, &SnapshotInfo::new(&snapshot))
}

/// Removes a snapshot. Sandboxes that were made from it go on.
pub(crate) fn delete(api: &Api, namespace: &str, snapshot: &str) -> Result<Response, ApiError> {
    api.sandboxes.delete_snapshot(namespace, snapshot)?;
    answers::json(200, &Empty {})
}
