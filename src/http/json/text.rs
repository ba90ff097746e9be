//! A JSON string that is written piece by piece, so that no buffer holds a long one as a whole. An escape can make six
//! bytes of one.

use std::io;

use crate::logs::PIECE;

use crate::http::message::ResponseStream;

/// Writes a whole string, in bursts.
pub(crate) fn whole(stream: &mut ResponseStream<'_>, text: &str) -> io::Result<()> {
    if text.len() <= PIECE {
        return short(stream.buffer(), text);
    }
    begin(stream.buffer());
    let mut rest = text;
    while !rest.is_empty() {
        let (first, more) = split(rest);
        piece(stream.buffer(), first)?;
        rest = more;
        if stream.is_burst() {
            stream.flush()?;
        }
    }
    end(stream.buffer());
    Ok(())
}

/// Appends a whole string. Most lines contain nothing to escape, and are copied.
pub(crate) fn short(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    if needs_escape(text.as_bytes()) {
        return Ok(serde_json::to_writer(out, text)?);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

/// Whether a JSON string with these bytes contains an escape: for a control character, a quote or a backslash.
///
/// Compares eight bytes at once, because every line of output passes through here, and this crate is compiled for size.
fn needs_escape(bytes: &[u8]) -> bool {
    const fn eight(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // Sets the highest bit of a byte that is less than `limit` (at most 128). Above such a byte, others may have it set
    // as well, so the result only tells whether there is one.
    let less = |word: u64, limit: u8| word.wrapping_sub(eight(limit)) & !word;
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    let found = words.filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes)).any(|word| {
        let any = less(word, b' ') | less(word ^ eight(b'"'), 1) | less(word ^ eight(b'\\'), 1);
        any & eight(0x80) != 0
    });
    found || rest.iter().any(|byte| *byte < b' ' || *byte == b'"' || *byte == b'\\')
}

/// Appends the opening quote.
pub(crate) fn begin(out: &mut Vec<u8>) {
    out.push(b'"');
}

/// Appends a piece of the string.
pub(crate) fn piece(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    let at = out.len();
    serde_json::to_writer(&mut *out, text)?;
    // The quotes that serde_json adds are removed: the closing one, then the opening one.
    out.pop();
    out.copy_within(at + 1.., at);
    out.pop();
    Ok(())
}

/// Appends the closing quote.
pub(crate) fn end(out: &mut Vec<u8>) {
    out.push(b'"');
}

/// Splits the text after about [`PIECE`] bytes, between two characters.
pub(crate) fn split(text: &str) -> (&str, &str) {
    let at = (PIECE..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.split_at_checked(at).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_string_is_escaped_as_serde_json_does() {
        for character in (0..=0x2100).filter_map(char::from_u32) {
            for text in [format!("{character}"), format!("{}{character}{}", "x".repeat(40), "y".repeat(40))] {
                let mut out = b"before".to_vec();
                short(&mut out, &text).unwrap();
                assert_eq!(out, [b"before", &*serde_json::to_vec(&text).unwrap()].concat());
            }
        }
    }

    #[test]
    fn an_escape_is_found_at_every_place() {
        for byte in 0..=u8::MAX {
            let expected = byte < b' ' || byte == b'"' || byte == b'\\';
            for (length, at) in (1..20).flat_map(|length| (0..length).map(move |at| (length, at))) {
                for filler in [b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xff] {
                    let mut bytes = vec![filler; length];
                    bytes[at] = byte;
                    assert_eq!(needs_escape(&bytes), expected, "{byte} at {at} of {length} between {filler}");
                }
            }
        }
    }

    #[test]
    fn pieces_make_the_whole_string() {
        let text = "a\"\\\r\u{1}\u{2028}é\u{fffd}😀".repeat(2000);
        let (mut out, mut rest) = (Vec::new(), text.as_str());
        begin(&mut out);
        while !rest.is_empty() {
            let (first, more) = split(rest);
            assert!(!first.is_empty() && first.len() < PIECE + 4);
            piece(&mut out, first).unwrap();
            rest = more;
        }
        end(&mut out);
        assert_eq!(out, serde_json::to_vec(&text).unwrap());
        assert_eq!(split("x"), ("x", ""));
        // As at the beginning of a burst whose body is not sent in chunks.
        let mut out = Vec::new();
        piece(&mut out, "a\"").unwrap();
        assert_eq!(out, br#"a\""#);
    }
}
