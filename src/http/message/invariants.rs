//! What must hold for every request head and for every chunked body (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use crate::fuzzing::Choices;
use crate::http::message::chunked::Decoder;
use crate::http::message::request_head::{BodyFraming, RequestHead, parse};

/// A head is parsed alike however many bytes follow it, and never before its end. What was parsed, printed again, is
/// parsed to the same. A body whose end another reader might find elsewhere is refused.
pub(crate) fn request_head(input: &[u8]) {
    let (head, length) = match parse(input) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return,
        Err(error) => {
            assert!(matches!(error.status(), 400 | 431) && error.ends_connection(), "{error:?}");
            assert!(error.to_string().len() < 200 + 10 * input.len(), "{error:?}");
            assert!(parse(&[input, b"\r\n\r\n"].concat()).is_err(), "more bytes make it valid");
            return;
        }
    };
    assert!(length <= input.len());
    let own = &input[..length];
    for end in (0..length).rev().take(64) {
        assert!(matches!(parse(&own[..end]), Ok(None)), "complete or refused after {end} of {length} bytes");
    }
    for after in [&b""[..], b"x", b"\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let (again, same) = parse(&[own, after].concat()).unwrap().unwrap();
        assert_eq!(same, length);
        assert_same(&again, &head);
    }
    check_target(&head);
    let (again, _) = parse(&printed(&head)).unwrap().unwrap();
    assert_same(&again, &head);
    check_framing(own, &head);
    for (name, _) in head.headers() {
        check_list(&head, name);
    }
}

fn assert_same(one: &RequestHead, other: &RequestHead) {
    assert_eq!((&one.method, &one.path, &one.query), (&other.method, &other.path, &other.query));
    assert_eq!(one.is_http_1_0, other.is_http_1_0);
    assert!(one.headers().eq(other.headers()));
    assert_eq!(one.framing().ok(), other.framing().ok());
    assert_eq!((one.keeps_alive(), one.expects_continue()), (other.keeps_alive(), other.expects_continue()));
}

fn check_target(head: &RequestHead) {
    let RequestHead { path, query, .. } = head;
    assert!(path.is_empty() || path.starts_with('/'), "{path:?}");
    assert!(!path.contains(['?', '#']) && !query.contains('#'), "{path:?} {query:?}");
    for text in [path, query] {
        assert!(!text.contains(|letter: char| letter.is_ascii_control() || letter == ' '), "{text:?}");
    }
}

fn printed(head: &RequestHead) -> Vec<u8> {
    let RequestHead { method, path, query, is_http_1_0, .. } = head;
    let origin = if path.is_empty() { "http://x" } else { "" };
    let mark = if query.is_empty() && !path.is_empty() { "" } else { "?" };
    let mut text = format!("{method} {origin}{path}{mark}{query} HTTP/1.{}\r\n", u8::from(!is_http_1_0)).into_bytes();
    for (name, value) in head.headers() {
        text.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    text.extend(b"\r\n");
    text
}

/// The framing is refused, or every other reader finds the same: `seen` is what the most lenient one sees.
fn check_framing(own: &[u8], head: &RequestHead) {
    let lines = own.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty()).skip(1);
    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    for line in lines {
        assert!(!line.starts_with(b" ") && !line.starts_with(b"\t"), "a folded line");
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let is_filler = |byte: &u8| byte.is_ascii_whitespace() || byte.is_ascii_control();
        let name: Vec<u8> = line[..at].iter().copied().filter(|byte| !is_filler(byte)).collect();
        let value = line.get(at + 1..).unwrap_or_default().trim_ascii();
        seen.push((String::from_utf8_lossy(&name).to_ascii_lowercase(), value.to_vec()));
    }
    let all = |name: &str| -> Vec<_> { seen.iter().filter(|(seen, _)| seen == name).map(|(_, value)| value).collect() };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match head.framing() {
        Err(error) => assert!(error.status() == 400 && error.ends_connection(), "{error:?}"),
        Ok(BodyFraming::None) => assert!(lengths.is_empty() && codings.is_empty(), "{seen:?}"),
        Ok(BodyFraming::Length(length)) => {
            assert!(codings.is_empty() && !lengths.is_empty(), "{seen:?}");
            for value in &lengths {
                let digits = std::str::from_utf8(value).unwrap().trim_start_matches('0');
                assert_eq!(if digits.is_empty() { "0" } else { digits }, length.to_string(), "{seen:?}");
            }
        }
        Ok(BodyFraming::Chunked) => {
            assert!(lengths.is_empty() && codings.len() == 1 && !head.is_http_1_0, "{seen:?}");
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"), "{seen:?}");
        }
    }
}

fn check_list(head: &RequestHead, name: &str) {
    let list = head.list(name).unwrap();
    for element in &list {
        assert!(!element.is_empty() && !element.contains(','), "{element:?}");
        let bare = element.split(';').next().unwrap().trim_ascii();
        assert!(element.contains('\u{FFFD}') || head.lists(name, bare), "{element:?}");
    }
    assert!(head.header(name).is_some() && head.all(name).next().is_some());
}

