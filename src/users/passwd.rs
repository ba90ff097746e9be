//! Parses `/etc/passwd`, `/etc/group` and the textual forms of `user` (docs/api.md, Environment and users).
//!
//! The daemon is static and has no NSS: it knows only the users in these two files. Images may contain files that were
//! never checked by `pwck`, so a malformed line is skipped, as glibc does. The files are read as bytes: a name in
//! Latin-1 must not hide the entries after it.

use std::collections::HashSet;
use std::str::{self, FromStr};

use crate::error::{Error, SpecError};
use crate::model::{NO_ID, UserSpec};

/// Maximum number of supplementary groups of a process (`NGROUPS_MAX`).
pub const MAX_GROUPS: usize = 65_536;

const SHELL: &str = "/bin/sh";

/// The attributes that a process gets from its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// The supplementary groups for `setgroups(2)`: at most [`MAX_GROUPS`], the primary group first; or empty.
    pub groups: Vec<u32>,
    /// The home directory, an absolute path. It need not exist.
    pub home: String,
    /// The login shell.
    pub shell: String,
    /// The login name, or the UID in decimal if `/etc/passwd` has no entry.
    pub name: String,
}

impl FromStr for UserSpec {
    type Err = SpecError;

    /// Parses `root`, `1000` or `1000:1000`.
    ///
    /// # Errors
    /// [`SpecError`] about the field `user`, with the permitted forms.
    fn from_str(text: &str) -> Result<UserSpec, SpecError> {
        let wrong = || SpecError::new("user", "must be a name, a UID or `uid:gid`, each id from 0 to 4294967294");
        if let Some((uid, gid)) = text.split_once(':') {
            let id = |text: &str| parse_id(text.as_bytes()).ok_or_else(wrong);
            return Ok(UserSpec::Uid { uid: id(uid)?, gid: Some(id(gid)?) });
        }
        if text.is_empty() || text.contains(['\0', '\n']) {
            return Err(wrong());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let uid = parse_id(text.as_bytes()).ok_or_else(wrong)?;
            return Ok(UserSpec::Uid { uid, gid: None });
        }
        Ok(UserSpec::Name { name: text.to_owned(), gid: None })
    }
}

/// Looks up the user named by `spec` in `passwd`, the bytes of `/etc/passwd`. `group` returns the bytes of
/// `/etc/group`; it is called only if supplementary groups are needed.
///
/// # Errors
/// [`Error::UserNotFound`] for a name without an entry, [`Error::Invalid`] for an id that no process can have, and
/// the errors of `group`.
pub fn resolve(
    spec: &UserSpec,
    passwd: &[u8],
    group: impl FnOnce() -> Result<Vec<u8>, Error>,
) -> Result<Identity, Error> {
    let (entry, gid) = match spec {
        UserSpec::Name { name, gid } => {
            let entry = find(passwd, |entry| entry.name == name);
            (entry.ok_or_else(|| Error::UserNotFound(name.clone()))?, *gid)
        }
        UserSpec::Uid { uid, gid } => {
            check_id(*uid)?;
            match find(passwd, |entry| entry.uid == *uid) {
                Some(entry) => (entry, *gid),
                // Without a name there are no supplementary groups: `/etc/group` lists names.
                None => return nameless(*uid, gid.unwrap_or(*uid)),
            }
        }
    };
    let groups = match gid {
        Some(gid) => {
            check_id(gid)?;
            Vec::new()
        }
        None => groups_of(entry.name, entry.gid, &group()?),
    };
    Ok(Identity {
        uid: entry.uid,
        gid: gid.unwrap_or(entry.gid),
        groups,
        home: entry.home.to_owned(),
        shell: entry.shell.to_owned(),
        name: entry.name.to_owned(),
    })
}

fn nameless(uid: u32, gid: u32) -> Result<Identity, Error> {
    check_id(gid)?;
    let (home, shell) = ("/".to_owned(), SHELL.to_owned());
    Ok(Identity { uid, gid, groups: Vec::new(), home, shell, name: uid.to_string() })
}

/// Rejects [`NO_ID`], which a spec that was not parsed from text can contain.
fn check_id(id: u32) -> Result<(), SpecError> {
    if id == NO_ID { Err(SpecError::new("user", "must not have the id 4294967295")) } else { Ok(()) }
}

/// One line of `/etc/passwd`.
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

