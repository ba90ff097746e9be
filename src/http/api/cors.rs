//! Cross-origin requests of web pages, as the Fetch standard defines them (docs/api.md, Web pages).

use std::fmt;
use std::str::FromStr;

use crate::error::SpecError;
use crate::http::api::{Api, metrics};
use crate::http::message::{ApiError, Request, Response};

/// Methods of the API. A page may send HEAD without asking.
const METHODS: &str = "GET, POST, PUT, DELETE";

/// Request headers that a page may send. `*` stands for all but `Authorization`; browsers that do not know it need the
/// names.
const REQUEST_HEADERS: &str =
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Range, X-PTY-Token, *";

/// Response headers that a page may read, beside those that it always may.
const RESPONSE_HEADERS: &str =
    "Accept-Ranges, Allow, Content-Range, Idempotent-Replayed, Retry-After, WWW-Authenticate";

/// Seconds for which a browser may remember the answer to a preflight.
const MAX_AGE: &str = "7200";

/// An origin of web pages, exactly as a browser sends it: `https://app.example.com` or `http://localhost:3000`.
///
/// ```
/// use tl_supervisor::http::Origin;
///
/// assert!("http://localhost:3000".parse::<Origin>().is_ok());
/// for wrong in ["*", "null", "localhost:3000", "https://a.example/", "https://A.example", "https://a.example:443"] {
///     assert!(wrong.parse::<Origin>().is_err());
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Origin {
    type Err = SpecError;

    /// Parses an origin.
    ///
    /// # Errors
    /// A sentence that says what is expected. `*` is not an origin, because it would let every page use the API; neither
    /// is `null`, which is the origin of every file and of every sandboxed frame.
    fn from_str(text: &str) -> Result<Origin, SpecError> {
        if is_origin(text.as_bytes()) {
            return Ok(Origin(text.to_owned()));
        }
        let rule = "must be SCHEME://HOST or SCHEME://HOST:PORT as a browser sends it: in lower case, without a path \
                    and without the default port of the scheme; `*` and `null` are not allowed";
        Err(SpecError::new("origin", rule))
    }
}

/// Whether the text is an origin in the form in which browsers send it.
fn is_origin(text: &[u8]) -> bool {
    let has_only = |part: &[u8], others: &[u8]| {
        part.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || others.contains(byte))
    };
    let Some(at) = text.iter().position(|byte| *byte == b':') else { return false };
    let (scheme, rest) = text.split_at(at);
    let Some(rest) = rest.strip_prefix(b"://") else { return false };
    let is_valid_scheme = scheme.first().is_some_and(u8::is_ascii_lowercase) && has_only(scheme, b"+-.");
    // The colons of an IPv6 address are inside of brackets.
    let end = match rest.iter().rposition(|byte| *byte == b']') {
        Some(bracket) => bracket + 1,
        None => rest.iter().position(|byte| *byte == b':').unwrap_or(rest.len()),
    };
    let (host, port) = rest.split_at(end);
    let is_valid_host = match host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")) {
        Some(address) => address.contains(&b':') && address.iter().all(|byte| b"0123456789abcdef:".contains(byte)),
        None => !host.is_empty() && has_only(host, b"-._"),
    };
    is_valid_scheme && is_valid_host && (port.is_empty() || is_port(scheme, port))
}

/// Whether the text is `:` and a port that is not the default one of the scheme.
fn is_port(scheme: &[u8], text: &[u8]) -> bool {
    let digits = text.strip_prefix(b":").unwrap_or_default();
    let is_number = matches!(digits.len(), 1..=5) && digits.iter().all(u8::is_ascii_digit) && !digits.starts_with(b"0");
    let number = digits.iter().take(5).fold(0_u32, |number, digit| number * 10 + u32::from(*digit & 15));
    let is_default = matches!((scheme, digits), (b"http", b"80") | (b"https", b"443"));
    is_number && number <= u32::from(u16::MAX) && !is_default
}

/// Whether a browser says that a web page of another site, and not of one of `origins`, makes this request: by
/// `Sec-Fetch-Site` (Fetch Metadata Request Headers). Chromium does not send that header with a WebSocket, but each
/// browser sends `Origin` with one (RFC 6455, section 10.2). A page can change neither.
pub(crate) fn is_from_other_site(request: &Request<'_>, origins: &[Origin]) -> bool {
    let is_other = match request.header("Sec-Fetch-Site") {
        Some(site) => !matches!(&*site, "same-origin" | "none"),
        None => request.upgrades_to("websocket") && !is_origin_of_host(request),
    };
    is_other && listed(request, origins).is_none()
}

