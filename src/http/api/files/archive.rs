//! `GET` and `PUT /files/archive`: a directory tree as a tar archive.

use crate::http::api::Api;
use crate::http::message::{ApiError, Request, Response};

/// Streams the tree as an archive.
pub(crate) fn pack(_api: &Api, _request: &Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}

/// Unpacks the archive in the body.
pub(crate) fn unpack(_api: &Api, _request: &mut Request<'_>) -> Result<Response, ApiError> {
    Err(ApiError::internal("not there yet"))
}
