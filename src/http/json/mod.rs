//! JSON bodies: requests are parsed once, into types that are valid by construction, with error sentences that name the
//! field; responses are written in pieces if they are long.

pub(crate) mod limits;
pub(crate) mod response;
pub(crate) mod text;
pub(crate) mod user;
pub(crate) mod value;

use std::io::{self, Write};

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::http::message::ApiError;

pub use value::{Choice, Integer, JsonString, JsonValue, Keyword, Object, Scalar, StringList, StringMap, Truth};

/// Parses a request body, which must be one JSON object. `T` is a struct with a derived `Deserialize`, whose fields have
/// types of this module: their errors say what is expected, in the terms of JSON.
///
/// ```
/// use serde::Deserialize;
/// use tl_supervisor::http::json::{self, Integer, JsonString};
///
/// #[derive(Deserialize)]
/// struct Body {
///     name: JsonString,
///     port: Option<Integer<1, 65535>>,
/// }
///
/// let body: Body = json::parse(br#"{"name": "web", "port": 8080}"#)?;
/// assert_eq!((body.name.0.as_str(), body.port), ("web", Some(Integer(8080))));
/// let error = json::parse::<Body>(br#"{"name": "web", "port": 0}"#).err().unwrap();
/// assert_eq!(error.to_string(), "`port`: must be a whole number from 1 to 65535, not 0");
/// # Ok::<(), tl_supervisor::http::message::ApiError>(())
/// ```
///
/// # Errors
/// 400, with a sentence that names the field that is wrong.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::invalid("the body must be a JSON object, but it is empty"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // A syntax error belongs to no field: the path names the last field that was begun.
        let path = path.strip_suffix('?').unwrap_or(&path).trim_end_matches('.');
        let field = if path.is_empty() { "the body".to_owned() } else { format!("`{path}`") };
        let error = error.inner();
        ApiError::invalid(match error.classify() {
            Category::Data => format!("{field}: {}", without_position(error)),
            // The grammar of the body is correct, but a string is not Unicode or a number is out of range.
            _ if serde_json::from_slice::<IgnoredAny>(body).is_ok() => {
                format!("{field}: {error}: a string must be Unicode, a number within the range of a double")
            }
            _ => format!("the body must be JSON: {error}"),
        })
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body must be one JSON object: {error}")))?;
    Ok(parsed.0)
}

/// Length of `value` as JSON, in bytes.
pub(crate) fn length(value: &impl Serialize) -> io::Result<u64> {
    let mut counter = SliceWriter { out: &mut Vec::new(), skip: usize::MAX, room: 0, passed: 0 };
    serde_json::to_writer(&mut counter, value)?;
    Ok(counter.passed as u64)
}

