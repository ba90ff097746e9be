//! The head of a request, and how its body is framed.
//!
//! Strict where two readers could disagree about where a request ends (RFC 9112, sections 6.3 and 11.2). Lenient
//! elsewhere: any `Host`, absolute targets and blank lines before a request are accepted.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use tiny_http::Method;

use crate::http::message::error::ApiError;

/// Number of headers that are parsed without an allocation.
const FEW_HEADERS: usize = 48;

/// Maximum number of headers.
const MAX_HEADERS: usize = 2048;

/// A request without its body.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// The method.
    pub(crate) method: Method,
    /// The path, percent-encoded.
    pub(crate) path: String,
    /// The query: what follows the `?`, or nothing.
    pub(crate) query: String,
    /// The target has a `?`, though perhaps nothing after it.
    has_query: bool,
    /// The request is HTTP/1.0, which has neither chunks nor persistent connections.
    pub(crate) is_http_1_0: bool,
    headers: Vec<(String, Vec<u8>)>,
}

/// How the end of a request body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// There is no body.
    None,
    /// The body has this many bytes.
    Length(u64),
    /// The body ends with its last chunk.
    Chunked,
}

/// Parses the head at the start of `bytes`. Returns it with its length in bytes, or None while it is incomplete.
///
/// # Errors
/// 400 if the bytes are not HTTP/1, 431 if there are too many headers.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>, ApiError> {
    let mut few = [httparse::EMPTY_HEADER; FEW_HEADERS];
    match parse_with(bytes, &mut few) {
        Err(httparse::Error::TooManyHeaders) => {}
        result => return result.map_err(|error| not_http(error, bytes))?.transpose(),
    }
    let mut many = vec![httparse::EMPTY_HEADER; MAX_HEADERS];
    parse_with(bytes, &mut many).map_err(|error| not_http(error, bytes))?.transpose()
}

type Parsed = Option<Result<(RequestHead, usize), ApiError>>;

fn parse_with<'b>(bytes: &'b [u8], headers: &mut [httparse::Header<'b>]) -> Result<Parsed, httparse::Error> {
    let mut request = httparse::Request::new(headers);
    let httparse::Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
    let head = split_target(request.path.unwrap_or_default()).map(|(path, query)| RequestHead {
        method: method(request.method.unwrap_or_default()),
        path: path.to_owned(),
        query: query.unwrap_or_default().to_owned(),
        has_query: query.is_some(),
        is_http_1_0: request.version == Some(0),
        headers: request.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
    });
    Ok(Some(head.map(|head| (head, length))))
}

/// The method with this name. The parser accepts only tokens, and tiny_http can represent every token.
fn method(name: &str) -> Method {
    name.parse().unwrap_or(Method::Trace)
}

fn not_http(error: httparse::Error, bytes: &[u8]) -> ApiError {
    match error {
        httparse::Error::TooManyHeaders => ApiError::head_too_large(&format!("have at most {MAX_HEADERS} headers")),
        httparse::Error::Version => ApiError::malformed("the HTTP version must be 1.0 or 1.1"),
        httparse::Error::HeaderValue => {
            let sentence = match header_with_control_character(bytes) {
                Some(name) => format!("`{name}`: the value of the header has a control character"),
                None => "the value of a header has a control character".to_owned(),
            };
            ApiError::malformed(sentence)
        }
        error => ApiError::malformed(format!("this is not an HTTP/1 request: {error}")),
    }
}

/// The name of the first header whose value has a control character that a value must not have (RFC 9110, section 5.5).
fn header_with_control_character(head: &[u8]) -> Option<&str> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        let is_invalid = value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
        std::str::from_utf8(name).ok().filter(|_| is_invalid)
    })
}

/// Path and query of a target in origin form or absolute form (RFC 9112, section 3.2).
fn split_target(target: &str) -> Result<(&str, Option<&str>), ApiError> {
    let origin = match target.split_once("://") {
        _ if target.starts_with('/') => target,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => {
            let message = format!("the request target must be a path that begins with `/`, not {target:?}");
            return Err(ApiError::malformed(message));
        }
    };
    let origin = origin.split('#').next().unwrap_or_default();
    Ok(origin.split_once('?').map_or((origin, None), |(path, query)| (path, Some(query))))
}

