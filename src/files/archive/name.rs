//! Checks the names that an archive gives to its entries.

/// Why an entry cannot be unpacked below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadName {
    Absolute,
    Parent,
    Nul,
}

impl BadName {
    /// The end of a sentence whose subject is the name.
    pub(super) fn why(self) -> &'static str {
        match self {
            BadName::Absolute => "is absolute",
            BadName::Parent => "has a component `..`",
            BadName::Nul => "contains a NUL character",
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
    let components = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    components.map(|name| if name == b".." { Err(BadName::Parent) } else { Ok(name) }).collect()
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
    }
}
