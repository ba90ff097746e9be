//! The text formats of Prometheus: version 0.0.4, and OpenMetrics 1.0.

use std::fmt::{Display, Write};

/// What the names of this library's metrics begin with.
const PREFIX: &str = "tl_supervisor_";

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Text,
    /// OpenMetrics 1.0: the type of a counter has no `_total` in its name, and the page ends with `# EOF`.
    OpenMetrics,
}

impl Format {
    /// The value of the header `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that a client prefers, by its header `Accept`.
    #[must_use]
    pub fn preferred(accept: Option<&str>) -> Format {
        let (mut text, mut open) = (0, 0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut is_known) = (1000, true);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = thousandths(value.trim()),
                    "version" => is_known = ["1.0.0", "0.0.1", "0.0.4"].contains(&value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if is_known => open = quality.max(open),
                "text/plain" if is_known => text = quality.max(text),
                _ => {}
            }
        }
        if open > 0 && open >= text { Format::OpenMetrics } else { Format::Text }
    }
}

/// A quality (RFC 9110, section 12.4.2) in thousandths; 0 if it is not valid. A parser of any number would be large.
fn thousandths(text: &str) -> u32 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{fraction:0<3}");
    match (whole, digits.parse()) {
        ("1", Ok(0)) => 1000,
        ("0", Ok(fraction @ 0..1000)) => fraction,
        _ => 0,
    }
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Durations, counted in buckets.
    Histogram,
}

/// A page of metrics that is being written.
#[derive(Debug)]
pub struct Page {
    format: Format,
    out: String,
    /// The name of the current family, without `_total`.
    name: String,
    suffix: &'static str,
}

impl Page {
    /// An empty page.
    #[must_use]
    pub fn new(format: Format) -> Page {
        Page { format, out: String::with_capacity(16 << 10), name: String::new(), suffix: "" }
    }

    /// Begins a metric of this library. The name of a counter is given without its `_total`.
    #[cold]
    #[inline(never)]
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.named(format!("{PREFIX}{name}"), kind, help);
    }

    /// Begins a metric whose name does not have the prefix of this library.
    #[cold]
    #[inline(never)]
    pub fn named(&mut self, name: impl Into<String>, kind: Kind, help: &str) {
        self.name = name.into();
        self.suffix = if kind == Kind::Counter { "_total" } else { "" };
        let suffix = if self.format == Format::Text { self.suffix } else { "" };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let name = &self.name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
    }

    /// Writes a value of the current metric.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line(self.suffix, labels, &value);
    }

    /// Writes a value of the current histogram, whose name ends with `suffix`.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(suffix, labels, &value);
    }

    #[cold]
    #[inline(never)]
    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: &dyn Display) {
        self.out.push_str(&self.name);
        self.out.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            self.out.push_str(name);
            self.out.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    other => self.out.push(other),
                }
            }
            self.out.push('"');
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// The whole page.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_form_of_its_format() {
        let page = |format| {
            let mut page = Page::new(format);
            page.family("starts", Kind::Counter, "Starts.");
            page.sample(&[("kind", "a\"b\\c\nd"), ("x", "y")], 3u64);
            page.named("process_open_fds", Kind::Gauge, "Open.");
            page.sample(&[], 0.5);
            page.finish()
        };
        assert_eq!(
            page(Format::Text),
            "# HELP tl_supervisor_starts_total Starts.\n# TYPE tl_supervisor_starts_total counter\n\
             tl_supervisor_starts_total{kind=\"a\\\"b\\\\c\\nd\",x=\"y\"} 3\n\
             # HELP process_open_fds Open.\n# TYPE process_open_fds gauge\nprocess_open_fds 0.5\n"
        );
        let open = page(Format::OpenMetrics);
        assert!(open.starts_with("# HELP tl_supervisor_starts Starts.\n# TYPE tl_supervisor_starts counter\n"));
        assert!(open.contains("\ntl_supervisor_starts_total{") && open.ends_with("process_open_fds 0.5\n# EOF\n"));
    }

    #[test]
    fn the_format_is_what_accept_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, right) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
            (Some("Application/OpenMetrics-Text; charset=utf-8"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (Some("application/openmetrics-text;version=9.0.0,text/plain"), Format::Text),
            (Some("application/openmetrics-text;q=0.2, text/plain;q=0.9"), Format::Text),
            (Some("application/openmetrics-text;q=x"), Format::Text),
        ] {
            assert_eq!(Format::preferred(accept), right, "{accept:?}");
        }
    }
}
