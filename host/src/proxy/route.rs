//! Finds out which sandbox a request is for, and which of its ports. Pure.
//!
//! | label | goes to |
//! |---|---|
//! | `<id>`, `<name>` | the daemon of that sandbox |
//! | `<port>-<id>`, `<port>-<name>` | that port of that sandbox |
//!
//! Names begin with a letter, and ids contain no hyphen. So a label with digits before its first hyphen is a port and a
//! sandbox, and nothing else is: `8080-my-env` is port 8080 of `my-env`, and `my-8080-env` is a name.

use std::net::{IpAddr, Ipv6Addr};

/// The header that names the sandbox for a client that cannot choose `Host`. It has the form of the label.
pub(crate) const HEADER: &str = "X-Tensorlake-Sandbox-Id";

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Id or name of the sandbox, in lower case.
    pub(crate) sandbox: String,
    /// A port of the sandbox; None for its daemon.
    pub(crate) port: Option<u16>,
}

/// Why a request has no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    /// Neither header is there, or what is there has no label.
    #[error(
        "the request names no sandbox: its first label of `Host`, or the header `X-Tensorlake-Sandbox-Id`, must be the id or \
         the name of a sandbox, or PORT-ID or PORT-NAME"
    )]
    Missing,
    /// This header was sent twice: another server could take the other value.
    #[error("the header `{0}` must be sent once")]
    Ambiguous(&'static str),
    /// The number before the hyphen is not a port.
    #[error("{0:?} names no port of a sandbox: a port is a number from 1 to 65535 without leading zeros")]
    Port(String),
}

/// The route of a request with these values of `Host` and of [`HEADER`]. The latter decides if both are there.
pub(crate) fn route(hosts: &[&[u8]], labels: &[&[u8]]) -> Result<Route, RouteError> {
    let (host, label) = (only(hosts, "Host")?, only(labels, HEADER)?);
    if let Some(label) = label.map(<[u8]>::trim_ascii).filter(|label| !label.is_empty()) {
        return parse(label);
    }
    parse(host.and_then(first_label).ok_or(RouteError::Missing)?)
}

/// The value of a header that may be sent once.
fn only<'v>(values: &[&'v [u8]], name: &'static str) -> Result<Option<&'v [u8]>, RouteError> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(RouteError::Ambiguous(name)),
    }
}

/// The first label of a value of `Host`. None for an IP address, which has no labels.
fn first_label(host: &[u8]) -> Option<&[u8]> {
    let host = host.trim_ascii();
    let name = host.split(|byte| *byte == b':').next().unwrap_or_default();
    let text = std::str::from_utf8(host).ok()?;
    // `[::1]:80`, `::1` and `127.0.0.1:80`.
    if text.starts_with('[') || text.parse::<Ipv6Addr>().is_ok() {
        return None;
    }
    if std::str::from_utf8(name).is_ok_and(|name| name.parse::<IpAddr>().is_ok()) {
        return None;
    }
    name.split(|byte| *byte == b'.').next().filter(|label| !label.is_empty())
}

