//! The command line, its `TL_INIT_…` twins in the environment and those in `init.conf`, read into [`Config`] without
//! any effect. The first of them that names an option decides.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lexopt::Arg;
use log::LevelFilter;
use tl_supervisor::UserSpec;
use tl_supervisor::http::parse_user;

/// One option: its name, the name of its value, its default in words, and what it does.
struct Opt {
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
}

const fn opt(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Opt {
    Opt { name, value, default, help }
}

/// All options, in the order of `--help`. A flag has no name for its value.
const OPTIONS: &[Opt] = &[
    opt("listen", "ADDR:PORT", "0.0.0.0:9501", "where the API is"),
    opt("token-file", "FILE", "", "the bearer token; nobody but its owner may read the file"),
    opt("no-auth", "", "", "ask for no token, behind a proxy that has done so"),
    opt("default-user", "USER", "tl-user", "whom commands run as: a name, a UID, UID:GID or a JSON object"),
    opt("env-file", "FILE", "", "KEY=value lines for the environment of all commands"),
    opt("command", "JSON", "", "the main process as an array of strings, where no -- can stand"),
    opt("config-dir", "DIR", "/etc/tl-init", "init.conf and services/*.json"),
    opt("log-dir", "DIR", "/var/log/tl-init", "where the output of commands is kept"),
    opt("run-dir", "DIR", "/run/tl-init", "where the token and the address are written"),
    opt("log-level", "LEVEL", "info", "off, error, warn, info, debug or trace"),
    opt("log-format", "FORMAT", "text", "text or json"),
    opt("shutdown-grace", "SECS", "10", "from SIGTERM to SIGKILL when everything ends"),
    opt("log-limit", "BYTES", "256M", "output kept for one process"),
    opt("log-total", "BYTES", "1G", "output kept for all; by default a tenth of the file system if that is less"),
    opt("keep-ended", "N", "1000", "ended processes that are remembered"),
    opt("max-processes", "N", "4096", "processes that run at once"),
    opt("max-tasks", "N", "", "processes and threads of all commands; by default all but a reserve for the daemon"),
    opt("max-pty-sessions", "N", "64", "terminal sessions that run at once"),
    opt("pty-idle-secs", "SECS", "300", "time until a session that nobody is attached to is ended"),
    opt("max-connections", "N", "1024", "connections that are open at once"),
    opt("max-body", "BYTES", "1M", "a JSON body"),
    opt("max-head", "BYTES", "64K", "the head of a request"),
    opt("head-secs", "SECS", "10", "time for a client to send a head"),
    opt("idle-secs", "SECS", "75", "time until an idle connection is closed"),
];

/// How the daemon's own log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What was asked for, with the defaults in place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) no_auth: bool,
    pub(crate) default_user: UserSpec,
    pub(crate) env_file: Option<PathBuf>,
    pub(crate) log_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_level: LevelFilter,
    pub(crate) log_format: LogFormat,
    pub(crate) shutdown_grace: Duration,
    pub(crate) log_limit: u64,
    pub(crate) log_total: Option<u64>,
    pub(crate) keep_ended: usize,
    pub(crate) max_processes: usize,
    pub(crate) max_tasks: Option<u64>,
    pub(crate) max_sessions: usize,
    pub(crate) session_idle: Duration,
    pub(crate) max_connections: usize,
    pub(crate) max_body: usize,
    pub(crate) max_head: usize,
    pub(crate) head_time: Duration,
    pub(crate) idle_time: Duration,
    pub(crate) config_dir: PathBuf,
    /// The main process and its arguments.
    pub(crate) entry: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    Run(Given),
    Help(String),
    Version,
}

/// What was given, not yet looked at.
#[derive(Debug, Default)]
pub(crate) struct Given {
    values: HashMap<&'static str, Value>,
    /// The command after `--` and its arguments.
    entry: Vec<String>,
    /// Names that begin as ours do, and are none.
    unknown: Vec<String>,
    /// A sentence about each value that is no text.
    garbled: Vec<String>,
}

