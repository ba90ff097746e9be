//! `GET /files/stat`, `POST /files/mkdir` and `POST /files/move`.

use crate::http::api::Api;
use crate::http::message::{ApiError, Request, Response};

/// Examines a file of any type.
pub(crate) fn stat(_api: &Api, _request: &mut Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}

/// Creates a directory.
pub(crate) fn make_dir(_api: &Api, _request: &mut Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}

/// Moves a file or a directory.
pub(crate) fn rename(_api: &Api, _request: &mut Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}
