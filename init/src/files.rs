//! The files of a start: the token, the environment of commands, and the address that is listened on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tl_os::random;

use crate::role::Role;

/// The longest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// The token in `path`, without the white space around it.
///
/// # Errors
/// A sentence, also when others than its owner can read it.
pub(crate) fn read_token(place: Role, path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("--token-file: {}: {error}", path.display());
    let file = open(place, path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "--token-file: {}: others than its owner can read it (mode {:04o}; 0600 is right)",
            path.display(),
            mode & 0o7777
        ));
    }
    let token = read_bounded(file).map_err(failed)?.trim_ascii().to_vec();
    // What a header can carry (RFC 6750, section 2.1).
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(format!("--token-file: {}: it must hold printable characters and no spaces", path.display()));
    }
    Ok(token)
}

/// A new random token: 32 bytes in hex.
///
/// # Errors
/// A sentence.
pub(crate) fn make_token() -> Result<Vec<u8>, String> {
    random::hex::<32>().map(String::into_bytes).map_err(|error| format!("no random bytes for a token: {error}"))
}

/// Writes the token to `<run-dir>/token`, for its owner only.
///
/// # Errors
/// A sentence.
pub(crate) fn write_token(run_dir: &Path, token: &[u8]) -> Result<(), String> {
    replace(run_dir, "token", 0o600, token)
}

/// Puts a new file in the place of `name`. Nobody's file is written into, whatever others may have put in the directory:
/// the new one has a name that nobody could know before, and takes the place of what is there, a symlink itself.
fn replace(dir: &Path, name: &str, mode: u32, content: &[u8]) -> Result<(), String> {
    let path = dir.join(name);
    let replaced = || -> io::Result<()> {
        let new = dir.join(format!(".{name}.{}", random::hex::<8>()?));
        // O_EXCL follows no symlink either (open(2)).
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        let written = file.write_all(content).and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    };
    replaced().map_err(|error| format!("{}: {error}", path.display()))
}

/// Makes a directory, with its parents.
///
/// # Errors
/// A sentence.
pub(crate) fn make_dir(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| format!("{}: {error}", dir.display()))
}

/// Refuses a directory that somebody else has made, in a place where everybody may.
///
/// # Errors
/// A sentence.
pub(crate) fn check_owner(dir: &Path) -> Result<(), String> {
    let meta = fs::symlink_metadata(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(format!("{}: it is not a directory of the daemon's own user", dir.display()))
}

/// Writes where the API is to `<run-dir>/address`, whole or not at all.
///
/// # Errors
/// A sentence.
pub(crate) fn write_address(run_dir: &Path, address: SocketAddr) -> Result<(), String> {
    replace(run_dir, "address", 0o644, format!("{address}\n").as_bytes())
}

/// The `KEY=value` lines of a file, for the environment of commands.
///
/// # Errors
/// A sentence that names the first line that is none.
pub(crate) fn read_env(place: Role, path: &Path) -> Result<Vec<(String, String)>, String> {
    let bytes = open(place, path).and_then(read_bounded);
    let bytes = bytes.map_err(|error| format!("--env-file: {}: {error}", path.display()))?;
    match parse_pairs(&bytes) {
        (pairs, None) => Ok(pairs),
        (_, Some(problem)) => Err(format!("--env-file: {}: {problem}", path.display())),
    }
}

/// Those of a configuration: what can be read of it counts, and beside that a sentence about what cannot.
pub(crate) fn read_conf(path: &Path) -> (Vec<(String, String)>, Option<String>) {
    let (pairs, problem) = match read_regular(path) {
        Ok(bytes) => parse_pairs(&bytes),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    (pairs, problem.map(|problem| format!("{}: {problem}", path.display())))
}

/// A regular file: anything else could hold up the boot, as a FIFO would.
///
/// # Errors
/// When it is none, cannot be read or is too long.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    open_regular(path).and_then(read_bounded)
}

fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// A file that an option names. Nobody stands by a machine that waits for the writer of a FIFO; elsewhere it may be a
/// shell's `<(...)`.
fn open(place: Role, path: &Path) -> io::Result<File> {
    if place == Role::Machine { open_regular(path) } else { File::open(path) }
}

/// Empty lines and lines that begin with `#` say nothing. `export` before a name is left out, as are the white space
/// around a name, the CR of a CRLF and a byte order mark. A value is taken as it is: quotes, `\` at its end, `$` and `#`
/// included. Beside the pairs a sentence about the lines that are none.
fn parse_pairs(bytes: &[u8]) -> (Vec<(String, String)>, Option<String>) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut pairs, mut broken) = (Vec::new(), Vec::new());
    for (line, number) in bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_start).zip(1_usize..) {
        if line.trim_ascii_end().is_empty() || line.starts_with(b"#") {
            continue;
        }
        match parse_pair(line) {
            Ok(pair) => pairs.push(pair),
            Err(why) => broken.push((number, why)),
        }
    }
    let problem = match &broken[..] {
        [] => None,
        [(line, why)] => Some(format!("line {line} {why}")),
        [(line, why), ..] => {
            Some(format!("{} lines are not KEY=value; the first of them: line {line} {why}", broken.len()))
        }
    };
    (pairs, problem)
}