/// Reads the arguments (without the program's name) and the environment.
///
/// # Errors
/// One sentence that names the option.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Asked, String> {
    let mut given = Given::default();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => given.add(name.to_owned(), value),
            Err(_) => given.garbled.push(format!("{name} is not UTF-8")),
        }
    }
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        // lexopt passes over `--`; what comes after it is the command, whatever it looks like.
        if let Some(mut raw) = parser.try_raw_args()
            && raw.peek().is_some_and(|arg| arg == "--")
        {
            raw.next();
            given.entry =
                raw.map(OsString::into_string).collect::<Result<_, _>>().map_err(|_| "the command is not UTF-8")?;
            break;
        }
        let Some(arg) = parser.next().map_err(|error| error.to_string())? else { break };
        let name = match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Asked::Help(help())),
            Arg::Long("version") | Arg::Short('V') => return Ok(Asked::Version),
            Arg::Long(name) => name.to_owned(),
            other => return Err(other.unexpected().to_string()),
        };
        let option = OPTIONS.iter().find(|option| option.name == name);
        let option = option.ok_or_else(|| format!("there is no option --{name}; see --help"))?;
        let value = match option.value {
            "" => "true".to_owned(),
            _ => {
                let value = parser.value().map_err(|error| error.to_string())?;
                value.into_string().map_err(|_| format!("--{name}: the value is not UTF-8"))?
            }
        };
        given.values.insert(option.name, Value { by: format!("--{name}"), text: value });
    }
    Ok(Asked::Run(given))
}

/// What the twins' names begin with.
const PREFIX: &str = "TL_INIT_";

/// The variable that is an option's twin.
fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// A value, and what to call it when it is wrong.
#[derive(Clone, Debug)]
struct Value {
    by: String,
    text: String,
}

/// A value that is wrong.
#[derive(Debug)]
struct Wrong {
    option: &'static str,
    sentence: String,
}

impl Given {
    /// One variable, of the environment or of `init.conf`; what was given before stands.
    pub(crate) fn add(&mut self, name: String, text: String) {
        match OPTIONS.iter().find(|option| variable(option.name) == name) {
            Some(option) => drop(self.values.entry(option.name).or_insert(Value { by: name, text })),
            None => self.unknown.push(name),
        }
    }

    /// Where `init.conf` and the services are.
    pub(crate) fn config_dir(&self) -> PathBuf {
        Values { values: &self.values, name: "config-dir" }.path().unwrap_or_default()
    }

    /// All of it as a configuration.
    ///
    /// # Errors
    /// One sentence that names the option.
    pub(crate) fn strictly(&self) -> Result<Config, String> {
        match self.garbled.first() {
            Some(sentence) => Err(sentence.clone()),
            None => resolve(&self.values, &self.entry).map_err(|wrong| wrong.sentence),
        }
    }

    /// The same where there must be one: what is wrong is left at its default. Says what that was.
    pub(crate) fn leniently(&self) -> (Config, Vec<String>) {
        let (mut values, mut problems) = (self.values.clone(), self.garbled.clone());
        loop {
            match resolve(&values, &self.entry) {
                Ok(config) => return (config, problems),
                // Each time around there is one value less, and the defaults are right.
                Err(wrong) => {
                    values.remove(wrong.option);
                    problems.push(wrong.sentence);
                }
            }
        }
    }

    /// Whether there is to be a main process.
    pub(crate) fn has_entry(&self) -> bool {
        !self.entry.is_empty() || self.values.contains_key("command")
    }

    /// Names that begin as ours do, and are none.
    pub(crate) fn unknown(&self) -> &[String] {
        &self.unknown
    }
}

fn resolve(values: &HashMap<&'static str, Value>, entry: &[String]) -> Result<Config, Wrong> {
    let get = |name: &'static str| Values { values, name };
    let config = Config {
        listen: get("listen").parsed("an address and a port")?,
        token_file: get("token-file").path(),
        no_auth: get("no-auth").flag()?,
        default_user: parse_user(&get("default-user").text())
            .map_err(|error| get("default-user").wrong(&format!("right: it {}", error.problem)))?,
        env_file: get("env-file").path(),
        log_dir: get("log-dir").path().unwrap_or_default(),
        run_dir: get("run-dir").path().unwrap_or_default(),
        log_level: get("log-level").parsed("off, error, warn, info, debug or trace")?,
        log_format: match get("log-format").text().as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => return Err(get("log-format").wrong("text or json")),
        },
        shutdown_grace: get("shutdown-grace").seconds(0.0)?,
        log_limit: get("log-limit").bytes()?,
        log_total: values.contains_key("log-total").then(|| get("log-total").bytes()).transpose()?,
        keep_ended: get("keep-ended").parsed("a number")?,
        max_processes: get("max-processes").positive()?,
        max_tasks: values
            .contains_key("max-tasks")
            .then(|| get("max-tasks").positive())
            .transpose()?
            .map(|most| most as u64),
        max_sessions: get("max-pty-sessions").positive()?,
        session_idle: get("pty-idle-secs").seconds(0.001)?,
        max_connections: get("max-connections").positive()?,
        max_body: get("max-body").size()?,
        max_head: get("max-head").size()?,
        head_time: get("head-secs").seconds(0.001)?,
        idle_time: get("idle-secs").seconds(0.001)?,
        config_dir: get("config-dir").path().unwrap_or_default(),
        entry: if entry.is_empty() { get("command").command()? } else { entry.to_vec() },
    };
    if config.no_auth && config.token_file.is_some() {
        let sentence = "--no-auth and --token-file exclude each other".to_owned();
        // The safe one of the two stays.
        return Err(Wrong { option: "no-auth", sentence });
    }
    Ok(config)
}

