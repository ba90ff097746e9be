//! `--create-user`: makes a user, its group and its home in an image that has no such user.
//!
//! The rules are those of useradd(8). Nothing is copied from /etc/skel: an image that wants these files in the home makes
//! the user itself.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::Path;
use std::str::FromStr;

use nix::fcntl::{FcntlArg, fcntl};
use tl_os::regular_file;

use crate::files;

/// Maximum length in bytes of a file that is changed: that of the files in which users are looked up.
const MAX_LENGTH: u64 = 16 << 20;

/// Maximum length of a name (useradd(8)).
const MAX_NAME: usize = 32;

/// Mode of a new home: other users of the image, for example a web server's, cannot read what commands write there.
const HOME_MODE: u32 = 0o700;

/// What every user can do with /etc/passwd and /etc/group: without reading them, no program knows the name of its user.
/// Podman 4 makes both with the mode 0600 in a container of an image that has none.
const PUBLIC: u32 = 0o444;

/// The number of fields of a line in each file.
const PASSWD_FIELDS: usize = 7;
const GROUP_FIELDS: usize = 3;

/// The user that `--create-user NAME:UID` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewUser {
    name: String,
    uid: u32,
}

impl NewUser {
    /// What a valid value is, for an error message.
    pub(crate) const FORM: &str = "NAME:UID, with a name of at most 32 lower-case letters, digits, `_` and `-` \
                                   that begins with a letter or `_`, and a UID from 1 to 4294967294";
}

/// A text that is not of the form [`NewUser::FORM`].
#[derive(Debug)]
pub(crate) struct InvalidNewUser;

impl FromStr for NewUser {
    type Err = InvalidNewUser;

    fn from_str(text: &str) -> Result<NewUser, InvalidNewUser> {
        let (name, uid) = text.split_once(':').ok_or(InvalidNewUser)?;
        let begins_well = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        let uid = id(uid.as_bytes()).filter(|uid| *uid != 0).ok_or(InvalidNewUser)?;
        if !begins_well || name.len() > MAX_NAME || !name.bytes().all(is_allowed) {
            return Err(InvalidNewUser);
        }
        Ok(NewUser { name: name.to_owned(), uid })
    }
}

/// Why a user was not made, or not completely.
#[derive(Debug)]
pub(crate) enum CreateError {
    /// The user does not exist, and this process may not make it.
    NotRoot(NewUser),
    /// A user with this name has another UID, which stands second.
    OtherUid(NewUser, u32),
    /// The UID belongs to the user whose name stands second.
    UidTaken(NewUser, String),
    /// Every group id from the UID upwards is taken.
    NoGid,
    /// Another process changes the files of users.
    Locked,
    /// A file cannot be read or written.
    File(String),
    /// The user exists now, without a home.
    NoHome(NewUser, String),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::NotRoot(NewUser { name, .. }) => {
                write!(f, "the user {name} does not exist, and only root can make it: run tl-init as root")
            }
            CreateError::OtherUid(NewUser { name, uid }, found) => {
                write!(f, "the user {name} exists with UID {found}, not {uid}; it is left as it is")
            }
            CreateError::UidTaken(NewUser { name, uid }, other) => {
                write!(f, "UID {uid} belongs to the user {other}, so {name} is not made: give another UID")
            }
            CreateError::NoGid => f.write_str("no group id is free from the UID upwards"),
            CreateError::Locked => f.write_str("another process has locked /etc/.pwd.lock and changes the users"),
            CreateError::File(problem) => f.write_str(problem),
            CreateError::NoHome(NewUser { name, uid }, problem) => {
                write!(f, "made the user {name} with UID {uid}, but not its home: {problem}")
            }
        }
    }
}

