//! What a field of a body can be. Each kind says in plain words what would be right: serde's own words are those of Rust.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::model::{HealthKind, Leftovers, OutputMode, Policy, SignalScope, StdinMode};

/// As much of a wrong string as is repeated in a sentence.
const SHOWN: usize = 60;

/// A kind of field. What it does not take of JSON is refused with [`Field::right`].
pub(in crate::http) trait Field<'de>: Sized {
    /// What would be right, after "must be".
    fn right() -> String;

    /// Made of what is neither a list nor an object.
    fn simple(value: Simple) -> Result<Self, Simple> {
        Err(value)
    }

    /// Made of a list.
    fn list<A: SeqAccess<'de>>(_list: A) -> Result<Self, A::Error> {
        Err(wrong::<Self, _>("a list"))
    }

    /// Made of an object.
    fn object<A: MapAccess<'de>>(_object: A) -> Result<Self, A::Error> {
        Err(wrong::<Self, _>("an object"))
    }

    /// For [`Deserialize`].
    fn read<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any(PhantomData))
    }
}

fn wrong<'de, T: Field<'de>, E: Error>(sent: impl fmt::Display) -> E {
    E::custom(format_args!("must be {}, not {sent}", T::right()))
}

/// A value of JSON that is neither a list nor an object.
#[derive(Debug)]
pub(in crate::http) enum Simple {
    Null,
    Bool(bool),
    Whole(i128),
    Fraction(f64),
    Text(String),
}

impl fmt::Display for Simple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Simple::Null => f.write_str("null"),
            Simple::Bool(truth) => write!(f, "{truth}"),
            Simple::Whole(number) => write!(f, "{number}"),
            // With its point, where it has one.
            Simple::Fraction(number) => write!(f, "{number:?}"),
            Simple::Text(text) => match text.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(f, "the string {:?}...", text.get(..end).unwrap_or_default()),
                None => write!(f, "the string {text:?}"),
            },
        }
    }
}

struct Any<T>(PhantomData<T>);

impl<'de, T: Field<'de>> Any<T> {
    fn simple<E: Error>(value: Simple) -> Result<T, E> {
        T::simple(value).map_err(wrong::<T, E>)
    }
}

impl<'de, T: Field<'de>> Visitor<'de> for Any<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::right())
    }
    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Self::simple(Simple::Null)
    }
    fn visit_bool<E: Error>(self, truth: bool) -> Result<T, E> {
        Self::simple(Simple::Bool(truth))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Self::simple(Simple::Whole(number.into()))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Self::simple(Simple::Whole(number.into()))
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Self::simple(Simple::Fraction(number))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Self::simple(Simple::Text(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }
    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

/// A string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Text(pub(in crate::http) String);

impl Field<'_> for Text {
    fn right() -> String {
        "a string".to_owned()
    }
    fn simple(value: Simple) -> Result<Text, Simple> {
        match value {
            Simple::Text(text) => Ok(Text(text)),
            value => Err(value),
        }
    }
}

/// Bytes, as a string in base64 (RFC 4648, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Base64(pub(in crate::http) Vec<u8>);

impl Field<'_> for Base64 {
    fn right() -> String {
        "a string in base64 with padding".to_owned()
    }
    fn simple(value: Simple) -> Result<Base64, Simple> {
        let bytes = if let Simple::Text(text) = &value { BASE64.decode(text.as_bytes()).ok() } else { None };
        bytes.map(Base64).ok_or(value)
    }
}

/// Strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Texts(pub(in crate::http) Vec<String>);

impl<'de> Field<'de> for Texts {
    fn right() -> String {
        "a list of strings".to_owned()
    }
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(Text(text)) = list.next_element()? {
            texts.push(text);
        }
        Ok(Texts(texts))
    }
}

/// Strings by their names, of environment variables: no name has white space in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Pairs(pub(in crate::http) BTreeMap<String, String>);

impl<'de> Field<'de> for Pairs {
    fn right() -> String {
        "an object whose values are strings".to_owned()
    }
    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Pairs, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((name, Text(text))) = object.next_entry::<String, Text>()? {
            if name.contains(char::is_whitespace) {
                return Err(A::Error::custom(format_args!("the name {name:?} must have no white space")));
            }
            pairs.insert(name, text);
        }
        Ok(Pairs(pairs))
    }
}

