//! `Idempotency-Key` and `Idempotent-Replayed`: requests that a client may repeat without starting anything twice
//! (docs/api.md, Idempotency).

use sha1::{Digest, Sha1};

use crate::http::message::{ApiError, Request, Response};
use crate::model::{Operation, RequestKey};

/// The request header with the key that the client has chosen.
const KEY: &str = "Idempotency-Key";

/// The longest key, in bytes.
const LONGEST: usize = 255;

/// The key of a request with this body; None without the header.
///
/// Bodies are compared by their SHA-1. Two different bodies with the same digest can be constructed, but only by the
/// client that sends both with the same key, which gains nothing by it.
///
/// # Errors
/// 400 if the header was sent more than once, or its value is not a valid key.
pub(crate) fn key_of(request: &Request<'_>, operation: Operation, body: &[u8]) -> Result<Option<RequestKey>, ApiError> {
    let mut values = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case(KEY)).map(|(_, value)| value);
    let Some(value) = values.next() else { return Ok(None) };
    let key = parse(value)?;
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("`{KEY}`: the header must be sent once")));
    }
    Ok(Some(RequestKey { key: key.into(), operation, body: Sha1::digest(body).into() }))
}

fn parse(value: &[u8]) -> Result<&str, ApiError> {
    let value = value.trim_ascii();
    let is_visible = value.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(value) {
        Ok(key) if is_visible && (1..=LONGEST).contains(&key.len()) => Ok(key),
        _ => {
            let found = match value.len() {
                0 => "is empty".to_owned(),
                length if length > LONGEST => format!("has {length}"),
                _ => "has a character of another kind".to_owned(),
            };
            let rule = format!("must have 1 to {LONGEST} visible ASCII characters, without spaces");
            Err(ApiError::invalid(format!("`{KEY}`: {rule}; this one {found}")))
        }
    }
}

/// Marks the response to a repeated request.
pub(crate) fn mark(response: Response, is_repeat: bool) -> Response {
    if is_repeat { response.header("Idempotent-Replayed", "true") } else { response }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_255_visible_ascii_characters() {
        let long = "~".repeat(255);
        for key in ["!", "a", "b2e1c7d0-7d4c-4d0a-9f0e-3f8c2f6f1a55", "\"quoted\"", "a,b;c=d:e", &long] {
            assert_eq!(parse(key.as_bytes()).ok(), Some(key));
        }
        assert_eq!(parse(b" a\t").ok(), Some("a"), "white space around a header is not part of its value");
        let too_long = "~".repeat(256);
        for (key, found) in [
            ("", "is empty"),
            ("  ", "is empty"),
            (&too_long, "has 256"),
            ("a b", "has a character"),
            ("a\tb", "has a character"),
            ("a\u{7f}", "has a character"),
            ("\u{e9}", "has a character"),
        ] {
            let body = parse(key.as_bytes()).unwrap_err().to_response().bytes().map(<[u8]>::to_vec).unwrap();
            let sentence = String::from_utf8(body).unwrap();
            assert!(sentence.contains("`Idempotency-Key`: must have 1 to 255"), "{sentence}");
            assert!(sentence.contains(&format!("this one {found}")), "{key:?}: {sentence}");
        }
        assert_eq!(parse(b"\xff").unwrap_err().status(), 400);
    }
}