/// Makes the user in the files below `root`, unless it exists. Returns what was done, for the boot report.
///
/// The line in /etc/passwd is written last. What an interrupted attempt has left behind, the next one uses.
///
/// # Errors
/// If the user was not made, or has no home.
pub(crate) fn create(user: &NewUser, root: &Path) -> Result<String, CreateError> {
    let etc = root.join("etc");
    match exists(user, &read(&etc.join("passwd"))?) {
        Ok(true) => return Ok(format!("the user {} has UID {} already", user.name, user.uid)),
        // Another UID would not help.
        Ok(false) | Err(CreateError::UidTaken(..)) if !nix::unistd::geteuid().is_root() => {
            return Err(CreateError::NotRoot(user.clone()));
        }
        result => result?,
    };
    make_dir(&etc).map_err(CreateError::File)?;
    let _lock = lock(&etc)?;
    if exists(user, &read(&etc.join("passwd"))?)? {
        return Ok(format!("another process has made the user {} with UID {}", user.name, user.uid));
    }
    let group = add_group(user, &etc)?;
    let home = make_home(user, group.gid, root);
    let NewUser { name, uid } = user;
    let password = if add_secret(&etc.join("shadow"), name, ":!:::::::")? { "x" } else { "!" };
    let shell = if root.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    add_line(&etc.join("passwd"), &format!("{name}:{password}:{uid}:{}::/home/{name}:{shell}", group.gid), PUBLIC)?;
    let home = home.map_err(|problem| CreateError::NoHome(user.clone(), problem))?;
    let (gid, old) = (group.gid, if group.is_new { "" } else { ", which existed" });
    Ok(format!("made the user {name} with UID {uid}, the group {name} with GID {gid}{old}, {home}"))
}

/// Whether the user exists.
fn exists(user: &NewUser, passwd: &[u8]) -> Result<bool, CreateError> {
    // As in a lookup, the first line with a name counts.
    if let Some((_, uid)) = find(passwd, PASSWD_FIELDS, Key::Name(&user.name)) {
        return if uid == user.uid { Ok(true) } else { Err(CreateError::OtherUid(user.clone(), uid)) };
    }
    match find(passwd, PASSWD_FIELDS, Key::Id(user.uid)) {
        Some((other, _)) => Err(CreateError::UidTaken(user.clone(), String::from_utf8_lossy(other).into_owned())),
        None => Ok(false),
    }
}

/// The primary group of the new user.
struct Group {
    gid: u32,
    is_new: bool,
}

/// Adds the group with the name of the user, unless it exists. Its id is the UID, or the first free one above.
fn add_group(user: &NewUser, etc: &Path) -> Result<Group, CreateError> {
    let path = etc.join("group");
    let content = read(&path)?;
    let name = &user.name;
    if let Some((_, gid)) = find(&content, GROUP_FIELDS, Key::Name(name)) {
        return Ok(Group { gid, is_new: false });
    }
    let is_free = |gid: &u32| find(&content, GROUP_FIELDS, Key::Id(*gid)).is_none();
    let gid = (user.uid..u32::MAX).find(is_free).ok_or(CreateError::NoGid)?;
    let password = if add_secret(&etc.join("gshadow"), name, ":!::")? { "x" } else { "!" };
    add_line(&path, &format!("{name}:{password}:{gid}:"), PUBLIC)?;
    Ok(Group { gid, is_new: true })
}

