//! The head of a request, and how its body is delimited.
//!
//! Strict where two readers could disagree about where a request ends (RFC 9112, sections 6.3 and 11.2), lenient
//! elsewhere: any `Host`, absolute targets and blank lines before a request are accepted.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use tiny_http::Method;

use crate::http::message::response_head::Problem;

/// As many fields as are parsed without an allocation, and as many as a head may have.
const FEW_FIELDS: usize = 48;
const MOST_FIELDS: usize = 2048;

/// A request without its body.
#[derive(Debug)]
pub(in crate::http) struct Head {
    /// The method.
    pub(in crate::http) method: Method,
    /// The path, percent-encoded still.
    pub(in crate::http) path: String,
    /// What stands after the `?`.
    pub(in crate::http) query: String,
    /// HTTP/1.0, where neither chunks nor keep-alive are known.
    pub(in crate::http) is_old: bool,
    fields: Vec<(String, Vec<u8>)>,
}

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// Where the last chunk says so.
    Chunked,
}

/// Parses the head at the start of `bytes`, with its length; none while it is incomplete.
///
/// # Errors
/// [`Problem::Malformed`] when this is not HTTP/1, [`Problem::HeadTooLarge`] when it has too many fields.
pub(in crate::http) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Problem> {
    let mut few = [httparse::EMPTY_HEADER; FEW_FIELDS];
    match parse_with(bytes, &mut few) {
        Err(httparse::Error::TooManyHeaders) => {}
        result => return result.map_err(not_http)?.transpose(),
    }
    let mut many = vec![httparse::EMPTY_HEADER; MOST_FIELDS];
    parse_with(bytes, &mut many).map_err(not_http)?.transpose()
}

type Parsed = Option<Result<(Head, usize), Problem>>;

fn parse_with<'b>(bytes: &'b [u8], fields: &mut [httparse::Header<'b>]) -> Result<Parsed, httparse::Error> {
    let mut request = httparse::Request::new(fields);
    let httparse::Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
    let head = split_target(request.path.unwrap_or_default()).map(|(path, query)| Head {
        method: method(request.method.unwrap_or_default()),
        path: path.to_owned(),
        query: query.to_owned(),
        is_old: request.version == Some(0),
        fields: request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect(),
    });
    Ok(Some(head.map(|head| (head, length))))
}

/// An unknown method is one of the vocabulary too; the parser has let nothing but tokens through.
fn method(name: &str) -> Method {
    name.parse().unwrap_or(Method::Trace)
}

fn not_http(error: httparse::Error) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => Problem::HeadTooLarge(format!("{MOST_FIELDS} fields")),
        httparse::Error::Version => Problem::Malformed("the version must be HTTP/1.0 or HTTP/1.1".to_owned()),
        error => Problem::Malformed(format!("this is not an HTTP/1 request: {error}")),
    }
}

/// Path and query of a target in origin or absolute form (RFC 9112, section 3.2).
fn split_target(target: &str) -> Result<(&str, &str), Problem> {
    let origin = match target.split_once("://") {
        _ if target.starts_with('/') => target,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => return Err(Problem::Malformed(format!("the target must be a path that begins with `/`, not {target:?}"))),
    };
    let origin = origin.split('#').next().unwrap_or_default();
    Ok(origin.split_once('?').unwrap_or((origin, "")))
}

impl Head {
    /// The first field of this name. Values that are not UTF-8 are taken as best they can.
    pub(in crate::http) fn field<'h>(&'h self, name: &'h str) -> Option<Cow<'h, str>> {
        self.all(name).next().map(String::from_utf8_lossy)
    }

