//! What must hold for every content of `/etc/passwd` and `/etc/group` (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;

use crate::error::Error;
use crate::model::{NO_ID, UserSpec};
use crate::users::passwd::{Identity, MAX_GROUPS, group_id, resolve};

/// The identity of a process is that of the first valid line, and one that the kernel accepts as it is. Comments, and
/// further lines about the same users, change nothing.
///
/// The first line of the input is the user, the lines up to an empty one are `/etc/passwd`, the rest is `/etc/group`.
pub(crate) fn passwd(input: &[u8]) {
    let (user, files) = split(input, b"\n");
    let (passwd, group) = split(files, b"\n\n");
    let Ok(user) = std::str::from_utf8(user) else { return };
    check_groups(user, group);
    let Ok(spec) = user.parse::<UserSpec>() else {
        assert!(user.is_empty() || user.contains([':', '\0']) || user.bytes().all(|byte| byte.is_ascii_digit()));
        return;
    };
    check_spec(&spec);
    let of = |passwd: &[u8], group: &[u8]| resolve(&spec, passwd, || Ok(group.to_vec()));
    let found = of(passwd, group);
    match &found {
        Ok(identity) => check_identity(&spec, identity, passwd),
        Err(Error::UserNotFound(name)) => {
            assert_eq!(spec, UserSpec::Name { name: name.clone(), gid: None });
            assert_eq!(first_entry(passwd, |line| line.name == name.as_bytes()), None);
        }
        Err(error) => panic!("{error:?}"),
    }
    let comment = &b"# a comment:x:1:1::/:\n"[..];
    assert_eq!(of(&[comment, passwd].concat(), &[comment, group].concat()), found);
    assert_eq!(of(&[passwd, b"\n", passwd].concat(), &[group, b"\n", group].concat()), found);
}

fn split<'i>(input: &'i [u8], separator: &[u8]) -> (&'i [u8], &'i [u8]) {
    match input.windows(separator.len()).position(|window| window == separator) {
        Some(at) => (&input[..at], &input[at + separator.len()..]),
        None => (input, b""),
    }
}

fn check_spec(spec: &UserSpec) {
    match spec {
        UserSpec::Uid { uid, gid } => {
            assert!(*uid != NO_ID && *gid != Some(NO_ID));
            let text = gid.map_or(uid.to_string(), |gid| format!("{uid}:{gid}"));
            assert_eq!(text.parse().as_ref(), Ok(spec));
        }
        UserSpec::Name { name, gid } => {
            assert!(!name.is_empty() && gid.is_none() && !name.contains(['\0', '\n', ':']), "{name:?}");
        }
    }
}

fn check_identity(spec: &UserSpec, identity: &Identity, passwd: &[u8]) {
    let Identity { uid, gid, groups, home, shell, name } = identity;
    assert!(*uid != NO_ID && *gid != NO_ID && !groups.contains(&NO_ID), "{identity:?}");
    assert!(groups.is_empty() || groups.first() == Some(gid), "{identity:?}");
    assert!(groups.len() <= MAX_GROUPS && groups.iter().collect::<HashSet<_>>().len() == groups.len(), "{identity:?}");
    assert!(home.starts_with('/') && !shell.is_empty() && !name.is_empty(), "{identity:?}");
    for text in [home, shell, name] {
        assert!(!text.contains(['\0', '\n']), "{identity:?}");
    }
    let entry = match spec {
        UserSpec::Uid { uid: wanted, .. } => {
            assert_eq!(uid, wanted);
            first_entry(passwd, |line| line.uid == *wanted)
        }
        UserSpec::Name { name: wanted, .. } => {
            assert_eq!(name, wanted);
            let entry = first_entry(passwd, |line| line.name == wanted.as_bytes());
            assert!(entry.is_some(), "{identity:?}");
            entry
        }
    };
    let (UserSpec::Uid { gid: given, .. } | UserSpec::Name { gid: given, .. }) = spec;
    match entry {
        Some(entry) => {
            assert_eq!((*uid, *gid), (entry.uid, given.unwrap_or(entry.gid)));
            assert_eq!((given.is_some(), name.as_bytes()), (groups.is_empty(), entry.name));
        }
        None => {
            let expected = (uid.to_string(), given.unwrap_or(*uid), "/", "/bin/sh");
            assert_eq!((name.clone(), *gid, home.as_str(), shell.as_str()), expected);
            assert!(groups.is_empty());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry<'f> {
    name: &'f [u8],
    uid: u32,
    gid: u32,
}

/// The first valid line of `/etc/passwd` that is wanted, by a simple reading of passwd(5).
fn first_entry<'f>(passwd: &'f [u8], wanted: impl Fn(&Entry) -> bool) -> Option<Entry<'f>> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        let fields: Vec<&[u8]> = line.splitn(7, |byte| *byte == b':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        let is_text = [name, home, shell].iter().all(|field| std::str::from_utf8(field).is_ok());
        let is_entry = is_text && !line.contains(&0) && !matches!(name, [] | [b'#' | b'+' | b'-', ..]);
        let entry = Entry { name, uid: id(uid)?, gid: id(gid)? };
        (is_entry && wanted(&entry)).then_some(entry)
    })
}

fn id(field: &[u8]) -> Option<u32> {
    let is_number = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    let number = field.iter().try_fold(0_u64, |number, digit| {
        let number = number * 10 + u64::from(*digit & 15);
        (number < u64::from(NO_ID)).then_some(number)
    });
    number.filter(|_| is_number).map(|number| u32::try_from(number).unwrap())
}

fn check_groups(name: &str, group: &[u8]) {
    if name.is_empty() {
        return;
    }
    let found = group_id(name, group);
    assert!(found != Some(NO_ID));
    assert_eq!(group_id(name, &[b"# x:x:1:\n", group].concat()), found);
    if found.is_some() {
        assert!(group.windows(name.len()).any(|window| window == name.as_bytes()));
    }
}
