//! Parameters of the path and of the query that several endpoints have.

use std::time::Duration;

use crate::http::message::ApiError;
use crate::model::MAX_TIMEOUT;

/// The port that a text of digits stands for. None if it is no port.
pub(crate) fn port(text: &str) -> Option<u16> {
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).filter(|port| *port != 0)
}

/// The query parameter `timeout`.
pub(crate) fn timeout(query: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = query else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(MAX_TIMEOUT).min(MAX_TIMEOUT)))
        }
        _ => Err(ApiError::invalid(format!(
            "the query parameter `timeout` must be a number of seconds, 0 or more, not {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_digits() {
        assert_eq!([port("1"), port("65535")], [Some(1), Some(65535)]);
        for text in ["", "0", "65536", "+80", "-1", "80 ", "8e1", "http"] {
            assert_eq!(port(text), None, "{text:?}");
        }
    }

    #[test]
    fn timeouts_are_numbers_of_seconds() {
        assert_eq!(timeout(None).unwrap(), None);
        for (text, right) in [("0", 0), ("1.5", 1500), ("2", 2000)] {
            assert_eq!(timeout(Some(text)).unwrap(), Some(Duration::from_millis(right)), "{text}");
        }
        assert_eq!(timeout(Some("1e300")).unwrap(), Some(MAX_TIMEOUT));
        for text in ["", "-1", "inf", "NaN", "5s", "1e999"] {
            assert!(timeout(Some(text)).unwrap_err().to_string().contains("`timeout`"), "{text}");
        }
    }
}
