//! Files that are read and written at the start: the token, the environment of commands, `init.conf`, and the address
//! of the API.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use tl_os::random;
use tl_os::regular_file::{self, ReadError};

use crate::role::Role;

/// Maximum length in bytes of a file that is read.
pub(crate) const MAX_LENGTH: u64 = 1 << 20;

/// Reads the token in `path`, and strips white space around it.
///
/// # Errors
/// A sentence that says what is wrong, for example that users other than the owner can read the file.
pub(crate) fn read_token(role: Role, path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: ReadError| format!("--token-file: {}: {error}", path.display());
    let file = open(role, path).map_err(failed)?;
    let mode = file.metadata().map_err(|error| failed(error.into()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "--token-file: {}: users other than its owner can read it: its mode is {:04o} and should be 0600 or 0400 \
             (for a Kubernetes Secret: `defaultMode: 0400`, and no `fsGroup` in the Pod, which adds 0040)",
            path.display(),
            mode & 0o7777
        ));
    }
    let token = regular_file::read_open(file, MAX_LENGTH).map_err(failed)?.trim_ascii().to_vec();
    // Only these characters can be in the header of a request (RFC 6750, section 2.1).
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "--token-file: {}: it must contain printable ASCII characters and no spaces",
            path.display()
        ));
    }
    Ok(token)
}

/// Makes a random token: 32 bytes in hexadecimal.
///
/// # Errors
/// A sentence that says what failed.
pub(crate) fn make_token() -> Result<Vec<u8>, String> {
    random::hex::<32>().map(String::into_bytes).map_err(|error| format!("cannot make a token: {error}"))
}

/// Writes the token to `<run-dir>/token`, readable by its owner only.
///
/// # Errors
/// A sentence that says what failed.
pub(crate) fn write_token(run_dir: &Path, token: &[u8]) -> Result<(), String> {
    replace(run_dir, "token", 0o600, token)
}

