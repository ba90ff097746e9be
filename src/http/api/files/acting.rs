//! The user that a request about files acts as, and the path that it names.

use crate::error::Error;
use crate::files::FilePath;
use crate::users;
use tl_os::impersonation::Impersonation;

use crate::http::api::Api;
use crate::http::json::user::parse_user;
use crate::http::message::{ApiError, Request};

/// The rights of a request's user, whom this thread acts as until they are dropped, and the path of its query parameter
/// `path`.
pub(super) fn act_as_user(api: &Api, request: &Request<'_>) -> Result<(Impersonation, FilePath), ApiError> {
    let path = request.query_bytes("path");
    let path = path.ok_or_else(|| ApiError::invalid("the query parameter `path` is missing"))?;
    let (acting, [path]) = act_as_user_on(api, request, [("path", &*path)])?;
    Ok((acting, path))
}

/// The rights of a request's user, whom this thread acts as until they are dropped, and the given paths, made absolute.
/// Each path has the name of its field, for errors.
pub(super) fn act_as_user_on<const N: usize>(
    api: &Api,
    request: &Request<'_>,
    paths: [(&'static str, &[u8]); N],
) -> Result<(Impersonation, [FilePath; N]), ApiError> {
    let requested = request.query("user").map(|user| parse_user(&user)).transpose().map_err(Error::from)?;
    let default = api.handle.default_user();
    let user = users::resolve(requested.as_ref().unwrap_or(default))?;
    // Whichever user acts, a relative path is below the home of the default user (docs/api.md, Files).
    let absolute = paths.iter().all(|(_, path)| path.first() == Some(&b'/'));
    let home = match absolute || requested.is_none() {
        true => user.home.clone(),
        false => users::resolve(default)?.home.clone(),
    };
    let mut parsed = Vec::with_capacity(N);
    for (name, path) in paths {
        parsed.push(FilePath::parse(path, &home).map_err(|error| error.named(name))?);
    }
    let parsed = <[FilePath; N]>::try_from(parsed).map_err(|_| ApiError::internal("a path has been lost"))?;
    let failed = |error| Error::from_io(&format!("acting as the user {:?}", user.name), &error);
    Ok((Impersonation::begin(user.uid, user.gid, &user.groups).map_err(failed)?, parsed))
}
