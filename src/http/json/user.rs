//! The field `user` of a body (docs/api.md, Environment and users).

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess};

use crate::error::SpecError;
use crate::model::UserSpec;

use crate::http::json;
use crate::http::json::value::{Integer, JsonString, JsonValue, Scalar, deserialize};

/// Largest UID or GID. To the kernel, the number above it means "no change".
const MAX_ID: u32 = u32::MAX - 1;

type Id = Integer<0, { MAX_ID as u64 }>;

/// The value of `user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User(pub(crate) UserSpec);

#[derive(Deserialize)]
struct Fields {
    uid: Option<Id>,
    gid: Option<Id>,
    name: Option<JsonString>,
}

impl<'de> JsonValue<'de> for User {
    fn expected() -> String {
        format!("a name, a UID or `uid:gid` as a string, each id from 0 to {MAX_ID}, or an object with `uid` or `name`")
    }
    fn from_scalar(value: Scalar) -> Result<User, Scalar> {
        let user = if let Scalar::String(text) = &value { text.parse().ok() } else { None };
        user.map(User).ok_or(value)
    }
    fn from_object<A: MapAccess<'de>>(object: A) -> Result<User, A::Error> {
        let fields = Fields::deserialize(MapAccessDeserializer::new(object))?;
        object_form(fields).map(User).map_err(A::Error::custom)
    }
}

deserialize! { [] User; }

/// Parses any form of `user` that does not come from a body, for example from an option: a name, a UID, `uid:gid`, or a
/// JSON object.
///
/// ```
/// use tl_supervisor::UserSpec;
/// use tl_supervisor::http::parse_user;
///
/// assert_eq!(parse_user("5:6"), Ok(UserSpec::Uid { uid: 5, gid: Some(6) }));
/// assert!(parse_user("1:2:3").is_err());
/// ```
///
/// # Errors
/// A sentence that names `user` and says what is expected.
pub fn parse_user(text: &str) -> Result<UserSpec, SpecError> {
    let wrong = |problem: &str| SpecError::new("user", problem);
    if !text.starts_with('{') {
        let forms = || format!("must be a name, a UID, `uid:gid` or a JSON object, each id from 0 to {MAX_ID}");
        return text.parse().map_err(|_| wrong(&forms()));
    }
    let parsed = serde_json::from_str::<User>(text).map(|user| user.0);
    parsed.map_err(|error| match error.is_data() {
        true => wrong(&json::without_position(&error)),
        false => wrong(&format!("must be a JSON object: {}", json::without_position(&error))),
    })
}

fn object_form(fields: Fields) -> Result<UserSpec, &'static str> {
    // The type `Id` has checked the range.
    let narrow = |id: Id| u32::try_from(id.0).unwrap_or(MAX_ID);
    let gid = fields.gid.map(narrow);
    match (fields.uid, fields.name.map(|name| name.0)) {
        (Some(_), Some(_)) => Err("must not have both `uid` and `name`"),
        (Some(uid), None) => Ok(UserSpec::Uid { uid: narrow(uid), gid }),
        (None, Some(name)) if name.is_empty() => Err("`name` must not be empty"),
        (None, Some(name)) => Ok(UserSpec::Name { name, gid }),
        (None, None) => Err("must have `uid` or `name`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::parse;

    #[derive(Deserialize)]
    struct Body {
        user: Option<User>,
    }

    fn user(json: &str) -> Result<Option<UserSpec>, String> {
        let body = parse::<Body>(format!("{{\"user\":{json}}}").as_bytes());
        body.map(|body| body.user.map(|user| user.0)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_user_is_parsed() {
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
    fn a_user_is_parsed_outside_of_a_body() {
        assert_eq!(parse_user("5:6"), Ok(UserSpec::Uid { uid: 5, gid: Some(6) }));
        assert_eq!(parse_user(r#"{"uid": 5}"#), Ok(UserSpec::Uid { uid: 5, gid: None }));
        for (wrong, sentence) in [
            ("", "`user` must be a name, a UID, `uid:gid` or a JSON object, each id from 0 to 4294967294"),
            ("1:2:3", "`user` must be a name, a UID, `uid:gid` or a JSON object, each id from 0 to 4294967294"),
            ("{}", "`user` must have `uid` or `name`"),
            ("{", "`user` must be a JSON object: EOF while parsing an object"),
            (r#"{"uid": 5, "name": "x"}"#, "`user` must not have both `uid` and `name`"),
        ] {
            assert_eq!(parse_user(wrong).unwrap_err().to_string(), sentence, "{wrong}");
        }
    }

    #[test]
    fn wrong_users_are_refused() {
        for (json, part) in [
            (r#""""#, "`user`: must be a name, a UID or `uid:gid` as a string"),
            (r#""4294967295""#, "each id from 0 to 4294967294"),
            (r#""99999999999""#, "each id from 0 to 4294967294"),
            (r#""1:4294967295""#, "each id from 0 to 4294967294"),
            (r#""1:""#, "`uid:gid`"),
            (r#"":1""#, "`uid:gid`"),
            (r#""root:root""#, "`uid:gid`"),
            (r#"{"uid":4294967295}"#, "`user.uid`: must be a whole number from 0 to 4294967294, not 4294967295"),
            (r#"{"uid":-1}"#, "`user.uid`"),
            (r#"{"uid":"1"}"#, "`user.uid`"),
            (r#"{"uid":1,"name":"root"}"#, "must not have both `uid` and `name`"),
            (r#"{"gid":1}"#, "must have `uid` or `name`"),
            ("{}", "must have `uid` or `name`"),
            ("1000", "must be a name"),
            ("[]", "must be a name"),
            ("true", "must be a name"),
        ] {
            let sentence = user(json).unwrap_err();
            assert!(sentence.contains(part) && sentence.contains("user"), "{json}: {sentence}");
        }
    }
}
