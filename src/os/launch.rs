//! Everything that a child needs, put together before the fork: after it, the child may not allocate.

use std::ffi::{CString, c_char};
use std::ptr;

use crate::error::Error;
use crate::model::ProcessSpec;
use crate::users::Identity;

/// The search path of the base environment (section 8).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variable that names the run which a process was started in, as systemd's does (systemd.exec(5)). Children inherit
/// it, which tells whose they are when nothing else does.
pub const INVOCATION_ID: &str = "INVOCATION_ID";

/// C strings with a null-terminated array of pointers to them, as `execve(2)` takes them.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    fn new(strings: Vec<CString>) -> StringArray {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        StringArray { strings, pointers }
    }

    /// The array, ending in a null pointer; valid as long as `self`.
    pub fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// The strings.
    pub fn iter(&self) -> impl Iterator<Item = &CString> {
        self.strings.iter()
    }
}

/// A program with all that it starts with, but for its descriptors.
#[derive(Debug)]
pub struct Launch {
    pub(super) programs: StringArray,
    pub(super) argv: StringArray,
    pub(super) envp: StringArray,
    /// Must exist.
    pub(super) dir: Option<CString>,
    /// Where it goes without `dir`, if it exists.
    pub(super) home: CString,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Launch {
    /// Puts it together: the base environment, `base_env` on top of it, the spec's own on top of that, and
    /// [`INVOCATION_ID`], which nobody else sets.
    ///
    /// # Errors
    /// [`Error::Internal`] when `/etc/passwd` or the environment file has a NUL in what is used of it.
    pub fn new(
        spec: &ProcessSpec,
        identity: &Identity,
        base_env: &[(String, String)],
        invocation: &str,
    ) -> Result<Launch, Error> {
        let env = environment(spec, identity, base_env, invocation);
        let path = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
        let programs = candidates(&spec.command, path).into_iter().map(c_string).collect::<Result<_, _>>()?;
        let args = spec.args.iter().map(String::as_str);
        let argv = [&*spec.command].into_iter().chain(args).map(c_string);
        let dir = spec.working_dir.as_ref().map(|dir| match dir.starts_with('/') {
            true => dir.clone(),
            false => format!("{}/{dir}", identity.home),
        });
        Ok(Launch {
            programs: StringArray::new(programs),
            argv: StringArray::new(argv.collect::<Result<_, _>>()?),
            envp: StringArray::new(
                env.iter().map(|(key, value)| c_string(format!("{key}={value}"))).collect::<Result<_, _>>()?,
            ),
            dir: dir.map(c_string).transpose()?,
            home: c_string(identity.home.as_str())?,
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
        })
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Internal("a NUL character in /etc/passwd or the environment file".into()))
}

/// Each variable once, the last word on it winning, in the order of the first.
fn environment(
    spec: &ProcessSpec,
    identity: &Identity,
    base_env: &[(String, String)],
    invocation: &str,
) -> Vec<(String, String)> {
    let base = [
        ("PATH", PATH),
        ("HOME", &identity.home),
        ("USER", &identity.name),
        ("LOGNAME", &identity.name),
        ("SHELL", &identity.shell),
        ("LANG", "C.UTF-8"),
    ];
    let base = base
        .into_iter()
        .chain(spec.terminal.map(|_| ("TERM", "xterm-256color")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut env: Vec<(String, String)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let own = [(INVOCATION_ID.to_owned(), invocation.to_owned())];
    for (key, value) in base.chain(base_env.iter().cloned()).chain(spec.env.iter().cloned()).chain(own) {
        let place = *places.entry(key.clone()).or_insert(env.len());
        match env.get_mut(place) {
            Some(entry) => entry.1 = value,
            None => env.push((key, value)),
        }
    }
    env
}

/// The files to try, in order, as `execvp(3)` does: a name with a slash is itself; an empty element of the path means
/// the working directory.
fn candidates(command: &str, path: &str) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    path.split(':')
        .map(|dir| match dir {
            "" => format!("./{command}"),
            dir => format!("{dir}/{command}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            uid: 1000,
            gid: 1000,
            groups: vec![1000, 27],
            home: "/home/u".into(),
            shell: "/bin/sh".into(),
            name: "u".into(),
        }
    }

    #[test]
    fn the_path_is_searched_as_execvp_does() {
        assert_eq!(candidates("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(candidates("./ls", "/a:/b"), ["./ls"]);
        assert_eq!(candidates("ls", ":/b:"), ["./ls", "/b/ls", "./ls"]);
        assert_eq!(candidates("ls", ""), ["./ls"]);
    }

    #[test]
    fn the_last_word_on_a_variable_wins() {
        let spec = ProcessSpec::command("x").env("LANG", "fr_FR").env("A", "spec").env("INVOCATION_ID", "forged");
        let spec = spec.build().unwrap();
        let base = [("A".to_owned(), "file".to_owned()), ("HOME".to_owned(), "/else".to_owned())];
        let env = environment(&spec, &identity(), &base, "4711");
        let value = |key: &str| env.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(value("LANG"), Some("fr_FR"));
        assert_eq!(value("A"), Some("spec"));
        assert_eq!(value("HOME"), Some("/else"));
        assert_eq!(value("USER"), Some("u"));
        assert_eq!(value("INVOCATION_ID"), Some("4711"));
        assert_eq!(env.len(), 8);
    }

    #[test]
    fn a_terminal_has_a_type() {
        let term = |spec: crate::model::SpecBuilder| {
            let env = environment(&spec.build().unwrap(), &identity(), &[], "");
            env.into_iter().find(|(key, _)| key == "TERM").map(|(_, value)| value)
        };
        let plain = || ProcessSpec::command("x");
        assert_eq!(term(plain()), None);
        assert_eq!(term(plain().terminal(Default::default())).as_deref(), Some("xterm-256color"));
        assert_eq!(term(plain().terminal(Default::default()).env("TERM", "dumb")).as_deref(), Some("dumb"));
    }

    #[test]
    fn a_relative_directory_is_below_home() {
        let spec = ProcessSpec::command("x").working_dir("sub").build().unwrap();
        let launch = Launch::new(&spec, &identity(), &[], "").unwrap();
        assert_eq!(launch.dir.unwrap().to_str(), Ok("/home/u/sub"));
    }
}