/// Whether the request has no `Origin`, or one whose host and port are those of its `Host`.
fn is_origin_of_host(request: &Request<'_>) -> bool {
    let Some(origin) = request.header("Origin") else { return true };
    let host = request.header("Host").unwrap_or_default();
    origin.split_once("://").is_some_and(|(_, of_origin)| of_origin.eq_ignore_ascii_case(&host))
}

/// The origin in the request, if it is one of `origins`.
fn listed<'o>(request: &Request<'_>, origins: &'o [Origin]) -> Option<&'o Origin> {
    let sent = request.header("Origin");
    origins.iter().find(|origin| sent.as_deref() == Some(&origin.0))
}

/// Answers a request of an API that pages of some origins may use: a preflight itself, any other request by `answer`.
// Out of line and small: without `--cors-origin` it is never called.
#[cold]
#[inline(never)]
pub(crate) fn handle(
    api: &Api,
    request: &mut Request<'_>,
    answer: fn(&Api, &mut Request<'_>) -> Result<Response, ApiError>,
) -> Result<Response, ApiError> {
    let origin = listed(request, &api.cors_origins);
    let is_preflight = request.method() == "OPTIONS" && request.header("Access-Control-Request-Method").is_some();
    let (known, origin) = origin.map_or((false, ""), |origin| (true, &origin.0));
    if known && is_preflight {
        metrics::observe(request, None);
        return Ok(preflight(origin));
    }
    let mut result = answer(api, request).and_then(|response| {
        // The server would find that out too, but its error would not have these headers.
        if response.body.is_long() { request.require_own_thread().map(|()| response) } else { Ok(response) }
    });
    let headers = [
        // A cache must not give the response for one origin to a page of another.
        ("Vary", "Origin"),
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", RESPONSE_HEADERS),
    ];
    for (name, value) in headers.into_iter().take(if known { headers.len() } else { 1 }) {
        match &mut result {
            Ok(response) => response.head.add(name.into(), value.into()),
            // Without the headers, a page could not tell an error from a broken connection.
            Err(error) => error.add_header(name, value),
        }
    }
    result
}

/// Says that a page of this origin may use every method and header. A preflight has no token: browsers do not send one.
fn preflight(origin: &str) -> Response {
    let headers = [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Allow-Headers", REQUEST_HEADERS),
        ("Access-Control-Max-Age", MAX_AGE),
        ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ];
    let mut response = Response::empty(204);
    for (name, value) in headers {
        response.head.add(name.into(), value.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_send() {
        for text in [
            "http://localhost",
            "http://localhost:3000",
            "https://app.example.com",
            "https://app.example.com:8443",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "https://[2001:db8::1]",
            "http://example.com:443",
            "https://xn--bcher-kva.example",
            "chrome-extension://abcdefghijklmnop",
            "vscode-webview://0a1b",
        ] {
            assert_eq!(text.parse::<Origin>().map(|origin| origin.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "*",
            "null",
            "localhost",
            "localhost:3000",
            "//localhost",
            "://localhost",
            "http://",
            "http://:80",
            "http:///",
            "http://localhost/",
            "http://localhost/path",
            "http://localhost?x",
            "http://user@localhost",
            "http://*.example.com",
            "HTTP://localhost",
            "http://Localhost",
            "1http://localhost",
            "http://localhost:80",
            "https://localhost:443",
            "http://localhost:",
            "http://localhost:0",
            "http://localhost:+1",
            "http://localhost:08080",
            "http://localhost:65536",
            "http://localhost:99999999999",
            "http://[::1",
            "http://::1]",
            "http://a]:80",
            "http://[::1]x",
            "http://[::1]:",
            "http://a:1:2",
            "http:a",
            "http://::1",
            "http://[::G]",
            "http://[2001:DB8::1]",
            "http://localhost http://other",
            "http://localhost\r\nX: y",
            "http://bücher.example",
        ] {
            let error = text.parse::<Origin>().unwrap_err();
            assert_eq!(error.field, "origin", "{text:?}");
        }
    }
}
