//! Where the engine listens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineUrl {
    /// `unix:///run/podman/podman.sock`
    Unix(PathBuf),
    /// `tcp://HOST:PORT`
    Tcp(String),
}

/// A URL that is not one of an engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the URL of an engine: it must be unix:///PATH or tcp://HOST:PORT")]
pub(crate) struct InvalidEngineUrl(String);

const PODMAN: &str = "/run/podman/podman.sock";
const DOCKER: &str = "/var/run/docker.sock";

impl Default for EngineUrl {
    /// Podman's socket where it exists, else Docker's.
    fn default() -> EngineUrl {
        let path = if Path::new(PODMAN).exists() { PODMAN } else { DOCKER };
        EngineUrl::Unix(PathBuf::from(path))
    }
}

impl EngineUrl {
    /// Where Podman's service of root listens.
    pub(crate) fn podman() -> EngineUrl {
        EngineUrl::Unix(PathBuf::from(PODMAN))
    }
}

impl FromStr for EngineUrl {
    type Err = InvalidEngineUrl;

    fn from_str(text: &str) -> Result<EngineUrl, InvalidEngineUrl> {
        let url = match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') && !path.contains('\0') => EngineUrl::Unix(path.into()),
            Some(("tcp", address)) if is_host_and_port(address) => EngineUrl::Tcp(address.to_owned()),
            _ => return Err(InvalidEngineUrl(text.to_owned())),
        };
        Ok(url)
    }
}

/// Whether it is a name, an IPv4 address or an IPv6 address in brackets, with a port.
fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ipv6) => ipv6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(host),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineUrl::Unix(path) => write!(formatter, "unix://{}", path.display()),
            EngineUrl::Tcp(address) => write!(formatter, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_url_is_a_socket_or_a_host_with_a_port() {
        for text in ["unix:///run/podman/podman.sock", "tcp://localhost:2375", "tcp://10.0.0.1:1", "tcp://[::1]:2375"] {
            assert_eq!(text.parse::<EngineUrl>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "/run/podman/podman.sock",
            "unix://",
            "unix://run/podman.sock",
            "tcp://localhost",
            "tcp://:2375",
            "tcp://localhost:0",
            "tcp://localhost:65536",
            "tcp://a b:1",
            "tcp://user@host:1",
            "tcp://::1:2375",
            "tcp://host:1/path",
            "http://localhost:2375",
            "npipe:////./pipe/docker_engine",
        ] {
            let error = text.parse::<EngineUrl>().expect_err(text).to_string();
            assert!(error.contains(text) && error.contains("unix:///PATH or tcp://HOST:PORT"), "{error}");
        }
    }
}
