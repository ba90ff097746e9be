//! `GET /files/list`: the entries of a directory.

use std::io::{self, ErrorKind};

use serde::Serialize;

use crate::error::Error;
use crate::files::{self, Listing};

use crate::http::api::Api;
use crate::http::api::files::acting::act_as_user;
use crate::http::connection::memory::MemoryGrant;
use crate::http::json::response;
use crate::http::message::{ApiError, BURST, Request, Response};

#[derive(Serialize)]
struct EntryJson<'l> {
    name: &'l str,
    is_dir: bool,
    size: Option<u64>,
    modified_at: Option<i64>,
}

/// Lists a directory.
pub(crate) fn list(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let depth = depth(request.query("depth").as_deref())?;
    let (acting, path) = act_as_user(api, request)?;
    let listing = files::list(&path, depth)?;
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

/// The query parameter `depth`.
fn depth(query: Option<&str>) -> Result<usize, ApiError> {
    let Some(text) = query else { return Ok(1) };
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|text| text.parse().ok());
    number.filter(|number| (1..=files::MAX_DEPTH).contains(number)).ok_or_else(|| {
        ApiError::invalid(format!(
            "the query parameter `depth` must be a whole number from 1 to {}, not {text:?}",
            files::MAX_DEPTH
        ))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_a_number_from_1_to_32() {
        assert_eq!([depth(None).unwrap(), depth(Some("1")).unwrap(), depth(Some("32")).unwrap()], [1, 1, 32]);
        for text in ["", "0", "33", "-1", "+1", "1.0", "two", "1 ", "18446744073709551617"] {
            assert!(depth(Some(text)).unwrap_err().to_string().contains("`depth`"), "{text}");
        }
    }
}
