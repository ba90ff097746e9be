//! Checks the names that an archive gives to its entries.

/// Maximum number of components of a path. A deeper tree could not be packed or removed (`descent`).
const MAX_DEPTH: usize = 50_000;

/// Maximum length of a name in a message, in bytes.
const MAX_SHOWN: usize = 4096;

/// Why an entry cannot be unpacked below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadName {
    Absolute,
    Parent,
    Nul,
    Deep,
}

impl BadName {
    /// The end of a sentence whose subject is the name.
    pub(super) fn why(self) -> &'static str {
        match self {
            BadName::Absolute => "is absolute",
            BadName::Parent => "has a component `..`",
            BadName::Nul => "contains a NUL character",
            BadName::Deep => "is in more directories than a tree may be deep",
        }
    }
}

/// The components of the path of an entry: none of them is empty, `.` or `..`. No components stand for the directory that
/// the archive is unpacked into.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, BadName> {
    if path.first() == Some(&b'/') {
        return Err(BadName::Absolute);
    }
    if path.contains(&0) {
        return Err(BadName::Nul);
    }
    // Also empty ones count, so that a name of 1 MiB does not take 16 times as much memory.
    if memchr::memchr_iter(b'/', path).count() > MAX_DEPTH {
        return Err(BadName::Deep);
    }
    let components = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    components.map(|name| if name == b".." { Err(BadName::Parent) } else { Ok(name) }).collect()
}

/// A name for messages: with U+FFFD in place of bytes that are not UTF-8, and cut if it is longer than a path can be.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..MAX_SHOWN) {
        Some(begin) if name.len() > MAX_SHOWN => format!("{}...", String::from_utf8_lossy(begin)),
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_directory_are_accepted() {
        for (path, right) in [
            ("a", &["a"][..]),
            ("./a//b/", &["a", "b"]),
            ("./", &[]),
            ("", &[]),
            ("..a/...", &["..a", "..."]),
            (" /\n", &[" ", "\n"]),
        ] {
            let right: Vec<_> = right.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(components(path.as_bytes()), Ok(right), "{path:?}");
        }
        for (path, wrong) in [
            ("/", BadName::Absolute),
            ("/etc/passwd", BadName::Absolute),
            ("//x", BadName::Absolute),
            ("..", BadName::Parent),
            ("../a", BadName::Parent),
            ("a/../b", BadName::Parent),
            ("a/..", BadName::Parent),
            ("a\0", BadName::Nul),
        ] {
            assert_eq!(components(path.as_bytes()), Err(wrong), "{path:?}");
        }
        assert_eq!(components("a/".repeat(MAX_DEPTH).as_bytes()).map(|path| path.len()), Ok(MAX_DEPTH));
        assert_eq!(components("a/".repeat(MAX_DEPTH + 1).as_bytes()), Err(BadName::Deep));
    }

    #[test]
    fn a_message_shows_the_beginning_of_a_long_name() {
        assert_eq!((shown(b"a\xff"), shown(&[b'x'; MAX_SHOWN])), ("a\u{fffd}".to_owned(), "x".repeat(MAX_SHOWN)));
        assert_eq!(shown(&[b'x'; MAX_SHOWN + 1]), format!("{}...", "x".repeat(MAX_SHOWN)));
    }
}
