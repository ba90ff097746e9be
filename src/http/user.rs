//! The forms of `user` (section 8).

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::error::SpecError;
use crate::model::UserSpec;

use super::json::Whole;

/// The largest id but one: the last means "leave it as it is" to the kernel.
const MAX_ID: u32 = u32::MAX - 1;

type Id = Whole<0, { MAX_ID as u64 }>;

/// A `user` as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User(pub(super) UserSpec);

#[derive(Deserialize)]
struct Fields {
    uid: Option<Id>,
    gid: Option<Id>,
    name: Option<String>,
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<User, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = User;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, a UID or `uid:gid` as a string, or an object with `uid` or `name`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<User, E> {
                text.parse().map(User).map_err(|error: SpecError| E::custom(error.problem))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<User, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                object_form(fields).map(User).map_err(A::Error::custom)
            }
        }
        from.deserialize_any(Forms)
    }
}

/// Any form of `user`, from outside of a body: as text, or as a JSON object.
///
/// # Errors
/// Names `user` and says what would be right.
pub fn parse_user(text: &str) -> Result<UserSpec, SpecError> {
    if !text.starts_with('{') {
        return text.parse();
    }
    let parsed = serde_json::from_str::<User>(text);
    parsed.map(|user| user.0).map_err(|error| SpecError::new("user", error.to_string()))
}

fn object_form(fields: Fields) -> Result<UserSpec, &'static str> {
    // `Id` has checked that they fit.
    let narrow = |id: Id| u32::try_from(id.0).unwrap_or(MAX_ID);
    let gid = fields.gid.map(narrow);
    match (fields.uid, fields.name) {
        (Some(_), Some(_)) => Err("`uid` and `name` exclude each other"),
        (Some(uid), None) => Ok(UserSpec::Uid { uid: narrow(uid), gid }),
        (None, Some(name)) if name.is_empty() => Err("`name` must not be empty"),
        (None, Some(name)) => Ok(UserSpec::Name { name, gid }),
        (None, None) => Err("must have `uid` or `name`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    #[derive(Deserialize)]
    struct Body {
        user: Option<User>,
    }

    fn user(json: &str) -> Result<Option<UserSpec>, String> {
        let body = parse::<Body>(format!("{{\"user\":{json}}}").as_bytes());
        body.map(|body| body.user.map(|user| user.0)).map_err(|problem| problem.to_string())
    }

    #[test]
    fn all_forms() {
        let name = |name: &str, gid| UserSpec::Name { name: name.to_owned(), gid };
        for (json, right) in [
            (r#""root""#, name("root", None)),
            (r#""1000""#, UserSpec::Uid { uid: 1000, gid: None }),
            (r#""1000:100""#, UserSpec::Uid { uid: 1000, gid: Some(100) }),
            (r#"{"uid":1000,"gid":100}"#, UserSpec::Uid { uid: 1000, gid: Some(100) }),
            (r#"{"uid":0,"gid":null,"name":null}"#, UserSpec::Uid { uid: 0, gid: None }),
            (r#"{"name":"root","shell":1}"#, name("root", None)),
            (r#""4294967294""#, UserSpec::Uid { uid: 4_294_967_294, gid: None }),
        ] {
            assert_eq!(user(json), Ok(Some(right)), "{json}");
        }
        assert_eq!(user("null"), Ok(None));
    }

    #[test]
    fn outside_of_a_body() {
        assert_eq!(parse_user("5:6"), Ok(UserSpec::Uid { uid: 5, gid: Some(6) }));
        assert_eq!(parse_user(r#"{"uid": 5}"#), Ok(UserSpec::Uid { uid: 5, gid: None }));
        for wrong in ["", "{}", "{", r#"{"uid": 5, "name": "x"}"#, "1:2:3"] {
            assert!(parse_user(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_user() {
        for (json, part) in [
            (r#""""#, "must be a name, a UID or `uid:gid`"),
            (r#""4294967295""#, "each id 0..=4294967294"),
            (r#""99999999999""#, "each id 0..=4294967294"),
            (r#""1:4294967295""#, "each id 0..=4294967294"),
            (r#""1:""#, "`uid:gid`"),
            (r#"":1""#, "`uid:gid`"),
            (r#""root:root""#, "`uid:gid`"),
            (r#"{"uid":4294967295}"#, "`user.uid`: invalid value: integer `4294967295`, expected a whole number"),
            (r#"{"uid":-1}"#, "`user.uid`"),
            (r#"{"uid":"1"}"#, "`user.uid`"),
            (r#"{"uid":1,"name":"root"}"#, "exclude each other"),
            (r#"{"gid":1}"#, "must have `uid` or `name`"),
            ("{}", "must have `uid` or `name`"),
            ("1000", "expected a name"),
            ("[]", "expected a name"),
            ("true", "expected a name"),
        ] {
            let sentence = user(json).unwrap_err();
            assert!(sentence.contains(part) && sentence.contains("user"), "{json}: {sentence}");
        }
    }
}