/// The first matching entry. Later ones with the same name or UID are ignored.
fn find<'a>(passwd: &'a [u8], matches: impl Fn(&PasswdEntry<'a>) -> bool) -> Option<PasswdEntry<'a>> {
    lines(passwd).filter_map(entry).find(matches)
}

/// The lines that may be entries: not empty, not a comment, and not an NIS entry (`+name`, `-name`). Lines with a NUL
/// are skipped, since their fields cannot be passed to the kernel.
fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start())
        .filter(|line| !matches!(line.first(), None | Some(b'#' | b'+' | b'-')) && !line.contains(&0))
}

/// Parses `name:password:uid:gid:comment:home:shell`. Only the comment and the password may be other than UTF-8.
fn entry(line: &[u8]) -> Option<PasswdEntry<'_>> {
    let mut fields = line.splitn(7, |&byte| byte == b':');
    let name = fields.next().and_then(text).filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let uid = fields.next().and_then(parse_id)?;
    let gid = fields.next().and_then(parse_id)?;
    let _comment = fields.next()?;
    let home = fields.next().and_then(text)?;
    let shell = fields.next().and_then(text)?;
    Some(PasswdEntry {
        name,
        uid,
        gid,
        // A relative path would be resolved against the daemon's working directory.
        home: if home.starts_with('/') { home } else { "/" },
        // The default of passwd(5) for an empty field.
        shell: if shell.is_empty() { SHELL } else { shell },
    })
}

/// The groups of a user, as initgroups(3) determines them: the primary group, then each group that lists the name, in
/// the order of the file.
fn groups_of(name: &str, primary: u32, group: &[u8]) -> Vec<u32> {
    let mut seen = HashSet::from([primary]);
    let others = lines(group).filter_map(|line| gid_if_listed(line, name)).filter(|gid| seen.insert(*gid));
    let mut groups: Vec<u32> = std::iter::once(primary).chain(others).take(MAX_GROUPS).collect();
    groups.shrink_to_fit();
    groups
}

/// The gid of a line `name:password:gid:member,member` that lists `name`.
fn gid_if_listed(line: &[u8], name: &str) -> Option<u32> {
    let mut fields = line.splitn(4, |&byte| byte == b':');
    let _name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let gid = fields.next().and_then(parse_id)?;
    let mut members = fields.next()?.split(|&byte| byte == b',');
    members.any(|member| member.trim_ascii() == name.as_bytes()).then_some(gid)
}

/// The id of the first group with this name, given the bytes of `/etc/group`.
pub fn group_id(name: &str, group: &[u8]) -> Option<u32> {
    lines(group).find_map(|line| {
        let mut fields = line.splitn(4, |&byte| byte == b':');
        fields.next().filter(|field| *field == name.as_bytes())?;
        fields.nth(1).and_then(parse_id)
    })
}

fn text(field: &[u8]) -> Option<&str> {
    str::from_utf8(field).ok()
}

