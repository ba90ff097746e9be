//! Error responses: status, code and sentence.

use std::io;

use serde::Serialize;

use crate::http::message::response::Response;

/// An error response, with the JSON body `{"error": message, "code": code}`.
///
/// A status of 503 gets the header `Retry-After: 1`.
///
/// ```
/// use tl_supervisor::http::message::ApiError;
///
/// let error = ApiError::new(409, "JOB_RUNNING", "job 7 is still running").header("Retry-After", "5");
/// assert_eq!((error.status(), error.code()), (409, "JOB_RUNNING"));
/// assert_eq!(error.to_string(), "job 7 is still running");
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
#[must_use]
pub struct ApiError {
    status: u16,
    code: &'static str,
    message: String,
    headers: Vec<(&'static str, String)>,
    effect: Effect,
}

/// What an error means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The next request may follow.
    KeepOpen,
    /// The connection ends after the response.
    Close,
    /// The client has disconnected: no response is sent.
    Disconnected,
}

impl ApiError {
    /// An error with this status, this code for programs, and this sentence for people.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> ApiError {
        let headers = if status == 503 { vec![("Retry-After", "1".to_owned())] } else { Vec::new() };
        ApiError { status, code, message: message.into(), headers, effect: Effect::KeepOpen }
    }

    /// 400 `INVALID_REQUEST`: a header, a parameter, the path or the body is wrong. `message` names it.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "INVALID_REQUEST", message)
    }

    /// 404 `NOT_FOUND`: no endpoint has this path.
    pub fn no_route(path: &str) -> ApiError {
        ApiError::new(404, "NOT_FOUND", format!("there is no endpoint with the path {path:?}"))
    }

    /// 405 `METHOD_NOT_ALLOWED`: the path does not take this method. `allowed` is a comma-separated list of the methods
    /// that it takes.
    pub fn method_not_allowed(method: &str, path: &str, allowed: &str) -> ApiError {
        let message = format!("{method} is not allowed on {path:?}; the allowed methods are {allowed}");
        ApiError::new(405, "METHOD_NOT_ALLOWED", message).header("Allow", allowed)
    }

    /// 500 `INTERNAL`: a fault of the server.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "INTERNAL", message)
    }

    /// 503 `OUT_OF_RESOURCES`: something that the request needs is used up. Nothing was changed.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, "OUT_OF_RESOURCES", message)
    }

    /// The client has disconnected: no response is sent, and the connection ends.
    pub fn disconnected() -> ApiError {
        let error = ApiError::invalid("the client has disconnected");
        ApiError { effect: Effect::Disconnected, ..error }
    }

    /// The error with one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> ApiError {
        self.add_header(name, value);
        self
    }

    /// Adds a header.
    pub(crate) fn add_header(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.push((name, value.into()));
    }

    /// Ends the connection after the response.
    pub fn close(mut self) -> ApiError {
        self.effect = Effect::Close;
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the client has disconnected, so that no response is sent.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        self.effect == Effect::Disconnected
    }

    /// Whether the connection cannot be used for another request.
    pub(crate) fn ends_connection(&self) -> bool {
        self.effect != Effect::KeepOpen
    }

    /// 503: the server could not get `what` because of `error`.
    pub(crate) fn out_of(what: &str, error: &io::Error) -> ApiError {
        ApiError::unavailable(format!("the machine is out of resources: {what}: {error}"))
    }

    /// 400: the bytes are not a valid HTTP request, or where it ends is uncertain. Nothing more can be read from the
    /// connection.
    pub(crate) fn malformed(message: impl Into<String>) -> ApiError {
        ApiError::invalid(message).close()
    }

    /// 408: `what` did not arrive in time.
    pub(crate) fn timed_out(what: &str) -> ApiError {
        ApiError::new(408, "REQUEST_TIMEOUT", format!("{what} did not arrive in time")).close()
    }

    /// 413: the body is longer than `max` bytes.
    pub(crate) fn body_too_large(max: usize) -> ApiError {
        ApiError::new(413, "BODY_TOO_LARGE", format!("the body must be at most {max} bytes long"))
    }

    /// 426: the endpoint speaks WebSocket only.
    pub(crate) fn upgrade_required() -> ApiError {
        let message = "this endpoint is a WebSocket: send `Connection: Upgrade` and `Upgrade: websocket`";
        ApiError::new(426, "UPGRADE_REQUIRED", message).header("Upgrade", "websocket")
    }

    /// 431: the head exceeds a limit. `limit` completes the sentence "the request head must ...".
    pub(crate) fn head_too_large(limit: &str) -> ApiError {
        ApiError::new(431, "HEAD_TOO_LARGE", format!("the request head must {limit}")).close()
    }

    /// The response to send.
    pub(crate) fn to_response(&self) -> Response {
        let body = ErrorBody { error: &self.message, code: self.code };
        // Neither a string nor a struct of strings can fail to be JSON.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        self.headers
            .iter()
            .fold(Response::json(self.status, json), |response, (name, value)| response.header(*name, value.as_str()))
    }
}

#[derive(Serialize)]
struct ErrorBody<'e> {
    error: &'e str,
    code: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_becomes_a_status_a_code_a_sentence_and_headers() {
        let response = ApiError::method_not_allowed("PUT", "/x", "GET").to_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.get("allow"), Some(&b"GET"[..]));
        let body = String::from_utf8_lossy(response.bytes().unwrap());
        let message = r#"PUT is not allowed on \"/x\"; the allowed methods are GET"#;
        assert_eq!(body, format!("{{\"error\":\"{message}\",\"code\":\"METHOD_NOT_ALLOWED\"}}"));
        let busy = ApiError::unavailable("later").to_response();
        assert_eq!((busy.status(), busy.get("Retry-After")), (503, Some(&b"1"[..])));
    }

    #[test]
    fn only_a_request_that_was_read_to_its_end_keeps_the_connection_open() {
        assert!(!ApiError::invalid("").ends_connection() && !ApiError::body_too_large(1).ends_connection());
        for error in [ApiError::malformed(""), ApiError::timed_out(""), ApiError::head_too_large("")] {
            assert!(error.ends_connection() && !error.is_disconnected());
        }
        assert!(ApiError::disconnected().ends_connection() && ApiError::disconnected().is_disconnected());
    }
}
