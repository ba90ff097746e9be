//! Reads the subcommand and the options from the command line and the environment, without any effect. The command line
//! takes precedence.

use std::collections::HashMap;
use std::ffi::OsString;

use lexopt::Arg;

use crate::program::options::{COMMANDS, OPTIONS, Opt, PREFIX, help, is_list, variable};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run this subcommand, or serve if there is none.
    Run(Option<&'static str>, RawConfig),
    /// Print this help text.
    Help(String),
    /// Print the version.
    Version,
}

/// A value that was given for an option.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    /// Where it was given, as an error message names it: `--state-dir`, or `TL_HOST_STATE_DIR`.
    pub(crate) source: String,
    pub(crate) text: String,
}

/// The options as they were given, not parsed yet.
#[derive(Debug, Default)]
pub(crate) struct RawConfig {
    pub(crate) values: HashMap<&'static str, Value>,
    /// The words after the subcommand that belong to no option.
    pub(crate) operands: Vec<OsString>,
    /// Variables that name no option.
    pub(crate) unknown: Vec<String>,
}

/// Reads the arguments (without the program's name) and the environment.
///
/// # Errors
/// One sentence that names the argument or the variable.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, String> {
    let mut raw = RawConfig::default();
    let mut command = None;
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        let name = match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Invocation::Help(help())),
            Arg::Long("version") | Arg::Short('V') => return Ok(Invocation::Version),
            Arg::Long(name) => name.to_owned(),
            Arg::Value(word) if command.is_some() => {
                raw.operands.push(word);
                continue;
            }
            Arg::Value(word) => {
                let known = COMMANDS.iter().find(|known| word == known.name);
                let unknown = || format!("there is no command {:?}; see --help", word.to_string_lossy());
                command = Some(known.ok_or_else(unknown)?);
                continue;
            }
            other => return Err(other.unexpected().to_string()),
        };
        let own = command.map_or(&[][..], |command| command.options);
        let option = OPTIONS.iter().chain(own).find(|option| option.name == name);
        let option = option.ok_or_else(|| format!("there is no option --{name}; see --help"))?;
        let text = match option.value {
            "" => "true".to_owned(),
            _ => {
                let value = parser.value().map_err(|error| error.to_string())?;
                value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))?
            }
        };
        raw.set(option, format!("--{name}"), text);
    }
    raw.add_environment(env)?;
    let command = command.map(|command| command.name);
    if command != Some("import")
        && let Some(word) = raw.operands.first()
    {
        return Err(format!("unexpected argument {:?}", word.to_string_lossy()));
    }
    Ok(Invocation::Run(command, raw))
}

impl RawConfig {
    /// Sets an option that is on the command line.
    fn set(&mut self, option: &'static Opt, source: String, text: String) {
        match self.values.get_mut(option.name) {
            Some(list) if is_list(option.name) => list.text = format!("{} {text}", list.text),
            _ => drop(self.values.insert(option.name, Value { source, text })),
        }
    }

    /// Adds the variables of the environment. An option that is on the command line keeps its value.
    fn add_environment(&mut self, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(), String> {
        for (name, value) in env {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let Some(option) = OPTIONS.iter().find(|option| variable(option.name) == name) else {
                self.unknown.push(name.to_owned());
                continue;
            };
            let text = value.into_string().map_err(|_| format!("{name} is not UTF-8"))?;
            // An empty variable is as good as none.
            if !text.is_empty() {
                self.values.entry(option.name).or_insert_with(|| Value { source: name.to_owned(), text });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Invocation, String> {
        parse(args.iter().map(OsString::from), env.iter().map(|(key, value)| (key.into(), value.into())))
    }

    fn run(args: &[&str], env: &[(&str, &str)]) -> (Option<&'static str>, RawConfig) {
        match parse_with(args, env) {
            Ok(Invocation::Run(command, raw)) => (command, raw),
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_takes_precedence_over_the_environment() {
        let env = [("TL_HOST_STATE_DIR", "/env"), ("TL_HOST_WARM", "2"), ("TL_HOST_RUNTIME", ""), ("OTHER", "x")];
        let (command, raw) = run(&["--state-dir=/arg"], &env);
        let text = |name: &str| raw.values.get(name).map(|value| value.text.as_str());
        assert_eq!((command, text("state-dir"), text("warm"), text("runtime")), (None, Some("/arg"), Some("2"), None));
        assert_eq!(run(&[], &[("TL_HOST_NO", "x")]).1.unknown, ["TL_HOST_NO"]);
    }

    #[test]
    fn a_list_has_the_values_of_all_arguments() {
        let (_, raw) = run(&["--ulimit", "nofile=1:2", "--ulimit=nproc=3:4", "--warm=1", "--warm=2"], &[]);
        assert_eq!((&*raw.values["ulimit"].text, &*raw.values["warm"].text), ("nofile=1:2 nproc=3:4", "2"));
    }

    #[test]
    fn subcommands_have_options_and_operands_of_their_own() {
        let (command, raw) = run(&["--engine=unix:///x", "import", "rootfs.tar", "--name", "debian"], &[]);
        assert_eq!((command, &*raw.values["name"].text, raw.operands.len()), (Some("import"), "debian", 1));
        assert_eq!(run(&["stop", "--all"], &[]).1.values["all"].text, "true");
        assert_eq!(run(&["doctor"], &[]).0, Some("doctor"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, part) in [
            (&["--nonsense"][..], "--nonsense"),
            (&["--name", "x"], "--name"),
            (&["serve"], "\"serve\""),
            (&["doctor", "now"], "\"now\""),
            (&["-x"], "-x"),
            (&["--api"], "--api"),
        ] {
            let error = parse_with(args, &[]).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn help_names_every_option_and_command() {
        let Ok(Invocation::Help(help)) = parse_with(&["stop", "--help"], &[]) else { panic!() };
        assert!(OPTIONS.iter().all(|option| help.contains(&format!("  --{} ", option.name))));
        assert!(COMMANDS.iter().all(|command| help.contains(&format!("tl-host {} {}", command.name, command.usage))));
        assert!(matches!(parse_with(&["--version"], &[]), Ok(Invocation::Version)));
    }
}
