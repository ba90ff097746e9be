//! Server-sent events from a log.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::logs::{Cursor, Follower, Item, LongText, Part, Text};
use crate::model::{Millis, RunEnd, Stream as Source};
use tl_os::poll::Waker;

use crate::http::json::text;
use crate::http::message::response::Stream;

/// After so much silence a comment says that the connection stands.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A log that cannot be read for want of descriptors or memory is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// What the frames of a stream have beside their data.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Frames {
    /// An `id:`, and for lines an `event:`.
    pub(in crate::http) named: bool,
    /// In each line, which stream it is from.
    pub(in crate::http) with_stream: bool,
}

/// Sends all that `follower` gives; the item that is the end as `end` writes it.
///
/// What is ready is gathered into bursts, and what was gathered is sent before waiting for more.
pub(in crate::http) fn pump(
    stream: &mut Stream<'_>,
    follower: &mut Follower,
    waker: &Waker,
    frames: Frames,
    end: impl FnOnce(&mut Vec<u8>, RunEnd) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        while let Some(part) = next(follower, stream)? {
            match part {
                Part::Item(Item::Line(line, cursor)) => {
                    frames.begin_line(stream.buffer(), cursor)?;
                    text::short(stream, &line.text)?;
                    frames.end_line(stream.buffer(), line.timestamp, line.stream, line.partial)?;
                }
                Part::Long(line, cursor) => frames.long_line(stream, *line, cursor)?,
                Part::Item(Item::Gap { lost_bytes, cursor }) => frames.gap(stream.buffer(), lost_bytes, cursor)?,
                Part::Item(Item::End(run_end, cursor)) => {
                    frames.id(stream.buffer(), cursor)?;
                    return end(stream.buffer(), run_end);
                }
            }
            if stream.is_burst() {
                stream.flush()?;
            }
        }
        stream.flush()?;
        if !stream.wait(waker, Some(Instant::now() + KEEP_ALIVE))? {
            stream.release();
            stream.buffer().extend_from_slice(b": keep-alive\n\n");
        }
    }
}

/// What is ready, if anything is. Where the log cannot be read just now, what was gathered is sent and it is tried again
/// a little later: nothing is lost by that.
fn next(follower: &mut Follower, stream: &mut Stream<'_>) -> io::Result<Option<Part>> {
    // The quick look first: the other one asks the kernel as well.
    if let Some(part) = follower.try_part() {
        return Ok(Some(part));
    }
    let mut begun = false;
    loop {
        match follower.next_part(Some(Instant::now())) {
            Ok(part) => return Ok(part),
            Err(error) if !begun => log::warn!("a log cannot be read, and is tried again: {error}"),
            Err(_) => {}
        }
        begun = true;
        stream.flush()?;
        stream.pause(RETRY)?;
    }
}

impl Frames {
    fn id(self, out: &mut Vec<u8>, cursor: Cursor) -> io::Result<()> {
        if self.named { writeln!(out, "id: {cursor}") } else { Ok(()) }
    }

    fn begin_line(self, out: &mut Vec<u8>, cursor: Cursor) -> io::Result<()> {
        self.id(out, cursor)?;
        if self.named {
            out.extend_from_slice(b"event: output\n");
        }
        out.extend_from_slice(b"data: {\"line\":");
        Ok(())
    }

    fn end_line(self, out: &mut Vec<u8>, timestamp: Millis, source: Source, partial: bool) -> io::Result<()> {
        out.extend_from_slice(b",\"timestamp\":");
        serde_json::to_writer(&mut *out, &timestamp)?;
        if self.with_stream {
            out.extend_from_slice(match source {
                Source::Stdout => b",\"stream\":\"stdout\"",
                Source::Stderr => b",\"stream\":\"stderr\"",
            });
        }
        if partial {
            out.extend_from_slice(b",\"partial\":true");
        }
        out.extend_from_slice(b"}\n\n");
        Ok(())
    }

    /// Sends a long line while it is read. Where the log drops a part of it meanwhile, what was sent is a piece of the
    /// line, and a gap says what is missing.
    fn long_line(self, stream: &mut Stream<'_>, mut line: LongText, cursor: Cursor) -> io::Result<()> {
        let (mut begun, mut lost) = (false, 0);
        loop {
            let more = match line.next() {
                Ok(Text::Piece(piece)) => {
                    if !begun {
                        self.begin_line(stream.buffer(), cursor)?;
                        text::begin(stream.buffer());
                        begun = true;
                    }
                    text::piece(stream.buffer(), &piece)?;
                    true
                }
                Ok(Text::End) => break,
                Ok(Text::Lost(bytes)) => {
                    lost = bytes;
                    break;
                }
                Err(error) => {
                    log::debug!("a long line cannot be read, and is tried again: {error}");
                    stream.flush()?;
                    stream.pause(RETRY)?;
                    false
                }
            };
            if more && stream.is_burst() {
                stream.flush()?;
            }
        }
        if begun {
            text::end(stream.buffer());
            let long = line.long();
            self.end_line(stream.buffer(), long.timestamp, long.stream, long.partial || lost > 0)?;
        }
        if lost > 0 { self.gap(stream.buffer(), lost, cursor) } else { Ok(()) }
    }

    /// `event: gap` with how much was dropped before it was read here.
    fn gap(self, out: &mut Vec<u8>, lost_bytes: u64, cursor: Cursor) -> io::Result<()> {
        self.id(out, cursor)?;
        out.extend_from_slice(b"event: gap\n");
        data(out, &Lost { lost_bytes })
    }
}

/// `data:` with `value` as JSON.
pub(in crate::http) fn data(out: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}

#[derive(Serialize)]
struct Lost {
    lost_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::View;

    #[test]
    fn frames() {
        let cursor = "1-2-3-4-5-6".parse::<Cursor>().unwrap();
        for (named, id) in [(true, "id: 1-2-3-4-5-6\n"), (false, "")] {
            let event = if named { "event: output\n" } else { "" };
            for (view, stream) in [(View::Combined, ",\"stream\":\"stderr\""), (View::Stderr, "")] {
                let frames = Frames { named, with_stream: view == View::Combined };
                let mut out = Vec::new();
                frames.begin_line(&mut out, cursor).unwrap();
                frames.end_line(&mut out, 7, Source::Stderr, true).unwrap();
                frames.gap(&mut out, 5, cursor).unwrap();
                let right = format!(
                    "{id}{event}data: {{\"line\":,\"timestamp\":7{stream},\"partial\":true}}\n\n\
                     {id}event: gap\ndata: {{\"lost_bytes\":5}}\n\n"
                );
                assert_eq!(String::from_utf8(out).unwrap(), right);
            }
        }
    }
}
