//! `tlctl cp`: copies files and folders between this host and the sandbox, by the rules of `cp -r`.
//!
//! | module | what |
//! |---|---|
//! | `side` | the operands: which side each is on, and what the name of a path says |
//! | `sandbox` | requests about the files of the sandbox |
//! | `send`, `receive` | to the sandbox; from the sandbox |
//! | `new_file` | a file on this host that is complete before it gets its name |
//! | `entry` | an archive with one entry |
//!
//! The content of a file is the body of `GET` or `PUT /files`; a folder is an archive, which the functions of the library
//! pack and unpack on this host as the daemon does on its side. A new file is sent as an archive with one entry, so that
//! it has the mode and the time of the file here. Nothing is held in memory as a whole.

mod entry;
mod new_file;
mod receive;
mod sandbox;
mod send;
pub(crate) mod side;

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::error::Error;
use super::http::Client;
use super::parse::Line;
use super::screen::print_error;

use sandbox::Sandbox;
use side::Side;

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// `tlctl cp`.
pub(crate) fn cp(client: &Client, line: &Line) -> Result<u8, Error> {
    let sandbox = Sandbox { client, user: line.value("user") };
    let follows = line.has("follow-link");
    let (sources, dest) = side::parse(&line.paths)?;
    match dest {
        Side::Sandbox(dest) => send::send(sandbox, &sources, dest, follows),
        Side::Local(dest) => receive::receive(sandbox, &sources, Path::new(dest), follows),
        Side::Stdio => receive::print(sandbox, &sources),
    }
}

/// Copies each source. One that fails does not keep the others from being copied.
fn each<'s>(sources: &'s [Side], mut copy: impl FnMut(&'s Side) -> Result<(), Error>) -> Result<u8, Error> {
    let mut failed = None;
    for source in sources {
        if let Err(error) = copy(source)
            && let Some(earlier) = failed.replace(error)
        {
            print_error(earlier);
        }
    }
    failed.map_or(Ok(0), Err)
}

/// A path of the sandbox as an operand names it, for messages.
fn shown(path: &[u8]) -> String {
    format!("{:?}", format!(":{}", String::from_utf8_lossy(path)))
}

/// Reads up to a piece. Returns an empty one at the end.
fn read_piece<'b>(from: &mut impl Read, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    buffer.resize(PIECE, 0);
    loop {
        match from.read(buffer) {
            Ok(count) => return Ok(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