/// Makes the home. One that exists keeps its owner and mode: it may be a volume. Returns words for the boot report.
fn make_home(user: &NewUser, gid: u32, root: &Path) -> Result<String, String> {
    let NewUser { name, uid } = user;
    make_dir(&root.join("home"))?;
    let path = root.join("home").join(name);
    let failed = |error: io::Error| format!("/home/{name}: {error}");
    match DirBuilder::new().mode(HOME_MODE).create(&path) {
        Ok(()) => match lchown(&path, Some(*uid), Some(gid)) {
            Ok(()) => Ok(format!("and its home /home/{name}")),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(failed(error))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::metadata(&path).map_err(failed)?;
            if !meta.is_dir() {
                return Err(format!("/home/{name}: it is not a directory"));
            }
            Ok(format!("and uses the directory /home/{name} of UID {}, which existed", meta.uid()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes a directory that every user can enter, unless it exists.
fn make_dir(dir: &Path) -> Result<(), String> {
    let made = match fs::create_dir(dir) {
        // The umask of this process may be any.
        Ok(()) => fs::set_permissions(dir, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    made.map_err(|error| format!("{}: {error}", dir.display()))
}

/// Adds a line with a locked password to a file of passwords. Returns false if there is no such file.
fn add_secret(path: &Path, name: &str, rest: &str) -> Result<bool, CreateError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(false);
    }
    let is_own = |line: &[u8]| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
    if !read(path)?.split(|byte| *byte == b'\n').any(is_own) {
        add_line(path, &format!("{name}{rest}"), 0)?;
    }
    Ok(true)
}

/// Locks the files of users against other programs, as lckpwdf(3) does. Where the lock file cannot be made, as on a
/// read-only file system, there is no lock.
fn lock(etc: &Path) -> Result<Option<File>, CreateError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let Ok(file) = options.open(etc.join(".pwd.lock")) else { return Ok(None) };
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Err(CreateError::Locked),
        _ => Ok(Some(file)),
    }
}

/// The content of a file; nothing if it does not exist.
fn read(path: &Path) -> Result<Vec<u8>, CreateError> {
    match regular_file::read(path, MAX_LENGTH) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        result => result.map_err(|error| CreateError::File(format!("{}: {error}", path.display()))),
    }
}

/// Adds a line to the end of a file, which need not exist. The file is replaced, so that a reader never sees a part of
/// the line, with the owner of the old one, and its mode with the bits of `least`. What cannot be replaced is written in
/// place: a symlink, or a mount point.
fn add_line(path: &Path, line: &str, least: u32) -> Result<(), CreateError> {
    let old = read(path)?;
    // A missing newline at the end of the file would join two lines.
    let separator = if matches!(old.last(), None | Some(b'\n')) { "" } else { "\n" };
    let added = format!("{separator}{line}\n");
    let content = [&old, added.as_bytes()].concat();
    let in_place = || append(path, old.len() as u64, added.as_bytes());
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => in_place(),
        Ok(meta) => {
            let (mode, owner) = (meta.mode() & 0o7777 | least, (meta.uid(), meta.gid()));
            files::write_and_rename(path, mode, &content, Some(owner)).or_else(|_| in_place())
        }
        Err(_) => files::write_and_rename(path, 0o644, &content, Some((0, 0))),
    };
    result.map_err(|error| CreateError::File(format!("{}: {error}", path.display())))
}

/// Writes `added` at the end of a file of `length` bytes; all of it or nothing.
fn append(path: &Path, length: u64, added: &[u8]) -> io::Result<()> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = OpenOptions::new().append(true).custom_flags(flags).open(path)?;
    let written = file.write_all(added).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = file.set_len(length);
    }
    written
}

/// What is looked for in /etc/passwd or /etc/group.
#[derive(Clone, Copy)]
enum Key<'a> {
    Name(&'a str),
    Id(u32),
}

/// Name and id of the first valid line of /etc/passwd or /etc/group with this key. A valid line has at least `fields`
/// fields, of which the third is the id.
fn find<'a>(file: &'a [u8], fields: usize, key: Key<'_>) -> Option<(&'a [u8], u32)> {
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let mut parts = line.trim_ascii_start().split(|byte| *byte == b':');
        let (name, _password, id) = (parts.next()?, parts.next()?, parts.next().and_then(id)?);
        let is_entry = !matches!(name.first(), None | Some(b'#' | b'+' | b'-')) && parts.count() + 3 >= fields;
        let is_wanted = match key {
            Key::Name(wanted) => name == wanted.as_bytes(),
            Key::Id(wanted) => id == wanted,
        };
        (is_entry && is_wanted).then_some((name, id))
    })
}

