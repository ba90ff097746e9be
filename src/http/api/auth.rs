//! Who may use the API.

use std::fmt;

use subtle::ConstantTimeEq;

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
    /// Everyone. Use it only for a port that no untrusted client can reach, or behind a proxy that authenticates.
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
        let is_equal = bool::from(sent.trim().as_bytes().ct_eq(token));
        scheme.eq_ignore_ascii_case("Bearer") && is_equal && !token.is_empty()
    }
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
        assert!(Auth::AllowAll.allows(None));
        assert!(!Auth::DenyAll.allows(Some("Bearer ")));
        assert!(!Auth::Token(Vec::new()).allows(Some("Bearer ")), "an empty token allows no client");
    }
}
