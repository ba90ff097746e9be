//! The files of the sandbox, as `tlctl cp` sees them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::side::{join, parent};
use crate::ctl::error::Error;
use crate::ctl::http::{Client, Request, Response, encode, encode_bytes};
use crate::ctl::json::Json;

/// Maximum number of symlinks that are followed, as the kernel has it.
const MAX_SYMLINKS: usize = 40;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

/// A file.
#[derive(Clone, Debug)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    /// The permission bits.
    pub(super) mode: u32,
    pub(super) modified: Option<SystemTime>,
    /// The target of a symlink.
    pub(super) target: String,
}

/// The sandbox, with the rights of a user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sandbox<'c> {
    pub(super) client: &'c Client,
    pub(super) user: Option<&'static str>,
}

impl Sandbox<'_> {
    /// The path of a request about a file; `endpoint` is what follows `/files`.
    pub(super) fn request_path(&self, endpoint: &str, path: &[u8]) -> String {
        let user = self.user.map_or(String::new(), |user| format!("&user={}", encode(user)));
        format!("/files{endpoint}?path={}{user}", encode_bytes(path))
    }

    /// Examines a file, of a symlink the symlink itself. None if there is no such file.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Error> {
        let body = match self.client.get(&self.request_path("/stat", path)) {
            Err(error) if error.has_code("NOT_FOUND") => return Ok(None),
            result => result?,
        };
        Ok(Some(Stat::of(self.client.parse(&body)?)))
    }

    /// What a path leads to. None if there is nothing. A symlink that leads to no directory counts as a symlink.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub(super) fn kind(&self, path: &[u8]) -> Result<Option<Kind>, Error> {
        let found = self.stat(path)?.map(|stat| stat.kind);
        if found != Some(Kind::Symlink) {
            return Ok(found);
        }
        match self.stat(&join(path, b".")) {
            Ok(Some(stat)) => Ok(Some(stat.kind)),
            Ok(None) => Ok(found),
            Err(error) if error.has_code("NOT_A_DIRECTORY") => Ok(found),
            Err(error) => Err(error),
        }
    }

    /// What a symlink leads to. The mode and the time of a file are found only if each symlink on the way can be followed
    /// by its target.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub(super) fn leads_to(&self, path: &[u8], symlink: Stat) -> Result<Stat, Error> {
        match self.stat(&join(path, b".")) {
            Ok(Some(stat)) => return Ok(stat),
            Err(error) if !error.has_code("NOT_A_DIRECTORY") => return Err(error),
            _ => {}
        }
        let (mut at, mut stat) = (path.to_vec(), symlink);
        for _ in 0..MAX_SYMLINKS {
            let target = stat.target.as_bytes();
            at = if target.starts_with(b"/") { target.to_vec() } else { join(parent(&at).unwrap_or(b"."), target) };
            match self.stat(&at) {
                Ok(Some(found)) if found.kind != Kind::Symlink => return Ok(found),
                Ok(Some(found)) => stat = found,
                // The request for its content says what is wrong, if anything is.
                _ => break,
            }
        }
        Ok(Stat { kind: Kind::File, mode: 0o644, modified: None, target: String::new() })
    }

    /// Asks for the bytes of a file, or for an archive of a directory, by the endpoint `/archive`.
    ///
    /// # Errors
    /// The sentence of the API, or that a response which is cut could not be told from a whole one.
    pub(super) fn download(&self, endpoint: &str, path: &[u8]) -> Result<Response, Error> {
        let path = &self.request_path(endpoint, path);
        let response = self.client.send(Request { method: "GET", path, raw: true, ..Request::default() })?;
        if !response.body.has_end() {
            let url = self.client.url();
            return Err(Error::local(format_args!("{url} does not say where its response ends")));
        }
        Ok(response)
    }

    /// Reads a response to its end, which shows that nothing is missing.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) fn drain(&self, mut response: Response) -> Result<(), Error> {
        std::io::copy(&mut response.body, &mut std::io::sink()).map(drop).map_err(|error| self.client.broken(&error))
    }
}

impl Stat {
    fn of(json: Json<'_>) -> Stat {
        let kind = match json.get("type").text().as_str() {
            "file" => Kind::File,
            "directory" => Kind::Directory,
            "symlink" => Kind::Symlink,
            _ => Kind::Other,
        };
        let mode = u32::from_str_radix(&json.get("mode").text(), 8).unwrap_or(0o644);
        let millis: Option<i64> = json.get("modified_at").digits().parse().ok();
        let since = |millis: i64| Duration::from_millis(millis.unsigned_abs());
        let modified = millis.and_then(|millis| match millis < 0 {
            true => UNIX_EPOCH.checked_sub(since(millis)),
            false => UNIX_EPOCH.checked_add(since(millis)),
        });
        Stat { kind, mode, modified, target: json.get("target").text() }
    }
}
