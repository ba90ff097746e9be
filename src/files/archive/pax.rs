//! The records of a pax extended header: `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record (POSIX pax(1)).
//!
//! The crate `tar` splits them at newlines, but a value, such as a path, can contain one.

use super::entry::Time;

/// Appends a record.
pub(super) fn append(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    // A space, `=` and a newline.
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    // The length counts its own digits.
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// The records of a header, as key and value. None in place of the first one that is malformed, which is the last.
pub(super) fn records(mut rest: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((key, value, after)) = record(rest) else {
            rest = &[];
            return Some(None);
        };
        rest = after;
        Some(Some((key, value)))
    })
}

/// The key and the value of the first record, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = memchr::memchr(b' ', bytes.get(..20).unwrap_or(bytes))?;
    let length: usize = number(bytes.get(..space)?)?;
    let (record, after) = bytes.split_at_checked(length)?;
    let content = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = memchr::memchr(b'=', content)?;
    Some((content.get(..equals)?, content.get(equals + 1..)?, after))
}

/// A decimal number without a sign.
pub(super) fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Parses a time: seconds since the epoch, which can be negative and have a fraction. Digits after the ninth of the
/// fraction are ignored.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    let whole: u64 = number(whole)?;
    let digits: Vec<u8> = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
    let nanoseconds: u32 = number(&digits)?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds: i64::try_from(whole).ok()?, nanoseconds },
        (true, 0) => Time { seconds: 0_i64.checked_sub_unsigned(whole)?, nanoseconds },
        // Nanoseconds count forward from the second before.
        (true, _) => {
            let seconds = 0_i64.checked_sub_unsigned(whole)?.checked_sub(1)?;
            Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds }
        }
    })
}

/// The text of a time.
pub(super) fn time_text(time: Time) -> String {
    let (sign, seconds, nanoseconds) = match time {
        Time { seconds, nanoseconds: 0 } if seconds < 0 => ("-", seconds.unsigned_abs(), 0),
        Time { seconds, nanoseconds } if seconds < 0 => {
            ("-", seconds.saturating_add(1).unsigned_abs(), 1_000_000_000_u32.saturating_sub(nanoseconds))
        }
        Time { seconds, nanoseconds } => ("", seconds.unsigned_abs(), nanoseconds),
    };
    match nanoseconds {
        0 => format!("{sign}{seconds}"),
        _ => format!("{sign}{seconds}.{nanoseconds:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        let record = |key: &str, value: &[u8]| {
            let mut out = Vec::new();
            append(&mut out, key, value);
            out
        };
        assert_eq!(record("path", b"a"), b"9 path=a\n");
        assert_eq!(record("path", b"ab"), b"11 path=ab\n");
        assert_eq!(record("p", b"a"), b"6 p=a\n");
        for length in 0..1200 {
            let value = vec![b'x'; length];
            let written = record("path", &value);
            let counted: usize = std::str::from_utf8(&written[..]).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(counted, written.len());
            assert_eq!(records(&written).collect::<Vec<_>>(), [Some((&b"path"[..], &value[..]))]);
        }
    }

    #[test]
    fn values_may_contain_any_bytes() {
        let mut out = Vec::new();
        let values = [&b"a\nb"[..], b"\xff=\0", b"", b"10 path=x\n"];
        values.iter().for_each(|value| append(&mut out, "path", value));
        let read: Vec<_> = records(&out).map(|record| record.unwrap().1).collect();
        assert_eq!(read, values);
    }

    #[test]
    fn a_malformed_record_is_the_last() {
        for text in [
            "x",
            "5 a=b\n",
            "6 a=b\nx",
            "7 a=b\n",
            "6 a_b\n",
            " a=b\n",
            "-6 a=b\n",
            "6 a=bx",
            "99999999999999999999999 a=b\n",
        ] {
            assert_eq!(records(text.as_bytes()).last(), Some(None), "{text:?}");
        }
        assert_eq!(records(b"").count(), 0);
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.25", -1, 750_000_000),
            ("1234567890.123456789", 1_234_567_890, 123_456_789),
            ("-9223372036854775808", i64::MIN, 0),
        ] {
            let right = Time { seconds, nanoseconds };
            assert_eq!(time(text.as_bytes()), Some(right), "{text}");
            assert_eq!(time(time_text(right).as_bytes()), Some(right), "{text}");
        }
        assert_eq!(time(b"1.1234567899").unwrap().nanoseconds, 123_456_789);
        for text in ["", "x", "1.x", "+1", "--1", "1e3", ".", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }
}
