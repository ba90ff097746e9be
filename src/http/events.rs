//! Server-sent events from a log.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::logs::{Follower, Item, Line};
use crate::model::Stream as Source;
use crate::os::poll::Waker;

use super::answer::Stream;

/// After so much silence a comment says that the connection stands.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A log that cannot be read for want of descriptors or memory is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// Sends all that `follower` gives, each item as `frame` writes it, up to the item that is the end.
///
/// What is ready is gathered into bursts, and what was gathered is sent before waiting for more.
pub(super) fn pump(
    stream: &mut Stream<'_>,
    follower: &mut Follower,
    waker: &Waker,
    mut frame: impl FnMut(&mut Vec<u8>, Item) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        while let Some(item) = next(follower, stream)? {
            let ended = matches!(item, Item::End(..));
            frame(stream.buffer(), item)?;
            if ended {
                return Ok(());
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
fn next(follower: &mut Follower, stream: &mut Stream<'_>) -> io::Result<Option<Item>> {
    let mut begun = false;
    loop {
        // The quick look first: the other one asks the kernel as well.
        if let Some(item) = follower.try_next() {
            return Ok(Some(item));
        }
        match follower.next(Some(Instant::now())) {
            Ok(item) => return Ok(item),
            Err(error) if !begun => log::warn!("a log cannot be read, and is tried again: {error}"),
            Err(_) => {}
        }
        begun = true;
        stream.flush()?;
        stream.pause(RETRY)?;
    }
}

/// `data:` with `value` as JSON.
pub(super) fn data(out: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// `data:` with a line. By hand, into the buffer that is sent: this is what most of the bytes go through.
pub(super) fn line(out: &mut Vec<u8>, line: &Line, with_stream: bool) -> io::Result<()> {
    out.extend_from_slice(b"data: {\"line\":");
    serde_json::to_writer(&mut *out, &line.text)?;
    out.extend_from_slice(b",\"timestamp\":");
    serde_json::to_writer(&mut *out, &line.timestamp)?;
    if with_stream {
        out.extend_from_slice(match line.stream {
            Source::Stdout => b",\"stream\":\"stdout\"",
            Source::Stderr => b",\"stream\":\"stderr\"",
        });
    }
    if line.partial {
        out.extend_from_slice(b",\"partial\":true");
    }
    out.extend_from_slice(b"}\n\n");
    Ok(())
}

#[derive(Serialize)]
struct Lost {
    lost_bytes: u64,
}

/// `event: gap` with how much was dropped before it was read here.
pub(super) fn gap(out: &mut Vec<u8>, lost_bytes: u64) -> io::Result<()> {
    out.extend_from_slice(b"event: gap\n");
    data(out, &Lost { lost_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let said = |text: &str, partial| Line { text: text.to_owned(), partial, timestamp: 7, stream: Source::Stderr };
        let mut out = Vec::new();
        line(&mut out, &said("a\"\\\r\u{1}\u{2028}é", false), true).unwrap();
        line(&mut out, &said("", true), false).unwrap();
        gap(&mut out, 5).unwrap();
        let right = concat!(
            r#"data: {"line":"a\"\\\r\u0001"#,
            "\u{2028}é",
            r#"","timestamp":7,"stream":"stderr"}"#,
            "\n\n",
            r#"data: {"line":"","timestamp":7,"partial":true}"#,
            "\n\nevent: gap\ndata: {\"lost_bytes\":5}\n\n",
        );
        assert_eq!(String::from_utf8(out).unwrap(), right);
    }
}
