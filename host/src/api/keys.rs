//! `POST /platform/v1/keys/introspect`, which `tl` asks before all else, and `GET /health`.

use serde::Serialize;
use tl_supervisor::http::message::{ApiError, Response};

use crate::api::answers;

#[derive(Serialize)]
struct Key {
    id: &'static str,
    #[serde(rename = "organizationId")]
    organization_id: &'static str,
    #[serde(rename = "projectId")]
    project_id: &'static str,
}

#[derive(Serialize)]
struct Health {
    healthy: bool,
}

/// What the API key belongs to. There is one key, and neither organizations nor projects.
pub(crate) fn introspect() -> Result<Response, ApiError> {
    answers::json(200, &Key { id: "local", organization_id: "local", project_id: "local" })
}

/// Answers without asking the engine: the response itself shows that the API works.
pub(crate) fn health() -> Result<Response, ApiError> {
    answers::json(200, &Health { healthy: true })
}
