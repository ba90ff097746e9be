//! `GET`, `PUT` and `DELETE /files`, `GET /files/list`.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use crate::error::Error;
use crate::files::{self, Content, FileError, FilePath, Listing, Unmet, Upload};
use crate::users;
use tl_os::impersonation::Impersonation;

use crate::http::api::routes::Api;
use crate::http::json::user::parse_user;
use crate::http::message::conditions;
use crate::http::message::range::Range;
use crate::http::message::request::Request;
use crate::http::message::response::{Answer, BURST, Stream};
use crate::http::message::response_head::{Problem, Reply};
use crate::http::server::memory::Grant;

const BYTES: &str = "application/octet-stream";

/// As much of a file is read, and of a body written, at once.
const PIECE: usize = 128 << 10;

/// What is asked for, and the rights to it: this thread is the user until they are dropped.
fn begin(api: &Api, request: &Request<'_>) -> Result<(Impersonation, FilePath), Problem> {
    let path = request.query_bytes("path");
    let path = path.ok_or_else(|| Problem::Invalid("the query parameter `path` is missing".to_owned()))?;
    let asked = request.query("user").map(|user| parse_user(&user)).transpose().map_err(Error::from)?;
    let default = api.handle.default_user();
    let user = users::resolve(asked.as_ref().unwrap_or(default))?;
    // Whoever acts, a relative path is in the default user's home (section 10).
    let path = match (path.first(), &asked) {
        (Some(b'/'), _) | (_, None) => FilePath::parse(&path, &user.home)?,
        _ => FilePath::parse(&path, &users::resolve(default)?.home)?,
    };
    let failed = |error| Error::from_io(&format!("acting as the user {:?}", user.name), &error);
    Ok((Impersonation::begin(user.uid, user.gid, &user.groups).map_err(failed)?, path))
}

/// The content, or the part of it that the client wants.
pub(in crate::http) fn read(api: &Api, request: &Request<'_>) -> Result<Answer, Problem> {
    let (acting, path) = begin(api, request)?;
    match conditions::of_file(request).unmet_at(&path, true)? {
        None => {}
        // There is something: a GET on the condition that there is nothing has seen it already.
        Some(Unmet::IsAbsent) => return Ok(Reply::new(304).into()),
        Some(why) => return Err(FileError::Unmet { path: path.shown(), why }.into()),
    }
    let range = asked_range(request);
    let reply = Reply::new(200).with("Content-Type", BYTES);
    match files::read(&path)? {
        Content::Whole(mut bytes) => {
            let (mut reply, part) = part(reply, range, bytes.len() as u64)?;
            let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
            bytes.truncate(index(part.end));
            bytes.drain(..index(part.start).min(bytes.len()));
            reply.body = bytes;
            Ok(reply.into())
        }
        Content::Long(file, length) => {
            let (reply, part) = part(reply, range, length)?;
            Ok(Answer::measured(reply, part.end - part.start, move |stream| {
                let _acting = acting;
                send(stream, &file, part)
            }))
        }
        Content::Unmeasured(begin, file) => Ok(Answer::download(BYTES, move |stream| {
            let _acting = acting;
            stream.buffer().extend_from_slice(&begin);
            drop(begin);
            send_all(stream, &file)
        })),
    }
}

/// The range, where one has a meaning: only in a GET, and not on a condition, as there is none that would hold.
fn asked_range(request: &Request<'_>) -> Option<Range> {
    if request.is_head() || request.field("If-Range").is_some() {
        return None;
    }
    Range::parse(&request.field("Range")?)
}

/// Says in the reply which part of a content of this length it carries.
fn part(reply: Reply, range: Option<Range>, length: u64) -> Result<(Reply, ops::Range<u64>), Problem> {
    let Some(range) = range else { return Ok((reply.with("Accept-Ranges", "bytes"), 0..length)) };
    let part = range.within(length).ok_or(Problem::RangeNotSatisfiable(length))?;
    let field = format!("bytes {}-{}/{length}", part.start, part.end - 1);
    Ok((reply.partial().with("Content-Range", &field), part))
}

