//! What a handler returns.

use std::borrow::Cow;
use std::fmt;
use std::io;

use crate::http::connection::socket::Socket;
use crate::http::connection::wait::SendDeadline;
use crate::http::message::response_head::ResponseHead;
use crate::http::message::stream::ResponseStream;

/// Writes the body of a streamed response. An error ends the connection without the last chunk, so that the client can
/// tell a broken body from a complete one.
pub(crate) type WriteBody = Box<dyn FnOnce(&mut ResponseStream<'_>) -> io::Result<()>>;

/// Serves a connection after an upgrade.
pub(crate) type ServeUpgrade = Box<dyn FnOnce(&mut Socket)>;

/// A response: status, headers and a body.
///
/// The server sets `Date`, `Server`, `Content-Length`, `Transfer-Encoding` and `Connection` itself. It leaves the body
/// out of the response to a HEAD request, and out of a 204 and a 304, which have none. A status below 200 is for
/// [`Response::upgrade`] only; elsewhere the response becomes a 500.
///
/// ```
/// use tl_supervisor::http::message::Response;
///
/// let response = Response::json(200, r#"{"hello":"world"}"#).header("Cache-Control", "no-store");
/// assert_eq!(response.status(), 200);
/// ```
#[must_use]
pub struct Response {
    pub(crate) head: ResponseHead,
    pub(crate) body: ResponseBody,
}

/// The body of a response.
pub(crate) enum ResponseBody {
    /// The whole body.
    Bytes(Vec<u8>),
    /// A body that is written piece by piece.
    Stream {
        /// Length in bytes, if it is known. A body of another length is an error.
        length: Option<u64>,
        /// How long to wait for a client that does not read; by default as long as for a response of bytes.
        deadline: Option<SendDeadline>,
        /// Writes the body. Not called for HEAD, or if the status allows no body.
        write: WriteBody,
        /// `write` reads the rest of the request's body meanwhile.
        is_duplex: bool,
    },
    /// Another protocol on the same connection.
    Upgrade {
        /// Its name, for the header `Upgrade`.
        protocol: Cow<'static, str>,
        /// Serves the connection. The connection is closed when it returns.
        serve: ServeUpgrade,
    },
}

impl Response {
    /// A response without a body.
    pub fn empty(status: u16) -> Response {
        Response { head: ResponseHead::new(status), body: ResponseBody::Bytes(Vec::new()) }
    }

    /// A body of this media type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        let head = Response::empty(status).header("Content-Type", content_type).head;
        Response { head, body: ResponseBody::Bytes(body.into()) }
    }

    /// A body of JSON. `body` is the JSON text.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response::new(status, "application/json", body)
    }

    /// A body that `write` produces piece by piece, of `length` bytes if that is known. There is no time limit for a
    /// client that stays connected and does not read, so `write` must have an end.
    ///
    /// An error of `write` ends the connection, so that the client notices that the body is incomplete. So does a body that
    /// is shorter than `length`; writing more than `length` bytes is an error. If nothing has been sent by then, the
    /// response becomes a 500.
    ///
    /// ```
    /// use std::io::Write;
    /// use tl_supervisor::http::message::Response;
    ///
    /// let response = Response::stream(200, "text/plain", None, |body| {
    ///     for line in 0..1000 {
    ///         writeln!(body, "line {line}")?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(response.status(), 200);
    /// ```
    pub fn stream(
        status: u16,
        content_type: &str,
        length: Option<u64>,
        write: impl FnOnce(&mut ResponseStream<'_>) -> io::Result<()> + 'static,
    ) -> Response {
        let head = Response::empty(status).header("Content-Type", content_type).head;
        Response { head, body: ResponseBody::Bytes(Vec::new()) }.with_stream(length, write)
    }

    /// The same status and headers with a body that is streamed as that of [`Response::stream`] is. No header is added, so
    /// that a proxy can pass on a response that has no media type.
    ///
    /// ```
    /// use std::io::Write;
    /// use tl_supervisor::http::message::Response;
    ///
    /// let response = Response::empty(200).with_stream(Some(3), |body| body.write_all(b"abc"));
    /// assert_eq!(response.status(), 200);
    /// ```
    pub fn with_stream(
        self,
        length: Option<u64>,
        write: impl FnOnce(&mut ResponseStream<'_>) -> io::Result<()> + 'static,
    ) -> Response {
        let deadline = Some(SendDeadline::Never);
        let body = ResponseBody::Stream { length, deadline, write: Box::new(write), is_duplex: false };
        Response { head: self.head, body }
    }

    /// Lets the function that writes a stream read the rest of the request's body, with
    /// [`ResponseStream::read_body_now`]: for a response that begins before the request has ended. The connection is closed
    /// afterwards.
    ///
    /// ```
    /// use std::io::Write;
    /// use tl_supervisor::http::message::Response;
    ///
    /// let echo = Response::empty(200).with_stream(None, |stream| {
    ///     let mut piece = [0; 4096];
    ///     while let Some(read @ 1..) = stream.read_body_now(&mut piece)? {
    ///         stream.write_all(&piece[..read])?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(echo.duplex().status(), 200);
    /// ```
    pub fn duplex(mut self) -> Response {
        if let ResponseBody::Stream { is_duplex, .. } = &mut self.body {
            *is_duplex = true;
        }
        self
    }

    /// Server-sent events, which `write` produces until it returns or the client disconnects. Call
    /// [`flush`](ResponseStream::flush) after each event that must be sent at once.
    ///
    /// ```
    /// use std::{io::Write, time::Duration};
    /// use tl_supervisor::http::message::Response;
    ///
    /// let ticks = Response::events(|events| {
    ///     for tick in 0..10 {
    ///         write!(events, "data: {tick}\n\n")?;
    ///         events.flush()?;
    ///         events.pause(Duration::from_secs(1))?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(ticks.status(), 200);
    /// ```
    pub fn events(write: impl FnOnce(&mut ResponseStream<'_>) -> io::Result<()> + 'static) -> Response {
        // Without these headers a proxy may delay events: nginx buffers responses by default.
        Response::stream(200, "text/event-stream", None, write)
            .header("Cache-Control", "no-cache, no-transform")
            .header("X-Accel-Buffering", "no")
            .deadline(Some(SendDeadline::Disconnect))
    }

    /// 101: the connection changes to another protocol, which `serve` speaks until it returns. Only for a request that
    /// [asks for it](crate::http::message::Request::upgrades_to).
    ///
    /// ```
    /// use std::io::Write;
    /// use tl_supervisor::http::message::{ApiError, Request, Response};
    ///
    /// fn greet(request: &mut Request<'_>) -> Result<Response, ApiError> {
    ///     if !request.upgrades_to("greeting") {
    ///         return Err(ApiError::invalid("this endpoint needs `Upgrade: greeting`"));
    ///     }
    ///     Ok(Response::upgrade("greeting", |socket| {
    ///         let _ = socket.write(b"hello\n");
    ///     }))
    /// }
    /// ```
    pub fn upgrade(protocol: impl Into<Cow<'static, str>>, serve: impl FnOnce(&mut Socket) + 'static) -> Response {
        let body = ResponseBody::Upgrade { protocol: protocol.into(), serve: Box::new(serve) };
        Response { head: ResponseHead::new(101), body }
    }

    /// Adds a header. The response becomes a 500 if the name or the value is not valid in HTTP.
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Response {
        self.head.add(name.into(), value.into());
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// Sets how long to wait for a client that does not read a stream.
    pub(crate) fn deadline(mut self, new: Option<SendDeadline>) -> Response {
        if let ResponseBody::Stream { deadline, .. } = &mut self.body {
            *deadline = new;
        }
        self
    }

    /// The first header with this name.
    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.head.get(name)
    }

    /// The body, unless it is a stream or an upgrade.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        if let ResponseBody::Bytes(bytes) = &self.body { Some(bytes) } else { None }
    }
}

impl ResponseBody {
    /// Whether sending the body may take any time, so that a reserve thread must not do it.
    pub(crate) fn is_long(&self) -> bool {
        matches!(self, ResponseBody::Upgrade { .. } | ResponseBody::Stream { deadline: Some(_), .. })
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("head", &self.head).finish_non_exhaustive()
    }
}
