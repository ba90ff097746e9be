//! Prepares all data that a child needs before the fork, since the child must not allocate memory after it.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use tl_os::pty::Size;
use tl_os::spawn::{ExecFailure, Launch, Stage, Stdio, StringArray};
use tl_os::wait;

use crate::error::{Error, SpecError, is_resource_exhaustion};
use crate::model::{self, Exit, INVOCATION_ID, OutputMode, ProcessSpec, StdinMode};
use crate::users::Identity;

/// `PATH` of the base environment (docs/api.md, Environment and users).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program, arguments, environment, directory and ids of a child. The variables of the spec take precedence over
/// those of `base_env`, and these over the base environment; [`INVOCATION_ID`] is always `invocation`.
///
/// # Errors
/// [`Error::Internal`] when a string from `/etc/passwd` or from the environment file contains a NUL character.
pub(super) fn launch(
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
        open_files: None,
        no_new_privs: spec.no_new_privs,
    })
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::internal("a NUL character in /etc/passwd or the environment file"))
}

/// The environment, each variable once: with its last value, at the position of its first one.
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
        .chain(spec.stdio.terminal().map(|_| ("TERM", "xterm-256color")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut env: Vec<(String, String)> = Vec::new();
    let mut positions = std::collections::HashMap::new();
    let own = [(INVOCATION_ID.to_owned(), invocation.to_owned())];
    for (key, value) in base.chain(base_env.iter().cloned()).chain(spec.env.iter().cloned()).chain(own) {
        let position = *positions.entry(key.clone()).or_insert(env.len());
        match env.get_mut(position) {
            Some(variable) => variable.1 = value,
            None => env.push((key, value)),
        }
    }
    env
}

/// The files to execute, in the order in which they are tried, as `execvp(3)` does: a name with a slash is the file
/// itself; an empty element of the path is the working directory.
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

/// The error for a failed exec.
pub(super) fn explain(failure: ExecFailure, spec: &ProcessSpec) -> Error {
    let command = || spec.command.to_string();
    let dir = || spec.working_dir.clone().unwrap_or_default();
    let why = Errno::from_raw(failure.errno).desc().to_owned();
    let other = |doing: &str| Error::from_io(doing, &io::Error::from_raw_os_error(failure.errno));
    match (failure.stage, failure.errno) {
        (Stage::Exec, libc::EAGAIN) => {
            Error::out_of_resources("the user has reached its limit of processes and threads (RLIMIT_NPROC)")
        }
        (_, errno) if is_resource_exhaustion(errno) => other("starting a process"),
        (Stage::Setup, _) => other("preparing a process"),
        (Stage::OpenFiles, _) => {
            SpecError::new("limits.open_files", format!("cannot be set by the daemon: {why}")).into()
        }
        (Stage::User, libc::EPERM) => {
            Error::permission_denied("`user`: the daemon does not have the privilege to become another user")
        }
        (Stage::User, libc::EINVAL) => {
            Error::permission_denied("`user`: this user namespace has no such user or group")
        }
        (Stage::User, _) => other("becoming the user"),
        (Stage::Directory, libc::EACCES | libc::EPERM) => {
            Error::permission_denied(format!("`working_dir`: the user is not allowed to enter {:?}", dir()))
        }
        (Stage::Directory, _) => Error::WorkingDirNotFound(dir()),
        (Stage::NotFound, _) => Error::CommandNotFound(command()),
        (Stage::Exec, libc::E2BIG) => Error::ArgumentsTooLong,
        (Stage::Exec, libc::ENOENT) => {
            Error::NotExecutable { command: command(), why: "its interpreter does not exist".to_owned() }
        }
        (Stage::Exec, libc::ENOEXEC) => Error::NotExecutable {
            command: command(),
            why: "it is neither a program for this machine nor a script that begins with `#!`".to_owned(),
        },
        (Stage::Exec, _) => Error::NotExecutable { command: command(), why },
    }
}

/// The standard streams of a process with this spec. `tty_group` owns its terminal.
pub(super) fn stdio(spec: &ProcessSpec, tty_group: Option<u32>) -> Stdio {
    match spec.stdio {
        model::Stdio::Terminal(size) => {
            Stdio::Terminal { size: Size { rows: size.rows, cols: size.cols }, tty: tty_group }
        }
        model::Stdio::Inherit => Stdio::Inherit,
        model::Stdio::Pipes(pipes) => Stdio::Pipes {
            stdin: pipes.stdin == StdinMode::Pipe,
            stdout: pipes.stdout == OutputMode::Capture,
            stderr: pipes.stderr == OutputMode::Capture,
        },
    }
}

/// The end of a process as the kernel reports it: an out-of-memory kill is [`Exit::Signal`] here.
pub(super) fn exit(exit: wait::Exit) -> Exit {
    match exit {
        wait::Exit::Code(code) => Exit::Code(code),
        wait::Exit::Signal(signal) => Exit::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TerminalSize;

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
    fn the_spec_overrides_the_base_env_and_invocation_id_cannot_be_overridden() {
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
    fn a_process_on_a_terminal_gets_term_unless_the_spec_sets_it() {
        let term = |spec: crate::model::SpecBuilder| {
            let env = environment(&spec.build().unwrap(), &identity(), &[], "");
            env.into_iter().find(|(key, _)| key == "TERM").map(|(_, value)| value)
        };
        let plain = || ProcessSpec::command("x");
        assert_eq!(term(plain()), None);
        assert_eq!(term(plain().stdio(TerminalSize::default())).as_deref(), Some("xterm-256color"));
        assert_eq!(term(plain().stdio(TerminalSize::default()).env("TERM", "dumb")).as_deref(), Some("dumb"));
    }

    #[test]
    fn a_relative_directory_is_below_home() {
        let spec = ProcessSpec::command("x").working_dir("sub").build().unwrap();
        let launch = launch(&spec, &identity(), &[], "").unwrap();
        assert_eq!(launch.dir.unwrap().to_str(), Ok("/home/u/sub"));
    }

    fn explained(stage: Stage, errno: i32) -> Error {
        let spec = ProcessSpec::command("prog").working_dir("/dir").build().unwrap();
        let mut bytes = vec![stage as u8];
        bytes.extend(errno.to_ne_bytes());
        explain(ExecFailure::read(&bytes).unwrap(), &spec)
    }

    #[test]
    fn each_exec_failure_maps_to_its_error() {
        assert_eq!(ExecFailure::read(&[]), None);
        assert_eq!(explained(Stage::NotFound, libc::ENOENT), Error::CommandNotFound("prog".into()));
        assert!(matches!(explained(Stage::Exec, libc::EACCES), Error::NotExecutable { .. }));
        assert!(matches!(explained(Stage::Exec, libc::ENOEXEC), Error::NotExecutable { .. }));
        assert!(matches!(explained(Stage::Exec, libc::ENOENT), Error::NotExecutable { .. }));
        assert_eq!(explained(Stage::Exec, libc::E2BIG), Error::ArgumentsTooLong);
        assert_eq!(explained(Stage::Directory, libc::ENOENT), Error::WorkingDirNotFound("/dir".into()));
        assert_eq!(explained(Stage::Directory, libc::ENOTDIR), Error::WorkingDirNotFound("/dir".into()));
        assert!(matches!(explained(Stage::Directory, libc::EACCES), Error::PermissionDenied(_)));
        assert!(matches!(explained(Stage::User, libc::EPERM), Error::PermissionDenied(_)));
        for (stage, errno) in [(Stage::Exec, libc::ENOMEM), (Stage::Exec, libc::EAGAIN), (Stage::User, libc::EAGAIN)] {
            assert!(matches!(explained(stage, errno), Error::OutOfResources(_)), "{stage:?} {errno}");
        }
    }
}
