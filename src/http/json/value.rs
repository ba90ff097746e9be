//! Types of JSON values in request bodies. Each type has a description of what it expects for error sentences, because
//! serde's descriptions use terms of Rust.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::model::{HealthKind, Leftovers, OutputMode, Policy, SignalScope, StdinMode};

/// Number of characters of a wrong string that an error sentence repeats.
const MAX_SHOWN: usize = 60;

/// 2^53.
const MAX_WHOLE_FLOAT: f64 = 9_007_199_254_740_992.0;

/// A type of JSON value. Any other JSON is refused with a sentence made of [`JsonValue::expected`].
pub trait JsonValue<'de>: Sized {
    /// What is expected, to follow "must be".
    fn expected() -> String;

    /// Converts a scalar.
    ///
    /// # Errors
    /// The scalar, if it is not of this type.
    fn from_scalar(value: Scalar) -> Result<Self, Scalar> {
        Err(value)
    }

    /// Converts a list.
    ///
    /// # Errors
    /// If it is not of this type.
    fn from_list<A: SeqAccess<'de>>(_list: A) -> Result<Self, A::Error> {
        Err(wrong::<Self, _>("a list"))
    }

    /// Converts an object.
    ///
    /// # Errors
    /// If it is not of this type.
    fn from_object<A: MapAccess<'de>>(_object: A) -> Result<Self, A::Error> {
        Err(wrong::<Self, _>("an object"))
    }

    /// Reads any JSON value. An implementation of [`Deserialize`] calls it.
    ///
    /// # Errors
    /// If the value is not of this type.
    fn read<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ValueVisitor(PhantomData))
    }
}

fn wrong<'de, T: JsonValue<'de>, E: Error>(sent: impl fmt::Display) -> E {
    E::custom(format_args!("must be {}, not {sent}", T::expected()))
}

/// A JSON value that is neither a list nor an object.
#[derive(Debug)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction or an exponent.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
}

impl Scalar {
    /// The value, if it is a whole number. To JSON Schema, 5.0 is one too.
    fn whole_number(&self) -> Option<i128> {
        match self {
            Scalar::Integer(number) => Some(*number),
            // Beyond 2^53 a float does not represent every whole number.
            Scalar::Float(number) if number.fract() == 0.0 && number.abs() < MAX_WHOLE_FLOAT => Some(*number as i128),
            _ => None,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Null => f.write_str("null"),
            Scalar::Bool(truth) => write!(f, "{truth}"),
            Scalar::Integer(number) => write!(f, "{number}"),
            // Debug keeps the decimal point of 1.0.
            Scalar::Float(number) => write!(f, "{number:?}"),
            Scalar::String(text) => match text.char_indices().nth(MAX_SHOWN) {
                Some((end, _)) => write!(f, "the string {:?}...", text.get(..end).unwrap_or_default()),
                None => write!(f, "the string {text:?}"),
            },
        }
    }
}

struct ValueVisitor<T>(PhantomData<T>);

impl<'de, T: JsonValue<'de>> ValueVisitor<T> {
    fn from_scalar<E: Error>(value: Scalar) -> Result<T, E> {
        T::from_scalar(value).map_err(wrong::<T, E>)
    }
}

impl<'de, T: JsonValue<'de>> Visitor<'de> for ValueVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::expected())
    }
    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Self::from_scalar(Scalar::Null)
    }
    fn visit_bool<E: Error>(self, truth: bool) -> Result<T, E> {
        Self::from_scalar(Scalar::Bool(truth))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Self::from_scalar(Scalar::Integer(number.into()))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Self::from_scalar(Scalar::Integer(number.into()))
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Self::from_scalar(Scalar::Float(number))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Self::from_scalar(Scalar::String(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::from_object(object)
    }
}

/// A JSON string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonString(pub String);

impl JsonValue<'_> for JsonString {
    fn expected() -> String {
        "a string".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<JsonString, Scalar> {
        match value {
            Scalar::String(text) => Ok(JsonString(text)),
            value => Err(value),
        }
    }
}

/// True or false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth(pub bool);

impl JsonValue<'_> for Truth {
    fn expected() -> String {
        "true or false".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<Truth, Scalar> {
        match value {
            Scalar::Bool(truth) => Ok(Truth(truth)),
            value => Err(value),
        }
    }
}

/// Bytes, sent as a string in base64 (RFC 4648, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl JsonValue<'_> for Base64 {
    fn expected() -> String {
        "a string in base64 with padding".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<Base64, Scalar> {
        let bytes = if let Scalar::String(text) = &value { BASE64.decode(text.as_bytes()).ok() } else { None };
        bytes.map(Base64).ok_or(value)
    }
}

/// A list of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringList(pub Vec<String>);

impl<'de> JsonValue<'de> for StringList {
    fn expected() -> String {
        "a list of strings".to_owned()
    }
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<StringList, A::Error> {
        let mut texts = Vec::new();
        while let Some(JsonString(text)) = list.next_element()? {
            texts.push(text);
        }
        Ok(StringList(texts))
    }
}

/// An object whose values are strings: environment variables. A name must not contain white space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringMap(pub BTreeMap<String, String>);

impl<'de> JsonValue<'de> for StringMap {
    fn expected() -> String {
        "an object whose values are strings".to_owned()
    }
    fn from_object<A: MapAccess<'de>>(mut object: A) -> Result<StringMap, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((name, JsonString(text))) = object.next_entry::<String, JsonString>()? {
            if name.contains(char::is_whitespace) {
                return Err(A::Error::custom(format_args!("the name {name:?} must not contain white space")));
            }
            pairs.insert(name, text);
        }
        Ok(StringMap(pairs))
    }
}

