//! Requests that are rejected for lack of the token, or because a web page of another site sent them: counts them for
//! the log, with the address of the client.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::http::message::Request;
use crate::rate_limit::RateLimit;

/// Why a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// It has no header `Authorization`.
    NoToken,
    /// It has another token.
    WrongToken,
    /// It is to attach to a terminal session, and has another token than that session.
    WrongSessionToken,
    /// Without a token, it is from a web page of another site.
    OtherSite,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rejection::NoToken => "it has no token",
            Rejection::WrongToken => "its token is wrong",
            Rejection::WrongSessionToken => "its token is not that of the terminal session",
            Rejection::OtherSite => "it is from a web page of another site",
        })
    }
}

/// The log of rejected requests. The lines of each address are limited, because any client can cause them.
#[derive(Debug)]
pub(crate) struct Rejections {
    limit: Mutex<RateLimit<IpAddr>>,
    created: Instant,
}

impl Rejections {
    pub(crate) fn new() -> Rejections {
        Rejections { limit: Mutex::default(), created: Instant::now() }
    }

    /// Logs that a request was rejected. First logs how many were left out of the log before, if that is due: nothing
    /// else wakes up for it.
    // Out of line, because it is rare.
    #[cold]
    pub(crate) fn log(&self, request: &Request<'_>, rejection: Rejection) {
        let peer = request.peer_addr();
        let (source, now) = (peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip()), self.created.elapsed());
        let (is_admitted, left_out) = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            (limit.admits(&source, now), limit.take_due(now))
        };
        for (source, count) in left_out {
            let from = source.map_or_else(|| "many addresses".to_owned(), |source| source.to_string());
            log::warn!(event = "http.rejections_left_out", count = count, address = from.as_str(); "{count} more requests from {from} were rejected");
        }
        if is_admitted {
            let from = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
            // Nothing of what the client has sent.
            log::warn!(event = "http.rejected", address = from.as_str(); "a request from {from} was rejected: {rejection}");
        }
    }
}
