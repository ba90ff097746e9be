//! JSON bodies: parsed once, into types that cannot be wrong, with a sentence that names the field where they are.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, Visitor};

use super::reply::Problem;

/// Parses a body.
///
/// # Errors
/// [`Problem::Invalid`], naming the field.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Err(Problem::Invalid("the body must be a JSON object, and there is none".to_owned()));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // A syntax error has no field of its own: the last one that was begun says where it is.
        let path = path.strip_suffix('?').unwrap_or(&path).trim_end_matches('.');
        let field = if path.is_empty() { "the body".to_owned() } else { format!("`{path}`") };
        Problem::Invalid(format!("{field}: {}", error.inner()))
    })?;
    json.end().map_err(|error| Problem::Invalid(format!("the body: {error}")))?;
    Ok(parsed.0)
}

/// A JSON object. Derived structs would take an array of their fields as well.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Object<T>, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Fields(PhantomData))
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Number<MIN, MAX> {
            type Value = Whole<MIN, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                if (MIN..=MAX).contains(&number) {
                    return Ok(Whole(number));
                }
                Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(number), &self)),
                }
            }
        }
        from.deserialize_u64(Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Body {
        #[allow(dead_code)]
        text: String,
        #[serde(default)]
        list: Vec<String>,
        port: Option<Whole<1, 65535>>,
        inner: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        ms: Option<Whole<0, 10>>,
    }

    #[test]
    fn sentences_name_the_field_and_what_would_be_right() {
        for (body, part) in [
            (r#"{"text":5}"#, "`text`: invalid type: integer `5`, expected a string"),
            (r#"{}"#, "missing field `text`"),
            (r#"{"text":"","list":["",2]}"#, "`list[1]`: invalid type: integer `2`, expected a string"),
            (r#"{"text":"","port":0}"#, "`port`: invalid value: integer `0`, expected a whole number from 1 to 65535"),
            (r#"{"text":"","port":70000}"#, "`port`: invalid value: integer `70000`"),
            (r#"{"text":"","port":-1}"#, "`port`: invalid value: integer `-1`"),
            (r#"{"text":"","port":1.5}"#, "`port`: invalid type: floating point `1.5`"),
            (r#"{"text":"","port":"1"}"#, "`port`: invalid type: string \"1\""),
            (r#"{"text":"","port":1e400}"#, "`port`: number out of range"),
            (r#"{"text":"","port":99999999999999999999}"#, "`port`: "),
            (r#"{"text":"","inner":{"ms":11}}"#, "`inner.ms`: invalid value: integer `11`"),
            (r#"{"text":"","inner":[]}"#, "`inner`: invalid type: sequence, expected an object"),
            (r#"[""]"#, "the body: invalid type: sequence, expected an object"),
            (r#""text""#, "expected an object"),
            ("null", "expected an object"),
            ("", "there is none"),
            (" \n", "there is none"),
            (r#"{"text":"#, "EOF while parsing"),
            (r#"{"text":""} x"#, "trailing characters"),
            ("{\"text\":\"\u{1}\"}", "control character"),
            (r#"{"text":"\ud800"}"#, "`text`"),
        ] {
            let sentence = parse::<Body>(body.as_bytes()).unwrap_err().to_string();
            assert!(sentence.contains(part), "{body}: {sentence}");
        }
        assert!(parse::<Body>(b"{\"text\":\"\xff\"}").is_err());
        assert!(parse::<Body>("[".repeat(100_000).as_bytes()).is_err());
        let deep = format!("{{\"text\":\"\",\"x\":{}", "[".repeat(100_000));
        assert!(parse::<Body>(deep.as_bytes()).is_err());
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let body = parse::<Body>(br#" {"text":"a","port":null,"inner":null,"new":[{"x":1}]} "#).unwrap();
        assert!(body.port.is_none() && body.inner.is_none() && body.list.is_empty());
        let body = parse::<Body>(br#"{"text":"a","port":65535,"inner":{"ms":10}}"#).unwrap();
        assert_eq!(body.port, Some(Whole(65535)));
        assert_eq!(body.inner.unwrap().0.ms, Some(Whole(10)));
    }
}
