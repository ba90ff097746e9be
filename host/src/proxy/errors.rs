//! The proxy's own error responses.
//!
//! Clients send a request again after 429, 502, 503 and 504, whatever its method, and for longer if the code is
//! `SANDBOX_NOT_READY` or `SANDBOX_UNREACHABLE`. So these are used only if nothing of the request was passed on, whatever its
//! method: what a GET does in the program of a user is not known here.

use std::time::Duration;

use tl_supervisor::http::message::ApiError;

use crate::proxy::directory::ReachError;
use crate::proxy::route::{Route, RouteError};

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> ApiError {
        match error {
            RouteError::Ambiguous(_) => ApiError::invalid(error.to_string()),
            RouteError::Missing | RouteError::Port(_) => ApiError::new(404, "SANDBOX_NOT_FOUND", error.to_string()),
        }
    }
}

impl From<ReachError> for ApiError {
    fn from(error: ReachError) -> ApiError {
        let (status, code) = match error {
            ReachError::Unknown(_) => (404, "SANDBOX_NOT_FOUND"),
            ReachError::NotReady(_) => (503, "SANDBOX_NOT_READY"),
            ReachError::Engine(..) => (503, "ENGINE_UNAVAILABLE"),
        };
        ApiError::new(status, code, error.to_string())
    }
}

/// 401.
pub(crate) fn unauthorized() -> ApiError {
    let message = "the API key is missing or wrong: send the header `Authorization: Bearer <key>`";
    ApiError::new(401, "UNAUTHORIZED", message).header("WWW-Authenticate", "Bearer")
}

/// 403: the sandbox exists, and the client may know that.
pub(crate) fn not_exposed(sandbox: &str, port: u16) -> ApiError {
    let message =
        format!("port {port} of the sandbox {sandbox:?} is not exposed: add it to `exposed_ports` of the sandbox");
    ApiError::new(403, "PORT_NOT_EXPOSED", message)
}

/// 503: the daemon accepts no connection.
pub(crate) fn daemon_unreachable(sandbox: &str, why: &dyn std::fmt::Display) -> ApiError {
    let message = format!("the daemon of the sandbox {sandbox:?} accepts no connection: {why}");
    ApiError::new(503, "SANDBOX_UNREACHABLE", message)
}

/// 503: the container has ended, and its address may belong to another one by now.
pub(crate) fn has_ended(sandbox: &str) -> ApiError {
    let message = format!("the container of the sandbox {sandbox:?} has ended");
    ApiError::new(503, "SANDBOX_UNREACHABLE", message)
}

/// 502: no program listens on the port.
pub(crate) fn port_refused(sandbox: &str, port: u16) -> ApiError {
    let message = format!("no program in the sandbox {sandbox:?} accepts connections on port {port}");
    ApiError::new(502, "CONNECTION_REFUSED", message)
}

/// The other side has accepted a connection and not given a response. 502 if nothing of the request was passed on, else
/// 500, because it may have been executed.
pub(crate) fn no_response(route: &Route, why: &str, was_passed_on: bool) -> ApiError {
    let who = recipient(route);
    if !was_passed_on {
        return ApiError::new(502, "BAD_RESPONSE", format!("{who} gave no valid response: {why}"));
    }
    let message = format!("{who} gave no valid response, and may have executed the request: {why}");
    ApiError::new(500, "BAD_RESPONSE", message)
}

/// The other side has not answered in time: 503 if nothing of the request was passed on, else 500.
pub(crate) fn no_response_in_time(route: &Route, limit: Duration, was_passed_on: bool) -> ApiError {
    let message = format!("{} has not answered within {limit:?}", recipient(route));
    if !was_passed_on {
        return ApiError::new(503, "SANDBOX_UNREACHABLE", message);
    }
    ApiError::new(500, "DAEMON_TIMEOUT", format!("{message}, and may have executed the request"))
}

fn recipient(route: &Route) -> String {
    match route.port {
        None => format!("the daemon of the sandbox {:?}", route.sandbox),
        Some(port) => format!("the program on port {port} of the sandbox {:?}", route.sandbox),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_passed_on_has_a_status_after_which_clients_repeat() {
        let route = Route { sandbox: "a".to_owned(), port: Some(80) };
        assert_eq!(no_response(&route, "x", false).status(), 502);
        assert_eq!(no_response(&route, "x", true).status(), 500);
        let limit = Duration::from_secs(30);
        assert_eq!(no_response_in_time(&route, limit, false).status(), 503);
        assert_eq!(no_response_in_time(&route, limit, true).status(), 500);
        let unknown = ApiError::from(ReachError::Unknown("a".to_owned()));
        assert_eq!((unknown.status(), unknown.code()), (404, "SANDBOX_NOT_FOUND"));
        let statuses = [ReachError::NotReady("a".to_owned()), ReachError::Engine("a".to_owned(), "x".to_owned())];
        assert!(statuses.into_iter().all(|error| ApiError::from(error).status() == 503));
    }
}
