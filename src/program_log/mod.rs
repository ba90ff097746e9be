//! The log of a program, on stderr: one line for each record, as text or as JSON. `tl-init` and `tl-host` have the same.
//!
//! A record about something that has happened has key-value pairs. As JSON, they are fields of the line; a key without a
//! value is left out. As text, the message says the same. In both, a record is one line whatever it contains: control
//! characters are escaped.
//!
//! The module has no logger: that is the program's choice. It is for the programs of this workspace and has no promise of
//! stability.

mod sink;

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::Record;
use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use serde_json::{Map, Value as Json};

pub use sink::{MAX_WRITE, Sink};

/// Maximum length of a line of JSON: a line that says how many were dropped fits into the same write.
const MAX_JSON: usize = MAX_WRITE - 128;

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people: program, time, level and message.
    Text,
    /// A JSON object for each line.
    Json,
}

/// The form of a program's log.
#[derive(Clone, Copy, Debug)]
pub struct ProgramLog {
    /// What a line of text begins with.
    pub program: &'static str,
    /// The format.
    pub format: LogFormat,
}

impl ProgramLog {
    /// The line of a record, with its newline.
    #[must_use]
    pub fn line(self, record: &Record<'_>) -> String {
        match self.format {
            LogFormat::Text => text(self.program, unix_millis(), record),
            LogFormat::Json => json(unix_millis(), record),
        }
    }

    /// Standard error. Each write is one line; it never blocks. A line that stderr does not take at once is dropped and
    /// counted.
    #[must_use]
    pub fn stderr(self) -> impl Write + Send + 'static {
        Stderr { sink: Sink::stderr(), log: self, dropped: 0 }
    }

    /// The line that says how many lines were dropped.
    fn dropped_line(self, count: u64) -> String {
        match self.format {
            LogFormat::Text => format!("{}: {count} lines of this log were dropped\n", self.program),
            LogFormat::Json => format!(
                "{{\"timestamp\":{},\"level\":\"warn\",\"event\":\"log.dropped\",\"count\":{count}}}\n",
                unix_millis()
            ),
        }
    }
}

struct Stderr {
    sink: Sink,
    log: ProgramLog,
    /// Number of lines dropped since the last one that was written.
    dropped: u64,
}

impl Write for Stderr {
    /// Writes or drops one record. Never returns an error: it could not be reported.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if !self.sink.wait(Some(Instant::now())) {
            self.dropped += 1;
            return Ok(record.len());
        }
        let dropped = std::mem::take(&mut self.dropped);
        let mut out = if dropped > 0 { self.log.dropped_line(dropped).into_bytes() } else { Vec::new() };
        out.extend_from_slice(record);
        if out.len() > MAX_WRITE {
            // Only text: a line of JSON is shorter.
            out.truncate(MAX_WRITE - 1);
            out.push(b'\n');
        }
        if self.sink.write_all(&out).is_err() {
            self.dropped = dropped + 1;
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time in milliseconds since the Unix epoch.
fn unix_millis() -> u64 {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// The line of a record as text, with its newline.
fn text(program: &str, millis: u64, record: &Record<'_>) -> String {
    let mut line = format!("{program} {}.{:03} {:<5} ", millis / 1000, millis % 1000, record.level());
    // Writing to a string cannot fail.
    let _ = write!(Escaped(&mut line), "{}", record.args());
    line.push('\n');
    line
}

/// Writes text with its control characters escaped: those that end a line, that a terminal obeys, or that nobody sees.
#[derive(Debug)]
pub struct Escaped<'a>(pub &'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                // Unicode's separators of lines and paragraphs, marks that reorder text, and characters without a width.
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    self.0.extend(character.escape_unicode());
                }
                character if character.is_control() => self.0.extend(character.escape_default()),
                character => self.0.push(character),
            }
        }
        Ok(())
    }
}