/// Replaces the file `name` by a new one, atomically. Never writes into a file, or follows a symlink, that another user
/// may have put into the directory.
fn replace(dir: &Path, name: &str, mode: u32, content: &[u8]) -> Result<(), String> {
    let path = dir.join(name);
    write_and_rename(&path, mode, content, None).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a file under a random name, and renames it to `path`. With an `owner` (UID and GID), the file has exactly that
/// owner and that mode, and is on the disk before it is renamed.
///
/// # Errors
/// Of the first system call that failed; the old file is unchanged then.
pub(crate) fn write_and_rename(path: &Path, mode: u32, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", random::hex::<8>()?));
    // `create_new` sets O_EXCL, which does not follow a symlink either (open(2)).
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let finished = file.write_all(content).and_then(|()| match owner {
        Some((uid, gid)) => {
            fchown(&file, Some(uid), Some(gid))?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        }
        None => Ok(()),
    });
    let written = finished.and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Creates a directory and its parents, unless they exist.
///
/// # Errors
/// A sentence that says what failed.
pub(crate) fn make_dir(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| format!("{}: {error}", dir.display()))
}

/// Refuses a directory, or a symlink to one, of a user other than root and the daemon's: that user could replace what the
/// daemon writes there.
///
/// # Errors
/// A sentence that says what failed.
pub(crate) fn check_owner(dir: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", dir.display());
    for meta in [fs::symlink_metadata(dir).map_err(failed)?, fs::metadata(dir).map_err(failed)?] {
        if ![0, nix::unistd::geteuid().as_raw()].contains(&meta.uid()) {
            return Err(format!("{}: it belongs to the user {}", dir.display(), meta.uid()));
        }
    }
    Ok(())
}

/// Sets the sticky bit of a directory and of those that it is in, where they belong to the daemon's user and every user
/// may write to them, as to a volume of Kubernetes: any user could replace the files and directories of the daemon there.
/// Returns the directories that were changed.
pub(crate) fn set_sticky_bits(dir: &Path) -> Vec<PathBuf> {
    // It may not exist yet.
    let dir = std::path::absolute(dir).unwrap_or_default();
    let dir = dir.ancestors().find_map(|dir| dir.canonicalize().ok()).unwrap_or_default();
    let mut changed = Vec::new();
    for dir in dir.ancestors() {
        match set_sticky_bit(dir) {
            Ok(true) => changed.push(dir.to_owned()),
            Ok(false) => {}
            Err(error) => {
                log::warn!("{}: every user may write to it, and its sticky bit cannot be set: {error}", dir.display())
            }
        }
    }
    changed
}

/// Sets the sticky bit of a directory if it needs that; see [`set_sticky_bits`]. Returns whether it did.
fn set_sticky_bit(dir: &Path) -> io::Result<bool> {
    const STICKY: u32 = 0o1000;
    // The bit is set on what was looked at: another user could replace a directory by a symlink in between.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let Ok(opened) = File::options().read(true).custom_flags(flags).open(dir) else { return Ok(false) };
    let meta = opened.metadata()?;
    let mode = meta.mode() & 0o7777;
    let is_exposed = meta.uid() == nix::unistd::geteuid().as_raw() && mode & 0o002 != 0 && mode & STICKY == 0;
    if is_exposed {
        opened.set_permissions(Permissions::from_mode(mode | STICKY))?;
    }
    Ok(is_exposed)
}

/// Writes the address of the API to `<run-dir>/address`, atomically.
///
/// # Errors
/// A sentence that says what failed.
pub(crate) fn write_address(run_dir: &Path, address: SocketAddr) -> Result<(), String> {
    replace(run_dir, "address", 0o644, format!("{address}\n").as_bytes())
}

/// Reads the `KEY=value` lines of a file, for the environment of commands.
///
/// # Errors
/// A sentence that names the first line that is not of this form.
pub(crate) fn read_env(role: Role, path: &Path) -> Result<Vec<(String, String)>, String> {
    let bytes = open(role, path).and_then(|file| regular_file::read_open(file, MAX_LENGTH));
    let bytes = bytes.map_err(|error| format!("--env-file: {}: {error}", path.display()))?;
    match parse_pairs(&bytes) {
        (pairs, None) => Ok(pairs),
        (_, Some(problem)) => Err(format!("--env-file: {}: {problem}", path.display())),
    }
}

/// Reads the `KEY=value` lines of a configuration file. Returns the valid ones, and a sentence about the others.
pub(crate) fn read_conf(path: &Path) -> (Vec<(String, String)>, Option<String>) {
    let (pairs, problem) = match regular_file::read(path, MAX_LENGTH) {
        Ok(bytes) => parse_pairs(&bytes),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    (pairs, problem.map(|problem| format!("{}: {problem}", path.display())))
}

/// Opens a file that an option names. On a machine it must be a regular one: a FIFO without a writer would stop the
/// boot. Elsewhere it may be a FIFO, such as a shell's `<(...)`.
fn open(role: Role, path: &Path) -> Result<File, ReadError> {
    if role == Role::Machine { regular_file::open(path) } else { Ok(File::open(path)?) }
}

/// Parses `KEY=value` lines. Returns the pairs, and a sentence about the lines that are not of this form.
///
/// Empty lines and lines that begin with `#` are skipped. `export` before a name, white space around it, the CR of a
/// CRLF and a byte order mark are dropped. A value is taken literally, including quotes, `$`, `#` and a `\` at its end.
pub(crate) fn parse_pairs(bytes: &[u8]) -> (Vec<(String, String)>, Option<String>) {
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

/// Parses one line. The error completes a sentence that begins with "line 3".
fn parse_pair(line: &[u8]) -> Result<(String, String), String> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    if line.contains('\0') {
        return Err("contains a NUL character".to_owned());
    }
    let line = line.strip_suffix('\r').unwrap_or(line);
    let (key, value) = line.split_once('=').ok_or("is not KEY=value: it has no `=`")?;
    let bare = key.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let key = bare.unwrap_or(key).trim_ascii();
    if key.is_empty() {
        return Err("is not KEY=value: the name before the `=` is empty".to_owned());
    }
    if key.contains(char::is_whitespace) {
        return Err(format!("is not KEY=value: the name {key:?} contains white space"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_an_environment_file_are_taken_literally() {
        let file = b"# a comment\n\nA=1\r\n B =x=y\"z\"\nEMPTY=\n";
        let pairs = [("A", "1"), ("B", "x=y\"z\""), ("EMPTY", "")];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        assert_eq!(parse_pairs(file), (pairs.map(owned).to_vec(), None));
        // Lines that a shell can read too (except for the quotes), after a byte order mark.
        let file = b"\xef\xbb\xbfexport C=3\nexport\t D='4 5' # no comment\nexport=6\nexported=7\n\t#\nE=$C\\\n";
        let pairs = [("C", "3"), ("D", "'4 5' # no comment"), ("export", "6"), ("exported", "7"), ("E", "$C\\")];
        assert_eq!(parse_pairs(file), (pairs.map(owned).to_vec(), None));
    }

    #[test]
    fn a_malformed_line_is_reported_and_the_others_are_kept() {
        for (file, line, read, why) in [
            (&b"A=1\nnonsense\nB=2"[..], 2, 2, "no `=`"),
            (b"=x", 1, 0, "is empty"),
            (b" \t=x", 1, 0, "is empty"),
            (b"export =x", 1, 0, "is empty"),
            (b"export A", 1, 0, "no `=`"),
            (b"A=\0", 1, 0, "NUL"),
            (b"A=1\n\xff=1", 2, 1, "UTF-8"),
            (b"A=1\nA B=2", 2, 1, "the name \"A B\" contains white space"),
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
    fn a_fifo_is_read_except_on_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        // It has no writer: to open it without O_NONBLOCK would block for ever.
        assert!(read_token(Role::Machine, &path).unwrap_err().contains("regular"));
        assert!(read_env(Role::Machine, &path).unwrap_err().contains("regular"));
        for role in [Role::Container, Role::Process] {
            let write = |text: &'static str| {
                let path = path.clone();
                std::thread::spawn(move || fs::write(path, text).unwrap())
            };
            let writer = write("secret\n");
            assert_eq!(read_token(role, &path), Ok(b"secret".to_vec()));
            writer.join().unwrap();
            let writer = write("A=1\n");
            assert_eq!(read_env(role, &path), Ok(vec![("A".to_owned(), "1".to_owned())]));
            writer.join().unwrap();
        }
    }

    #[test]
    fn files_that_others_have_put_there_are_replaced_and_not_written() {
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
        // The same holds for a hard link, and for a FIFO, which would block.
        fs::remove_file(run.join("token")).unwrap();
        fs::hard_link(&victim, run.join("token")).unwrap();
        fs::remove_file(run.join("address")).unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&run.join("address"), mode).unwrap();
        write_token(&run, b"secret").unwrap();
        write_address(&run, address).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        // A file that cannot be replaced leaves no temporary file.
        fs::remove_file(run.join("address")).unwrap();
        fs::create_dir(run.join("address")).unwrap();
        assert!(write_address(&run, address).unwrap_err().contains("address"));
        let mut left: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["address", "address.new", "token"]);
    }

    #[test]
    fn a_token_file_is_readable_by_its_owner_only() {
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
