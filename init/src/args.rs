//! Reads options from the command line, the environment and `init.conf`, without any effect. The first of them that
//! sets an option decides.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg;

use crate::config::{Config, OptionValue, Value, resolve};
use crate::options::{OPTIONS, PREFIX, help, is_list, variable};

/// What precedes the name of a variable of `init.conf` in messages.
const CONF: &str = "init.conf: ";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run with these options.
    Run(RawConfig),
    /// Print this help text.
    Help(String),
    /// Print the version.
    Version,
}

/// The options as they were given, not parsed yet.
#[derive(Debug, Default)]
pub(crate) struct RawConfig {
    values: HashMap<&'static str, Value>,
    /// The command after `--` and its arguments.
    command: Vec<String>,
    /// Variables that name no option.
    unknown: Vec<String>,
    /// A sentence about each variable whose value is not UTF-8.
    not_utf8: Vec<String>,
}

/// Reads the arguments (without the program's name) and the environment.
///
/// # Errors
/// One sentence that names the argument.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, String> {
    let mut raw = RawConfig::default();
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        // lexopt would skip `--`. What follows it is the command, whatever it looks like.
        if let Some(mut rest) = parser.try_raw_args()
            && rest.peek().is_some_and(|arg| arg == "--")
        {
            rest.next();
            let command = rest.map(OsString::into_string).collect::<Result<_, _>>();
            raw.command = command.map_err(|_| "the command is not UTF-8")?;
            break;
        }
        let Some(arg) = parser.next().map_err(|error| error.to_string())? else { break };
        let name = match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Invocation::Help(help())),
            Arg::Long("version") | Arg::Short('V') => return Ok(Invocation::Version),
            Arg::Long(name) => name.to_owned(),
            other => return Err(other.unexpected().to_string()),
        };
        let option = OPTIONS.iter().find(|option| option.name == name);
        let option = option.ok_or_else(|| format!("there is no option --{name}; see --help"))?;
        let text = match option.value {
            "" => "true".to_owned(),
            _ => {
                let value = parser.value().map_err(|error| error.to_string())?;
                value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))?
            }
        };
        match raw.values.get_mut(option.name) {
            Some(list) if is_list(option.name) => list.text = format!("{} {text}", list.text),
            _ => drop(raw.values.insert(option.name, Value { source: format!("--{name}"), text })),
        }
    }
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => raw.add("", name.to_owned(), value),
            Err(_) => raw.not_utf8.push(format!("{name} is not UTF-8")),
        }
    }
    Ok(Invocation::Run(raw))
}

impl RawConfig {
    /// Adds one variable. `file` is where it comes from, for messages: `init.conf: `, or nothing for the environment. An
    /// option that was set before keeps its value.
    fn add(&mut self, file: &str, name: String, text: String) {
        match OPTIONS.iter().find(|option| variable(option.name) == name) {
            Some(option) => {
                self.values.entry(option.name).or_insert_with(|| Value { source: format!("{file}{name}"), text });
            }
            // An option of the client, `tlctl`.
            None if name == variable("url") => {}
            None => self.unknown.push(name),
        }
    }

    /// Adds the variables of `init.conf`. Of several lines with the same name the first counts; of a list, all.
    pub(crate) fn add_conf(&mut self, pairs: Vec<(String, String)>) {
        for list in OPTIONS.iter().filter(|option| is_list(option.name)).map(|option| variable(option.name)) {
            let texts = pairs.iter().filter(|(name, _)| *name == list).map(|(_, text)| text.as_str());
            let all = texts.collect::<Vec<_>>().join(" ");
            if !all.is_empty() {
                self.add(CONF, list, all);
            }
        }
        // A list was set above, so that it keeps its value.
        pairs.into_iter().for_each(|(name, text)| self.add(CONF, name, text));
    }

    /// The directory of `init.conf` and of the service files.
    pub(crate) fn config_dir(&self) -> PathBuf {
        OptionValue { values: &self.values, name: "config-dir" }.path().unwrap_or_default()
    }

    /// Parses all options.
    ///
    /// # Errors
    /// One sentence about the first value that is not valid.
    pub(crate) fn resolve(&self) -> Result<Config, String> {
        match self.not_utf8.first() {
            Some(message) => Err(message.clone()),
            None => resolve(&self.values, &self.command).map_err(|invalid| invalid.message),
        }
    }

