//! A line of the report.

use std::fmt;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Without it, there are no sandboxes.
    Missing,
}

/// A line of the report.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    /// What was checked, in one or two words.
    pub(super) subject: &'static str,
    pub(super) sentence: String,
}

impl Finding {
    pub(super) fn ok(subject: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Ok, subject, sentence: sentence.into() }
    }

    pub(super) fn warning(subject: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warning, subject, sentence: sentence.into() }
    }

    pub(super) fn missing(subject: &'static str, sentence: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Missing, subject, sentence: sentence.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "missing",
        };
        // Messages of an engine may have several lines.
        let sentence = self.sentence.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(formatter, "{verdict:<8} {}: {sentence}", self.subject)
    }
}
