//! The head of a response from a sandbox, and how its body is framed. Pure.

use crate::proxy::head::is_listed;

/// Maximum number of headers of a response.
const MAX_HEADERS: usize = 256;

/// Number of headers that are parsed without an allocation.
const FEW_HEADERS: usize = 32;

/// Headers that are about one connection, or that the server sets itself.
const NOT_PASSED_ON: [&str; 9] = [
    "Connection",
    "Content-Length",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// How the end of the body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerFraming {
    /// There is no body.
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// The head of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The headers to pass on, in their order.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) framing: AnswerFraming,
    /// The value of `Content-Length`, which a response to HEAD has without a body.
    pub(crate) announced: Option<u64>,
    /// Whether the connection can be used for another request after the body.
    pub(crate) keeps_open: bool,
    /// The protocol that the connection changes to, of a 101.
    pub(crate) protocol: Option<String>,
}

/// The request that a response is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) is_head: bool,
    /// It asks for another protocol.
    pub(crate) upgrade: bool,
}

/// Parses the head of the final response at the beginning of `bytes`, after any interim ones. Returns it with the number
/// of bytes up to its end, or None while it is incomplete.
///
/// # Errors
/// What is wrong with the response.
pub(crate) fn parse(bytes: &[u8], asked: Asked) -> Result<Option<(Answer, usize)>, String> {
    let mut skipped = 0;
    while let Some((answer, length)) = parse_one(bytes.get(skipped..).unwrap_or_default(), asked)? {
        skipped += length;
        match answer.status {
            101 if asked.upgrade && answer.protocol.is_some() => return Ok(Some((answer, skipped))),
            101 => return Err("it changes to a protocol that was not asked for".to_owned()),
            // The proxy itself has answered `Expect: 100-continue`; others are hints.
            100..=199 => {}
            200..=999 => return Ok(Some((answer, skipped))),
            status => return Err(format!("{status} is not the status of a response")),
        }
    }
    Ok(None)
}

fn parse_one(bytes: &[u8], asked: Asked) -> Result<Option<(Answer, usize)>, String> {
    let mut few = [httparse::EMPTY_HEADER; FEW_HEADERS];
    match parse_with(bytes, &mut few, asked) {
        Err(Malformed::TooManyHeaders) => {}
        result => return result.map_err(|error| error.to_string()),
    }
    let mut many = vec![httparse::EMPTY_HEADER; MAX_HEADERS];
    parse_with(bytes, &mut many, asked).map_err(|error| error.to_string())
}

/// What is wrong with a response.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    /// More than there is room for.
    #[error("it has too many headers")]
    TooManyHeaders,
    /// The bytes are not HTTP.
    #[error("it is not HTTP/1: {0}")]
    NotHttp(httparse::Error),
    /// Two readers could find two ends of the body.
    #[error("the length of its body is uncertain: {0}")]
    Framing(&'static str),
}

fn parse_with<'b>(
    bytes: &'b [u8],
    headers: &mut [httparse::Header<'b>],
    asked: Asked,
) -> Result<Option<(Answer, usize)>, Malformed> {
    let mut response = httparse::Response::new(headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooManyHeaders),
        Err(error) => return Err(Malformed::NotHttp(error)),
    };
    let status = response.code.unwrap_or_default();
    let headers = Headers(response.headers);
    let announced = headers.length()?;
    let framing = headers.framing(status, announced, asked)?;
    let keeps_open = response.version == Some(1) && !is_listed(headers.all("Connection"), "close");
    let protocol = headers.all("Upgrade").next().map(|value| String::from_utf8_lossy(value).into_owned());
    let passed_on = response.headers.iter().filter(|header| headers.is_passed_on(header.name, status));
    let headers = passed_on.map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
    Ok(Some((Answer { status, headers, framing, announced, keeps_open, protocol }, length)))
}