    /// Parses all options, and uses defaults in place of invalid values. Also returns a sentence about each invalid
    /// value.
    pub(crate) fn resolve_leniently(&self) -> (Config, Vec<String>) {
        let (mut values, mut problems) = (self.values.clone(), self.not_utf8.clone());
        loop {
            match resolve(&values, &self.command) {
                Ok(config) => return (config, problems),
                // This ends: each round removes one value, and the defaults are valid.
                Err(invalid) => {
                    values.remove(invalid.option);
                    problems.push(invalid.message);
                }
            }
        }
    }

    /// Whether a main process is configured.
    pub(crate) fn has_command(&self) -> bool {
        !self.command.is_empty() || self.values.contains_key("command")
    }

    /// Variables that name no option.
    pub(crate) fn unknown(&self) -> &[String] {
        &self.unknown
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use std::time::Duration;

    use tl_supervisor::UserSpec;

    use super::*;
    use crate::options::OPTIONS;

    fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Invocation, String> {
        parse(args.iter().map(OsString::from), env.iter().map(|(key, value)| (key.into(), value.into())))
    }

    fn raw(args: &[&str], env: &[(&str, &str)]) -> RawConfig {
        match parse_with(args, env) {
            Ok(Invocation::Run(raw)) => raw,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn config(args: &[&str]) -> Config {
        raw(args, &[]).resolve().unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = config(&[]);
        assert_eq!(config.listen, "0.0.0.0:9501".parse().unwrap());
        assert_eq!(config.log_limit, 256 << 20);
        assert_eq!((config.log_total, config.max_tasks), (None, None));
        assert_eq!((config.keep_ended, config.max_processes, config.max_connections), (1_000, 4_096, 1_024));
        assert_eq!((config.max_sessions, config.session_idle), (64, Duration::from_secs(300)));
        assert_eq!((config.max_body, config.max_head), (1 << 20, 64 << 10));
        assert_eq!((config.head_time, config.idle_time), (Duration::from_secs(10), Duration::from_secs(75)));
        assert_eq!(config.default_user, UserSpec::Name { name: "tl-user".into(), gid: None });
    }

    #[test]
    fn an_argument_takes_precedence_over_the_environment() {
        let env = [("TL_INIT_LOG_DIR", "/env"), ("TL_INIT_NO_AUTH", "1")];
        let config = raw(&["--log-dir=/arg"], &env).resolve().unwrap();
        assert_eq!((config.log_dir, config.no_auth), (PathBuf::from("/arg"), true));
    }

    #[test]
    fn the_words_of_the_completions_are_valid_values() {
        for option in OPTIONS {
            for word in crate::options::words(option) {
                let raw = raw(&[&format!("--{}={word}", option.name)], &[]);
                assert!(raw.resolve().is_ok(), "--{} {word}", option.name);
            }
        }
    }

    #[test]
    fn arguments_and_environment_take_precedence_over_init_conf() {
        let env = [("TL_INIT_RUN_DIR", "/env"), ("OTHER", "x"), ("TL_INIT_NO", "x"), ("TL_INIT_URL", "http://a")];
        let mut raw = raw(&["--log-dir=/arg"], &env);
        for (name, value) in [("LOG_DIR", "/file"), ("RUN_DIR", "/file"), ("KEEP_ENDED", "7"), ("TOKEN", "s3cret")] {
            raw.add("", format!("TL_INIT_{name}"), value.to_owned());
        }
        raw.add("", "nonsense".to_owned(), String::new());
        let config = raw.resolve().unwrap();
        assert_eq!((config.log_dir, config.run_dir, config.keep_ended), ("/arg".into(), "/env".into(), 7));
        assert_eq!(raw.unknown(), ["TL_INIT_NO", "TL_INIT_TOKEN", "nonsense"]);
    }

    #[test]
    fn only_a_list_has_the_values_of_all_lines_and_arguments() {
        let origins = |config: &Config| config.cors_origins.iter().map(ToString::to_string).collect::<Vec<_>>();
        let pairs = || {
            let lines =
                [("CORS_ORIGIN", "http://a"), ("KEEP_ENDED", "7"), ("CORS_ORIGIN", "http://b"), ("KEEP_ENDED", "8")];
            lines.map(|(name, value)| (format!("TL_INIT_{name}"), value.to_owned())).to_vec()
        };
        let mut from_conf = raw(&[], &[]);
        from_conf.add_conf(pairs());
        let config = from_conf.resolve().unwrap();
        assert_eq!((origins(&config), config.keep_ended), (vec!["http://a".to_owned(), "http://b".to_owned()], 7));
        let mut from_args = raw(&["--cors-origin=http://c", "--cors-origin", "http://d", "--keep-ended=1"], &[]);
        from_args.add_conf(pairs());
        assert_eq!(origins(&from_args.resolve().unwrap()), ["http://c", "http://d"]);
        let listed = raw(&[], &[("TL_INIT_CORS_ORIGIN", " http://a,http://b ")]).resolve().unwrap();
        assert_eq!(origins(&listed), ["http://a", "http://b"]);
    }

    #[test]
    fn lenient_resolution_keeps_the_valid_values_and_reports_the_others() {
        let env = [("TL_INIT_LISTEN", "nowhere"), ("TL_INIT_KEEP_ENDED", "7"), ("TL_INIT_MAX_BODY", "0")];
        let (config, problems) = raw(&["--no-auth", "--token-file", "x"], &env).resolve_leniently();
        assert_eq!((config.listen.port(), config.keep_ended, config.max_body), (9501, 7, 1 << 20));
        assert!(!config.no_auth && config.token_file.is_some());
        let named = ["TL_INIT_LISTEN", "TL_INIT_MAX_BODY", "--no-auth"];
        assert!(
            problems.len() == 3 && problems.iter().zip(named).all(|(line, name)| line.starts_with(name)),
            "{problems:?}"
        );
    }

    #[test]
    fn a_value_that_is_not_utf8_is_reported_and_the_others_are_kept() {
        let env = [("TL_INIT_LOG_DIR", &b"/\xff"[..]), ("TL_INIT_RUN_DIR", b"/env"), ("OTHER", b"\xff")];
        let env = env.map(|(name, value)| (name.into(), OsString::from_vec(value.to_vec())));
        let Ok(Invocation::Run(raw)) = parse([], env) else { panic!() };
        assert_eq!(raw.resolve(), Err("TL_INIT_LOG_DIR is not UTF-8".to_owned()));
        let (config, problems) = raw.resolve_leniently();
        assert_eq!((config.log_dir, config.run_dir), ("/var/log/tl-init".into(), "/env".into()));
        assert_eq!(problems, ["TL_INIT_LOG_DIR is not UTF-8"]);
    }

    #[test]
    fn the_command_is_a_json_array_of_strings() {
        let command = |value: &str| raw(&[], &[("TL_INIT_COMMAND", value)]).resolve().map(|config| config.command);
        assert_eq!(command(r#"["sh", "-c", "a b"]"#).unwrap(), ["sh", "-c", "a b"]);
        assert_eq!(command("[]").unwrap(), [] as [&str; 0]);
        for wrong in ["sh -c x", r#"{"a": 1}"#, "[1]"] {
            assert!(command(wrong).unwrap_err().starts_with("TL_INIT_COMMAND"), "{wrong}");
        }
    }

    #[test]
    fn all_arguments_after_two_dashes_are_the_command() {
        let config = config(&["--max-head", "1K", "--", "sh", "-c", "echo --help"]);
        assert_eq!(config.command, ["sh", "-c", "echo --help"]);
        assert_eq!(config.max_head, 1024);
    }

    #[test]
    fn the_message_names_the_option_of_an_invalid_value() {
        let cases: &[&[&str]] = &[
            &["--listen", "nowhere"],
            &["--log-level", "loud"],
            &["--log-format", "xml"],
            &["--log-limit", "0"],
            &["--log-limit", "5T"],
            &["--log-limit", "99999999999G"],
            &["--max-processes", "0"],
            &["--keep-ended", "-1"],
            &["--max-tasks", "0"],
            &["--max-pty-sessions", "0"],
            &["--pty-idle-secs", "0"],
            &["--head-secs", "0"],
            &["--idle-secs", "nan"],
            &["--shutdown-grace", "1e300"],
            &["--default-user", "1:2:3"],
            &["--cors-origin", "http://a http://b/"],
            &["--create-user", "tl-user"],
        ];
        for case in cases {
            let error = raw(case, &[]).resolve().unwrap_err();
            assert!(error.contains(case[0].trim_start_matches("--")), "{case:?}: {error}");
        }
        for case in [&["--nonsense"][..], &["stray"], &["-x"], &["--listen"]] {
            assert!(parse_with(case, &[]).is_err(), "{case:?}");
        }
        assert!(raw(&["--no-auth", "--token-file", "x"], &[]).resolve().is_err());
        let error = raw(&[], &[("TL_INIT_NO_AUTH", "maybe")]).resolve().unwrap_err();
        assert!(error.starts_with("TL_INIT_NO_AUTH: "), "{error}");
    }

    #[test]
    fn help_names_every_option() {
        let Ok(Invocation::Help(help)) = parse_with(&["--help"], &[]) else { panic!() };
        for option in OPTIONS {
            assert!(help.contains(&format!("--{} ", option.name)));
        }
        assert!(matches!(parse_with(&["--version"], &[]), Ok(Invocation::Version)));
    }
}
