//! What processes have used: `tlctl usage`, and its columns of `tlctl top`.

use super::commands::{path, print_fields};
use super::error::Error;
use super::http::Client;
use super::json::Json;
use super::parse::Line;
use super::screen::{Cell, Screen, print_json};

/// `tlctl usage`.
pub(crate) fn usage(client: &Client, line: &Line, screen: &Screen) -> Result<u8, Error> {
    let body = client.get(&path(line, "/usage"))?;
    if line.has("json") {
        return print_json(&body);
    }
    let usage = client.parse(&body)?;
    let number = |name: &str| usage.get(name).number();
    let mut fields = vec![
        ("Scope", Cell::plain(&usage.get("scope").text())),
        ("User CPU", Cell::plain(&optional(number("cpu_user_ms"), cpu_time))),
        ("System CPU", Cell::plain(&optional(number("cpu_system_ms"), cpu_time))),
    ];
    for (name, field) in [("Memory", "memory_bytes"), ("Peak", "memory_peak_bytes")] {
        fields.push((name, Cell::plain(&optional(number(field), size))));
    }
    fields.push(("Processes", Cell::of_number(number("processes"))));
    for (name, field) in [("Read", "read_bytes"), ("Written", "written_bytes")] {
        fields.push((name, Cell::plain(&optional(number(field), size))));
    }
    fields.push(("OOM kills", Cell::of_number(number("oom_kills"))));
    print_fields(screen, &fields)?;
    Ok(0)
}

fn optional(number: Option<u64>, text: fn(u64) -> String) -> String {
    number.map_or_else(String::new, text)
}

/// The memory of a usage in bytes, as text.
pub(crate) fn memory(usage: Json<'_>) -> String {
    optional(usage.get("memory_bytes").number(), size)
}

/// The CPU time of a usage in milliseconds.
pub(crate) fn cpu(usage: Json<'_>) -> Option<u64> {
    let [user, system] = ["cpu_user_ms", "cpu_system_ms"].map(|name| usage.get(name).number());
    Some(user?.saturating_add(system?))
}

/// A CPU time in milliseconds, as seconds.
pub(crate) fn cpu_time(ms: u64) -> String {
    format!("{}.{:02}s", ms / 1000, ms % 1000 / 10)
}

/// A number of bytes: `17`, `4.0K`, `12.5M` or `1.3G`.
fn size(bytes: u64) -> String {
    let (shift, unit) = match bytes {
        0..1024 => return bytes.to_string(),
        1024..0x10_0000 => (10, 'K'),
        0x10_0000..0x4000_0000 => (20, 'M'),
        _ => (30, 'G'),
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (bytes, text) in
            [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1 << 20, "1.0M"), (13_107_200, "12.5M"), (1 << 31, "2.0G")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "17179869183.9G");
        assert_eq!((cpu_time(0), cpu_time(12_345)), ("0.00s".to_owned(), "12.34s".to_owned()));
    }
}
