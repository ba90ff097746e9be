//! Responses with a JSON body.

use std::io;

use serde::Serialize;

use crate::http::connection::wait::SendDeadline;
use crate::http::json;
use crate::http::message::{ApiError, BURST, Response, ResponseStream};

const JSON: &str = "application/json";

/// `value` as JSON, held in memory as a whole.
pub(crate) fn whole(status: u16, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(status, body),
        // The values of this crate have nothing in them that JSON cannot express.
        Err(error) => ApiError::internal(format!("internal error: {error}")).to_response(),
    }
}

/// `value` as JSON. A long one is written in bursts, and never held as a whole.
pub(crate) fn of(status: u16, value: impl Serialize + 'static) -> Response {
    let length = match json::length(&value) {
        Ok(length) if length > BURST as u64 => length,
        _ => return whole(status, &value),
    };
    let write = move |stream: &mut ResponseStream<'_>| Ok(serde_json::to_writer(stream, &value)?);
    Response::stream(status, JSON, Some(length), write).deadline(None)
}

/// JSON of any length that `more` appends a burst at a time, until it returns true. A single burst is sent with its
/// length and in one write.
///
/// # Errors
/// The error of `more` for the first burst, before anything is sent.
pub(crate) fn in_bursts(
    deadline: Option<SendDeadline>,
    mut more: impl FnMut(&mut Vec<u8>) -> io::Result<bool> + 'static,
) -> io::Result<Response> {
    let mut first = Vec::new();
    if more(&mut first)? {
        return Ok(Response::json(200, first));
    }
    let write = move |stream: &mut ResponseStream<'_>| {
        stream.buffer().extend_from_slice(&first);
        drop(first);
        loop {
            stream.flush()?;
            if more(stream.buffer())? {
                return Ok(());
            }
        }
    };
    Ok(Response::stream(200, JSON, None, write).deadline(deadline))
}
