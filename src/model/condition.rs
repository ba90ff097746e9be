//! [`Condition`]: what a client waits for at a process; [`Waited`]: how the wait has ended.

use super::{Port, ProcessInfo, Stream};
use crate::error::SpecError;

/// What to wait for at a process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// It has ended; a managed process: it is stopped.
    End,
    /// Its `health_status` is `healthy`.
    Healthy,
    /// It has written a line with a certain text.
    Line(LineQuery),
    /// A process of its tree listens on this TCP port, from 1 to 65535, at any address.
    Port(u16),
}

/// Maximum length of the text of a [`LineQuery`], in bytes of UTF-8.
pub(crate) const MAX_CONTAINS: usize = 8 * 1024;

/// A line of output to wait for.
///
/// ```
/// use tl_supervisor::{LineQuery, Stream};
///
/// let query = LineQuery::new("listening on")?.on(Stream::Stderr);
/// assert!(LineQuery::new("").is_err());
/// assert!(LineQuery::new("two\nlines").is_err());
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineQuery {
    pub(crate) contains: String,
    pub(crate) stream: Option<Stream>,
}

impl LineQuery {
    /// A line of stdout or stderr that contains this text.
    ///
    /// # Errors
    /// If the text is empty, longer than 8 KiB, or has a newline, which no line has.
    pub fn new(contains: impl Into<String>) -> Result<LineQuery, SpecError> {
        let contains = contains.into();
        let problem = match contains.len() {
            0 => "must not be empty".to_owned(),
            length if length > MAX_CONTAINS => format!("must have at most {MAX_CONTAINS} bytes, not {length}"),
            _ if contains.contains('\n') => "must not contain a newline, because no line does".to_owned(),
            _ => return Ok(LineQuery { contains, stream: None }),
        };
        Err(SpecError::new("contains", problem))
    }

    /// Only a line of this stream.
    #[must_use]
    pub fn on(self, stream: Stream) -> LineQuery {
        LineQuery { stream: Some(stream), ..self }
    }
}

/// How a condition was met.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Met {
    /// See [`Condition::End`].
    End,
    /// See [`Condition::Healthy`].
    Healthy,
    /// The line; of one that is longer than 16 KiB, a part with the text. Bytes that are not UTF-8 are replaced by U+FFFD.
    Line(String),
    /// Who listens.
    Port(Port),
}

/// The end of a wait for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waited {
    /// How the condition was met; None if the process has ended, or the time has passed, before it was.
    pub met: Option<Met>,
    /// The process after the wait.
    pub process: ProcessInfo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_line_is_checked() {
        for (text, problem) in [
            (String::new(), "must not be empty"),
            ("a\nb".to_owned(), "must not contain a newline, because no line does"),
            ("é".repeat(MAX_CONTAINS / 2 + 1), "must have at most 8192 bytes, not 8194"),
        ] {
            assert_eq!(LineQuery::new(text), Err(SpecError::new("contains", problem)));
        }
        let longest = LineQuery::new("é".repeat(MAX_CONTAINS / 2)).unwrap();
        assert_eq!((longest.contains.len(), longest.stream), (MAX_CONTAINS, None));
        assert_eq!(LineQuery::new(" \r").unwrap().on(Stream::Stderr).stream, Some(Stream::Stderr));
    }
}