struct Headers<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'h> Headers<'h, '_> {
    fn all(&self, name: &'h str) -> impl Iterator<Item = &'h [u8]> + use<'h> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    fn length(&self) -> Result<Option<u64>, Malformed> {
        let mut lengths = self.all("Content-Length");
        let Some(first) = lengths.next() else { return Ok(None) };
        if lengths.any(|other| other != first) {
            return Err(Malformed::Framing("`Content-Length` has two different values"));
        }
        let digits = std::str::from_utf8(first).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse().ok());
        length.map(Some).ok_or(Malformed::Framing("`Content-Length` is not a number"))
    }

    fn framing(&self, status: u16, announced: Option<u64>, asked: Asked) -> Result<AnswerFraming, Malformed> {
        if asked.is_head || matches!(status, 100..=199 | 204 | 304) {
            return Ok(AnswerFraming::None);
        }
        let mut codings = self.all("Transfer-Encoding");
        match (codings.next(), announced) {
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(AnswerFraming::Chunked)
            }
            (Some(_), None) => Err(Malformed::Framing("`Transfer-Encoding` is not `chunked`")),
            (Some(_), Some(_)) => Err(Malformed::Framing("it has both `Content-Length` and `Transfer-Encoding`")),
            (None, Some(0)) => Ok(AnswerFraming::None),
            (None, Some(length)) => Ok(AnswerFraming::Length(length)),
            (None, None) => Ok(AnswerFraming::Close),
        }
    }

    fn is_passed_on(&self, name: &str, status: u16) -> bool {
        // A 426 says which protocol to ask for.
        if status == 426 && name.eq_ignore_ascii_case("Upgrade") {
            return true;
        }
        let is_of_connection =
            is_listed(self.0.iter().filter(|h| h.name.eq_ignore_ascii_case("Connection")).map(|h| h.value), name);
        !is_of_connection && !NOT_PASSED_ON.iter().any(|other| other.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Asked = Asked { is_head: false, upgrade: false };
    const HEAD: Asked = Asked { is_head: true, upgrade: false };
    const UPGRADE: Asked = Asked { is_head: false, upgrade: true };

    fn answer(text: &str, asked: Asked) -> Answer {
        let (answer, length) = parse(text.as_bytes(), asked).unwrap().unwrap();
        assert_eq!(length, text.len(), "{text:?}");
        for short in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..short], asked), Ok(None), "{short} bytes of {text:?}");
        }
        answer
    }

    fn framing(head: &str, asked: Asked) -> AnswerFraming {
        answer(&format!("{head}\r\n\r\n"), asked).framing
    }

    #[test]
    fn the_framing_of_a_body_is_found() {
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5", GET), AnswerFraming::Length(5));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5", GET), AnswerFraming::Length(5));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 0", GET), AnswerFraming::None);
        assert_eq!(framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", GET), AnswerFraming::Chunked);
        assert_eq!(framing("HTTP/1.0 200 OK", GET), AnswerFraming::Close);
        assert_eq!(framing("HTTP/1.1 200", GET), AnswerFraming::Close);
        for none in ["204 No Content", "304 Not Modified\r\nContent-Length: 9"] {
            assert_eq!(framing(&format!("HTTP/1.1 {none}"), GET), AnswerFraming::None);
        }
        let head = answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", HEAD);
        assert_eq!((head.framing, head.announced), (AnswerFraming::None, Some(5)));
    }

    #[test]
    fn garbage_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 000 OK\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "\0\0\0\0",
        ] {
            assert!(parse(text.as_bytes(), GET).is_err(), "{text:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(parse(many.as_bytes(), GET).unwrap_err().contains("headers"));
        let some = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS));
        assert_eq!(answer(&some, GET).headers.len(), MAX_HEADERS);
    }

    #[test]
    fn interim_responses_are_skipped() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 201 Created\r\nA: b\r\n\r\n";
        let answer = answer(text, GET);
        assert_eq!((answer.status, answer.headers), (201, vec![("A".to_owned(), b"b".to_vec())]));
    }

    #[test]
    fn headers_of_the_connection_are_left_out() {
        let text = "HTTP/1.1 200 OK\r\nConnection: X-A, keep-alive\r\nX-A: 1\r\nKeep-Alive: 5\r\nTrailer: x\r\nUpgrade: h2c\r\n\
                    Set-Cookie: a\r\nSet-Cookie: b\r\nX: é\r\nContent-Length: 0\r\n\r\n";
        let answer = answer(text, GET);
        let names: Vec<&str> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Set-Cookie", "Set-Cookie", "X"]);
        assert!(answer.keeps_open);
    }

    #[test]
    fn a_connection_is_kept_only_if_the_response_allows_it() {
        assert!(answer("HTTP/1.1 204 x\r\n\r\n", GET).keeps_open);
        assert!(!answer("HTTP/1.1 204 x\r\nConnection: Close\r\n\r\n", GET).keeps_open);
        assert!(!answer("HTTP/1.0 204 x\r\nConnection: keep-alive\r\n\r\n", GET).keeps_open);
    }

    #[test]
    fn an_upgrade_names_its_protocol() {
        let text = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x=\r\n\r\n";
        let answer = answer(text, UPGRADE);
        assert_eq!((answer.protocol.as_deref(), answer.headers.len()), (Some("websocket"), 1));
        assert!(parse(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UPGRADE).is_err());
        let required = parse(b"HTTP/1.1 426 x\r\nUpgrade: websocket\r\n\r\n", GET).unwrap().unwrap().0;
        assert_eq!(required.headers, [("Upgrade".to_owned(), b"websocket".to_vec())]);
    }
}