    /// The values of all fields of this name.
    pub(in crate::http) fn all<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
        self.fields.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// Whether `token` is in the comma-separated list of the fields of this name; parameters after a `;` do not count.
    pub(in crate::http) fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            value.split(|byte| *byte == b',').any(|element| {
                let bare = element.split(|byte| *byte == b';').next().unwrap_or_default();
                bare.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
            })
        })
    }

    /// The elements of the comma-separated list that all fields of this name make together (RFC 9110, section 5.6.1); none
    /// without such a field.
    pub(in crate::http) fn list(&self, name: &str) -> Option<Vec<String>> {
        let mut values = self.all(name).peekable();
        values.peek()?;
        let elements = values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let elements = elements.filter(|element| !element.is_empty());
        Some(elements.map(|element| String::from_utf8_lossy(element).into_owned()).collect())
    }

    /// The segments of the path between its slashes, percent-decoded; none when one is not UTF-8 then.
    pub(in crate::http) fn segments(&self) -> Option<Vec<String>> {
        let path = self.path.strip_prefix('/').unwrap_or(&self.path);
        let decode = |segment| percent_decode_str(segment).decode_utf8().map(Cow::into_owned);
        path.split('/').map(decode).collect::<Result<_, _>>().ok()
    }

    /// The first value of a parameter of the query, which is form-encoded.
    pub(in crate::http) fn query(&self, name: &str) -> Option<String> {
        form_urlencoded::parse(self.query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The same as the bytes that it stands for: a file's name can be any.
    pub(in crate::http) fn query_bytes(&self, name: &str) -> Option<Vec<u8>> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| decode(key) == name.as_bytes()).map(|(_, value)| decode(value))
    }

    /// Whether the client lets the connection be used again.
    pub(in crate::http) fn keeps_alive(&self) -> bool {
        !self.is_old && !self.lists("Connection", "close")
    }

    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1).
    pub(in crate::http) fn expects_continue(&self) -> bool {
        !self.is_old && self.lists("Expect", "100-continue")
    }

    /// Where the body ends (RFC 9112, section 6.3).
    ///
    /// # Errors
    /// When another reader might see another end.
    pub(in crate::http) fn framing(&self) -> Result<Framing, Problem> {
        let malformed = |sentence: &str| Err(Problem::Malformed(sentence.to_owned()));
        let mut lengths = self.all("Content-Length");
        let length = lengths.next();
        if lengths.any(|other| Some(other) != length) {
            return malformed("there are two different values of `Content-Length`");
        }
        let mut codings = self.all("Transfer-Encoding");
        let coding = codings.next();
        match (coding, length) {
            (None, None) => Ok(Framing::None),
            (None, Some(length)) => match decimal(length) {
                Some(length) => Ok(Framing::Length(length)),
                None => malformed("`Content-Length` must be a decimal number"),
            },
            (Some(_), Some(_)) => malformed("`Content-Length` and `Transfer-Encoding` exclude each other"),
            (Some(_), None) if self.is_old => malformed("HTTP/1.0 has no `Transfer-Encoding`"),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => malformed("the only known `Transfer-Encoding` is `chunked`"),
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

    fn head(text: &str) -> Head {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn targets() {
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
        assert!(matches!(parse(b"OPTIONS * HTTP/1.1\r\n\r\n"), Err(Problem::Malformed(_))));
        assert!(matches!(parse(b"CONNECT a:1 HTTP/1.1\r\n\r\n"), Err(Problem::Malformed(_))));
    }

    #[test]
    fn framings() {
        for (fields, right) in [
            ("", Some(Framing::None)),
            ("Content-Length: 5\r\n", Some(Framing::Length(5))),
            ("Content-Length: 5\r\ncontent-length: 5\r\n", Some(Framing::Length(5))),
            ("Content-Length: 10000000000000\r\n", Some(Framing::Length(10_000_000_000_000))),
            ("Transfer-Encoding: Chunked\r\n", Some(Framing::Chunked)),
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
            let head = head(&format!("POST / HTTP/1.1\r\n{fields}\r\n"));
            assert_eq!(head.framing().ok(), right, "{fields:?}");
        }
        assert!(head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").framing().is_err());
    }

    #[test]
    fn what_two_readers_could_see_differently_is_refused() {
        for text in [
            "GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA\0: b\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\x16\x03\x01\x02",
            "hello\r\n\r\n",
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(Problem::Malformed(_))), "{text:?}");
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
    fn lists_and_keep_alive() {
        let head = head(
            "GET / HTTP/1.1\r\nConnection: TE, Close\r\nAccept: text/html;q=1, Application/Octet-Stream;q=0.5\r\n\r\n",
        );
        assert!(!head.keeps_alive());
        assert!(head.lists("accept", "application/octet-stream"));
        assert!(!head.lists("accept", "text"));
        assert!(!super::parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().unwrap().0.keeps_alive());
    }

    #[test]
    fn many_fields() {
        let with = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(parse(with(1000).as_bytes()).unwrap().is_some());
        assert!(matches!(parse(with(2100).as_bytes()), Err(Problem::HeadTooLarge(_))));
    }
}