/// Parses a uid or gid in decimal: digits only, and not [`NO_ID`].
fn parse_id(field: &[u8]) -> Option<u32> {
    if !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text(field)?.parse().ok().filter(|id| *id != NO_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        app:x:1000:1000:App,,,:/home/app:/bin/zsh\n\
        bare:x:1001:50:::\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\napp:x:1000:\ndocker:x:999:bare,app\n";

    fn of(text: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, Error> {
        resolve(&text.parse()?, passwd, || Ok(group.to_vec()))
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str, shell: &str, name: &str) -> Identity {
        let (home, shell, name) = (home.to_owned(), shell.to_owned(), name.to_owned());
        Identity { uid, gid, groups: groups.to_vec(), home, shell, name }
    }

    #[test]
    fn users_get_the_identity_of_their_passwd_and_group_entries() {
        let app = identity(1000, 1000, &[1000, 10, 999], "/home/app", "/bin/zsh", "app");
        for (user, want) in [
            ("root", identity(0, 0, &[0, 10], "/root", "/bin/bash", "root")),
            ("0", identity(0, 0, &[0, 10], "/root", "/bin/bash", "root")),
            ("app", app.clone()),
            ("1000", app),
            ("1000:1000", identity(1000, 1000, &[], "/home/app", "/bin/zsh", "app")),
            ("1000:0", identity(1000, 0, &[], "/home/app", "/bin/zsh", "app")),
            ("bare", identity(1001, 50, &[50, 999], "/", "/bin/sh", "bare")),
            ("4242", identity(4242, 4242, &[], "/", "/bin/sh", "4242")),
            ("4242:7", identity(4242, 7, &[], "/", "/bin/sh", "4242")),
            ("4294967294", identity(4_294_967_294, 4_294_967_294, &[], "/", "/bin/sh", "4294967294")),
        ] {
            assert_eq!(of(user, PASSWD, GROUP), Ok(want), "{user}");
        }
        assert_eq!(of("nobody", PASSWD, GROUP), Err(Error::UserNotFound("nobody".into())));
        assert_eq!(of("root", b"", b""), Err(Error::UserNotFound("root".into())));
        assert_eq!(of("0", b"", b""), Ok(identity(0, 0, &[], "/", "/bin/sh", "0")));
    }

    #[test]
    fn a_group_id_is_found_by_name() {
        for (name, id) in [("wheel", Some(10)), ("docker", Some(999)), ("nobody", None), ("", None), ("x", None)] {
            assert_eq!(group_id(name, GROUP), id, "{name}");
        }
        assert_eq!(group_id("tty", b"tty\ntty:x:no:\n+tty:x:4:\ntty:x:5\ntty:x:6:"), Some(5));
    }

    #[test]
    fn a_name_with_a_gid_has_no_other_groups() {
        let spec = UserSpec::Name { name: "app".into(), gid: Some(5) };
        let want = identity(1000, 5, &[], "/home/app", "/bin/zsh", "app");
        assert_eq!(resolve(&spec, PASSWD, || Ok(GROUP.to_vec())), Ok(want));
    }

    #[test]
    fn the_group_file_is_read_only_if_supplementary_groups_are_needed() {
        let unread = || Err(Error::internal("read"));
        for (user, reads) in [("app", true), ("1000", true), ("1000:5", false), ("77", false), ("77:5", false)] {
            assert_eq!(resolve(&user.parse().unwrap(), PASSWD, unread).is_err(), reads, "{user}");
        }
    }

    #[test]
    fn a_user_is_parsed_from_a_name_a_uid_or_uid_and_gid() {
        let name = |name: &str| UserSpec::Name { name: name.into(), gid: None };
        for (text, want) in [
            ("root", name("root")),
            ("tl-user", name("tl-user")),
            ("12monkeys", name("12monkeys")),
            ("-1", name("-1")),
            ("+1", name("+1")),
            ("jos\u{e9}", name("jos\u{e9}")),
            ("0", UserSpec::Uid { uid: 0, gid: None }),
            ("007", UserSpec::Uid { uid: 7, gid: None }),
            ("4294967294", UserSpec::Uid { uid: 4_294_967_294, gid: None }),
            ("1000:0", UserSpec::Uid { uid: 1000, gid: Some(0) }),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text:?}");
        }
        for text in [
            "",
            ":",
            "1000:",
            ":1000",
            "1:2:3",
            "4294967295",
            "4294967296",
            "99999999999999999999999",
            "1:4294967295",
            "1:-1",
            "1:+1",
            "1: 1",
            "root:0",
            "0:root",
            "a\nb",
            "a\0b",
        ] {
            let error = text.parse::<UserSpec>().expect_err(text);
            assert_eq!(error.field, "user", "{text:?}");
        }
    }

    #[test]
    fn the_id_that_means_do_not_change_is_rejected() {
        for spec in [
            UserSpec::Uid { uid: NO_ID, gid: None },
            UserSpec::Uid { uid: 0, gid: Some(NO_ID) },
            UserSpec::Uid { uid: 77, gid: Some(NO_ID) },
            UserSpec::Name { name: "app".into(), gid: Some(NO_ID) },
        ] {
            let got = resolve(&spec, PASSWD, || Ok(GROUP.to_vec()));
            assert!(matches!(got, Err(Error::Invalid(_))), "{spec:?}: {got:?}");
        }
        // setresuid(2) with this id would leave the process root.
        assert!(of("evil", b"evil:x:4294967295:0::/:/bin/sh\n", b"").is_err());
    }

    #[test]
    fn malformed_lines_are_skipped() {
        for malformed in [
            &b""[..],
            b"# app:x:1:1::/comment:/bin/sh",
            b"+app:x:1:1::/nis:/bin/sh",
            b"-app:x:1:1::/nis:/bin/sh",
            b"+",
            b"+::::::",
            b":x:1000:1::/nameless:/bin/sh",
            b"app",
            b"app:x",
            b"app:x:1000",
            b"app:x:1000:1",
            b"app:x:1000:1:gecos",
            b"app:x:1000:1:gecos:/home",
            b"app:x::1::/:/bin/sh",
            b"app:x:1000:::/:/bin/sh",
            b"app:x:-1000:1::/:/bin/sh",
            b"app:x:+1000:1::/:/bin/sh",
            b"app:x:0x3e8:1::/:/bin/sh",
            b"app:x:4294967296:1::/:/bin/sh",
            b"app:x:1000:4294967295::/:/bin/sh",
            b"app:x:1000:1::/ho\0me:/bin/sh",
            b"app:x:1000:1::/ho\xffme:/bin/sh",
            b"app:x:1000:1::/home:/bin/\xff",
            b"a\xffp:x:1000:1::/home:/bin/sh",
            b"\xff\xfe\x00\x01",
        ] {
            let file = [malformed, b"\n", PASSWD].concat();
            let name = String::from_utf8_lossy(malformed);
            for user in ["app", "1000"] {
                assert_eq!(of(user, &file, GROUP).map(|it| it.home), Ok("/home/app".into()), "{user}: {name:?}");
            }
        }
    }

    #[test]
    fn entries_that_glibc_accepts_are_accepted() {
        // A comment in Latin-1, leading blanks, no final newline, a home directory that is not an absolute path.
        let file = b"\t jose:x:5:6:Jos\xe9:home:/bin/sh";
        assert_eq!(of("jose", file, b"\xff:x:7:jose"), Ok(identity(5, 6, &[6, 7], "/", "/bin/sh", "jose")));
        let crlf = b"app:x:5:6::/app:/bin/sh\r\n";
        assert_eq!(of("5", crlf, b"g:x:7:app\r\n").unwrap().groups, [6, 7]);
        assert_eq!(of("5", crlf, b"").unwrap().shell, "/bin/sh");
    }

    #[test]
    fn the_first_matching_entry_is_used() {
        let file = b"app:x:5:6::/first:/bin/sh\napp:x:0:0::/second:/bin/sh\nother:x:5:9::/third:/bin/sh\n";
        assert_eq!(of("app", file, b"").unwrap().home, "/first");
        assert_eq!(of("5", file, b"").unwrap().home, "/first");
        assert_eq!(of("0", file, b"").unwrap().home, "/second");
        assert_eq!(of("other", file, b"").unwrap().home, "/third");
    }

    #[test]
    fn a_user_is_in_the_groups_that_list_the_exact_name() {
        for (group, want) in [
            (&b"a:x:7:application\nb:x:8:my-app\nc:x:9:ap"[..], &[1000][..]),
            (b"a:x:7:app\na2:x:7:app\nself:x:1000:app", &[1000, 7]),
            (b"a:x:7:x, app\nb:x:8:,,app,", &[1000, 7, 8]),
            (b"a:x:7\nb:x:\nc\n:x:8:app\n+g:x:9:app\n#g:x:9:app\nd:x:-1:app\nd:x:4294967295:app", &[1000]),
            (b"app:x:7:", &[1000]),
            (b"z:x:30:app\na:x:7:\xff,app", &[1000, 30, 7]),
        ] {
            assert_eq!(of("app", PASSWD, group).unwrap().groups, want, "{:?}", String::from_utf8_lossy(group));
        }
    }

    #[test]
    fn the_number_of_groups_is_limited() {
        let file: String = (0..70_000).map(|n| format!("g{n}:x:{}:app\n", 100_000 + n)).collect();
        let groups = of("app", PASSWD, file.as_bytes()).unwrap().groups;
        assert_eq!((groups.len(), groups.first(), groups.last()), (MAX_GROUPS, Some(&1000), Some(&165_534)));
    }

    #[test]
    fn huge_lines_do_not_hide_other_entries() {
        let junk = [vec![b'x'; 4 << 20], b"\n".to_vec(), vec![b':'; 4 << 20], b"\n".to_vec()].concat();
        let file = [&junk, PASSWD].concat();
        let members = [&junk, &b"big:x:7:"[..], &b"someone,".repeat(1 << 18), b"app\n"].concat();
        assert_eq!(of("app", &file, &members).unwrap().groups, [1000, 7]);
    }
}
