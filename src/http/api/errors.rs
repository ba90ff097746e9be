//! Statuses and codes of the supervisor's errors (docs/api.md, Errors).

use crate::error::Error;
use crate::files::FileError;

use crate::http::message::ApiError;

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let (status, code) = status_and_code(&error);
        ApiError::new(status, code, error.to_string())
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> ApiError {
        let (status, code) = match &error {
            FileError::Invalid(_) => (400, "INVALID_REQUEST"),
            FileError::IsDirectory(_) => (400, "IS_DIRECTORY"),
            FileError::NotADirectory(_) => (400, "NOT_A_DIRECTORY"),
            FileError::NotARegularFile(_) => (400, "NOT_A_REGULAR_FILE"),
            FileError::Traversal(_) => (403, "PATH_TRAVERSAL"),
            FileError::Denied { .. } => (403, "PERMISSION_DENIED"),
            FileError::NotFound(_) => (404, "NOT_FOUND"),
            FileError::Unmet { .. } => (412, "PRECONDITION_FAILED"),
            FileError::NoSpace { .. } => (507, "NO_SPACE"),
            FileError::Other(error) => status_and_code(error),
        };
        ApiError::new(status, code, error.to_string())
    }
}

fn status_and_code(error: &Error) -> (u16, &'static str) {
    match error {
        Error::Invalid(_) | Error::ArgumentsTooLong => (400, "INVALID_REQUEST"),
        Error::UserNotFound(_) => (400, "USER_NOT_FOUND"),
        Error::CommandNotFound(_) => (400, "COMMAND_NOT_FOUND"),
        Error::NotExecutable { .. } => (400, "NOT_EXECUTABLE"),
        Error::WorkingDirNotFound(_) => (400, "WORKING_DIR_NOT_FOUND"),
        Error::StdinNotWritable(_) => (400, "STDIN_NOT_WRITABLE"),
        Error::LimitNotAvailable { .. } => (400, "LIMIT_NOT_AVAILABLE"),
        Error::InvalidSignal(_) => (400, "INVALID_SIGNAL"),
        Error::PermissionDenied(_) => (403, "PERMISSION_DENIED"),
        Error::InvalidToken => (403, "INVALID_TOKEN"),
        Error::NotFound(_) => (404, "NOT_FOUND"),
        Error::SessionNotFound(_) => (404, "SESSION_NOT_FOUND"),
        Error::NameInUse(_) => (409, "NAME_IN_USE"),
        Error::NotManaged(_) => (409, "NOT_MANAGED"),
        Error::NotRunning(_) => (409, "NOT_RUNNING"),
        Error::StdinClosed(_) => (409, "STDIN_CLOSED"),
        Error::IdempotencyKeyReused(_) => (422, "IDEMPOTENCY_KEY_REUSED"),
        Error::TooManyProcesses(_) => (429, "TOO_MANY_PROCESSES"),
        Error::TooManySessions(_) => (429, "TOO_MANY_SESSIONS"),
        Error::Internal(_) => (500, "INTERNAL"),
        Error::ShuttingDown => (503, "SHUTTING_DOWN"),
        Error::OutOfResources(_) => (503, "OUT_OF_RESOURCES"),
    }
}

/// 401: the token is missing or wrong.
pub(crate) fn unauthorized() -> ApiError {
    let message =
        "the token is missing or wrong: send the header `Authorization: Bearer <token>` with the daemon's token";
    ApiError::new(401, "UNAUTHORIZED", message).header("WWW-Authenticate", "Bearer")
}

/// 403: without a token, a web page of another site may not use the API.
pub(crate) fn other_site() -> ApiError {
    let message = "the request is from a web page of another site, and no token is required: list the origin of the page \
                   with --cors-origin";
    ApiError::new(403, "PERMISSION_DENIED", message)
}

/// 415: the body has a content coding, which this daemon does not decode.
pub(crate) fn unsupported_encoding(codings: &str) -> ApiError {
    let message = format!("`Content-Encoding: {codings}` is not supported: send the body without an encoding");
    // The codings that would be accepted (RFC 9110, section 12.5.3).
    ApiError::new(415, "UNSUPPORTED_ENCODING", message).header("Accept-Encoding", "identity")
}

/// 416: a file of `length` bytes has no byte in the range.
pub(crate) fn range_not_satisfiable(length: u64) -> ApiError {
    let message = format!("`Range`: the file has {length} bytes, and none of them is in the range");
    ApiError::new(416, "RANGE_NOT_SATISFIABLE", message).header("Content-Range", format!("bytes */{length}"))
}

/// 502: nothing listens on the port of a tunnel.
pub(crate) fn connection_refused(message: String) -> ApiError {
    ApiError::new(502, "CONNECTION_REFUSED", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Target;

    #[test]
    fn errors_have_a_status_a_code_and_a_sentence() {
        let response = ApiError::from(Error::NotRunning(Target::Pid(3))).to_response();
        assert_eq!(response.status(), 409);
        let body = br#"{"error":"the process with PID 3 has ended","code":"NOT_RUNNING"}"#;
        assert_eq!(response.bytes(), Some(&body[..]));
        let busy = ApiError::from(Error::ShuttingDown).to_response();
        assert_eq!((busy.status(), busy.get("Retry-After")), (503, Some(&b"1"[..])));
        assert_eq!(unauthorized().to_response().get("WWW-Authenticate"), Some(&b"Bearer"[..]));
        let full = FileError::NoSpace { path: "/x".to_owned(), why: String::new() };
        assert_eq!(ApiError::from(full).status(), 507);
    }

    #[test]
    fn a_range_beyond_the_end_says_where_the_end_is() {
        let response = range_not_satisfiable(10).to_response();
        assert_eq!((response.status(), response.get("Content-Range")), (416, Some(&b"bytes */10"[..])));
    }

    #[test]
    fn no_internal_error_or_shortage_is_a_502_or_a_code_that_the_python_client_retries() {
        // On a 502 and on these codes the Python client repeats even a run: the command would run twice.
        for error in [Error::internal(""), Error::ShuttingDown, Error::out_of_resources("")] {
            let (status, code) = status_and_code(&error);
            assert_ne!(status, 502);
            assert!(!code.starts_with("SANDBOX_") && code != "AUTH_SERVICE_UNAVAILABLE");
        }
    }
}
