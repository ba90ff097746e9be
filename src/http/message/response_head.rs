//! What is answered: the one place where an error becomes a status and a code, and where tiny_http writes.
//!
//! tiny_http prints status line, date, length and fields into a buffer, never into the socket, and never sees a body: it
//! would hold one of unknown length whole for an HTTP/1.0 client. It keeps `Connection` to itself, so that field is
//! put in afterwards, as are the framings that it does not know.

use std::io;

use serde::Serialize;
use thiserror::Error;
use tiny_http::{HTTPVersion, Header, Response, StatusCode};

use crate::error::Error;
use crate::files::FileError;

/// Why a request is not answered as asked.
#[derive(Debug, Error)]
pub(in crate::http) enum Problem {
    /// The supervisor refuses.
    #[error(transparent)]
    Refused(#[from] Error),
    /// A file cannot be read, written, removed or listed.
    #[error(transparent)]
    File(#[from] FileError),
    /// No byte of a file of this length is in the range.
    #[error("`Range`: there is no such part of a file that has {0} bytes")]
    RangeNotSatisfiable(u64),
    /// A field, a parameter or the path is wrong; a sentence that names it.
    #[error("{0}")]
    Invalid(String),
    /// The body is encoded in a way that is not undone here; how.
    #[error("`Content-Encoding: {0}`: the body must be sent as it is, without an encoding")]
    UnsupportedEncoding(String),
    /// Not HTTP, or its end is not certain: nothing more can be read from this connection.
    #[error("{0}")]
    Malformed(String),
    /// No token, or a wrong one.
    #[error("this needs the header `Authorization: Bearer <token>` with the daemon's token")]
    Unauthorized,
    /// No such path.
    #[error("there is nothing at {0:?}")]
    NoRoute(String),
    /// The path is known but not with this method; those that are.
    #[error("{method} is not possible at {path:?}, only {allowed}")]
    MethodNotAllowed { method: String, path: String, allowed: String },
    /// The client was too slow; what was waited for.
    #[error("{0} did not arrive in time")]
    TimedOut(&'static str),
    /// The body is longer than so many bytes.
    #[error("the body must be at most {0} bytes long")]
    BodyTooLarge(usize),
    /// The head is larger than this.
    #[error("the request head must be at most {0}")]
    HeadTooLarge(String),
    /// Only a WebSocket client is served here.
    #[error("this is a WebSocket: ask for it with `Connection: Upgrade` and `Upgrade: websocket`")]
    UpgradeRequired,
    /// Nobody listens where a tunnel was to lead; a sentence that says where.
    #[error("{0}")]
    ConnectionRefused(String),
    /// The client has gone: there is nobody to answer.
    #[error("the client has gone")]
    Gone,
}

impl Problem {
    /// The status and the code (section 9).
    fn kind(&self) -> (u16, &'static str) {
        match self {
            Problem::Refused(error) => refusal(error),
            Problem::File(error) => file_refusal(error),
            Problem::RangeNotSatisfiable(_) => (416, "RANGE_NOT_SATISFIABLE"),
            Problem::Invalid(_) | Problem::Malformed(_) | Problem::Gone => (400, "INVALID_REQUEST"),
            Problem::Unauthorized => (401, "UNAUTHORIZED"),
            Problem::NoRoute(_) => (404, "NOT_FOUND"),
            Problem::MethodNotAllowed { .. } => (405, "METHOD_NOT_ALLOWED"),
            Problem::TimedOut(_) => (408, "REQUEST_TIMEOUT"),
            Problem::BodyTooLarge(_) => (413, "BODY_TOO_LARGE"),
            Problem::UnsupportedEncoding(_) => (415, "UNSUPPORTED_ENCODING"),
            Problem::UpgradeRequired => (426, "UPGRADE_REQUIRED"),
            Problem::HeadTooLarge(_) => (431, "HEAD_TOO_LARGE"),
            Problem::ConnectionRefused(_) => (502, "CONNECTION_REFUSED"),
        }
    }

    /// Whether the connection cannot be used again, whatever is left of the request.
    pub(in crate::http) fn ends_connection(&self) -> bool {
        matches!(self, Problem::Malformed(_) | Problem::TimedOut(_) | Problem::HeadTooLarge(_) | Problem::Gone)
    }

    /// The answer that says so.
    pub(in crate::http) fn reply(&self) -> Reply {
        let (status, code) = self.kind();
        let reply = Reply::json(status, &Sentence { error: self.to_string(), code });
        match self {
            Problem::Unauthorized => reply.with("WWW-Authenticate", "Bearer"),
            Problem::MethodNotAllowed { allowed, .. } => reply.with("Allow", allowed),
            Problem::RangeNotSatisfiable(length) => reply.with("Content-Range", &format!("bytes */{length}")),
            // Which encodings would do (RFC 9110, section 12.5.3).
            Problem::UnsupportedEncoding(_) => reply.with("Accept-Encoding", "identity"),
            // The `Connection: Upgrade` that belongs to it is tiny_http's to send, and it does not.
            Problem::UpgradeRequired => reply.with("Upgrade", "websocket"),
            _ if status == 503 => reply.with("Retry-After", "1"),
            _ => reply,
        }
    }
}

/// Out of something that a request needs; nothing was changed.
pub(in crate::http) fn out_of(what: &str, error: &io::Error) -> Problem {
    Problem::Refused(Error::out_of_resources(format_args!("{what}: {error}")))
}

fn refusal(error: &Error) -> (u16, &'static str) {
    match error {
        Error::Invalid(_) | Error::ArgumentsTooLong => (400, "INVALID_REQUEST"),
        Error::UserNotFound(_) => (400, "USER_NOT_FOUND"),
        Error::CommandNotFound(_) => (400, "COMMAND_NOT_FOUND"),
        Error::NotExecutable { .. } => (400, "NOT_EXECUTABLE"),
        Error::WorkingDirNotFound(_) => (400, "WORKING_DIR_NOT_FOUND"),
        Error::StdinNotWritable(_) => (400, "STDIN_NOT_WRITABLE"),
        Error::InvalidSignal(_) => (400, "INVALID_SIGNAL"),
        Error::PermissionDenied(_) => (403, "PERMISSION_DENIED"),
        Error::InvalidToken => (403, "INVALID_TOKEN"),
        Error::NotFound(_) => (404, "NOT_FOUND"),
        Error::SessionNotFound(_) => (404, "SESSION_NOT_FOUND"),
        Error::NameInUse(_) => (409, "NAME_IN_USE"),
        Error::NotManaged(_) => (409, "NOT_MANAGED"),
        Error::NotRunning(_) => (409, "NOT_RUNNING"),
        Error::StdinClosed(_) => (409, "STDIN_CLOSED"),
        Error::TooManyProcesses(_) => (429, "TOO_MANY_PROCESSES"),
        Error::TooManySessions(_) => (429, "TOO_MANY_SESSIONS"),
        Error::Internal(_) => (500, "INTERNAL"),
        Error::ShuttingDown => (503, "SHUTTING_DOWN"),
        Error::OutOfResources(_) => (503, "OUT_OF_RESOURCES"),
    }
}

fn file_refusal(error: &FileError) -> (u16, &'static str) {
    match error {
        FileError::Invalid(_) => (400, "INVALID_REQUEST"),
        FileError::IsDirectory(_) => (400, "IS_DIRECTORY"),
        FileError::NotADirectory(_) => (400, "NOT_A_DIRECTORY"),
        FileError::NotARegularFile(_) => (400, "NOT_A_REGULAR_FILE"),
        FileError::Traversal(_) => (403, "PATH_TRAVERSAL"),
        FileError::Denied { .. } => (403, "PERMISSION_DENIED"),
        FileError::NotFound(_) => (404, "NOT_FOUND"),
        FileError::Unmet { .. } => (412, "PRECONDITION_FAILED"),
        FileError::NoSpace { .. } => (507, "NO_SPACE"),
        FileError::Other(error) => refusal(error),
    }
}

#[derive(Serialize)]
struct Sentence {
    error: String,
    code: &'static str,
}

/// How the client finds the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Ending {
    /// By its length, which the head says.
    Length(usize),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection: all that HTTP/1.0 has for a body of unknown length.
    Close,
}

/// An answer: all of it, or the head of one that is streamed.
#[derive(Clone, Debug)]
pub(in crate::http) struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    /// The body, empty for a stream.
    pub(in crate::http) body: Vec<u8>,
}

impl Reply {
    /// Without a body and, but for the 204 and the 304, not to be sent like this.
    pub(in crate::http) fn new(status: u16) -> Reply {
        Reply { status, fields: Vec::new(), body: Vec::new() }
    }