/// A JSON object. Derived structs would take an array of their fields as well.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Object<T>(pub(in crate::http) T);

impl<'de, T: Deserialize<'de>> Field<'de> for Object<T> {
    fn right() -> String {
        "an object".to_owned()
    }
    fn object<A: MapAccess<'de>>(object: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Object)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Whole<const MIN: u64, const MAX: u64>(pub(in crate::http) u64);

impl<const MIN: u64, const MAX: u64> Field<'_> for Whole<MIN, MAX> {
    fn right() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }
    fn simple(value: Simple) -> Result<Self, Simple> {
        let number = if let Simple::Whole(number) = value { u64::try_from(number).ok() } else { None };
        number.filter(|number| (MIN..=MAX).contains(number)).map(Whole).ok_or(value)
    }
}

/// The number of a signal. Which ones there are is not judged here: that has a code of its own (section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct SignalNumber(pub(in crate::http) i64);

impl Field<'_> for SignalNumber {
    fn right() -> String {
        "a whole number from 1 to 64".to_owned()
    }
    fn simple(value: Simple) -> Result<SignalNumber, Simple> {
        match value {
            Simple::Whole(number) => Ok(SignalNumber(i64::try_from(number).unwrap_or(i64::MAX))),
            value => Err(value),
        }
    }
}

/// A time that is not over at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::http) struct Seconds(pub(in crate::http) f64);

impl Field<'_> for Seconds {
    fn right() -> String {
        "a number of seconds above 0".to_owned()
    }
    fn simple(value: Simple) -> Result<Seconds, Simple> {
        match value {
            Simple::Whole(number) if number > 0 => Ok(Seconds(number as f64)),
            Simple::Fraction(number) if number > 0.0 => Ok(Seconds(number)),
            value => Err(value),
        }
    }
}

/// What is chosen by a word.
pub(in crate::http) trait Words: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

/// One of [`Words::WORDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Choice<T>(pub(in crate::http) T);

impl<T: Words> Field<'_> for Choice<T> {
    fn right() -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("one of {}", words.join(", "))
    }
    fn simple(value: Simple) -> Result<Self, Simple> {
        let chosen = match &value {
            Simple::Text(text) => T::WORDS.iter().find(|(word, _)| word == text),
            _ => None,
        };
        chosen.map(|(_, choice)| Choice(*choice)).ok_or(value)
    }
}

impl Words for StdinMode {
    const WORDS: &'static [(&'static str, Self)] = &[("closed", StdinMode::Closed), ("pipe", StdinMode::Pipe)];
}

impl Words for Leftovers {
    const WORDS: &'static [(&'static str, Self)] = &[("keep", Leftovers::Keep), ("kill", Leftovers::Kill)];
}

impl Words for SignalScope {
    const WORDS: &'static [(&'static str, Self)] =
        &[("leader", SignalScope::Leader), ("group", SignalScope::Group), ("tree", SignalScope::Tree)];
}

impl Words for OutputMode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("capture", OutputMode::Capture), ("discard", OutputMode::Discard)];
}

impl Words for Policy {
    const WORDS: &'static [(&'static str, Self)] =
        &[("never", Policy::Never), ("on_failure", Policy::OnFailure), ("always", Policy::Always)];
}

impl Words for HealthKind {
    const WORDS: &'static [(&'static str, Self)] = &[("http", HealthKind::Http), ("tcp", HealthKind::Tcp)];
}

/// [`Field::read`] for types that derived structs have in them.
macro_rules! deserialize {
    ($([$($generics:tt)*] $type:ty;)+) => {$(
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::read(from)
            }
        }
    )+};
}
pub(in crate::http) use deserialize;

deserialize! {
    [] Base64;
    [] Text;
    [] Texts;
    [] Pairs;
    [] SignalNumber;
    [] Seconds;
    [T: Deserialize<'de>] Object<T>;
    [T: Words] Choice<T>;
    [const MIN: u64, const MAX: u64] Whole<MIN, MAX>;
}
