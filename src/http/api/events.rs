//! Server-sent events of a process's output.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::logs::{Cursor, Follower, Item, LongText, Part, Text};
use crate::model::{Millis, RunEnd, Stream as Source};
use tl_os::poll::Waker;

use crate::http::json::text;
use crate::http::message::ResponseStream;

/// After this time without an event, a comment shows that the connection is alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Pause before a log that cannot be read, for lack of descriptors or memory, is read again.
const RETRY: Duration = Duration::from_millis(500);

/// The fields that events have besides their data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventFormat {
    /// Each event has an `id:`, and an event with a line has `event: output`.
    pub(crate) named: bool,
    /// The data of a line names the stream that it is from.
    pub(crate) with_stream: bool,
}

/// Sends all that `follower` yields, up to the end of the run, which `end` writes.
///
/// Items that are ready are collected into bursts, and sent before waiting for more.
pub(crate) fn send_output(
    stream: &mut ResponseStream<'_>,
    follower: &mut Follower,
    waker: &Waker,
    format: EventFormat,
    end: impl FnOnce(&mut Vec<u8>, RunEnd) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        while let Some(part) = next(follower, stream)? {
            match part {
                Part::Item(Item::Line(line, cursor)) => {
                    format.begin_line(stream.buffer(), cursor)?;
                    text::whole(stream, &line.text)?;
                    format.end_line(stream.buffer(), line.timestamp, line.stream, line.partial)?;
                    stream.buffer().push(b'\n');
                }
                Part::Long(line, cursor) => format.long_line(stream, *line, cursor)?,
                Part::Item(Item::Gap { lost_bytes, cursor }) => format.gap(stream.buffer(), lost_bytes, cursor)?,
                Part::Item(Item::End(run_end, cursor)) => {
                    format.id(stream.buffer(), cursor);
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

/// The next item, if one is ready. If the log cannot be read, sends what is collected and reads the log again after
/// [`RETRY`]; nothing is lost.
fn next(follower: &mut Follower, stream: &mut ResponseStream<'_>) -> io::Result<Option<Part>> {
    // Tried first because `next_part` makes system calls.
    if let Some(part) = follower.try_part() {
        return Ok(Some(part));
    }
    let mut has_failed = false;
    loop {
        match follower.next_part(Some(Instant::now())) {
            Ok(part) => return Ok(part),
            Err(error) if !has_failed => log::warn!("a log cannot be read, trying again: {error}"),
            Err(_) => {}
        }
        has_failed = true;
        stream.flush()?;
        stream.pause(RETRY)?;
    }
}

impl EventFormat {
    fn id(self, out: &mut Vec<u8>, cursor: Cursor) {
        if self.named {
            out.extend_from_slice(b"id: ");
            cursor.write_to(out);
            out.push(b'\n');
        }
    }

    fn begin_line(self, out: &mut Vec<u8>, cursor: Cursor) -> io::Result<()> {
        self.id(out, cursor);
        if self.named {
            out.extend_from_slice(b"event: output\n");
        }
        out.extend_from_slice(b"data: {\"line\":");
        Ok(())
    }

    /// Ends the data of a line. The blank line that ends the event must follow.
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
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    /// Sends a long line while it is read. If the log drops a part of it meanwhile, the line is sent as partial, and a
    /// gap says how much is missing. The event of the line then has a second `id:`, which replaces the first one (HTML
    /// standard, section 9.2.6): a client that is disconnected before the gap gets it when it reconnects.
    fn long_line(self, stream: &mut ResponseStream<'_>, mut line: LongText, cursor: Cursor) -> io::Result<()> {
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
                    log::debug!("a long line cannot be read, trying again: {error}");
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
            if lost > 0 {
                self.id(stream.buffer(), long.cursor_before_loss(lost, cursor));
            }
            stream.buffer().push(b'\n');
        }
        if lost > 0 { self.gap(stream.buffer(), lost, cursor) } else { Ok(()) }
    }

    /// Appends `event: gap`, with the number of bytes that the log dropped before they were sent.
    fn gap(self, out: &mut Vec<u8>, lost_bytes: u64, cursor: Cursor) -> io::Result<()> {
        self.id(out, cursor);
        out.extend_from_slice(b"event: gap\n");
        data(out, &Gap { lost_bytes })
    }
}

/// Writes `data:` with `value` as JSON.
pub(crate) fn data(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(b"data: ")?;
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n\n")
}

#[derive(Serialize)]
struct Gap {
    lost_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::View;

    #[test]
    fn events_have_the_fields_of_their_format() {
        let cursor = "1-2-3-4-5-6".parse::<Cursor>().unwrap();
        for (named, id) in [(true, "id: 1-2-3-4-5-6\n"), (false, "")] {
            let event = if named { "event: output\n" } else { "" };
            for (view, stream) in [(View::Combined, ",\"stream\":\"stderr\""), (View::Stderr, "")] {
                let format = EventFormat { named, with_stream: view == View::Combined };
                let mut out = Vec::new();
                format.begin_line(&mut out, cursor).unwrap();
                format.end_line(&mut out, 7, Source::Stderr, true).unwrap();
                out.push(b'\n');
                format.gap(&mut out, 5, cursor).unwrap();
                let right = format!(
                    "{id}{event}data: {{\"line\":,\"timestamp\":7{stream},\"partial\":true}}\n\n\
                     {id}event: gap\ndata: {{\"lost_bytes\":5}}\n\n"
                );
                assert_eq!(String::from_utf8(out).unwrap(), right);
            }
        }
    }
}
