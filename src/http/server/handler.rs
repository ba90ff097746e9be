//! What a server calls for each request.

use crate::http::message::{ApiError, Request, Response};

/// Answers requests, on many threads at once.
///
/// Every `Fn(&mut Request<'_>) -> Result<Response, ApiError>` is a handler, and so is the process API,
/// [`Api`](crate::http::Api). A program that serves routes of its own beside another handler answers those that it
/// knows and passes on the others:
///
/// ```
/// use tl_supervisor::http::message::{ApiError, Request, Response};
/// use tl_supervisor::http::server::Handler;
///
/// struct WithHello<H>(H);
///
/// impl<H: Handler> Handler for WithHello<H> {
///     fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
///         match (request.method(), request.path()) {
///             ("GET", "/hello") => Ok(Response::json(200, r#"{"hello":"world"}"#)),
///             _ => self.0.handle(request),
///         }
///     }
/// }
/// ```
///
/// A handler that streams, waits, or serves an upgrade calls [`Request::begin_long`] first. A panic of a handler ends
/// its connection; the client gets a 500 if no response had begun.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    ///
    /// # Errors
    /// The error is sent as the response.
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError>;
}

impl<F> Handler for F
where
    F: Fn(&mut Request<'_>) -> Result<Response, ApiError> + Send + Sync + 'static,
{
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        self(request)
    }
}
