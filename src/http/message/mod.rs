//! Requests and responses.
//!
//! A [`Handler`](crate::http::server::Handler) gets a [`Request`] and returns a [`Response`] or an [`ApiError`]. A
//! response is bytes, or a [stream](Response::stream) that is written piece by piece, or an
//! [upgrade](Response::upgrade) to another protocol, which gets the [`Socket`].

mod body;
mod chunked;
pub(crate) mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
pub(crate) mod range;
pub(crate) mod request;
pub(crate) mod request_head;
pub(crate) mod response;
mod response_head;
mod stream;

pub use crate::http::connection::socket::Socket;
pub use chunked::Decoder as ChunkedDecoder;
pub use error::ApiError;
pub use request::{BodyBytes, Request};
pub use response::Response;
pub use stream::ResponseStream;

pub(crate) use body::Body;
pub(crate) use request::ExchangeObserver;
pub(crate) use response_head::{Framing, check_server_name};
pub(crate) use stream::{BURST, UnreadBody};
