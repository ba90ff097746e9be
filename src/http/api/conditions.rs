//! Headers that change what a request means: its conditions, and how its body is encoded.
//!
//! | header | meaning |
//! |---|---|
//! | `Content-Encoding` | on `PUT` and `POST`: 415 unless `identity`; no body is decoded |
//! | `Content-Range` | on `PUT`: 400, as a part would replace the whole (RFC 9110, section 14.5) |
//! | `If-Match`, `If-None-Match` | for files: `*` is honored; entity tags match nothing, as files have none |
//! | `If-Unmodified-Since` | for files: compared by the second |
//! | `If-Modified-Since` | ignored: responses have no `Last-Modified`, and the whole content is always correct |
//! | `If-Range` | `Range` is ignored, because this server sends no validator that a client could repeat |
//! | `Range` | on `GET /files`: one range of bytes; any other value is ignored |
//! | `Transfer-Encoding` | 400 unless `chunked`: the end of the body would be uncertain |
//! | `Expect` | `100-continue` is answered when the body is read; other values are ignored |
//! | `Content-Type` | ignored: JSON is UTF-8, and a file is the bytes that were sent |
//!
//! Endpoints other than `/files` answer with the current state, to which no condition applies.

use crate::files::Condition;

use crate::http::api::errors;
use crate::http::message::{ApiError, Request};

/// Refuses a body with a content coding.
pub(crate) fn check_coding(request: &Request<'_>) -> Result<(), ApiError> {
    if !matches!(request.method(), "PUT" | "POST") {
        return Ok(());
    }
    let codings = request.list("Content-Encoding").unwrap_or_default();
    if codings.iter().all(|coding| coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    Err(errors::unsupported_encoding(&codings.join(", ")))
}

/// Refuses a body that is a part of a file.
pub(crate) fn check_whole(request: &Request<'_>) -> Result<(), ApiError> {
    match request.header("Content-Range") {
        None => Ok(()),
        Some(range) => Err(ApiError::invalid(format!(
            "`Content-Range: {range}`: the body must be the whole file; a part of a file cannot be replaced"
        ))),
    }
}

/// The conditions that the request sets for a file. A condition with an invalid date is ignored (RFC 9110, section
/// 13.1.4).
pub(crate) fn of_file(request: &Request<'_>) -> Condition {
    let any = |list: &[String]| list.iter().any(|element| element == "*");
    let wanted = request.list("If-Match");
    let date = match &wanted {
        None => request.header("If-Unmodified-Since"),
        Some(_) => None,
    };
    Condition {
        exists: wanted.as_deref().is_some_and(any),
        has_tag: wanted.as_deref().is_some_and(|list| !any(list)),
        is_absent: request.list("If-None-Match").as_deref().is_some_and(any),
        unmodified_since: date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()),
    }
}