    /// 204.
    pub(in crate::http) fn no_content() -> Reply {
        Reply::new(204)
    }

    /// `value` as JSON. The values are ours and have nothing in them that JSON cannot say.
    pub(in crate::http) fn json(status: u16, value: &impl Serialize) -> Reply {
        match serde_json::to_vec(value) {
            Ok(body) => Reply::bytes(status, "application/json", body),
            Err(error) => Problem::Refused(Error::internal(error)).reply(),
        }
    }

    /// A body of this type.
    pub(in crate::http) fn bytes(status: u16, content_type: &str, body: Vec<u8>) -> Reply {
        let mut reply = Reply::new(status).with("Content-Type", content_type);
        reply.body = body;
        reply
    }

    /// With status 206.
    pub(in crate::http) fn partial(mut self) -> Reply {
        self.status = 206;
        self
    }

    /// With one more field.
    pub(in crate::http) fn with(mut self, name: &'static str, value: &str) -> Reply {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// The status.
    pub(in crate::http) fn status(&self) -> u16 {
        self.status
    }

    /// Prints the head.
    ///
    /// # Errors
    /// Only for a status or a field that cannot be printed, which none of ours is.
    pub(in crate::http) fn head(&self, ending: Ending, close: bool) -> io::Result<Vec<u8>> {
        let length = match ending {
            Ending::Length(length) => Some(length),
            Ending::Chunked | Ending::Close => None,
        };
        let mut fields = vec![field("Server", "tl-init")?];
        for (name, value) in &self.fields {
            fields.push(field(name, value)?);
        }
        let mut head = Vec::with_capacity(512);
        Response::new(StatusCode(self.status), fields, io::empty(), length, None)
            .with_chunked_threshold(usize::MAX)
            .raw_print(&mut head, HTTPVersion(1, 1), &[], true, None)?;
        // The framing is the last field that it prints. A 204 and a 304 have none (RFC 9110, section 8.6).
        head.truncate(head.len().saturating_sub(2));
        if matches!(self.status, 204 | 304) || ending == Ending::Close {
            let line = head.strip_suffix(b"\r\n").and_then(|lines| memchr::memrchr(b'\n', lines));
            head.truncate(line.map_or(0, |at| at + 1));
        }
        if close {
            head.extend_from_slice(b"Connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }
}

fn field(name: &str, value: &str) -> io::Result<Header> {
    let unprintable = |()| io::Error::other(format!("{name} cannot be {value:?}"));
    Header::from_bytes(name.as_bytes(), value.as_bytes()).map_err(unprintable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Target;

    fn printed(reply: &Reply, ending: Ending, close: bool) -> String {
        let head = String::from_utf8(reply.head(ending, close).unwrap()).unwrap();
        head.lines().filter(|line| !line.starts_with("Date: ")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn heads() {
        let reply = Reply::json(200, &true);
        let fields = "HTTP/1.1 200 OK\nServer: tl-init\nContent-Type: application/json\n";
        assert_eq!(printed(&reply, Ending::Length(4), false), format!("{fields}Content-Length: 4\n"));
        assert_eq!(printed(&reply, Ending::Length(1 << 40), false), format!("{fields}Content-Length: 1099511627776\n"));
        assert_eq!(printed(&reply, Ending::Chunked, false), format!("{fields}Transfer-Encoding: chunked\n"));
        assert_eq!(printed(&reply, Ending::Close, true), format!("{fields}Connection: close\n"));
        let none = Reply::no_content();
        assert_eq!(printed(&none, Ending::Length(0), false), "HTTP/1.1 204 No Content\nServer: tl-init\n");
    }

    #[test]
    fn a_range_beyond_the_end_says_where_the_end_is() {
        let reply = Problem::RangeNotSatisfiable(10).reply();
        assert_eq!(reply.status(), 416);
        assert!(printed(&reply, Ending::Length(0), false).contains("Content-Range: bytes */10"));
        let full = FileError::NoSpace { path: "/x".to_owned(), why: String::new() };
        assert!(printed(&Problem::from(full).reply(), Ending::Length(0), false).starts_with("HTTP/1.1 507 "));
    }

    #[test]
    fn problems_have_a_status_a_code_and_a_sentence() {
        let reply = Problem::Refused(Error::NotRunning(Target::Pid(3))).reply();
        assert_eq!(reply.status(), 409);
        assert_eq!(reply.body, br#"{"error":"the process with PID 3 has ended","code":"NOT_RUNNING"}"#);
        let busy = Problem::Refused(Error::ShuttingDown).reply();
        assert!(printed(&busy, Ending::Length(0), false).contains("503 Service Unavailable"));
        assert!(printed(&busy, Ending::Length(0), false).contains("Retry-After: 1"));
        assert!(printed(&Problem::Unauthorized.reply(), Ending::Length(0), true).contains("WWW-Authenticate: Bearer"));
    }

    #[test]
    fn no_code_of_the_hosted_proxy_and_no_502() {
        // On these the Python client sends even a run again, and a command would run twice.
        for error in [Error::internal(""), Error::ShuttingDown, Error::out_of_resources("")] {
            let (status, code) = refusal(&error);
            assert_ne!(status, 502);
            assert!(!code.starts_with("SANDBOX_") && code != "AUTH_SERVICE_UNAVAILABLE");
        }
    }
}
