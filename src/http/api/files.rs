//! `GET`, `PUT` and `DELETE /files`, and `GET /files/list`.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use crate::error::Error;
use crate::files::{self, Content, FileError, FilePath, Listing, Unmet, Upload};
use crate::users;
use tl_os::impersonation::Impersonation;

use crate::http::api::{Api, conditions, errors};
use crate::http::connection::memory::MemoryGrant;
use crate::http::json::response;
use crate::http::json::user::parse_user;
use crate::http::message::range::Range;
use crate::http::message::{ApiError, BURST, Request, Response, ResponseStream};

const BYTES: &str = "application/octet-stream";

/// Bytes of a file that are read at once, and bytes of a body that are written at once.
const PIECE: usize = 128 << 10;

/// The path that the request names, and the rights of its user, whom this thread acts as until they are dropped.
fn act_as_user(api: &Api, request: &Request<'_>) -> Result<(Impersonation, FilePath), ApiError> {
    let path = request.query_bytes("path");
    let path = path.ok_or_else(|| ApiError::invalid("the query parameter `path` is missing"))?;
    let requested = request.query("user").map(|user| parse_user(&user)).transpose().map_err(Error::from)?;
    let default = api.handle.default_user();
    let user = users::resolve(requested.as_ref().unwrap_or(default))?;
    // Whichever user acts, a relative path is below the home of the default user (docs/api.md, Files).
    let path = match (path.first(), &requested) {
        (Some(b'/'), _) | (_, None) => FilePath::parse(&path, &user.home)?,
        _ => FilePath::parse(&path, &users::resolve(default)?.home)?,
    };
    let failed = |error| Error::from_io(&format!("acting as the user {:?}", user.name), &error);
    Ok((Impersonation::begin(user.uid, user.gid, &user.groups).map_err(failed)?, path))
}

/// Reads a file, or a range of it.
pub(crate) fn read(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let (acting, path) = act_as_user(api, request)?;
    match conditions::of_file(request).unmet_at(&path, true)? {
        None => {}
        // The file exists, and a GET with `If-None-Match: *` means that the client has it already.
        Some(Unmet::IsAbsent) => return Ok(Response::empty(304)),
        Some(why) => return Err(FileError::Unmet { path: path.shown(), why }.into()),
    }
    let range = requested_range(request);
    match files::read(&path)? {
        Content::Whole(mut bytes) => {
            let part = Part::of(range, bytes.len() as u64)?;
            let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
            bytes.truncate(index(part.bytes.end));
            bytes.drain(..index(part.bytes.start).min(bytes.len()));
            Ok(part.describe(Response::new(part.status(), BYTES, bytes)))
        }
        Content::Long(file, length) => {
            let part = Part::of(range, length)?;
            let bytes = part.bytes.clone();
            let write = move |stream: &mut ResponseStream<'_>| {
                let _acting = acting;
                send(stream, &file, bytes)
            };
            Ok(part.describe(Response::stream(part.status(), BYTES, Some(part.bytes.end - part.bytes.start), write)))
        }
        Content::Unmeasured(begin, file) => Ok(Response::stream(200, BYTES, None, move |stream| {
            let _acting = acting;
            stream.buffer().extend_from_slice(&begin);
            drop(begin);
            send_all(stream, &file)
        })),
    }
}

/// The range that the request asks for. None for HEAD, and with `If-Range`, whose condition no file meets.
fn requested_range(request: &Request<'_>) -> Option<Range> {
    if request.is_head() || request.header("If-Range").is_some() {
        return None;
    }
    Range::parse(&request.header("Range")?)
}

/// The part of a content that a response carries.
struct Part {
    bytes: ops::Range<u64>,
    /// Length of the whole content, in bytes.
    length: u64,
    /// The request asks for a range.
    is_range: bool,
}

impl Part {
    /// # Errors
    /// 416 if no byte is in the range.
    fn of(range: Option<Range>, length: u64) -> Result<Part, ApiError> {
        let bytes = match range {
            None => 0..length,
            Some(range) => range.within(length).ok_or_else(|| errors::range_not_satisfiable(length))?,
        };
        Ok(Part { bytes, length, is_range: range.is_some() })
    }

    fn status(&self) -> u16 {
        if self.is_range { 206 } else { 200 }
    }

    fn describe(&self, response: Response) -> Response {
        if !self.is_range {
            return response.header("Accept-Ranges", "bytes");
        }
        let (first, last) = (self.bytes.start, self.bytes.end - 1);
        response.header("Content-Range", format!("bytes {first}-{last}/{}", self.length))
    }
}