/// Sends a part of a file. One that has become shorter ends the connection: the client was told another length.
fn send(stream: &mut Stream<'_>, file: &File, part: ops::Range<u64>) -> io::Result<()> {
    let mut at = part.start;
    while at < part.end {
        let most = usize::try_from(part.end - at).unwrap_or(PIECE).min(PIECE);
        let read = gather(stream.buffer(), most, |into| file.read_at(into, at))?;
        stream.flush()?;
        if read == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
        at += read as u64;
    }
    Ok(())
}

/// Sends the rest of a file that has no length.
fn send_all(stream: &mut Stream<'_>, mut file: &File) -> io::Result<()> {
    loop {
        stream.flush()?;
        match gather(stream.buffer(), PIECE, |into| file.read(into)) {
            Ok(0) => return Ok(()),
            // It would wait for news; there is nothing more as of now.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            result => result.map(drop)?,
        }
    }
}

/// Appends what `read` gives, up to `most` bytes.
fn gather(
    buffer: &mut Vec<u8>,
    most: usize,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let before = buffer.len();
    buffer.resize(before + most, 0);
    let got = loop {
        match read(buffer.get_mut(before..).unwrap_or_default()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    buffer.truncate(before + got.as_ref().map_or(0, |got| *got));
    got
}

/// Streams the body into a new file and puts that in the place of the old one.
pub(in crate::http) fn write(api: &Api, request: &mut Request<'_>) -> Result<Answer, Problem> {
    // Declared first and so dropped last: a temporary file is removed by the one who has made it.
    let (_acting, path) = begin(api, request)?;
    conditions::check_whole(request)?;
    let mut upload = Upload::begin(&path, request.body_left(), conditions::of_file(request))?;
    let mut piece = vec![0; PIECE];
    loop {
        match request.read_body(&mut piece)? {
            0 => break,
            read => upload.write(piece.get(..read).unwrap_or_default())?,
        }
    }
    drop(piece);
    upload.commit()?;
    Ok(Reply::no_content().into())
}

/// Removes a file.
pub(in crate::http) fn remove(api: &Api, request: &Request<'_>) -> Result<Answer, Problem> {
    let (_acting, path) = begin(api, request)?;
    if let Some(why) = conditions::of_file(request).unmet_at(&path, false)? {
        return Err(FileError::Unmet { path: path.shown(), why }.into());
    }
    files::remove(&path)?;
    Ok(Reply::no_content().into())
}

#[derive(Serialize)]
struct EntryJson<'l> {
    name: &'l str,
    is_dir: bool,
    size: Option<u64>,
    modified_at: Option<i64>,
}

/// Lists a directory.
pub(in crate::http) fn list(api: &Api, request: &Request<'_>) -> Result<Answer, Problem> {
    let (acting, path) = begin(api, request)?;
    let listing = files::list(&path)?;
    drop(acting);
    let grant = request.hold_listing(listing.size())?;
    let mut json = Json { listing, next: 0, _grant: grant };
    let mut shown = Some(path.shown());
    let more = move |out: &mut Vec<u8>| {
        if let Some(path) = shown.take() {
            Json::begin(&path, out)?;
        }
        json.entries(out)
    };
    Answer::in_bursts(None, more).map_err(|error| Problem::Refused(Error::internal(error)))
}

/// Writes a listing as JSON, a burst at a time.
struct Json {
    listing: Listing,
    next: usize,
    _grant: Grant,
}

impl Json {
    fn begin(path: &str, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(b"{\"path\":");
        serde_json::to_writer(&mut *out, path)?;
        out.extend_from_slice(b",\"entries\":[");
        Ok(())
    }

    /// Appends a burst of entries; whether these were the last.
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
