//! The opening handshake of a WebSocket.

use data_encoding::BASE64;
use sha1::{Digest, Sha1};

use crate::http::message::{ApiError, Request, Response, Socket};

/// What a server appends to the client's key before it hashes it (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The opening handshake of a WebSocket, after the client's request was checked.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use tl_supervisor::http::message::Request;
/// use tl_supervisor::http::server::{Options, Server};
/// use tl_supervisor::http::ws::Handshake;
///
/// let handler = |request: &mut Request<'_>| {
///     let handshake = Handshake::new(request)?;
///     request.begin_long()?;
///     Ok(handshake.accept(|socket| {
///         // One text frame. A WebSocket library can speak through the socket instead.
///         let _ = socket.write(b"\x81\x05hello");
///     }))
/// };
/// let server = Server::bind("127.0.0.1:0".parse()?, handler, Options::new())?;
///
/// let mut client = TcpStream::connect(server.local_addr())?;
/// client.write_all(
///     b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
///       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
/// )?;
/// let mut received = Vec::new();
/// client.read_to_end(&mut received)?;
/// assert!(received.starts_with(b"HTTP/1.1 101 ") && received.ends_with(b"\r\n\r\n\x81\x05hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Handshake {
    /// The value of `Sec-WebSocket-Accept`.
    accept: String,
}

impl Handshake {
    /// Checks that the request is the opening of a WebSocket.
    ///
    /// # Errors
    /// 426 if the request does not ask for a WebSocket, 400 if it does so in a wrong way.
    pub fn new(request: &Request<'_>) -> Result<Handshake, ApiError> {
        if !request.upgrades_to("websocket") {
            return Err(ApiError::upgrade_required());
        }
        if request.header("Sec-WebSocket-Version").is_none_or(|version| version.trim() != "13") {
            return Err(ApiError::invalid("`Sec-WebSocket-Version` must be 13"));
        }
        if !request.is_body_done() {
            return Err(ApiError::invalid("the request that opens a WebSocket must not have a body"));
        }
        let key = request.header("Sec-WebSocket-Key").unwrap_or_default();
        match BASE64.decode(key.trim().as_bytes()) {
            Ok(bytes) if bytes.len() == 16 => Ok(Handshake { accept: accept_value(key.trim()) }),
            _ => Err(ApiError::invalid("`Sec-WebSocket-Key` must be 16 bytes in base64")),
        }
    }

    /// The response that opens the WebSocket. `serve` then speaks through the socket, and the connection ends when it
    /// returns.
    pub fn accept(self, serve: impl FnOnce(&mut Socket) + 'static) -> Response {
        Response::upgrade("websocket", serve).header("Sec-WebSocket-Accept", self.accept)
    }
}

fn accept_value(key: &str) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(accept_value("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