/// The line of a record as JSON, with its newline. If it would be too long, its strings are shortened.
fn json(millis: u64, record: &Record<'_>) -> String {
    let mut most = MAX_JSON;
    loop {
        let mut fields = Fields { map: Map::new(), most };
        // Never an error: `Fields` returns none.
        let _ = record.key_values().visit(&mut fields);
        fields.add("timestamp", Json::from(millis));
        fields.add_text("level", &record.level().as_str().to_ascii_lowercase());
        fields.add_text("target", record.target());
        fields.add_text("message", &record.args().to_string());
        let line = format!("{}\n", Json::Object(fields.map));
        if line.len() <= MAX_JSON || most < 16 {
            return line;
        }
        most /= 2;
    }
}

/// The fields of a line of JSON.
struct Fields {
    map: Map<String, Json>,
    /// Maximum length of a string, in bytes.
    most: usize,
}

impl Fields {
    fn add(&mut self, key: &str, value: Json) {
        self.map.insert(key.to_owned(), value);
    }

    fn add_text(&mut self, key: &str, text: &str) {
        let mut end = text.len().min(self.most);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let cut = if end < text.len() { "…" } else { "" };
        self.add(key, Json::from(format!("{}{cut}", text.get(..end).unwrap_or_default())));
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(Field { key: key.as_str(), fields: self })
    }
}

/// A field that is added to a line.
struct Field<'a> {
    key: &'a str,
    fields: &'a mut Fields,
}

impl<'v> VisitValue<'v> for Field<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.fields.add_text(self.key, &value.to_string());
        Ok(())
    }

    /// A key without a value is left out.
    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.fields.add(self.key, Json::from(value));
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.fields.add(self.key, Json::from(value));
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.fields.add(self.key, Json::from(value));
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.fields.add_text(self.key, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(message: &str, pairs: &[(&str, Value<'_>)]) -> (String, Json) {
        let print = |record: &Record<'_>| (text("tl-init", 1_234, record), json(1_234, record));
        let (text, json) =
            print(&Record::builder().args(format_args!("{message}")).target("x").key_values(&pairs).build());
        assert!(json.len() <= MAX_JSON && json.ends_with('\n') && !json.trim_end().contains('\n'), "{json}");
        (text, serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn key_values_are_fields_with_their_types_and_absent_ones_are_left_out() {
        let pairs = [
            ("pid", Value::from(305)),
            ("ok", Value::from(true)),
            ("name", Value::from("a\nb")),
            ("signal", Value::from_debug(&())),
            ("none", Value::null()),
        ];
        let (text, json) = lines("it happened", &pairs);
        assert_eq!(text, "tl-init 1.234 INFO  it happened\n");
        let right = serde_json::json!({
            "timestamp": 1234, "level": "info", "target": "x", "message": "it happened",
            "pid": 305, "ok": true, "name": "a\nb", "signal": "()",
        });
        assert_eq!(json, right);
    }

    #[test]
    fn control_characters_are_escaped() {
        let (text, json) = lines("a\nb\x1b[2J\u{85}\u{202e}é\t", &[]);
        assert_eq!(text, "tl-init 1.234 INFO  a\\nb\\u{1b}[2J\\u{85}\\u{202e}é\\t\n");
        assert_eq!(json["message"], "a\nb\x1b[2J\u{85}\u{202e}é\t");
    }

    #[test]
    fn a_line_of_json_that_would_be_too_long_is_shortened_and_stays_valid() {
        let long = "\u{1}é".repeat(50_000);
        let pairs = [("command", Value::from(long.as_str())), ("pid", Value::from(1))];
        let (_, json) = lines(&long, &pairs);
        assert_eq!(json["pid"], 1);
        assert!(json["command"].as_str().unwrap().ends_with('…'), "{json}");
        let json_log = ProgramLog { program: "tl-init", format: LogFormat::Json };
        assert!(MAX_JSON + json_log.dropped_line(u64::MAX).len() <= MAX_WRITE);
    }
}
