//! `GET /health`, `GET /info`.

use serde::Serialize;

use crate::http::api::routes::Api;
use crate::http::message::response::Answer;
use crate::http::message::response_head::{Problem, Reply};

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

/// Asks nobody: that the front-end answers is the answer.
pub(in crate::http) fn health() -> Answer {
    Reply::json(200, &Health { healthy: true }).into()
}

/// The daemon in numbers.
pub(in crate::http) fn info(api: &Api) -> Result<Answer, Problem> {
    let counts = api.handle.counts()?;
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        uptime_secs: api.started.elapsed().as_secs(),
        running_processes: counts.running,
        total_processes: counts.total,
    };
    Ok(Reply::json(200, &info).into())
}