/// A chunked body is decoded alike however its bytes arrive and whatever room there is for them, as a simple decoder of
/// the whole body does it. What follows the body is left.
pub(crate) fn chunked_body(input: &[u8]) {
    let mut choices = Choices(input);
    let plan = choices.bytes(16).to_vec();
    let room = 1 + choices.below(9);
    if choices.below(4) > 0 {
        let body = choices.0;
        assert_eq!(decode_in_pieces(&Choices::pieces(&plan, body, 40), room), decode_whole(body), "{plan:?} {room}");
        return;
    }
    // The other way: what was encoded is what is decoded.
    let (mut body, mut sent) = (Vec::new(), Vec::new());
    for piece in Choices::pieces(&plan, choices.0, 40) {
        let extension = ["", ";a=b", " ;a", "\t"][piece.len() % 4];
        body.extend(format!("{:0width$x}{extension}\r\n", piece.len(), width = 1 + piece.len() % 3).into_bytes());
        body.extend([piece, b"\r\n"].concat());
        sent.extend_from_slice(piece);
    }
    body.extend(b"0\r\nA: b\r\n\r\n");
    let length = body.len();
    body.extend_from_slice(input);
    let expected = Decoded { text: sent, end: End::Done { taken: length } };
    for most in [1, 7, 200] {
        assert_eq!(decode_in_pieces(&Choices::pieces(&plan, &body, most), room), expected);
    }
    assert_eq!(decode_whole(&body), expected);
}

/// The result of decoding a body. The text before an error is not compared.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    text: Vec<u8>,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// This many bytes were the body.
    Done {
        taken: usize,
    },
    /// More bytes must follow.
    Incomplete,
    Malformed,
}

const MALFORMED: Decoded = Decoded { text: Vec::new(), end: End::Malformed };

fn decode_in_pieces(pieces: &[&[u8]], room: usize) -> Decoded {
    let (mut decoder, mut text, mut total) = (Decoder::new(), Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let mut out = vec![0; room];
            let Ok((taken, given)) = decoder.decode(rest, &mut out) else { return MALFORMED };
            assert!(taken <= rest.len() && given <= room && given <= taken);
            text.extend_from_slice(&out[..given]);
            (rest, total) = (&rest[taken..], total + taken);
            if decoder.is_done() {
                return Decoded { text, end: End::Done { taken: total } };
            }
            assert!(taken > 0, "no progress");
        }
    }
    assert_eq!(total, pieces.iter().map(|piece| piece.len()).sum::<usize>(), "all bytes are taken");
    Decoded { text, end: End::Incomplete }
}

/// Decodes a body that is in memory as a whole, as RFC 9112, section 7.1 defines it.
fn decode_whole(body: &[u8]) -> Decoded {
    let (mut text, mut rest) = (Vec::new(), body);
    loop {
        match chunk(&mut rest, &mut text) {
            Ok(true) => {}
            Ok(false) => return Decoded { text, end: End::Done { taken: body.len() - rest.len() } },
            Err(End::Malformed) => return MALFORMED,
            Err(end) => return Decoded { text, end },
        }
    }
}

/// Decodes one chunk. Returns false after the last one and the trailer.
fn chunk(rest: &mut &[u8], text: &mut Vec<u8>) -> Result<bool, End> {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > 15 && rest.len() > 16 {
        return Err(End::Malformed);
    }
    let after = *rest.get(digits).ok_or(End::Incomplete)?;
    let size = usize::from_str_radix(std::str::from_utf8(&rest[..digits]).unwrap(), 16).map_err(|_| End::Malformed)?;
    if !matches!(after, b'\r' | b';' | b' ' | b'\t') {
        return Err(End::Malformed);
    }
    *rest = &rest[digits..];
    line(rest, 256)?;
    if size == 0 {
        let mut total = 0;
        loop {
            match line(rest, (8 << 10) - total)? {
                0 => return Ok(false),
                length => total += length,
            }
        }
    }
    let here = size.min(rest.len());
    text.extend_from_slice(&rest[..here]);
    *rest = &rest[here..];
    for expected in b"\r\n" {
        match rest.split_first() {
            None => return Err(End::Incomplete),
            Some((byte, after)) if byte == expected => *rest = after,
            Some(_) => return Err(End::Malformed),
        }
    }
    Ok(true)
}

/// Takes a line with its CRLF. Returns its length without them, which is at most `most`.
fn line(rest: &mut &[u8], most: usize) -> Result<usize, End> {
    let length = rest.iter().take_while(|byte| !matches!(byte, b'\r' | b'\n')).count();
    if length > most {
        return Err(End::Malformed);
    }
    match (rest.get(length), rest.get(length + 1)) {
        (None, _) | (Some(b'\r'), None) => Err(End::Incomplete),
        (Some(b'\r'), Some(b'\n')) => {
            *rest = &rest[length + 2..];
            Ok(length)
        }
        _ => Err(End::Malformed),
    }
}
