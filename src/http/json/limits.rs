//! The limits of a process in a request body, and as the value of an option.

use serde::{Deserialize, Deserializer};

use crate::error::SpecError;
use crate::http::json;
use crate::http::json::value::{Integer, JsonValue, Object, Scalar};
use crate::model::{Cpus, Limits, MAX_CPU_WEIGHT};

/// A number of bytes, processes or descriptors. What the machine has is checked later.
type Count = Integer<1, { i64::MAX as u64 }>;

/// The field `limits`.
#[derive(Debug, Deserialize)]
pub(crate) struct LimitsBody {
    memory_bytes: Option<Count>,
    memory_high_bytes: Option<Count>,
    cpus: Option<CpuCount>,
    cpu_weight: Option<Integer<1, MAX_CPU_WEIGHT>>,
    processes: Option<Count>,
    open_files: Option<Count>,
}

/// A number of CPUs.
#[derive(Debug)]
struct CpuCount(Cpus);

impl JsonValue<'_> for CpuCount {
    fn expected() -> String {
        "a number of CPUs of at least 0.01".to_owned()
    }
    fn from_scalar(value: Scalar) -> Result<CpuCount, Scalar> {
        let number = match &value {
            Scalar::Integer(number) => *number as f64,
            Scalar::Float(number) => *number,
            _ => return Err(value),
        };
        Cpus::new(number).map(CpuCount).map_err(|_| value)
    }
}

impl<'de> Deserialize<'de> for CpuCount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<CpuCount, D::Error> {
        CpuCount::read(from)
    }
}

impl From<LimitsBody> for Limits {
    fn from(body: LimitsBody) -> Limits {
        Limits {
            memory_bytes: body.memory_bytes.map(|count| count.0),
            memory_high_bytes: body.memory_high_bytes.map(|count| count.0),
            cpus: body.cpus.map(|cpus| cpus.0),
            cpu_weight: body.cpu_weight.map(|weight| weight.0),
            processes: body.processes.map(|count| count.0),
            open_files: body.open_files.map(|count| count.0),
        }
    }
}

/// The limits in a request body; none if the field is absent.
pub(crate) fn limits(field: Option<Object<LimitsBody>>) -> Limits {
    field.map_or_else(Limits::default, |Object(body)| body.into())
}

/// Parses limits that do not come from a request, for example from an option. Unlike in a request, an unknown field is an
/// error.
///
/// ```
/// use tl_supervisor::http::parse_limits;
///
/// assert_eq!(parse_limits(r#"{"memory_bytes": 1048576}"#)?.memory_bytes, Some(1 << 20));
/// assert!(parse_limits(r#"{"cpus": 0}"#).is_err() && parse_limits(r#"{"cpu": 1}"#).is_err());
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
///
/// # Errors
/// If it is no JSON object, or a limit is unknown or has an invalid value.
pub fn parse_limits(text: &str) -> Result<Limits, SpecError> {
    let invalid = |problem: String| SpecError::new("limits", problem);
    let body: LimitsBody = json::parse(text.as_bytes()).map_err(|error| invalid(format!("is not valid: {error}")))?;
    let limits = Limits::from(body);
    let names: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
        serde_json::from_str(text).map_err(|error| invalid(format!("is not valid: {error}")))?;
    match names.keys().find(|name| !Limits::NAMES.contains(&name.as_str())) {
        Some(unknown) => Err(invalid(format!("must not have {unknown:?}: it has {}", Limits::NAMES.join(", ")))),
        None => Ok(limits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_limits_are_parsed() {
        let all = parse_limits(
            r#"{"memory_bytes": 1, "memory_high_bytes": 2.0, "cpus": 0.5, "cpu_weight": 3, "processes": 4, "open_files": 5}"#,
        );
        let right = Limits {
            memory_bytes: Some(1),
            memory_high_bytes: Some(2),
            cpus: Cpus::new(0.5).ok(),
            cpu_weight: Some(3),
            processes: Some(4),
            open_files: Some(5),
        };
        assert_eq!(all, Ok(right));
        assert_eq!(parse_limits("{}"), Ok(Limits::default()));
        assert_eq!(parse_limits(r#"{"cpus": null, "processes": null}"#), Ok(Limits::default()));
        let json = serde_json::to_string(&right).unwrap();
        assert_eq!(parse_limits(&json), Ok(right), "{json}");
    }

    #[test]
    fn an_error_names_the_limit() {
        for (text, part) in [
            (r#"{"memory_bytes": 0}"#, "`memory_bytes`: must be a whole number from 1 to"),
            (r#"{"memory_bytes": -1}"#, "`memory_bytes`"),
            (r#"{"memory_bytes": "1M"}"#, "`memory_bytes`"),
            (r#"{"memory_high_bytes": 0.5}"#, "`memory_high_bytes`"),
            (r#"{"cpus": 0}"#, "`cpus`: must be a number of CPUs of at least 0.01, not 0"),
            (r#"{"cpus": -0.5}"#, "`cpus`"),
            (r#"{"cpus": "1"}"#, "`cpus`"),
            (r#"{"cpus": [1]}"#, "`cpus`"),
            (r#"{"cpu_weight": 10001}"#, "`cpu_weight`: must be a whole number from 1 to 10000"),
            (r#"{"processes": 0}"#, "`processes`"),
            (r#"{"open_files": true}"#, "`open_files`"),
            (r#"{"memory": 5}"#, "must not have \"memory\""),
            ("[]", "must be an object"),
            ("", "empty"),
        ] {
            let sentence = parse_limits(text).unwrap_err().to_string();
            assert!(sentence.contains(part), "{text}: {sentence}");
        }
    }
}
