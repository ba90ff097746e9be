//! The control plane: the HTTP endpoints of sandboxes and snapshots, and the description of the API.
//!
//! | file | what |
//! |---|---|
//! | `routes`, `dispatch` | the table of endpoints; the check of the key and the call of an endpoint's function |
//! | `create` | bodies of requests, parsed and checked (pure) |
//! | `answers`, `errors` | bodies of answers; statuses and codes |
//! | `sandboxes`, `snapshots`, `logs`, `keys`, `metrics`, `openapi` | a file for each group of endpoints |
//! | `daemon` | a client of the tl-init of a sandbox |

mod answers;
mod create;
mod daemon;
mod dispatch;
mod errors;
mod keys;
mod logs;
mod metrics;
mod openapi;
mod routes;
mod sandboxes;
mod snapshots;

pub(crate) use create::DEFAULT_RESOURCES;
pub(crate) use logs::Turns;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tl_supervisor::http::Auth;
use tl_supervisor::http::message::Request;
use tl_supervisor::metrics::Page;

use crate::api::answers::{Info, Urls};
use crate::sandbox::Sandboxes;
use crate::sandbox::model::Record;

/// Writes metrics of another module to a page.
pub(crate) type WriteMetrics = Box<dyn Fn(&mut Page) + Send + Sync>;

/// The API, as a [`Handler`](tl_supervisor::http::server::Handler).
pub(crate) struct Api {
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) auth: Auth,
    /// The image of a sandbox whose request names none.
    pub(crate) default_image: String,
    /// Where the proxy listens.
    pub(crate) proxy: SocketAddr,
    /// The metrics of the proxy.
    pub(crate) proxy_metrics: WriteMetrics,
    pub(crate) log_turns: Turns,
    /// Called after `POST /stop` has ended all sandboxes.
    pub(crate) stopped: Box<dyn Fn() + Send + Sync>,
}

impl Api {
    /// Where a client reaches a sandbox.
    fn urls(&self, request: &Request<'_>) -> Urls {
        urls(self.proxy, request.header("Host").as_deref())
    }

    /// What answers show of a sandbox.
    fn info<'r>(&self, record: &'r Record, urls: &'r Urls) -> Info<'r> {
        Info::new(record, urls, self.sandboxes.engine_info().disk_mb.unwrap_or(0))
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

/// The address of the proxy. If that is every address of this machine, it is the one by which the client has reached the
/// API. Clients prepend a label to the name in `ingress`, which is not possible with an address: on this machine it is
/// `localhost`, all of whose subdomains are loopback.
fn urls(proxy: SocketAddr, host: Option<&str>) -> Urls {
    let port = proxy.port();
    let host = host.map(without_port).filter(|host| is_host(host));
    let name = match host {
        Some(host) if proxy.ip().is_unspecified() => host.to_owned(),
        None if proxy.ip().is_unspecified() => "127.0.0.1".to_owned(),
        _ if proxy.is_ipv6() => format!("[{}]", proxy.ip()),
        _ => proxy.ip().to_string(),
    };
    let is_local = name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    let ingress = if is_local { "localhost" } else { &name };
    Urls { sandbox: format!("http://{name}:{port}"), ingress: format!("http://{ingress}:{port}") }
}

/// The host of a `Host` header.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether it has only characters of a host name or of an IP address.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_lead_to_the_proxy() {
        for (proxy, host, sandbox, ingress) in [
            ("127.0.0.1:9443", Some("localhost:8900"), "http://127.0.0.1:9443", "http://localhost:9443"),
            ("0.0.0.0:9443", Some("10.0.0.7:8900"), "http://10.0.0.7:9443", "http://10.0.0.7:9443"),
            ("0.0.0.0:9443", Some("box.example:8900"), "http://box.example:9443", "http://box.example:9443"),
            ("0.0.0.0:9443", Some("a b"), "http://127.0.0.1:9443", "http://localhost:9443"),
            ("0.0.0.0:9443", None, "http://127.0.0.1:9443", "http://localhost:9443"),
            ("[::]:9443", Some("[::1]:8900"), "http://[::1]:9443", "http://[::1]:9443"),
            ("[::1]:9443", None, "http://[::1]:9443", "http://[::1]:9443"),
        ] {
            let right = Urls { sandbox: sandbox.to_owned(), ingress: ingress.to_owned() };
            assert_eq!(urls(proxy.parse().unwrap(), host), right, "{proxy} {host:?}");
        }
    }

    #[test]
    fn a_host_is_taken_from_the_header_without_its_port() {
        for (header, host) in
            [("localhost:8900", "localhost"), ("10.0.0.1", "10.0.0.1"), ("[::1]:8900", "[::1]"), ("[::1]", "[::1]")]
        {
            assert_eq!(without_port(header), host);
            assert!(is_host(host));
        }
        assert!(!is_host("") && !is_host("a b") && !is_host("a/b") && !is_host("a@b"));
    }
}