/// Sends a part of a file. If the file has become shorter, the connection ends: its length has been sent already.
fn send(stream: &mut ResponseStream<'_>, file: &File, part: ops::Range<u64>) -> io::Result<()> {
    let mut at = part.start;
    while at < part.end {
        let most = usize::try_from(part.end - at).unwrap_or(PIECE).min(PIECE);
        let read = read_into(stream.buffer(), most, |into| file.read_at(into, at))?;
        stream.flush()?;
        if read == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
        at += read as u64;
    }
    Ok(())
}

/// Sends the rest of a file whose length is unknown.
fn send_all(stream: &mut ResponseStream<'_>, mut file: &File) -> io::Result<()> {
    loop {
        stream.flush()?;
        match read_into(stream.buffer(), PIECE, |into| file.read(into)) {
            Ok(0) => return Ok(()),
            // The file has nothing more at the moment, and this does not wait for more.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            result => result.map(drop)?,
        }
    }
}

/// Appends up to `most` bytes of `read` to the buffer.
fn read_into(
    buffer: &mut Vec<u8>,
    most: usize,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let before = buffer.len();
    buffer.resize(before + most, 0);
    let result = loop {
        match read(buffer.get_mut(before..).unwrap_or_default()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    buffer.truncate(before + result.as_ref().map_or(0, |count| *count));
    result
}

/// Streams the body into a new file, which then replaces the old one.
pub(crate) fn write(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    // Declared first and so dropped last: the temporary file is removed by the user that has created it.
    let (_acting, path) = act_as_user(api, request)?;
    conditions::check_whole(request)?;
    let mut upload = Upload::begin(&path, request.body_remaining(), conditions::of_file(request))?;
    let mut piece = vec![0; PIECE];
    loop {
        match request.read_body(&mut piece)? {
            0 => break,
            read => upload.write(piece.get(..read).unwrap_or_default())?,
        }
    }
    drop(piece);
    upload.commit()?;
    Ok(Response::empty(204))
}

/// Removes a file.
pub(crate) fn remove(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let (_acting, path) = act_as_user(api, request)?;
    if let Some(why) = conditions::of_file(request).unmet_at(&path, false)? {
        return Err(FileError::Unmet { path: path.shown(), why }.into());
    }
    files::remove(&path)?;
    Ok(Response::empty(204))
}

#[derive(Serialize)]
struct EntryJson<'l> {
    name: &'l str,
    is_dir: bool,
    size: Option<u64>,
    modified_at: Option<i64>,
}

/// Lists a directory.
pub(crate) fn list(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let (acting, path) = act_as_user(api, request)?;
    let listing = files::list(&path)?;
    drop(acting);
    let mut grant = api.listings.grant();
    if !grant.grow_to(listing.size()) {
        return Err(ApiError::out_of("the listing of a directory", &ErrorKind::OutOfMemory.into()));
    }
    let mut json = ListingJson { listing, next: 0, _grant: grant };
    let mut shown = Some(path.shown());
    let more = move |out: &mut Vec<u8>| {
        if let Some(path) = shown.take() {
            ListingJson::begin(&path, out)?;
        }
        json.entries(out)
    };
    response::in_bursts(None, more).map_err(|error| Error::internal(error).into())
}

/// Writes a listing as JSON, a burst at a time.
struct ListingJson {
    listing: Listing,
    next: usize,
    _grant: MemoryGrant,
}

impl ListingJson {
    fn begin(path: &str, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(b"{\"path\":");
        serde_json::to_writer(&mut *out, path)?;
        out.extend_from_slice(b",\"entries\":[");
        Ok(())
    }

    /// Appends a burst of entries. Returns whether these were the last.
    fn entries(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let full = out.len() + BURST;
        while out.len() < full {
            let Some(entry) = self.listing.get(self.next) else {
                out.extend_from_slice(if self.listing.truncated { b"],\"truncated\":true}" } else { b"]}" });
                return Ok(true);
            };
            if self.next > 0 {
                out.push(b',');
            }
            let name = &*entry.name;
            let (is_dir, size, modified_at) = (entry.is_dir, entry.size, entry.modified_at);
            serde_json::to_writer(&mut *out, &EntryJson { name, is_dir, size, modified_at })?;
            self.next += 1;
        }
        Ok(false)
    }
}
