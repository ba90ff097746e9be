//! [`Port`]: a listening TCP socket of the sandbox; [`PortQuery`]: what a client waits for at a port.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::{Pid, UnitId, is_request_path};
use crate::error::SpecError;

/// An address and a port at which a process listens for TCP connections. Several sockets with the same address and port
/// (`SO_REUSEPORT`) are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Port {
    /// The port.
    pub port: u16,
    /// The address that the socket is bound to; `0.0.0.0` and `::` stand for all addresses. A socket at `::` usually
    /// accepts connections over IPv4 too.
    pub address: IpAddr,
    /// The process that has the socket open. If several have, the oldest one of a process of the supervisor, or else the
    /// oldest one. None if it cannot be found.
    pub pid: Option<Pid>,
    /// The process of the supervisor whose tree `pid` belongs to. None if it belongs to none.
    pub handle: Option<UnitId>,
    /// The name of that process, if it is managed and has one.
    pub name: Option<Arc<str>>,
    /// The name of the program that `pid` executes, as the kernel keeps it: at most 15 bytes (proc_pid_comm(5)).
    pub command: Option<Arc<str>>,
}

/// What to wait for at a port: that a process listens there, and more if it is asked for.
///
/// ```
/// use tl_supervisor::PortQuery;
///
/// let query = PortQuery::new(8080)?.answering_http("/health")?;
/// assert!(PortQuery::new(0).is_err());
/// assert!(query.answering_http("no slash").is_err());
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortQuery {
    port: u16,
    unit: Option<UnitId>,
    http_path: Option<String>,
}

impl PortQuery {
    /// Any process listens on `port`.
    ///
    /// # Errors
    /// If the port is 0.
    pub fn new(port: u16) -> Result<PortQuery, SpecError> {
        if port == 0 {
            return Err(SpecError::new("port", "must be a number from 1 to 65535, not 0"));
        }
        Ok(PortQuery { port, unit: None, http_path: None })
    }

    /// The process that listens belongs to the tree of this process of the supervisor.
    #[must_use]
    pub fn in_tree_of(self, unit: UnitId) -> PortQuery {
        PortQuery { unit: Some(unit), ..self }
    }

    /// It answers a `GET` request for `path` with a response of HTTP/1, whatever its status.
    ///
    /// # Errors
    /// If the path does not begin with `/`, or has a character that a request cannot have: all but the visible ones of
    /// ASCII.
    pub fn answering_http(self, path: impl Into<String>) -> Result<PortQuery, SpecError> {
        let path = path.into();
        if !is_request_path(&path) {
            let problem = "must begin with `/` and have visible ASCII characters only; encode all others as %XX";
            return Err(SpecError::new("http_path", problem));
        }
        Ok(PortQuery { http_path: Some(path), ..self })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process whose tree must listen, if any need not do.
    #[must_use]
    pub fn unit(&self) -> Option<UnitId> {
        self.unit
    }

    /// The path that must be answered, if any.
    #[must_use]
    pub fn http_path(&self) -> Option<&str> {
        self.http_path.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "http")]
    #[test]
    fn a_port_is_serialized_with_all_fields() {
        let port = Port {
            port: 80,
            address: "::".parse().unwrap(),
            pid: Some(7),
            handle: Some(UnitId(3)),
            name: None,
            command: Some(Arc::from("node")),
        };
        let right = r#"{"port":80,"address":"::","pid":7,"handle":3,"name":null,"command":"node"}"#;
        assert_eq!(serde_json::to_string(&port).unwrap(), right);
    }

    #[test]
    fn paths_that_cannot_be_sent_in_a_request_are_rejected() {
        let query = || PortQuery::new(1).unwrap();
        assert_eq!(query().answering_http("/a?b=%20").unwrap().http_path(), Some("/a?b=%20"));
        for path in ["", "a", "http://x/", "/a b", "/\r\nHost: x", "/\u{7f}", "/ä", "/\0"] {
            assert_eq!(query().answering_http(path).unwrap_err().field, "http_path", "{path:?}");
        }
    }
}
