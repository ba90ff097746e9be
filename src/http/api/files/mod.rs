//! Files: a request's user acts on one file, a directory tree or an archive of it.
//!
//! - `acting`: the user and the path of a request;
//! - `content`: reads, writes and removes a file; `listing`: the entries of a directory;
//! - `manage`: examines, creates, moves and removes files and directories;
//! - `archive`: a directory tree as a tar archive, both ways; `watch`: the changes of a directory.

mod acting;
mod archive;
mod content;
mod listing;
mod manage;
mod watch;

pub(crate) use archive::{pack, unpack};
pub(crate) use content::{read, write};
pub(crate) use listing::list;
pub(crate) use manage::{make_dir, rename, stat};
pub(crate) use watch::watch;

use super::Api;
use crate::http::message::{ApiError, Request, Response};

/// `DELETE /files`: removes a file, or with `recursive=true` a directory and all that is in it.
pub(crate) fn remove(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    if manage::is_recursive(request)? { manage::remove_tree(api, request) } else { content::remove(api, request) }
}
