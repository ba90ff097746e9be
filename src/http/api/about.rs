//! `GET /health` and `GET /info`.

use serde::Serialize;

use crate::http::api::Api;
use crate::http::json::response;
use crate::http::message::{ApiError, Response};

#[derive(Serialize)]
struct Health {
    healthy: bool,
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    uptime_secs: u64,
    running_processes: usize,
    total_processes: usize,
}

/// Answers without asking the supervisor: the response itself shows that the API works.
pub(crate) fn health() -> Response {
    response::whole(200, &Health { healthy: true })
}

/// Version, uptime and number of processes.
pub(crate) fn info(api: &Api) -> Result<Response, ApiError> {
    let counts = api.handle.counts()?;
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        uptime_secs: api.created.elapsed().as_secs(),
        running_processes: counts.running,
        total_processes: counts.total,
    };
    Ok(response::whole(200, &info))
}