fn parse(label: &[u8]) -> Result<Route, RouteError> {
    // What is not text is not the name of a sandbox either; it is shown in the error.
    let label = String::from_utf8_lossy(label).to_ascii_lowercase();
    let digits = label.bytes().take_while(u8::is_ascii_digit).count();
    let Some((port, sandbox)) =
        label.split_at_checked(digits).and_then(|(port, rest)| Some((port, rest.strip_prefix('-')?)))
    else {
        return Ok(Route { sandbox: label, port: None });
    };
    if port.is_empty() {
        return Ok(Route { sandbox: label, port: None });
    }
    if sandbox.is_empty() {
        return Err(RouteError::Missing);
    }
    match port.parse::<u16>() {
        Ok(number @ 1..) if !port.starts_with('0') => Ok(Route { sandbox: sandbox.to_owned(), port: Some(number) }),
        _ => Err(RouteError::Port(label)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "80a1b2c3d4e5f6g7h8i9j";

    fn by_host(host: &str) -> Result<Route, RouteError> {
        route(&[host.as_bytes()], &[])
    }

    fn daemon(sandbox: &str) -> Result<Route, RouteError> {
        Ok(Route { sandbox: sandbox.to_owned(), port: None })
    }

    fn port(number: u16, sandbox: &str) -> Result<Route, RouteError> {
        Ok(Route { sandbox: sandbox.to_owned(), port: Some(number) })
    }

    #[test]
    fn the_first_label_names_the_sandbox() {
        for host in
            ["my-env", "my-env.local", "my-env.local:9443", "my-env:9443", "MY-Env.Local.", "my-env.", " my-env.a.b.c "]
        {
            assert_eq!(by_host(host), daemon("my-env"), "{host}");
        }
        assert_eq!(by_host(&format!("{ID}.local")), daemon(ID));
        assert_eq!(by_host("123456789012345678901.local"), daemon("123456789012345678901"));
    }

    #[test]
    fn digits_before_the_first_hyphen_are_a_port() {
        assert_eq!(by_host("8080-my-env.localhost:9443"), port(8080, "my-env"));
        assert_eq!(by_host("1-a"), port(1, "a"));
        assert_eq!(by_host("65535-a.b"), port(65535, "a"));
        assert_eq!(by_host("9501-a"), port(9501, "a"));
        assert_eq!(by_host(&format!("8080-{ID}")), port(8080, ID));
        // Names with digits and hyphens.
        for name in ["my-8080-env", "a8080-b", "a-1", "x1", "a--b"] {
            assert_eq!(by_host(name), daemon(name));
            assert_eq!(by_host(&format!("3000-{name}")), port(3000, name));
        }
        // A port within what follows is part of the name.
        assert_eq!(by_host("80-90-a"), port(80, "90-a"));
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for label in ["0-a", "080-a", "65536-a", "99999999999999999999-a"] {
            assert_eq!(by_host(label), Err(RouteError::Port(label.to_owned())), "{label}");
        }
        assert_eq!(by_host("80-"), Err(RouteError::Missing));
        // Not digits: these are the names of no sandbox, which the directory says.
        for label in ["-a", "-80-a", "8o-a", "+80-a"] {
            assert_eq!(by_host(label), daemon(label), "{label}");
        }
    }

    #[test]
    fn an_address_names_no_sandbox() {
        for host in [
            "",
            " ",
            ".",
            ":80",
            ".local",
            "127.0.0.1",
            "127.0.0.1:9443",
            "[::1]",
            "[::1]:9443",
            "::1",
            "[fe80::1%25eth0]:1",
            "[x",
        ] {
            assert_eq!(by_host(host), Err(RouteError::Missing), "{host}");
        }
        assert_eq!(route(&[], &[]), Err(RouteError::Missing));
        assert_eq!(route(&[b"\xff.local"], &[]), Err(RouteError::Missing));
        assert_eq!(route(&[b"a", b"b"], &[]), Err(RouteError::Ambiguous("Host")));
    }

    #[test]
    fn the_header_decides_if_it_is_there() {
        assert_eq!(route(&[b"127.0.0.1:9443"], &[b"my-env"]), daemon("my-env"));
        assert_eq!(route(&[b"other.local"], &[b" 8080-My-Env "]), port(8080, "my-env"));
        assert_eq!(route(&[b"a", b"b"], &[b"c"]), Err(RouteError::Ambiguous("Host")));
        assert_eq!(route(&[b"a"], &[b"c", b"c"]), Err(RouteError::Ambiguous(HEADER)));
        assert_eq!(route(&[b"a"], &[b" ", b"c"]), Err(RouteError::Ambiguous(HEADER)));
        assert_eq!(route(&[], &[b"c"]), daemon("c"));
        assert_eq!(route(&[b"a.local"], &[b" "]), daemon("a"));
        // It is an id or a name, not a host name.
        assert_eq!(route(&[], &[b"a.local"]), daemon("a.local"));
    }
}