/// Or what is wrong, after "line 3".
fn parse_pair(line: &[u8]) -> Result<(String, String), String> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    if line.contains('\0') {
        return Err("has a NUL character in it".to_owned());
    }
    let line = line.strip_suffix('\r').unwrap_or(line);
    let (key, value) = line.split_once('=').ok_or("is not KEY=value: it has no `=`")?;
    let bare = key.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let key = bare.unwrap_or(key).trim_ascii();
    if key.is_empty() {
        return Err("is not KEY=value: nothing is before the `=`".to_owned());
    }
    if key.contains(char::is_whitespace) {
        return Err(format!("is not KEY=value: the name {key:?} has white space in it"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_has_comments_and_anything_in_its_values() {
        let file = b"# a comment\n\nA=1\r\n B =x=y\"z\"\nEMPTY=\n";
        let pairs = [("A", "1"), ("B", "x=y\"z\""), ("EMPTY", "")];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        assert_eq!(parse_pairs(file), (pairs.map(owned).to_vec(), None));
        // What a shell can read as well, but for the quotes; and what editors leave at the beginning.
        let file = b"\xef\xbb\xbfexport C=3\nexport\t D='4 5' # no comment\nexport=6\nexported=7\n\t#\nE=$C\\\n";
        let pairs = [("C", "3"), ("D", "'4 5' # no comment"), ("export", "6"), ("exported", "7"), ("E", "$C\\")];
        assert_eq!(parse_pairs(file), (pairs.map(owned).to_vec(), None));
    }

    #[test]
    fn a_line_that_is_none_is_told_and_takes_no_other_with_it() {
        for (file, line, read, why) in [
            (&b"A=1\nnonsense\nB=2"[..], 2, 2, "no `=`"),
            (b"=x", 1, 0, "nothing is before the `=`"),
            (b" \t=x", 1, 0, "nothing is before the `=`"),
            (b"export =x", 1, 0, "nothing is before the `=`"),
            (b"export A", 1, 0, "no `=`"),
            (b"A=\0", 1, 0, "NUL"),
            (b"A=1\n\xff=1", 2, 1, "UTF-8"),
            (b"A=1\nA B=2", 2, 1, "the name \"A B\" has white space in it"),
            (b"declare -x A=1", 1, 0, "the name \"declare -x A\""),
            (b"export A B=1", 1, 0, "the name \"A B\""),
            (b"; A=1", 1, 0, "the name \"; A\""),
            ("A\u{a0}B=1".as_bytes(), 1, 0, "white space"),
        ] {
            let (pairs, problem) = parse_pairs(file);
            let problem = problem.unwrap();
            assert!(
                pairs.len() == read && problem.starts_with(&format!("line {line} ")) && problem.contains(why),
                "{problem}"
            );
        }
        let (pairs, problem) = parse_pairs(b"A=1\nx\ny\nB=2");
        assert_eq!(pairs.len(), 2);
        let right = "2 lines are not KEY=value; the first of them: line 2 is not KEY=value: it has no `=`";
        assert_eq!(problem.as_deref(), Some(right));
    }

    #[test]
    fn only_elsewhere_than_on_a_machine_may_a_file_be_a_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        // Nobody writes to it: whoever opens it as usual waits for ever.
        assert!(read_token(Role::Machine, &path).unwrap_err().contains("regular"));
        assert!(read_env(Role::Machine, &path).unwrap_err().contains("regular"));
        for place in [Role::Container, Role::Process] {
            let write = |text: &'static str| {
                let path = path.clone();
                std::thread::spawn(move || fs::write(path, text).unwrap())
            };
            let writer = write("secret\n");
            assert_eq!(read_token(place, &path), Ok(b"secret".to_vec()));
            writer.join().unwrap();
            let writer = write("A=1\n");
            assert_eq!(read_env(place, &path), Ok(vec![("A".to_owned(), "1".to_owned())]));
            writer.join().unwrap();
        }
    }

    #[test]
    fn nothing_is_written_into_what_others_have_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o666)).unwrap();
        let address = "127.0.0.1:9501".parse().unwrap();
        for name in ["address", "address.new", "token"] {
            std::os::unix::fs::symlink(&victim, run.join(name)).unwrap();
        }
        for _ in 0..2 {
            write_address(&run, address).unwrap();
            write_token(&run, b"secret").unwrap();
        }
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        for (name, content, mode) in [("address", "127.0.0.1:9501\n", 0o644), ("token", "secret", 0o600)] {
            let meta = fs::symlink_metadata(run.join(name)).unwrap();
            assert!(meta.is_file(), "{name}");
            assert_eq!(
                (meta.permissions().mode() & 0o7777, &*fs::read_to_string(run.join(name)).unwrap()),
                (mode, content)
            );
        }
        // A hard link would be written through as well, and a FIFO would make us wait.
        fs::remove_file(run.join("token")).unwrap();
        fs::hard_link(&victim, run.join("token")).unwrap();
        fs::remove_file(run.join("address")).unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&run.join("address"), mode).unwrap();
        write_token(&run, b"secret").unwrap();
        write_address(&run, address).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        // What cannot be replaced leaves nothing behind.
        fs::remove_file(run.join("address")).unwrap();
        fs::create_dir(run.join("address")).unwrap();
        assert!(write_address(&run, address).unwrap_err().contains("address"));
        let mut left: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["address", "address.new", "token"]);
    }

    #[test]
    fn a_token_is_its_owners_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("given");
        fs::write(&path, "secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_token(Role::Machine, &path).unwrap_err().contains("0640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_token(Role::Machine, &path), Ok(b"secret".to_vec()));
        fs::write(&path, "two words").unwrap();
        assert!(read_token(Role::Machine, &path).is_err());

        let (first, second) = (make_token().unwrap(), make_token().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.len(), 64);
        for token in [&first, &second] {
            write_token(dir.path(), token).unwrap();
        }
        assert_eq!(fs::read(dir.path().join("token")).unwrap(), second);
        assert_eq!(fs::metadata(dir.path().join("token")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
