//! The header `Range` of a request (RFC 9110, section 14.2): one range of bytes.
//!
//! Several ranges, other units and malformed values are ignored, as a server may and must: the response is then the
//! whole content.

use std::ops;

/// A range of bytes of a content whose length is not yet known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// From the first position to the last one, inclusive; without a last one, to the end.
    From(u64, Option<u64>),
    /// This many bytes at the end.
    Last(u64),
}

impl Range {
    /// Parses the value of the header. None if it must be ignored.
    pub(crate) fn parse(value: &str) -> Option<Range> {
        let (unit, range) = value.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => position(last).map(Range::Last),
            (first, "") => position(first).map(|first| Range::From(first, None)),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Range::From(first, Some(last)))
            }
        }
    }

    /// The positions in a content of this length. None if it has no byte in the range.
    pub(crate) fn within(self, length: u64) -> Option<ops::Range<u64>> {
        let range = match self {
            Range::From(first, last) => first..last.map_or(length, |last| length.min(last.saturating_add(1))),
            Range::Last(count) => length.saturating_sub(count)..length,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Parses decimal digits. A number above `u64::MAX` becomes `u64::MAX`.
fn position(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ten_bytes() {
        for (value, right) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-5", Some(2..6)),
            ("bytes=2-", Some(2..10)),
            ("bytes=9-", Some(9..10)),
            ("bytes=0-9", Some(0..10)),
            ("bytes=0-10", Some(0..10)),
            ("bytes=0-99999999999999999999999", Some(0..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-10", Some(0..10)),
            ("bytes=-11", Some(0..10)),
            ("bytes=-99999999999999999999999", Some(0..10)),
            ("Bytes= 1-2 ", Some(1..3)),
            ("bytes=001-002", Some(1..3)),
            ("bytes=10-", None),
            ("bytes=10-20", None),
            ("bytes=-0", None),
            ("bytes=18446744073709551615-", None),
            ("bytes=99999999999999999999999-", None),
        ] {
            assert_eq!(Range::parse(value).unwrap().within(10), right, "{value}");
        }
    }

    #[test]
    fn no_range_of_an_empty_content_is_satisfiable() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            assert_eq!(Range::parse(value).unwrap().within(0), None, "{value}");
        }
    }

    #[test]
    fn other_values_are_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=1",
            "bytes=5-2",
            "bytes=0-1,4-5",
            "bytes=0-1,",
            "bytes=,0-1",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes=--1",
            "bytes=-1-2",
            "bytes=0x1-2",
            "lines=0-1",
            "0-1",
            "bytes 0-1",
        ] {
            assert_eq!(Range::parse(value), None, "{value}");
        }
    }
}