/// Appends up to `most` bytes of `value` as JSON to `out`, without the first `skip` bytes. Returns whether that was the
/// rest of it.
pub(crate) fn append_slice(out: &mut Vec<u8>, value: &impl Serialize, skip: usize, most: usize) -> io::Result<bool> {
    let mut slice = SliceWriter { out, skip, room: most, passed: 0 };
    match serde_json::to_writer(&mut slice, value) {
        Ok(()) => Ok(true),
        Err(_) if slice.room == 0 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Keeps a slice of what is written to it.
struct SliceWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Bytes to drop first.
    skip: usize,
    /// Bytes that may still be kept.
    room: usize,
    /// Bytes dropped or kept so far.
    passed: usize,
}

impl Write for SliceWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = bytes.len().min(self.skip.saturating_sub(self.passed));
        if skipped > 0 {
            self.passed += skipped;
            return Ok(skipped);
        }
        let taken = bytes.get(..self.room).unwrap_or(bytes);
        self.out.extend_from_slice(taken);
        self.passed += taken.len();
        self.room -= taken.len();
        // Without room this is 0, which ends the writing with an error.
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sentence of an error without its line and column, which the name of the field makes redundant.
pub(crate) fn without_position(error: &serde_json::Error) -> String {
    let mut sentence = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    sentence.truncate(sentence.strip_suffix(&position).unwrap_or(&sentence).len());
    sentence
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::http::json::value::{Integer, JsonString, StringList};

    #[derive(Debug, Deserialize)]
    struct Body {
        #[allow(dead_code)]
        text: JsonString,
        #[serde(default)]
        list: StringList,
        port: Option<Integer<1, 65535>>,
        inner: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        ms: Option<Integer<0, 10>>,
    }

    #[test]
    fn error_sentences_name_the_field_and_what_is_expected() {
        for (body, part) in [
            (r#"{"text":5}"#, "`text`: must be a string, not 5"),
            (r#"{}"#, "the body: missing field `text`"),
            (r#"{"text":"","list":["",2]}"#, "`list[1]`: must be a string, not 2"),
            (r#"{"text":"","list":{}}"#, "`list`: must be a list of strings, not an object"),
            (r#"{"text":"","list":null}"#, "`list`: must be a list of strings, not null"),
            (r#"{"text":"","port":0}"#, "`port`: must be a whole number from 1 to 65535, not 0"),
            (r#"{"text":"","port":70000}"#, "`port`: must be a whole number from 1 to 65535, not 70000"),
            (r#"{"text":"","port":-1}"#, "`port`: must be a whole number from 1 to 65535, not -1"),
            (r#"{"text":"","port":1.5}"#, "`port`: must be a whole number from 1 to 65535, not 1.5"),
            (r#"{"text":"","port":65536.0}"#, "`port`: must be a whole number from 1 to 65535, not 65536.0"),
            (r#"{"text":"","port":"1"}"#, "`port`: must be a whole number from 1 to 65535, not the string \"1\""),
            (r#"{"text":"","port":true}"#, "`port`: must be a whole number from 1 to 65535, not true"),
            (r#"{"text":"","port":1e400}"#, "`port`: number out of range"),
            (r#"{"text":"","port":1e400}"#, "a number within the range of a double"),
            (r#"{"text":"","port":99999999999999999999}"#, "`port`: must be a whole number from 1 to 65535, not 1e20"),
            (r#"{"text":"","inner":{"ms":11}}"#, "`inner.ms`: must be a whole number from 0 to 10, not 11"),
            (r#"{"text":"","inner":[]}"#, "`inner`: must be an object, not a list"),
            (r#"[""]"#, "the body: must be an object, not a list"),
            (r#""text""#, "the body: must be an object, not the string \"text\""),
            ("null", "the body: must be an object, not null"),
            ("", "it is empty"),
            (" \n", "it is empty"),
            (r#"{"text":"#, "the body must be JSON: EOF while parsing a value at line 1 column 8"),
            (r#"{"text":""} x"#, "the body must be one JSON object: trailing characters at line 1 column 13"),
            ("{\"text\":\"\u{1}\"}", "control character"),
            (r#"{"text":"\ud800"}"#, "`text`: "),
            (r#"{"text":"\ud800"}"#, ": a string must be Unicode"),
        ] {
            let sentence = parse::<Body>(body.as_bytes()).unwrap_err().to_string();
            assert!(sentence.contains(part), "{body}: {sentence}");
        }
        assert!(parse::<Body>(b"{\"text\":\"\xff\"}").unwrap_err().to_string().contains("must be Unicode"));
        let long = format!("{{\"text\":\"\",\"port\":\"{}\"}}", "é".repeat(1000));
        let sentence = parse::<Body>(long.as_bytes()).unwrap_err().to_string();
        assert!(sentence.len() < 250 && sentence.ends_with("é\"..."), "{sentence}");
        assert!(parse::<Body>("[".repeat(100_000).as_bytes()).is_err());
        let deep = format!("{{\"text\":\"\",\"x\":{}", "[".repeat(100_000));
        assert!(parse::<Body>(deep.as_bytes()).is_err());
    }

    #[test]
    fn slices_make_the_whole() {
        let value = vec!["a\"b\u{1}", "", "a longer one without escapes"];
        let whole = serde_json::to_vec(&value).unwrap();
        assert_eq!(length(&value).unwrap(), whole.len() as u64);
        for most in 1..whole.len() + 2 {
            let mut out = Vec::new();
            let mut skip = 0;
            while !append_slice(&mut out, &value, skip, most).unwrap() {
                assert!(out.len() == skip + most);
                skip = out.len();
            }
            assert_eq!(out, whole, "{most}");
        }
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let body = parse::<Body>(br#" {"text":"a","port":null,"inner":null,"new":[{"x":1}]} "#).unwrap();
        assert!(body.port.is_none() && body.inner.is_none() && body.list.0.is_empty());
        let body = parse::<Body>(br#"{"text":"a","port":65535,"inner":{"ms":10}}"#).unwrap();
        assert_eq!(body.port, Some(Integer(65535)));
        assert_eq!(body.inner.unwrap().0.ms, Some(Integer(10)));
    }
}
