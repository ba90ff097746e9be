//! Prints the head of the request that is sent to the sandbox. Pure.
//!
//! | header of the client | is |
//! |---|---|
//! | those of one connection only (RFC 9110, section 7.6.1), and `Expect` | left out; `Upgrade` is sent anew if it is asked for |
//! | `Host` | passed on as it is, so that redirects, cookies and the comparison of `Origin` with `Host` are right in a browser |
//! | `Authorization` with the API key | replaced by the sandbox's own token towards its daemon, else left out |
//! | any header that contains the API key | left out |
//! | `X-Tensorlake-Sandbox-Id` | left out: it was for the proxy |
//! | `X-Forwarded-For` | extended by the client's address |
//! | `X-Forwarded-Host`, `X-Forwarded-Proto` | passed on if a proxy before this one has set them, else set |

use std::net::IpAddr;

use crate::proxy::route;

/// Headers that are about one connection, or that this proxy sets itself.
const NOT_PASSED_ON: [&str; 16] = [
    "Connection",
    "Content-Length",
    "Expect",
    "Host",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    route::HEADER,
];

/// How the body of the request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// There is none, and no header says so.
    None,
    /// `Content-Length`.
    Length(u64),
    Chunked,
}

/// Who gets the request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recipient<'r> {
    /// The daemon of the sandbox, which has this token.
    Daemon { token: &'r str },
    /// A program in the sandbox that listens on an exposed port.
    Program,
}

/// What the head is printed from.
#[derive(Debug)]
pub(crate) struct RequestHead<'r> {
    pub(crate) method: &'r str,
    pub(crate) target: &'r str,
    pub(crate) headers: &'r [(&'r str, &'r [u8])],
    pub(crate) body: BodyFraming,
    pub(crate) client: Option<IpAddr>,
    pub(crate) recipient: Recipient<'r>,
    /// The API key: no header that contains it is passed on.
    pub(crate) key: &'r [u8],
    /// The protocols that the client asks to change to, if it does.
    pub(crate) upgrade: Option<&'r [u8]>,
    /// Whether the connection may be used for another request.
    pub(crate) keeps_open: bool,
}

