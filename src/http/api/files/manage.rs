//! `GET /files/stat`, `POST /files/mkdir`, `POST /files/move`, and `DELETE /files` of a directory tree.

use std::time::Instant;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError, FileKind, FilePath};
use crate::users;

use crate::http::api::files::acting::{act_as_user, act_as_user_on};
use crate::http::api::{Api, conditions};
use crate::http::json;
use crate::http::json::response;
use crate::http::json::value::{JsonString, JsonValue, Scalar, Truth, deserialize};
use crate::http::message::{ApiError, Request, Response};

#[derive(Serialize)]
struct StatJson {
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    size: Option<u64>,
    mode: String,
    uid: u32,
    gid: u32,
    user: Option<String>,
    group: Option<String>,
    modified_at: i64,
    target: Option<String>,
}

fn keyword(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char_device",
        FileKind::BlockDevice => "block_device",
    }
}

/// Examines a file of any type; of a symlink, the link itself.
pub(crate) fn stat(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let (acting, path) = act_as_user(api, request)?;
    let info = files::stat(&path)?;
    drop(acting);
    let json = StatJson {
        path: path.shown(),
        kind: keyword(info.kind),
        size: info.size,
        mode: format!("{:04o}", info.mode),
        uid: info.uid,
        gid: info.gid,
        user: users::user_name(info.uid),
        group: users::group_name(info.gid),
        modified_at: info.modified_at,
        target: info.target,
    };
    Ok(response::whole(200, &json))
}

/// Permissions, set-user-ID, set-group-ID and sticky bit, as a string of up to four octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OctalMode(u32);

impl JsonValue<'_> for OctalMode {
    fn expected() -> String {
        "a string of one to four octal digits, such as \"0755\"".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<OctalMode, Scalar> {
        let Scalar::String(text) = &value else { return Err(value) };
        let is_octal = matches!(text.len(), 1..=4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let mode = if is_octal { u32::from_str_radix(text, 8).ok() } else { None };
        mode.map(OctalMode).ok_or(value)
    }
}

deserialize! { [] OctalMode; }

#[derive(Debug, Deserialize)]
struct MakeDirBody {
    path: JsonString,
    mode: Option<OctalMode>,
    parents: Option<Truth>,
}

/// Creates a directory.
pub(crate) fn make_dir(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = json::parse::<MakeDirBody>(&request.whole_body()?)?;
    let (_acting, [path]) = act_as_user_on(api, request, [("path", body.path.0.as_bytes())])?;
    files::make_dir(&path, body.mode.map(|mode| mode.0), body.parents.is_none_or(|parents| parents.0))?;
    Ok(Response::empty(204))
}

#[derive(Debug, Deserialize)]
struct MoveBody {
    from: JsonString,
    to: JsonString,
    overwrite: Option<Truth>,
}

/// Moves a file or a directory.
pub(crate) fn rename(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = json::parse::<MoveBody>(&request.whole_body()?)?;
    let paths = [("from", body.from.0.as_bytes()), ("to", body.to.0.as_bytes())];
    let (_acting, [from, to]) = act_as_user_on(api, request, paths)?;
    files::rename(&from, &to, body.overwrite.is_some_and(|overwrite| overwrite.0))?;
    Ok(Response::empty(204))
}

/// Whether a removal is one of a directory with all that is in it.
pub(super) fn is_recursive(request: &Request<'_>) -> Result<bool, ApiError> {
    match request.query("recursive").as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(text) => {
            Err(ApiError::invalid(format!("the query parameter `recursive` must be `true` or `false`, not {text:?}")))
        }
    }
}

/// Removes a directory with all that is in it, or a file. If the client disconnects, the removal stops.
pub(super) fn remove_tree(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let waker = request.waker()?;
    let (_acting, path) = act_as_user(api, request)?;
    check_conditions(request, &path)?;
    let mut is_connected = || request.wait(&waker, Some(Instant::now())).is_ok();
    match files::remove_tree(&path, &mut is_connected)? {
        true => Ok(Response::empty(204)),
        false => Err(ApiError::disconnected()),
    }
}

/// Checks the conditions of the request for what is to be removed, which may be a directory here.
fn check_conditions(request: &Request<'_>, path: &FilePath) -> Result<(), ApiError> {
    match conditions::of_file(request).unmet_at_entry(path)? {
        None => Ok(()),
        Some(why) => Err(FileError::Unmet { path: path.shown(), why }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_a_string_of_octal_digits() {
        let mode = |json: &str| {
            let body = format!("{{\"path\":\"x\",\"mode\":{json}}}");
            json::parse::<MakeDirBody>(body.as_bytes()).map(|body| body.mode.map(|mode| mode.0))
        };
        for (json, right) in [("\"0755\"", 0o755), ("\"7\"", 7), ("\"0000\"", 0), ("\"7777\"", 0o7777)] {
            assert_eq!(mode(json).unwrap(), Some(right), "{json}");
        }
        assert_eq!(mode("null").unwrap(), None);
        for json in ["\"\"", "\"00755\"", "\"0o75\"", "\"8\"", "\"+7\"", "\" 7\"", "\"rwx\"", "755", "[]", "true"] {
            let sentence = mode(json).unwrap_err().to_string();
            assert!(sentence.contains("`mode`: must be a string of one to four octal digits"), "{json}: {sentence}");
        }
    }
}