impl RequestHead {
    /// All headers, in the order in which they were sent.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The first header with this name. Bytes that are not UTF-8 are replaced.
    pub(crate) fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| String::from_utf8_lossy(value))
    }

    /// Path and query as they were sent, in origin form (RFC 9112, section 3.2.1).
    pub(crate) fn target(&self) -> String {
        // Only a target in absolute form can have an empty path.
        let path = if self.path.is_empty() { "/" } else { &self.path };
        if self.has_query { format!("{path}?{}", self.query) } else { path.to_owned() }
    }

    /// The values of all headers with this name.
    pub(crate) fn all<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
        self.headers.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// Whether `token` is an element of the comma-separated list that the headers with this name make. Parameters after
    /// a `;` are ignored.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            value.split(|byte| *byte == b',').any(|element| {
                let bare = element.split(|byte| *byte == b';').next().unwrap_or_default();
                bare.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
            })
        })
    }

    /// The elements of the comma-separated list that all headers with this name make together (RFC 9110, section
    /// 5.6.1). None if there is no such header.
    pub(crate) fn list(&self, name: &str) -> Option<Vec<String>> {
        let mut values = self.all(name).peekable();
        values.peek()?;
        let elements = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let elements = elements.filter(|element| !element.is_empty());
        Some(elements.map(|element| String::from_utf8_lossy(element).into_owned()).collect())
    }

    /// The segments of the path between its slashes, percent-decoded. None if one of them is then not UTF-8.
    pub(crate) fn segments(&self) -> Option<Vec<String>> {
        let path = self.path.strip_prefix('/').unwrap_or(&self.path);
        let decode = |segment| percent_decode_str(segment).decode_utf8().map(Cow::into_owned);
        path.split('/').map(decode).collect::<Result<_, _>>().ok()
    }

    /// The first value of a parameter of the query, which is form-encoded.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        form_urlencoded::parse(self.query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The first value of a parameter of the query, as the bytes that it encodes. They need not be UTF-8.
    pub(crate) fn query_bytes(&self, name: &str) -> Option<Vec<u8>> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| decode(key) == name.as_bytes()).map(|(_, value)| decode(value))
    }

    /// Whether the client allows another request on the connection.
    pub(crate) fn keeps_alive(&self) -> bool {
        !self.is_http_1_0 && !self.lists("Connection", "close")
    }

    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1).
    pub(crate) fn expects_continue(&self) -> bool {
        !self.is_http_1_0 && self.lists("Expect", "100-continue")
    }

    /// How the body is framed (RFC 9112, section 6.3).
    ///
    /// # Errors
    /// 400 if another reader might find another end.
    pub(crate) fn framing(&self) -> Result<BodyFraming, ApiError> {
        let malformed = |message: &str| Err(ApiError::malformed(message));
        let mut lengths = self.all("Content-Length");
        let length = lengths.next();
        if lengths.any(|other| Some(other) != length) {
            return malformed("`Content-Length` has two different values");
        }
        let mut codings = self.all("Transfer-Encoding");
        let coding = codings.next();
        match (coding, length) {
            (None, None) => Ok(BodyFraming::None),
            (None, Some(length)) => match decimal(length) {
                Some(length) => Ok(BodyFraming::Length(length)),
                None => malformed("`Content-Length` must be a decimal number"),
            },
            (Some(_), Some(_)) => malformed("`Content-Length` and `Transfer-Encoding` are mutually exclusive"),
            (Some(_), None) if self.is_http_1_0 => malformed("HTTP/1.0 has no `Transfer-Encoding`"),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(BodyFraming::Chunked)
            }
            (Some(_), None) => malformed("`Transfer-Encoding` must be `chunked`"),
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> RequestHead {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    fn is_malformed(bytes: &[u8]) -> bool {
        parse(bytes).is_err_and(|error| error.status() == 400 && error.ends_connection())
    }

    #[test]
    fn a_target_is_split_into_path_and_query() {
        for (target, path, query) in [
            ("/", "/", ""),
            ("/a/b?c=d", "/a/b", "c=d"),
            ("http://x.local:9501/a?b", "/a", "b"),
            ("HTTPS://x", "/", ""),
            ("http://x?b", "", "b"),
            ("/a#b", "/a", ""),
            ("/a?b?c://d", "/a", "b?c://d"),
        ] {
            let head = head(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            assert_eq!((&*head.path, &*head.query), (path, query), "{target}");
        }
        for (target, origin) in [
            ("/", "/"),
            ("/a?", "/a?"),
            ("/a%2f/../b?c=%20+&&?", "/a%2f/../b?c=%20+&&?"),
            ("http://x.local", "/"),
            ("http://x.local?b", "/?b"),
            ("http://x.local:80/a?b#c", "/a?b"),
        ] {
            assert_eq!(head(&format!("GET {target} HTTP/1.1\r\n\r\n")).target(), origin, "{target}");
        }
        assert!(is_malformed(b"OPTIONS * HTTP/1.1\r\n\r\n"));
        assert!(is_malformed(b"CONNECT a:1 HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn the_framing_is_certain_or_refused() {
        for (headers, right) in [
            ("", Some(BodyFraming::None)),
            ("Content-Length: 5\r\n", Some(BodyFraming::Length(5))),
            ("Content-Length: 5\r\ncontent-length: 5\r\n", Some(BodyFraming::Length(5))),
            ("Content-Length: 10000000000000\r\n", Some(BodyFraming::Length(10_000_000_000_000))),
            ("Transfer-Encoding: Chunked\r\n", Some(BodyFraming::Chunked)),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", None),
            ("Content-Length: 5, 5\r\n", None),
            ("Content-Length: +5\r\n", None),
            ("Content-Length: -5\r\n", None),
            ("Content-Length: 0x5\r\n", None),
            ("Content-Length:\r\n", None),
            ("Content-Length: 99999999999999999999\r\n", None),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", None),
            ("Transfer-Encoding: gzip, chunked\r\n", None),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None),
            ("Transfer-Encoding: identity\r\n", None),
            ("Transfer-Encoding:\r\n", None),
        ] {
            let head = head(&format!("POST / HTTP/1.1\r\n{headers}\r\n"));
            assert_eq!(head.framing().ok(), right, "{headers:?}");
        }
        assert!(head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").framing().is_err());
    }

    #[test]
    fn heads_that_two_readers_could_read_differently_are_refused() {
        for text in [
            "GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA\0: b\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\x16\x03\x01\x02",
            "hello\r\n\r\n",
        ] {
            assert!(is_malformed(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn a_control_character_in_a_value_is_refused_with_the_name_of_its_header() {
        for (lines, name) in [
            ("Idempotency-Key: a\x01b\r\n", "Idempotency-Key"),
            ("A: tab\tis allowed\r\nIdempotency-Key: a\x1b\r\nB: \x01\r\n", "Idempotency-Key"),
            ("last-event-id: 1\x7f\r\n", "last-event-id"),
            ("A: b:c\nX-Y:\x00\r\n", "X-Y"),
        ] {
            let error = parse(format!("GET / HTTP/1.1\r\n{lines}\r\n").as_bytes()).unwrap_err();
            let body = error.to_response().bytes().map(<[u8]>::to_vec).unwrap();
            let sentence = String::from_utf8(body).unwrap();
            let right = format!("`{name}`: the value of the header has a control character");
            assert!(error.status() == 400 && error.ends_connection() && sentence.contains(&right), "{sentence}");
        }
    }

    #[test]
    fn segments_are_decoded_after_they_are_split() {
        assert_eq!(head("GET /a%20b/c%2Fd/ HTTP/1.1\r\n\r\n").segments().unwrap(), ["a b", "c/d", ""]);
        assert!(head("GET /%FF HTTP/1.1\r\n\r\n").segments().is_none());
    }

    #[test]
    fn queries_are_form_encoded() {
        let head = head("GET /?a=b+c&d=%26&d=2 HTTP/1.1\r\n\r\n");
        assert_eq!(head.query("a").as_deref(), Some("b c"));
        assert_eq!(head.query("d").as_deref(), Some("&"));
        assert_eq!(head.query("e"), None);
        assert_eq!(head.query_bytes("a").as_deref(), Some(&b"b c"[..]));
        assert_eq!(head.query_bytes("e"), None);
        let bytes = |query: &str| {
            super::parse(format!("GET /?{query} HTTP/1.1\r\n\r\n").as_bytes()).unwrap().unwrap().0.query_bytes("path")
        };
        for (query, right) in [
            ("path=/%ff%00%2B+", Some(&b"/\xff\0+ "[..])),
            ("pa%74h=x=y&path=z", Some(b"x=y")),
            ("&&path", Some(b"")),
            ("path=%zz%4", Some(b"%zz%4")),
            ("xpath=1", None),
            ("", None),
        ] {
            assert_eq!(bytes(query).as_deref(), right, "{query}");
        }
    }

    #[test]
    fn lists_ignore_case_and_parameters() {
        let head = head(
            "GET / HTTP/1.1\r\nConnection: TE, Close\r\nAccept: text/html;q=1, Application/Octet-Stream;q=0.5\r\n\r\n",
        );
        assert!(!head.keeps_alive());
        assert!(head.lists("accept", "application/octet-stream"));
        assert!(!head.lists("accept", "text"));
        assert!(!super::parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().unwrap().0.keeps_alive());
    }

    #[test]
    fn a_head_has_at_most_2048_headers() {
        let with = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(parse(with(1000).as_bytes()).unwrap().is_some());
        assert!(matches!(parse(with(2100).as_bytes()), Err(error) if error.status() == 431));
    }
}
