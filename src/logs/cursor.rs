//! Cursors: positions between two items of a follower, and the `id:` of events.

use std::fmt;
use std::str::FromStr;

use super::record::PerStream;

/// The position after a line or a gap, with the data needed to split the same lines from there on. Its text, six
/// hexadecimal numbers separated by `-`, is the `id:` of an event.
///
/// A follower with a cursor that does not match the log, because it was made up or belongs to another log, begins at
/// the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The number that identifies the log.
    pub(super) log: u64,
    /// The start of the record to read from, as a number of bytes of records.
    pub(super) at: u64,
    /// Number of bytes of output before that record.
    pub(super) base: PerStream<u64>,
    /// Number of bytes of output before the next line or piece of a line. Not below `base`.
    pub(super) from: PerStream<u64>,
}

/// The text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct BadCursor;

impl Cursor {
    /// Appends its text. Each event has one, and the formatter of the standard library takes as long for it as the rest
    /// of the event takes.
    pub(crate) fn write_to(&self, text: &mut Vec<u8>) {
        let Cursor { log, at, base, from } = self;
        let (out, err) = (from.out.saturating_sub(base.out), from.err.saturating_sub(base.err));
        for (n, number) in [*log, *at, base.out, base.err, out, err].into_iter().enumerate() {
            if n > 0 {
                text.push(b'-');
            }
            let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
            let digit = |place: u32| char::from_digit((number >> (4 * place)) as u32 & 15, 16).unwrap_or('0') as u8;
            text.extend((0..digits).rev().map(digit));
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write_to(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Cursor, BadCursor> {
        let mut fields = text.split('-');
        let mut next = || {
            let field = fields.next().filter(|field| field.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(BadCursor)?;
            u64::from_str_radix(field, 16).map_err(|_| BadCursor)
        };
        let (log, at) = (next()?, next()?);
        let base = PerStream { out: next()?, err: next()? };
        let (out, err) = (base.out.checked_add(next()?), base.err.checked_add(next()?));
        let from = PerStream { out: out.ok_or(BadCursor)?, err: err.ok_or(BadCursor)? };
        if fields.next().is_some() {
            return Err(BadCursor);
        }
        Ok(Cursor { log, at, base, from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_parsed_from_its_text() {
        let cursor = Cursor {
            log: u64::MAX,
            at: 1 << 40,
            base: PerStream { out: 0, err: 77 },
            from: PerStream { out: u64::MAX, err: 78 },
        };
        let text = cursor.to_string();
        assert_eq!(text, "ffffffffffffffff-10000000000-0-4d-ffffffffffffffff-1");
        assert_eq!(text.parse(), Ok(cursor));
        for at in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, u64::MAX >> bit]) {
            let text = Cursor { at, ..cursor }.to_string();
            assert_eq!(text, format!("ffffffffffffffff-{at:x}-0-4d-ffffffffffffffff-1"));
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        let bad = [
            "",
            "-",
            "17",
            "1-2-3-4-5",
            "1-2-3-4-5-6-7",
            "1-2-3-4-5-6-",
            "1-2-3-4-5-g",
            "1-2-3-4-5- 6",
            "+1-2-3-4-5-6",
            "1-2-ffffffffffffffff-4-1-6",
            "10000000000000000-2-3-4-5-6",
            "1-2--3-4-5",
            "é-2-3-4-5-6",
        ];
        for text in bad {
            assert_eq!(text.parse::<Cursor>(), Err(BadCursor), "{text:?}");
        }
    }
}