impl RequestHead<'_> {
    /// The bytes of the head.
    pub(crate) fn print(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(1024);
        for part in [self.method, " ", self.target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        let host = self.first("Host").unwrap_or_default();
        line(&mut head, "Host", host);
        for (name, value) in self.headers.iter().filter(|(name, value)| self.is_passed_on(name, value)) {
            line(&mut head, name, value);
        }
        if let Recipient::Daemon { token } = self.recipient {
            line(&mut head, "Authorization", format!("Bearer {token}").as_bytes());
        }
        self.print_forwarded(&mut head, host);
        match self.body {
            BodyFraming::None => {}
            BodyFraming::Length(length) => line(&mut head, "Content-Length", length.to_string().as_bytes()),
            BodyFraming::Chunked => line(&mut head, "Transfer-Encoding", b"chunked"),
        }
        if let Some(protocols) = self.upgrade {
            line(&mut head, "Upgrade", protocols);
        }
        match (self.upgrade.is_some(), self.keeps_open) {
            (true, _) => line(&mut head, "Connection", b"Upgrade"),
            (false, true) => {}
            (false, false) => line(&mut head, "Connection", b"close"),
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    fn print_forwarded(&self, head: &mut Vec<u8>, host: &[u8]) {
        let mut chain = self.all("X-Forwarded-For").collect::<Vec<_>>().join(&b", "[..]);
        if let Some(client) = self.client {
            if !chain.is_empty() {
                chain.extend_from_slice(b", ");
            }
            chain.extend_from_slice(client.to_canonical().to_string().as_bytes());
        }
        for (name, value) in [
            ("X-Forwarded-For", &*chain),
            ("X-Forwarded-Host", self.first("X-Forwarded-Host").unwrap_or(host)),
            ("X-Forwarded-Proto", self.first("X-Forwarded-Proto").unwrap_or(b"http")),
        ] {
            if !value.is_empty() && !self.has_key(value) {
                line(head, name, value);
            }
        }
    }

    fn is_passed_on(&self, name: &str, value: &[u8]) -> bool {
        if NOT_PASSED_ON.iter().any(|other| other.eq_ignore_ascii_case(name)) || self.is_of_connection(name) {
            return false;
        }
        let is_replaced =
            matches!(self.recipient, Recipient::Daemon { .. }) && name.eq_ignore_ascii_case("Authorization");
        !is_replaced && !self.has_key(value)
    }

    /// Whether `Connection` lists the header: then it is for this connection only.
    fn is_of_connection(&self, name: &str) -> bool {
        is_listed(self.all("Connection"), name)
    }

    fn has_key(&self, value: &[u8]) -> bool {
        !self.key.is_empty() && value.windows(self.key.len()).any(|part| part == self.key)
    }

    fn first<'h>(&'h self, name: &'h str) -> Option<&'h [u8]> {
        self.all(name).next()
    }

    fn all<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
        self.headers.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// Whether one of these comma-separated lists has this element.
pub(crate) fn is_listed<'v>(values: impl IntoIterator<Item = &'v [u8]>, element: &str) -> bool {
    let elements = values.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
    elements.into_iter().any(|listed| listed.trim_ascii().eq_ignore_ascii_case(element.as_bytes()))
}

fn line(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"tl_key";

    fn printed(headers: &[(&str, &str)], change: impl FnOnce(&mut RequestHead<'_>)) -> Vec<String> {
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let mut head = RequestHead {
            method: "GET",
            target: "/",
            headers: &headers,
            body: BodyFraming::None,
            client: Some([10, 0, 0, 1].into()),
            recipient: Recipient::Program,
            key: KEY,
            upgrade: None,
            keeps_open: true,
        };
        change(&mut head);
        let text = String::from_utf8(head.print()).unwrap();
        let lines = text.strip_suffix("\r\n\r\n").expect("it ends with an empty line");
        lines.split("\r\n").map(str::to_owned).collect()
    }

    /// The lines other than those that every head has.
    fn others(headers: &[(&str, &str)], change: impl FnOnce(&mut RequestHead<'_>)) -> Vec<String> {
        let always =
            |line: &String| line == "GET / HTTP/1.1" || line.starts_with("Host: ") || line.starts_with("X-Forwarded-");
        printed(headers, change).into_iter().filter(|line| !always(line)).collect()
    }

    #[test]
    fn end_to_end_headers_are_passed_on_in_their_order() {
        let headers = [("Host", "8080-a.local:1"), ("accept", "*/*"), ("X-A", "1"), ("x-a", "2"), ("Cookie", "a=b; c")];
        let lines = printed(&headers, |head| (head.method, head.target) = ("PURGE", "/a%2F?b=+&"));
        let right = [
            "PURGE /a%2F?b=+& HTTP/1.1",
            "Host: 8080-a.local:1",
            "accept: */*",
            "X-A: 1",
            "x-a: 2",
            "Cookie: a=b; c",
            "X-Forwarded-For: 10.0.0.1",
            "X-Forwarded-Host: 8080-a.local:1",
            "X-Forwarded-Proto: http",
        ];
        assert_eq!(lines, right);
    }

    #[test]
    fn headers_of_the_connection_are_left_out() {
        let headers = [
            ("Connection", "keep-alive, X-Only-Here"),
            ("connection", "x-nor-this"),
            ("X-Only-Here", "1"),
            ("X-Nor-This", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Trailer", "X"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "5"),
            ("Proxy-Connection", "close"),
            ("Proxy-Authorization", "Basic x"),
            ("Expect", "100-continue"),
            ("Upgrade", "h2c"),
            ("X-Tensorlake-Sandbox-Id", "a"),
            ("X-Kept", "1"),
        ];
        assert_eq!(others(&headers, |_| {}), ["X-Kept: 1"]);
    }

    #[test]
    fn the_key_reaches_neither_the_daemon_nor_a_program() {
        let headers =
            [("Authorization", "Bearer tl_key"), ("X-Api-Key", "tl_key"), ("Cookie", "k=tl_key; a=b"), ("X", "1")];
        assert_eq!(others(&headers, |_| {}), ["X: 1"]);
        let daemon = |head: &mut RequestHead<'_>| head.recipient = Recipient::Daemon { token: "secret" };
        assert_eq!(others(&headers, daemon), ["X: 1", "Authorization: Bearer secret"]);
        let forwarded = printed(&[("X-Forwarded-For", "tl_key"), ("X-Forwarded-Host", "tl_key")], |_| {});
        assert!(!forwarded.join("\n").contains("tl_key"));
        // A client cannot have the token left out, nor add one beside it.
        let daemon = |head: &mut RequestHead<'_>| head.recipient = Recipient::Daemon { token: "secret" };
        let headers = [("Connection", "Authorization, Host"), ("authorization", "Bearer other")];
        assert_eq!(others(&headers, daemon), ["Authorization: Bearer secret"]);
    }

    #[test]
    fn a_program_gets_the_credentials_that_are_its_own() {
        assert_eq!(others(&[("Authorization", "Basic dTpw")], |_| {}), ["Authorization: Basic dTpw"]);
        assert_eq!(others(&[("Authorization", "Bearer x")], |head| head.key = b""), ["Authorization: Bearer x"]);
    }

    #[test]
    fn the_body_is_framed_anew() {
        assert_eq!(others(&[], |head| head.body = BodyFraming::Length(0)), ["Content-Length: 0"]);
        assert_eq!(others(&[], |head| head.body = BodyFraming::Chunked), ["Transfer-Encoding: chunked"]);
    }

    #[test]
    fn the_connection_is_upgraded_or_closed_if_asked() {
        let upgrade = |head: &mut RequestHead<'_>| (head.upgrade, head.keeps_open) = (Some(&b"websocket"[..]), false);
        assert_eq!(others(&[], upgrade), ["Upgrade: websocket", "Connection: Upgrade"]);
        assert_eq!(others(&[], |head| head.keeps_open = false), ["Connection: close"]);
    }

    #[test]
    fn proxies_before_this_one_are_kept() {
        let headers = [
            ("Host", "a.local"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "a.example"),
        ];
        let right = [
            "GET / HTTP/1.1",
            "Host: a.local",
            "X-Forwarded-For: 192.0.2.1, 192.0.2.2, 10.0.0.1",
            "X-Forwarded-Host: a.example",
            "X-Forwarded-Proto: https",
        ];
        assert_eq!(printed(&headers, |_| {}), right);
    }
}
