//! Fields of a request that change what it means: its conditions, and what its body is.
//!
//! | field | what it does here |
//! |---|---|
//! | `Content-Encoding` | on `PUT` and `POST`: 415 unless `identity`; no body is decoded |
//! | `Content-Range` | on `PUT`: 400, a part would replace the whole (RFC 9110, section 14.5) |
//! | `If-Match`, `If-None-Match` | on a file: `*` counts; an entity tag matches nothing, as files have none |
//! | `If-Unmodified-Since` | on a file: by the second |
//! | `If-Modified-Since` | ignored: answers carry no `Last-Modified`, and the whole content is always right |
//! | `If-Range` | with it `Range` is ignored: no validator of ours can be in it |
//! | `Range` | on `GET /files`, one range of bytes; any other is ignored |
//! | `Transfer-Encoding` | 400 unless `chunked`: where the body ends would not be certain |
//! | `Expect` | `100-continue` is answered once the body is wanted; anything else is ignored |
//! | `Content-Type` | ignored: JSON is UTF-8, and a file is the bytes that were sent |
//!
//! Endpoints other than `/files` answer with what is true at the moment, which no condition can name.

use tiny_http::Method;

use crate::files::Condition;

use crate::http::message::request::Request;
use crate::http::message::response_head::Problem;

/// Refuses a body that is not sent as it is.
pub(in crate::http) fn check_coding(request: &Request<'_>) -> Result<(), Problem> {
    if !matches!(request.method(), Method::Put | Method::Post) {
        return Ok(());
    }
    let codings = request.list("Content-Encoding").unwrap_or_default();
    if codings.iter().all(|coding| coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    Err(Problem::UnsupportedEncoding(codings.join(", ")))
}

/// Refuses a body that is a part of something.
pub(in crate::http) fn check_whole(request: &Request<'_>) -> Result<(), Problem> {
    match request.field("Content-Range") {
        None => Ok(()),
        Some(range) => Err(Problem::Invalid(format!(
            "`Content-Range: {range}`: the body must be the whole file; a part cannot be put into it"
        ))),
    }
}

/// What must be true of the file. A condition whose date is no date does not count (RFC 9110, section 13.1.4).
pub(in crate::http) fn of_file(request: &Request<'_>) -> Condition {
    let any = |list: &[String]| list.iter().any(|element| element == "*");
    let wanted = request.list("If-Match");
    let date = match &wanted {
        None => request.field("If-Unmodified-Since"),
        Some(_) => None,
    };
    Condition {
        exists: wanted.as_deref().is_some_and(any),
        has_tag: wanted.as_deref().is_some_and(|list| !any(list)),
        is_absent: request.list("If-None-Match").as_deref().is_some_and(any),
        unmodified_since: date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()),
    }
}
