//! `GET /files/watch`: the changes of a directory, as server-sent events.

use crate::http::api::Api;
use crate::http::message::{ApiError, Request, Response};

/// Streams the changes of a directory.
pub(crate) fn watch(_api: &Api, _request: &Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}