/// Parses an id: decimal digits only, and not the number that stands for "no id".
fn id(digits: &[u8]) -> Option<u32> {
    let add = |number: u32, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u32::from(*digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    digits.iter().try_fold(0, add).filter(|id| *id != u32::MAX && !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> NewUser {
        text.parse().unwrap()
    }

    /// A root directory with these files below /etc; None if the test must be skipped because it needs root.
    fn image(files: &[(&str, &str)]) -> Option<tempfile::TempDir> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (name, content) in files {
            fs::write(root.path().join("etc").join(name), content).unwrap();
        }
        nix::unistd::geteuid().is_root().then_some(root)
    }

    fn text(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path)).unwrap()
    }

    #[test]
    fn a_value_is_a_name_and_a_uid() {
        for (value, name, uid) in [("tl-user:1000", "tl-user", 1000), ("_a9:4294967294", "_a9", 4_294_967_294)] {
            assert_eq!(user(value), NewUser { name: name.to_owned(), uid });
        }
        let long = format!("{}:1", "a".repeat(33));
        for wrong in [
            "",
            "tl-user",
            ":1",
            "tl-user:",
            "tl-user:x",
            "tl-user:0",
            "tl-user:-1",
            "tl-user:+1",
            "a:4294967295",
            "A:1",
            "9a:1",
            "-a:1",
            "a b:1",
            "a.b:1",
            "ä:1",
            "a:1:1",
            "a/b:1",
            "a\nb:1",
            &long,
        ] {
            assert!(wrong.parse::<NewUser>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_image_gets_the_files_of_the_user() {
        let Some(root) = image(&[]) else { return };
        fs::remove_dir(root.path().join("etc")).unwrap();
        let done = create(&user("tl-user:1000"), root.path()).unwrap();
        let right = "made the user tl-user with UID 1000, the group tl-user with GID 1000, and its home /home/tl-user";
        assert_eq!(done, right);
        assert_eq!(text(&root, "etc/passwd"), "tl-user:!:1000:1000::/home/tl-user:/bin/sh\n");
        assert_eq!(text(&root, "etc/group"), "tl-user:!:1000:\n");
        for (path, mode, owner) in [
            ("etc", 0o755, 0),
            ("etc/passwd", 0o644, 0),
            ("etc/group", 0o644, 0),
            ("home", 0o755, 0),
            ("home/tl-user", 0o700, 1000),
        ] {
            let meta = fs::metadata(root.path().join(path)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, owner, owner), "{path}");
        }
        let mut left: Vec<_> =
            fs::read_dir(root.path().join("etc")).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".pwd.lock", "group", "passwd"]);
    }

    #[test]
    fn lines_are_added_to_the_files_that_exist_and_keep_their_owner_and_the_mode_of_secrets() {
        let files = [
            // Without a newline at its end; with lines that are not valid.
            (
                "passwd",
                "root:x:0:0::/root:/bin/sh\n#tl-user:x:5:5:::\ntl-user:x\n+tl-user:x:7:7:::\napp:x:1001:1001:::",
            ),
            ("group", "root:x:0:\nusers:x:1000:\nmore:x:1001\n"),
            ("shadow", "root:*:::::::\n"),
            ("gshadow", "root:*::\n"),
        ];
        let Some(root) = image(&files) else { return };
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/bash"), "").unwrap();
        let shadow = root.path().join("etc/shadow");
        fs::set_permissions(&shadow, Permissions::from_mode(0o640)).unwrap();
        lchown(&shadow, Some(0), Some(42)).unwrap();
        for public in ["etc/passwd", "etc/group"] {
            fs::set_permissions(root.path().join(public), Permissions::from_mode(0o600)).unwrap();
        }
        create(&user("tl-user:1000"), root.path()).unwrap();
        for (name, old) in files {
            let (separator, added) = match name {
                "passwd" => ("\n", "tl-user:x:1000:1002::/home/tl-user:/bin/bash\n"),
                "group" => ("", "tl-user:x:1002:\n"),
                "shadow" => ("", "tl-user:!:::::::\n"),
                _ => ("", "tl-user:!::\n"),
            };
            assert_eq!(text(&root, &format!("etc/{name}")), format!("{old}{separator}{added}"));
        }
        let meta = fs::metadata(&shadow).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 0, 42));
        for public in ["etc/passwd", "etc/group"] {
            assert_eq!(fs::metadata(root.path().join(public)).unwrap().mode() & 0o7777, 0o644);
        }
        let before = text(&root, "etc/passwd");
        let again = create(&user("tl-user:1000"), root.path()).unwrap();
        assert_eq!(again, "the user tl-user has UID 1000 already");
        assert_eq!(text(&root, "etc/passwd"), before);
    }

    #[test]
    fn another_user_is_never_changed() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n";
        let Some(root) = image(&[("passwd", passwd)]) else { return };
        let taken = create(&user("tl-user:1000"), root.path()).unwrap_err().to_string();
        assert_eq!(taken, "UID 1000 belongs to the user node, so tl-user is not made: give another UID");
        let other = create(&user("node:1001"), root.path()).unwrap_err().to_string();
        assert_eq!(other, "the user node exists with UID 1000, not 1001; it is left as it is");
        assert_eq!(text(&root, "etc/passwd"), passwd);
        assert!(!root.path().join("etc/group").exists() && !root.path().join("home").exists());
    }

    #[test]
    fn what_exists_of_the_group_and_the_home_is_used() {
        let Some(root) = image(&[("group", "tl-user:x:50:\n"), ("shadow", "tl-user:!:1::::::\n")]) else { return };
        fs::create_dir_all(root.path().join("home/tl-user")).unwrap();
        let done = create(&user("tl-user:1000"), root.path()).unwrap();
        assert!(done.ends_with(
            "the group tl-user with GID 50, which existed, and uses the directory /home/tl-user of UID 0, which existed"
        ));
        assert_eq!(text(&root, "etc/passwd"), "tl-user:x:1000:50::/home/tl-user:/bin/sh\n");
        assert_eq!(text(&root, "etc/group"), "tl-user:x:50:\n");
        assert_eq!(text(&root, "etc/shadow"), "tl-user:!:1::::::\n");
        assert_eq!(fs::metadata(root.path().join("home/tl-user")).unwrap().uid(), 0, "its owner is not changed");
    }

    #[test]
    fn a_user_without_a_home_is_made_and_reported() {
        let Some(root) = image(&[]) else { return };
        fs::create_dir(root.path().join("home")).unwrap();
        fs::write(root.path().join("home/tl-user"), "").unwrap();
        let error = create(&user("tl-user:1000"), root.path()).unwrap_err().to_string();
        assert!(error.starts_with("made the user tl-user with UID 1000, but not its home: /home/tl-user"), "{error}");
        assert!(text(&root, "etc/passwd").starts_with("tl-user:"));
    }

    #[test]
    fn a_file_behind_a_symlink_is_changed_and_the_symlink_kept() {
        let Some(root) = image(&[]) else { return };
        fs::create_dir(root.path().join("static")).unwrap();
        fs::write(root.path().join("static/passwd"), "root:x:0:0:::\n").unwrap();
        std::os::unix::fs::symlink("../static/passwd", root.path().join("etc/passwd")).unwrap();
        create(&user("tl-user:1000"), root.path()).unwrap();
        assert!(text(&root, "static/passwd").contains("\ntl-user:"));
        assert!(fs::symlink_metadata(root.path().join("etc/passwd")).unwrap().is_symlink());
    }

    #[test]
    fn files_that_another_program_changes_or_that_are_not_regular_stay_as_they_are() {
        let Some(root) = image(&[("passwd", "root:x:0:0:::\n"), (".pwd.lock", "")]) else { return };
        let lock = root.path().join("etc/.pwd.lock");
        // A lock belongs to a process, so another one holds it.
        let script = "import fcntl, os, sys
file = open(sys.argv[1], 'r+')
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(1, b'locked')
os.close(1)
sys.stdin.read()";
        let mut holder = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&lock)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        io::Read::read_to_string(&mut holder.stdout.take().unwrap(), &mut said).unwrap();
        assert_eq!(said, "locked");
        let result = create(&user("tl-user:1000"), root.path());
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert!(matches!(result, Err(CreateError::Locked)), "{result:?}");
        assert_eq!(text(&root, "etc/passwd"), "root:x:0:0:::\n");

        fs::remove_file(root.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&root.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = create(&user("tl-user:1000"), root.path()).unwrap_err().to_string();
        assert!(error.contains("etc/passwd: it is not a regular file"), "{error}");
    }
}