/// A JSON object. A struct with a derived `Deserialize` would accept a list of its fields too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> JsonValue<'de> for Object<T> {
    fn expected() -> String {
        "an object".to_owned()
    }
    fn from_object<A: MapAccess<'de>>(object: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Object)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> JsonValue<'_> for Integer<MIN, MAX> {
    fn expected() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }
    fn from_scalar(value: Scalar) -> Result<Self, Scalar> {
        let number = value.whole_number().and_then(|number| u64::try_from(number).ok());
        number.filter(|number| (MIN..=MAX).contains(number)).map(Integer).ok_or(value)
    }
}

/// A signal number. Whether the signal exists is checked later, as its error has a code of its own (docs/api.md,
/// Errors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalNumber(pub(crate) i64);

impl JsonValue<'_> for SignalNumber {
    fn expected() -> String {
        "a whole number from 1 to 64".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<SignalNumber, Scalar> {
        match value.whole_number() {
            Some(number) => Ok(SignalNumber(i64::try_from(number).unwrap_or(i64::MAX))),
            None => Err(value),
        }
    }
}

/// A positive number of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub(crate) f64);

impl JsonValue<'_> for Seconds {
    fn expected() -> String {
        "a number of seconds above 0".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<Seconds, Scalar> {
        match value {
            Scalar::Integer(number) if number > 0 => Ok(Seconds(number as f64)),
            Scalar::Float(number) if number > 0.0 => Ok(Seconds(number)),
            value => Err(value),
        }
    }
}

/// A type whose values are written as keywords.
pub trait Keyword: Copy + 'static {
    /// Each keyword and its value.
    const KEYWORDS: &'static [(&'static str, Self)];
}

/// A string that is one of [`Keyword::KEYWORDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice<T>(pub T);

impl<T: Keyword> JsonValue<'_> for Choice<T> {
    fn expected() -> String {
        let keywords: Vec<String> = T::KEYWORDS.iter().map(|(keyword, _)| format!("`{keyword}`")).collect();
        format!("one of {}", keywords.join(", "))
    }
    fn from_scalar(value: Scalar) -> Result<Self, Scalar> {
        let chosen = match &value {
            Scalar::String(text) => T::KEYWORDS.iter().find(|(keyword, _)| keyword == text),
            _ => None,
        };
        chosen.map(|(_, choice)| Choice(*choice)).ok_or(value)
    }
}

impl Keyword for StdinMode {
    const KEYWORDS: &'static [(&'static str, Self)] = &[("closed", StdinMode::Closed), ("pipe", StdinMode::Pipe)];
}

impl Keyword for Leftovers {
    const KEYWORDS: &'static [(&'static str, Self)] = &[("keep", Leftovers::Keep), ("kill", Leftovers::Kill)];
}

impl Keyword for SignalScope {
    const KEYWORDS: &'static [(&'static str, Self)] =
        &[("leader", SignalScope::Leader), ("group", SignalScope::Group), ("tree", SignalScope::Tree)];
}

impl Keyword for OutputMode {
    const KEYWORDS: &'static [(&'static str, Self)] =
        &[("capture", OutputMode::Capture), ("discard", OutputMode::Discard)];
}

impl Keyword for Policy {
    const KEYWORDS: &'static [(&'static str, Self)] =
        &[("never", Policy::Never), ("on_failure", Policy::OnFailure), ("always", Policy::Always)];
}

impl Keyword for HealthKind {
    const KEYWORDS: &'static [(&'static str, Self)] = &[("http", HealthKind::Http), ("tcp", HealthKind::Tcp)];
}

/// Implements [`Deserialize`] by [`JsonValue::read`].
macro_rules! deserialize {
    ($([$($generics:tt)*] $type:ty;)+) => {$(
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::read(from)
            }
        }
    )+};
}
pub(crate) use deserialize;

deserialize! {
    [] Base64;
    [] JsonString;
    [] StringList;
    [] StringMap;
    [] Truth;
    [] SignalNumber;
    [] Seconds;
    [T: Deserialize<'de>] Object<T>;
    [T: Keyword] Choice<T>;
    [const MIN: u64, const MAX: u64] Integer<MIN, MAX>;
}