/// The value of one option, to be read as something.
struct Values<'a> {
    values: &'a HashMap<&'static str, Value>,
    name: &'static str,
}

impl Values<'_> {
    fn text(&self) -> String {
        let default = OPTIONS.iter().find(|option| option.name == self.name).map_or("", |option| option.default);
        self.values.get(self.name).map_or(default, |given| &given.text).to_owned()
    }

    fn wrong(&self, right: &str) -> Wrong {
        let by = self.values.get(self.name).map_or(self.name, |given| &given.by);
        Wrong { option: self.name, sentence: format!("{by}: {:?} is not {right}", self.text()) }
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.text()).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn flag(&self) -> Result<bool, Wrong> {
        match self.text().as_str() {
            "" | "0" | "false" => Ok(false),
            "1" | "true" => Ok(true),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn parsed<T: FromStr>(&self, right: &str) -> Result<T, Wrong> {
        self.text().parse().map_err(|_| self.wrong(right))
    }

    fn positive(&self) -> Result<usize, Wrong> {
        let number: usize = self.parsed("a number of at least 1")?;
        if number == 0 { Err(self.wrong("a number of at least 1")) } else { Ok(number) }
    }

    fn seconds(&self, least: f64) -> Result<Duration, Wrong> {
        let seconds: f64 = self.parsed("a number of seconds")?;
        // A day is more than anybody waits; it keeps deadlines far from any overflow.
        if !(least..=86_400.0).contains(&seconds) {
            return Err(self.wrong("a number of seconds, up to 86400"));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn command(&self) -> Result<Vec<String>, Wrong> {
        match self.text().as_str() {
            "" => Ok(Vec::new()),
            text => serde_json::from_str(text).map_err(|_| self.wrong("a JSON array of strings")),
        }
    }

    /// A number of bytes, with K, M or G for the powers of 1024.
    fn bytes(&self) -> Result<u64, Wrong> {
        let wrong = || self.wrong("a number of bytes above 0, with K, M or G if you like");
        let text = self.text();
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let shift = match text.strip_prefix(digits).unwrap_or_default() {
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
    }

    fn size(&self) -> Result<usize, Wrong> {
        usize::try_from(self.bytes()?).map_err(|_| self.wrong("a number of bytes that fits into memory"))
    }
}

fn help() -> String {
    let mut text = "tl-init: PID 1 of a sandbox, run by a remote client over HTTP\n\n\
                    usage: tl-init [OPTION…] [-- COMMAND ARG…]\n\n"
        .to_owned();
    for option in OPTIONS {
        let left = format!("--{} {}", option.name, option.value);
        let default = if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
        text += &format!("  {left:<26} {}{default}\n", option.help);
    }
    text += "  --help, -h                 this text\n  --version, -V              the version\n\n\
             Each option can stand in the environment too, and in init.conf below that: TL_INIT_LOG_DIR is --log-dir.\n\
             COMMAND is the main process: when it ends, everything ends, with its exit code.\n";
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Asked, String> {
        parse(args.iter().map(OsString::from), env.iter().map(|(key, value)| (key.into(), value.into())))
    }

    fn given(args: &[&str], env: &[(&str, &str)]) -> Given {
        match parse_with(args, env) {
            Ok(Asked::Run(given)) => given,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn config(args: &[&str]) -> Config {
        given(args, &[]).strictly().unwrap()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
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
    fn an_argument_wins_over_its_twin_in_the_environment() {
        let env = [("TL_INIT_LOG_DIR", "/env"), ("TL_INIT_NO_AUTH", "1")];
        let config = given(&["--log-dir=/arg"], &env).strictly().unwrap();
        assert_eq!((config.log_dir, config.no_auth), (PathBuf::from("/arg"), true));
    }

    #[test]
    fn the_file_is_below_both() {
        let mut given = given(&["--log-dir=/arg"], &[("TL_INIT_RUN_DIR", "/env"), ("OTHER", "x"), ("TL_INIT_NO", "x")]);
        for (name, value) in [("LOG_DIR", "/file"), ("RUN_DIR", "/file"), ("KEEP_ENDED", "7"), ("TOKEN", "s3cret")] {
            given.add(format!("TL_INIT_{name}"), value.to_owned());
        }
        given.add("nonsense".to_owned(), String::new());
        let config = given.strictly().unwrap();
        assert_eq!((config.log_dir, config.run_dir, config.keep_ended), ("/arg".into(), "/env".into(), 7));
        assert_eq!(given.unknown(), ["TL_INIT_NO", "TL_INIT_TOKEN", "nonsense"]);
    }

    #[test]
    fn a_machine_comes_up_with_what_is_right() {
        let env = [("TL_INIT_LISTEN", "nowhere"), ("TL_INIT_KEEP_ENDED", "7"), ("TL_INIT_MAX_BODY", "0")];
        let (config, problems) = given(&["--no-auth", "--token-file", "x"], &env).leniently();
        assert_eq!((config.listen.port(), config.keep_ended, config.max_body), (9501, 7, 1 << 20));
        assert!(!config.no_auth && config.token_file.is_some());
        let named = ["TL_INIT_LISTEN", "TL_INIT_MAX_BODY", "--no-auth"];
        assert!(
            problems.len() == 3 && problems.iter().zip(named).all(|(line, name)| line.starts_with(name)),
            "{problems:?}"
        );
    }

    #[test]
    fn a_value_that_is_no_text_takes_no_other_with_it() {
        let env = [("TL_INIT_LOG_DIR", &b"/\xff"[..]), ("TL_INIT_RUN_DIR", b"/env"), ("OTHER", b"\xff")];
        let env = env.map(|(name, value)| (name.into(), OsString::from_vec(value.to_vec())));
        let Ok(Asked::Run(given)) = parse([], env) else { panic!() };
        assert_eq!(given.strictly(), Err("TL_INIT_LOG_DIR is not UTF-8".to_owned()));
        let (config, problems) = given.leniently();
        assert_eq!((config.log_dir, config.run_dir), ("/var/log/tl-init".into(), "/env".into()));
        assert_eq!(problems, ["TL_INIT_LOG_DIR is not UTF-8"]);
    }

    #[test]
    fn a_command_is_an_array() {
        let entry = |value: &str| given(&[], &[("TL_INIT_COMMAND", value)]).strictly().map(|config| config.entry);
        assert_eq!(entry(r#"["sh", "-c", "a b"]"#).unwrap(), ["sh", "-c", "a b"]);
        assert_eq!(entry("[]").unwrap(), [] as [&str; 0]);
        for wrong in ["sh -c x", r#"{"a": 1}"#, "[1]"] {
            assert!(entry(wrong).unwrap_err().starts_with("TL_INIT_COMMAND"), "{wrong}");
        }
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let config = config(&["--max-head", "1K", "--", "sh", "-c", "echo --help"]);
        assert_eq!(config.entry, ["sh", "-c", "echo --help"]);
        assert_eq!(config.max_head, 1024);
    }

    #[test]
    fn every_bad_value_is_named() {
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
        ];
        for case in cases {
            let error = given(case, &[]).strictly().unwrap_err();
            assert!(error.contains(case[0].trim_start_matches("--")), "{case:?}: {error}");
        }
        for case in [&["--nonsense"][..], &["stray"], &["-x"], &["--listen"]] {
            assert!(parse_with(case, &[]).is_err(), "{case:?}");
        }
        assert!(given(&["--no-auth", "--token-file", "x"], &[]).strictly().is_err());
        let error = given(&[], &[("TL_INIT_NO_AUTH", "maybe")]).strictly().unwrap_err();
        assert!(error.starts_with("TL_INIT_NO_AUTH: "), "{error}");
    }

    #[test]
    fn help_names_every_option() {
        let Ok(Asked::Help(help)) = parse_with(&["--help"], &[]) else { panic!() };
        for option in OPTIONS {
            assert!(help.contains(&format!("--{} ", option.name)));
        }
        assert!(matches!(parse_with(&["--version"], &[]), Ok(Asked::Version)));
    }
}
