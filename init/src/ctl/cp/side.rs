//! The operands of `tlctl cp`: which side each is on, and what the name of a path says.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::ctl::error::Error;

/// One operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// A path on this host.
    Local(&'static OsStr),
    /// A path in the sandbox, without its colon.
    Sandbox(&'static [u8]),
    /// Standard input or output.
    Stdio,
}

/// What to copy where. At least one source; all are on the same side, and the destination is on the other.
pub(crate) type Sides = (Vec<Side>, Side);

/// The operands.
///
/// # Errors
/// A sentence that says what is missing, or which operands do not go together.
pub(crate) fn parse(paths: &[&'static OsStr]) -> Result<Sides, Error> {
    let Some((dest, sources)) = paths.split_last() else { return Err(Error::Usage("cp: what to copy is missing")) };
    let Some(first) = sources.first() else {
        return Err(Error::Usage("cp: the destination is missing: tlctl cp FILE :FILE, or tlctl cp :FILE FILE"));
    };
    if paths.iter().any(|path| path.is_empty()) {
        return Err(Error::Usage("cp: a name is empty; . is this directory, and : the home of the default user"));
    }
    let in_sandbox = |path: &OsStr| path.as_bytes().starts_with(b":");
    if let Some(other) = sources.iter().find(|path| in_sandbox(path) != in_sandbox(first)) {
        return Err(Error::usage(format_args!("cp: {first:?} and {other:?} are on different sides")));
    }
    match (in_sandbox(first), in_sandbox(dest)) {
        (true, true) => return Err(Error::Usage("cp: both sides are in the sandbox: `tlctl run -- cp` copies there")),
        (false, false) => {
            return Err(Error::Usage(
                "cp: both sides are on this host: one begins with a colon, as in :b, and is in the sandbox",
            ));
        }
        _ => {}
    }
    let sources: Vec<Side> = sources.iter().map(|path| side(path)).collect();
    let dest = side(dest);
    if sources.len() > 1 && sources.contains(&Side::Stdio) {
        return Err(Error::Usage("cp: - must be the only source"));
    }
    if sources.len() > 1 && dest == Side::Stdio {
        return Err(Error::Usage("cp: - takes only one source"));
    }
    Ok((sources, dest))
}

fn side(path: &'static OsStr) -> Side {
    match path.as_bytes() {
        b"-" => Side::Stdio,
        // The home of the default user, to which paths are relative.
        b":" => Side::Sandbox(b"."),
        [b':', rest @ ..] => Side::Sandbox(rest),
        _ => Side::Local(path),
    }
}

/// The last component of a path. None if it names no entry of its directory, as in `/`, `a/.` and `..`: then the content
/// of the directory is meant.
pub(crate) fn base_name(path: &[u8]) -> Option<&[u8]> {
    let last = without_slashes(path).rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (!matches!(last, b"" | b"." | b"..")).then_some(last)
}

/// Whether only a directory can have this name: it ends in `/`, `/.` or `/..`, or is one of the latter.
pub(crate) fn is_of_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || base_name(path).is_none()
}

/// The directory in which a path is; none if it is a name in the current directory, or names no entry.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    let name = base_name(path)?;
    let path = without_slashes(path);
    let parent = path.get(..path.len().saturating_sub(name.len())).unwrap_or_default();
    (!parent.is_empty()).then_some(parent)
}

/// A name in a directory.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.ends_with(b"/") { b"" } else { b"/" };
    [dir, slash, name].concat()
}

fn without_slashes(path: &[u8]) -> &[u8] {
    let length = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    path.get(..length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(paths: &[&'static str]) -> Sides {
        let paths: Vec<&OsStr> = paths.iter().copied().map(OsStr::new).collect();
        parse(&paths).unwrap()
    }

    #[test]
    fn a_colon_marks_the_sandbox_and_a_dash_is_stdin_or_stdout() {
        let local = |path| Side::Local(OsStr::new(path));
        assert_eq!(sides(&["a", "./:b", ":c"]), (vec![local("a"), local("./:b")], Side::Sandbox(b"c")));
        assert_eq!(sides(&[":/a", "."]), (vec![Side::Sandbox(b"/a")], local(".")));
        assert_eq!(sides(&["-", ":"]), (vec![Side::Stdio], Side::Sandbox(b".")));
        assert_eq!(sides(&[":-", "-"]), (vec![Side::Sandbox(b"-")], Side::Stdio));
        assert_eq!(sides(&["./-", "::"]), (vec![local("./-")], Side::Sandbox(b":")));
    }

    #[test]
    fn a_name_says_what_is_copied_and_where() {
        for (path, base, of_directory, above) in [
            ("a", Some("a"), false, None),
            ("a/", Some("a"), true, None),
            ("/a//", Some("a"), true, Some("/")),
            ("a/b", Some("b"), false, Some("a/")),
            ("a//b/", Some("b"), true, Some("a//")),
            ("../b", Some("b"), false, Some("../")),
            ("a/.", None, true, None),
            ("a/..", None, true, None),
            (".", None, true, None),
            ("..", None, true, None),
            ("/", None, true, None),
            ("...", Some("..."), false, None),
        ] {
            let text = |bytes: Option<&'static [u8]>| bytes.map(|bytes| std::str::from_utf8(bytes).unwrap());
            let found =
                (text(base_name(path.as_bytes())), is_of_directory(path.as_bytes()), text(parent(path.as_bytes())));
            assert_eq!(found, (base, of_directory, above), "{path}");
        }
        assert_eq!((join(b"a", b"b"), join(b"/", b"b")), (b"a/b".to_vec(), b"/b".to_vec()));
    }
}
