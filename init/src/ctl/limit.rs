//! The value of `--limit`: a name and a number, as a field of the object `limits` of the API.

use super::table::LIMITS;

/// A limit as the API takes it: the name of its field, and its number.
///
/// # Errors
/// What the value must be, to follow the name of the option.
pub(crate) fn field(value: &str) -> Result<(&'static str, String), &'static str> {
    let form = "must be of the form NAME=VALUE, where NAME is memory, memory-high, cpus, cpu-weight, processes or \
                open-files";
    let (name, number) = value.split_once('=').ok_or(form)?;
    let (_, field) = LIMITS.iter().find(|(known, _)| *known == name).ok_or(form)?;
    let number = match *field {
        "memory_bytes" | "memory_high_bytes" => bytes(number),
        "cpus" if number.parse::<f64>().is_ok_and(|cpus| cpus > 0.0 && cpus <= 1e9) => {
            // JSON has neither `.5` nor `+1`.
            Ok(number.parse::<f64>().unwrap_or_default().to_string())
        }
        "cpus" => Err("must have a number above 0"),
        _ => whole(number).map(|number| number.to_string()).ok_or("must have a whole number above 0"),
    };
    Ok((field, number?))
}

fn whole(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number > 0)
}

fn bytes(text: &str) -> Result<String, &'static str> {
    let (digits, shift) = match text.strip_suffix("iB").unwrap_or(text) {
        text if text.ends_with('K') => (text.trim_end_matches('K'), 10),
        text if text.ends_with('M') => (text.trim_end_matches('M'), 20),
        text if text.ends_with('G') => (text.trim_end_matches('G'), 30),
        _ => (text, 0),
    };
    let number = whole(digits).and_then(|number| number.checked_mul(1 << shift));
    number.map(|number| number.to_string()).ok_or("must have a number of bytes above 0, optionally with K, M or G")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_field_of_the_api() {
        for (value, name, number) in [
            ("memory=256M", "memory_bytes", "268435456"),
            ("memory=1GiB", "memory_bytes", "1073741824"),
            ("memory-high=4096", "memory_high_bytes", "4096"),
            ("cpus=0.5", "cpus", "0.5"),
            ("cpus=.5", "cpus", "0.5"),
            ("cpus=2", "cpus", "2"),
            ("cpu-weight=5", "cpu_weight", "5"),
            ("processes=20", "processes", "20"),
            ("open-files=64", "open_files", "64"),
        ] {
            assert_eq!(field(value), Ok((name, number.to_owned())), "{value}");
        }
        for wrong in [
            "",
            "=",
            "memory",
            "memory=",
            "memory=0",
            "memory=-1",
            "memory=1T",
            "memory=KM",
            "memory=99999999999G",
            "cpus=",
            "cpus=nan",
            "cpus=-1",
            "cpus=inf",
            "processes=+5",
            "processes=1e3",
            "open_files=5",
            "cpu-weight=0",
        ] {
            assert!(field(wrong).is_err(), "{wrong:?}");
        }
    }
}
