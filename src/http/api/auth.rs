//! Who may use the API.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};

/// Who may use the API. Three endpoints are exempt: `GET /api/v1/health` and `GET /api/v1/openapi.json` are open to
/// everyone, and a terminal session's WebSocket has a token of its own.
///
/// ```
/// use tl_supervisor::http::Auth;
///
/// // A program asks this for a route of its own.
/// let auth = Auth::Token(b"secret".to_vec());
/// assert!(auth.allows(Some("Bearer secret")));
/// assert!(!auth.allows(Some("Bearer other")) && !auth.allows(None));
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Auth {
    /// No one. This is the default, so that an omission is safe.
    #[default]
    DenyAll,
    /// Clients that send exactly these bytes as `Authorization: Bearer <token>`. Of a token that was read from a file, strip
    /// the newline first. An empty token allows no client.
    Token(Vec<u8>),
    /// Everyone but web pages of other sites, as far as their browser says so. Use it only for a port that no untrusted
    /// client and no browser can reach, or behind a proxy that authenticates.
    AllowAll,
}

impl Auth {
    /// Whether a request with this value of the header `Authorization` is allowed. Takes the same time for every token.
    pub fn allows(&self, authorization: Option<&str>) -> bool {
        let token = match self {
            Auth::AllowAll => return true,
            Auth::DenyAll => return false,
            Auth::Token(token) => token,
        };
        let Some((scheme, sent)) = authorization.and_then(|value| value.split_once(' ')) else { return false };
        let is_equal = is_equal(sent.trim().as_bytes(), token);
        scheme.eq_ignore_ascii_case("Bearer") && is_equal && !token.is_empty()
    }
}

/// Compares what a client has sent with the token. How long that takes depends on the length of what was sent, and neither
/// on the token's bytes nor on its length.
fn is_equal(sent: &[u8], token: &[u8]) -> bool {
    let bytes = sent.iter().zip(token.iter().cycle());
    let same = bytes.fold(Choice::from(1), |same, (sent, own)| same & sent.ct_eq(own));
    bool::from(same & (sent.len() as u64).ct_eq(&(token.len() as u64)))
}

/// Never shows the token.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::DenyAll => "DenyAll",
            Auth::Token(_) => "Token(…)",
            Auth::AllowAll => "AllowAll",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn only_the_right_bearer_token_is_allowed() {
        let token = Auth::Token(b"s3cret".to_vec());
        for (value, right) in [
            (Some("Bearer s3cret"), true),
            (Some("bearer  s3cret"), true),
            (Some("BEARER s3cret"), true),
            (Some("Bearer s3cre"), false),
            (Some("Bearer s3crets"), false),
            (Some("Bearer "), false),
            (Some("Bearer"), false),
            (Some("Basic s3cret"), false),
            (Some("s3cret"), false),
            (None, false),
        ] {
            assert_eq!(token.allows(value), right, "{value:?}");
        }
        // The comparison repeats the token if more was sent.
        assert!(!token.allows(Some("Bearer s3crets3cret")) && !token.allows(Some("Bearer s")));
        assert!(Auth::AllowAll.allows(None));
        assert!(!Auth::DenyAll.allows(Some("Bearer ")));
        assert!(!Auth::Token(Vec::new()).allows(Some("Bearer ")), "an empty token allows no client");
    }

    /// The shortest of several times that a comparison of these bytes with this token takes.
    fn shortest_time(sent: &[u8], token: &[u8]) -> Duration {
        let times = (0..20).map(|_| {
            let begun = Instant::now();
            assert!(!is_equal(std::hint::black_box(sent), std::hint::black_box(token)));
            begun.elapsed()
        });
        times.min().unwrap()
    }

    #[test]
    fn the_time_of_a_comparison_tells_nothing_of_the_token() {
        let sent = vec![b'x'; 1 << 20];
        let differs_at = |at: usize, length: usize| {
            let mut token = vec![b'x'; length];
            token[at] = b'y';
            token
        };
        let length = sent.len();
        let base = shortest_time(&sent, &differs_at(length - 1, length));
        for token in [differs_at(0, length), differs_at(0, 16), differs_at(0, 2 * length)] {
            let time = shortest_time(&sent, &token);
            // A comparison that stops at the first difference is thousands of times faster.
            assert!(time > base / 10 && time < base * 10, "{time:?}, not about {base:?}, for {} bytes", token.len());
        }
    }
}
