//! Parses the status line of an HTTP response, and nothing after it.
//!
//! A parser of whole heads would wait for the end of the headers, which may never come.

/// Maximum length of a status line in bytes, including its end.
pub(crate) const MAX: usize = 1024;

/// The result of [`read`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The beginning of a status line.
    Incomplete,
    /// A status line with this status.
    Status(u16),
    /// Not the beginning of a status line.
    Garbage,
    /// A line without an end within [`MAX`] bytes.
    TooLong,
}

/// Parses the bytes of a response that have been received so far.
///
/// The grammar is that of RFC 9112, section 4. As some servers do, a response may omit the `\r`, and the space after
/// the status if no reason follows.
pub(crate) fn read(bytes: &[u8]) -> Reading {
    const VERSION: &[u8] = b"HTTP/1.";
    // Garbage is detected at its first byte, without reading to the end of a line.
    if bytes.iter().zip(VERSION).any(|(got, want)| got != want) {
        return Reading::Garbage;
    }
    let Some((line, _)) = bytes.split_at_checked(MAX).or(Some((bytes, &[]))) else { return Reading::Incomplete };
    let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
        return if line.len() == MAX { Reading::TooLong } else { Reading::Incomplete };
    };
    let line = line.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.strip_prefix(VERSION) {
        Some([b'0' | b'1', b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..])
            if is_reason(reason) =>
        {
            let digit = |byte: &u8| u16::from(byte - b'0');
            Reading::Status(digit(a) * 100 + digit(b) * 10 + digit(c))
        }
        _ => Reading::Garbage,
    }
}

/// Whether the text after the status is empty, or a space and characters that are not control characters.
fn is_reason(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b' ', reason @ ..] => reason.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_parsed_and_their_prefixes_are_incomplete() {
        for (line, want) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], 200),
            (b"HTTP/1.0 204 No Content\r\nServer: x\r\n\r\nbody", 204),
            (b"HTTP/1.1 200 \r\n", 200),
            (b"HTTP/1.1 200\r\n", 200),
            (b"HTTP/1.1 200\n", 200),
            (b"HTTP/1.1 301 caf\xc3\xa9\t\xff\n\0\0", 301),
            (b"HTTP/1.1 100 Continue\r\n", 100),
            (b"HTTP/1.1 999 ?\r\n", 999),
        ] {
            assert_eq!(read(line), Reading::Status(want), "{:?}", String::from_utf8_lossy(line));
            let end = line.iter().position(|&byte| byte == b'\n').unwrap();
            for cut in 0..=end {
                assert_eq!(read(&line[..cut]), Reading::Incomplete, "{:?}", String::from_utf8_lossy(&line[..cut]));
            }
        }
    }

    #[test]
    fn anything_else_is_garbage() {
        for line in [
            &b"\n"[..],
            b"\r\nHTTP/1.1 200 OK\r\n",
            b" HTTP/1.1 200 OK\r\n",
            b"S",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"http/1.1 200 OK\r\n",
            b"HTTP/2 200 OK\r\n",
            b"HTTP/2.0",
            b"HTTP/0.9 200 OK\r\n",
            b"ICY 200 OK\r\n",
            b"HTTP/1.2 200 OK\r\n",
            b"HTTP/1.11 200 OK\r\n",
            b"HTTP/1.1  200 OK\r\n",
            b"HTTP/1.1\t200 OK\r\n",
            b"HTTP/1.1 20\r\n",
            b"HTTP/1.1 2000 OK\r\n",
            b"HTTP/1.1 020 OK\r\n",
            b"HTTP/1.1 +20 OK\r\n",
            b"HTTP/1.1 20x OK\r\n",
            b"HTTP/1.1 200OK\r\n",
            b"HTTP/1.1 200 O\0K\r\n",
            b"HTTP/1.1 200 O\rK\r\n",
            b"HTTP/1.1 200\r\r\n",
            b"HTTP/1.1 \r\n",
            b"HTTP/1.1\r\n",
            b"HTTP/1.\n",
        ] {
            assert_eq!(read(line), Reading::Garbage, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_line_without_an_end_is_too_long_at_the_maximum_length() {
        let line = |len: usize| [&b"HTTP/1.1 200 "[..], &vec![b'x'; len - 13]].concat();
        assert_eq!(read(&line(MAX - 1)), Reading::Incomplete);
        assert_eq!(read(&line(MAX)), Reading::TooLong);
        assert_eq!(read(&[line(MAX), b"\n".to_vec()].concat()), Reading::TooLong);
        assert_eq!(read(&[line(MAX - 1), b"\n".to_vec()].concat()), Reading::Status(200));
    }
}
