//! How a child that could not become its program reports why, through a pipe.

/// Length of a report in bytes: one for the stage, four for the errno.
pub(super) const LENGTH: usize = 5;

/// A buffer for one report. Its last byte stays unused: a read that fills the buffer is not a report.
pub type ReportBuffer = [u8; LENGTH + 1];

/// What a child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Preparing its session, descriptors and signal dispositions. Nothing in this stage depends on the request.
    Setup = 1,
    /// Changing to the user's ids.
    User = 2,
    /// Changing to the working directory.
    Directory = 3,
    /// Looking for the program: none of the candidates exists.
    NotFound = 4,
    /// Executing a candidate that exists.
    Exec = 5,
    /// Setting the limit on descriptors.
    OpenFiles = 6,
}

impl Stage {
    fn from_byte(byte: u8) -> Option<Stage> {
        [Stage::Setup, Stage::User, Stage::Directory, Stage::NotFound, Stage::Exec, Stage::OpenFiles]
            .into_iter()
            .find(|stage| *stage as u8 == byte)
    }
}

/// Why a child could not become its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecFailure {
    /// What the child was doing.
    pub stage: Stage,
    /// The errno of the system call that failed.
    pub errno: i32,
}

impl ExecFailure {
    /// Decodes what was read from the report pipe. Returns `None` for no bytes: the exec has succeeded, or the child
    /// was killed before it. A malformed report counts as a failure in [`Stage::Setup`].
    pub fn read(bytes: &[u8]) -> Option<ExecFailure> {
        let (stage, errno) = bytes.split_first()?;
        let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
        Some(ExecFailure { stage: Stage::from_byte(*stage).unwrap_or(Stage::Setup), errno })
    }

    /// Encodes the report. Async-signal-safe.
    pub(super) fn to_bytes(self) -> [u8; LENGTH] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.stage as u8, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_pipe() {
        for stage in [Stage::Setup, Stage::User, Stage::Directory, Stage::NotFound, Stage::Exec, Stage::OpenFiles] {
            let failure = ExecFailure { stage, errno: libc::EACCES };
            assert_eq!(ExecFailure::read(&failure.to_bytes()), Some(failure));
        }
    }

    #[test]
    fn no_report_is_no_failure_and_a_malformed_one_is_a_setup_failure() {
        assert_eq!(ExecFailure::read(b""), None);
        for malformed in [&b"\x05"[..], b"\x05\0\0\0\0\0", b"\xff"] {
            assert_eq!(ExecFailure::read(malformed).unwrap().errno, 0, "{malformed:?}");
        }
        assert_eq!(ExecFailure::read(b"\xff\x02\0\0\0").unwrap().stage, Stage::Setup);
    }
}
