//! `GET` and `PUT /files/archive`: a directory tree as a tar archive, streamed both ways.

use std::io::{self, ErrorKind, Read};

use crate::files::archive::{ArchiveError, ArchiveFormat, Packing, UnpackOptions, unpack as unpack_archive};

use crate::http::api::files::acting::act_as_user;
use crate::http::api::{Api, conditions};
use crate::http::message::{ApiError, Request, Response, ResponseStream};

/// Streams the directory at the path, or the file, as an archive.
pub(crate) fn pack(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let (format, media_type) = match request.query("format").as_deref() {
        None | Some("tar") => (ArchiveFormat::Tar, "application/x-tar"),
        Some("tar.gz") => (ArchiveFormat::TarGz, "application/gzip"),
        Some(other) => {
            let problem = format!("the query parameter `format` must be `tar` or `tar.gz`, not {other:?}");
            return Err(ApiError::invalid(problem));
        }
    };
    let (acting, path) = act_as_user(api, request)?;
    let packing = Packing::begin(path.as_path())?;
    let write = move |stream: &mut ResponseStream<'_>| {
        let _acting = acting;
        packing.write(format, stream).map_err(|error| match error {
            ArchiveError::Output(error) => error,
            // The client cannot be told once the archive has begun: the connection ends instead of the archive.
            error => {
                log::warn!("the archive of {:?} ends early: {error}", path.shown());
                io::Error::other(ApiError::from(error))
            }
        })
    };
    Ok(Response::stream(200, media_type, None, write))
}

/// Unpacks the archive in the body below the path.
pub(crate) fn unpack(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let preserve_owner = match request.query("preserve").as_deref() {
        None => false,
        Some("owner") => true,
        Some(other) => {
            return Err(ApiError::invalid(format!("the query parameter `preserve` must be `owner`, not {other:?}")));
        }
    };
    conditions::check_whole(request)?;
    let (_acting, path) = act_as_user(api, request)?;
    let options = UnpackOptions { preserve_owner, limit: api.max_archive };
    let mut body = BodyReader { request, error: None };
    let result = unpack_archive(path.as_path(), &mut body, options);
    match (result, body.error) {
        // The connection is to blame, not the archive.
        (Err(_), Some(error)) => Err(error),
        (result, _) => result.map(|()| Response::empty(204)).map_err(ApiError::from),
    }
}

/// Reads the body of a request, and keeps the error that ends it.
struct BodyReader<'r, 'c> {
    request: &'r mut Request<'c>,
    error: Option<ApiError>,
}

impl Read for BodyReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.request.read_body(out).map_err(|error| {
            self.error = Some(error);
            ErrorKind::ConnectionAborted.into()
        })
    }
}
