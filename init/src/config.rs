//! The configuration: values of options, parsed and checked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use tl_supervisor::http::{Origin, parse_limits, parse_user};
use tl_supervisor::program_log::LogFormat;
use tl_supervisor::{Limits, SpecError, UserSpec};

use crate::create_user::NewUser;
use crate::options::OPTIONS;

/// A value that was given for an option.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    /// Where it was given, as an error message names it: `--log-dir`, or `TL_INIT_LOG_DIR`.
    pub(crate) source: String,
    pub(crate) text: String,
}

/// A value that an option cannot have.
#[derive(Debug)]
pub(crate) struct InvalidValue {
    /// The option's name.
    pub(crate) option: &'static str,
    /// A sentence that names the source of the value.
    pub(crate) message: String,
}

/// The configuration: a valid value for each option.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) no_auth: bool,
    /// Origins of the web pages that may use the API.
    pub(crate) cors_origins: Vec<Origin>,
    pub(crate) default_user: UserSpec,
    pub(crate) create_user: Option<NewUser>,
    /// Whether commands can gain no privileges by what they execute.
    pub(crate) no_new_privs: bool,
    /// Limits of commands that do not set the same one.
    pub(crate) default_limits: Limits,
    pub(crate) env_file: Option<PathBuf>,
    pub(crate) log_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_level: LevelFilter,
    pub(crate) log_format: LogFormat,
    /// Whether the output of managed processes is copied to stdout.
    pub(crate) console_output: bool,
    pub(crate) shutdown_grace: Duration,
    /// Bytes of output kept for each process.
    pub(crate) log_limit: u64,
    /// Bytes of output kept for all processes; `None` if it depends on the file system.
    pub(crate) log_total: Option<u64>,
    pub(crate) keep_ended: usize,
    pub(crate) max_processes: usize,
    /// Tasks of all commands; `None` if it depends on the limits of the kernel and of cgroups.
    pub(crate) max_tasks: Option<u64>,
    pub(crate) max_sessions: usize,
    pub(crate) session_idle: Duration,
    pub(crate) max_connections: usize,
    /// Names of the processes whose usage is in the metrics.
    pub(crate) metrics_per_process: Vec<String>,
    pub(crate) max_body: usize,
    pub(crate) max_head: usize,
    pub(crate) head_time: Duration,
    pub(crate) idle_time: Duration,
    pub(crate) config_dir: PathBuf,
    /// The main process and its arguments; empty if there is none.
    pub(crate) command: Vec<String>,
}

/// The configuration from the values that were given, and from defaults for the others. `command` is the main process
/// from the command line.
///
/// # Errors
/// The first value that is not valid.
pub(crate) fn resolve(values: &HashMap<&'static str, Value>, command: &[String]) -> Result<Config, InvalidValue> {
    let get = |name: &'static str| OptionValue { values, name };
    let config = Config {
        listen: get("listen").parsed("an address and a port")?,
        token_file: get("token-file").path(),
        no_auth: get("no-auth").flag()?,
        cors_origins: get("cors-origin").origins()?,
        default_user: parse_user(&get("default-user").text())
            .map_err(|error| get("default-user").invalid(&format!("valid: it {}", error.problem)))?,
        create_user: get("create-user").optional(NewUser::FORM)?,
        no_new_privs: get("no-new-privs").flag()?,
        default_limits: get("default-limits").limits()?,
        env_file: get("env-file").path(),
        log_dir: get("log-dir").dir()?,
        run_dir: get("run-dir").dir()?,
        log_level: get("log-level").parsed("off, error, warn, info, debug or trace")?,
        log_format: match get("log-format").text().as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => return Err(get("log-format").invalid("text or json")),
        },
        console_output: get("console-output").flag()?,
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
        metrics_per_process: get("metrics-per-process").names()?,
        max_body: get("max-body").size()?,
        max_head: get("max-head").size()?,
        head_time: get("head-secs").seconds(0.001)?,
        idle_time: get("idle-secs").seconds(0.001)?,
        config_dir: get("config-dir").dir()?,
        command: if command.is_empty() { get("command").command()? } else { command.to_vec() },
    };
    if config.no_auth && config.token_file.is_some() {
        let message = "--no-auth and --token-file are mutually exclusive".to_owned();
        // On a machine, where the invalid option is ignored, the safe one of the two stays.
        return Err(InvalidValue { option: "no-auth", message });
    }
    Ok(config)
}

/// The value of one option, with methods that parse it.
pub(crate) struct OptionValue<'a> {
    pub(crate) values: &'a HashMap<&'static str, Value>,
    pub(crate) name: &'static str,
}

/// Whether a main process with these words can be started. Without any word there is no main process.
fn is_command(words: &[String]) -> bool {
    words.first().is_none_or(|program| !program.is_empty()) && words.iter().all(|word| !word.contains('\0'))
}

impl OptionValue<'_> {
    /// The text that was given, or else the default.
    fn text(&self) -> String {
        let default = OPTIONS.iter().find(|option| option.name == self.name).map_or("", |option| option.default);
        self.values.get(self.name).map_or(default, |given| &given.text).to_owned()
    }

    fn invalid(&self, expected: &str) -> InvalidValue {
        self.refused(&format!("{:?} is not {expected}", self.text()))
    }

    fn refused(&self, why: &str) -> InvalidValue {
        let source = self.values.get(self.name).map_or(self.name, |given| &given.source);
        InvalidValue { option: self.name, message: format!("{source}: {why}") }
    }

    pub(crate) fn path(&self) -> Option<PathBuf> {
        Some(self.text()).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn dir(&self) -> Result<PathBuf, InvalidValue> {
        self.path().ok_or_else(|| self.invalid("a path"))
    }

    fn flag(&self) -> Result<bool, InvalidValue> {
        match self.text().as_str() {
            "" | "0" | "false" => Ok(false),
            "1" | "true" => Ok(true),
            _ => Err(self.invalid("true, false, 1 or 0")),
        }
    }

    fn parsed<T: FromStr>(&self, expected: &str) -> Result<T, InvalidValue> {
        self.text().parse().map_err(|_| self.invalid(expected))
    }

    /// None if the text is empty.
    fn optional<T: FromStr>(&self, expected: &str) -> Result<Option<T>, InvalidValue> {
        if self.text().is_empty() { Ok(None) } else { self.parsed(expected).map(Some) }
    }

    /// The values of a list.
    fn words(&self) -> Vec<String> {
        self.text().split([' ', '\t', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    /// A list of names of managed processes.
    fn names(&self) -> Result<Vec<String>, InvalidValue> {
        let is_name = |name: &str| {
            !name.contains('/') && ![".", ".."].contains(&name) && !name.bytes().all(|byte| byte.is_ascii_digit())
        };
        let names = self.words();
        match names.iter().find(|name| !is_name(name)) {
            Some(wrong) => Err(self.refused(&format!("{wrong:?} is not a name of a managed process"))),
            None => Ok(names),
        }
    }

    fn limits(&self) -> Result<Limits, InvalidValue> {
        match self.text().as_str() {
            "" => Ok(Limits::default()),
            text => parse_limits(text).map_err(|error| self.refused(&format!("{text:?} {}", error.problem))),
        }
    }

    fn origins(&self) -> Result<Vec<Origin>, InvalidValue> {
        let origins = self.words().into_iter().map(|origin| {
            origin.parse().map_err(|error: SpecError| self.refused(&format!("{origin:?} {}", error.problem)))
        });
        origins.collect()
    }

    fn positive(&self) -> Result<usize, InvalidValue> {
        let number: usize = self.parsed("a number of at least 1")?;
        if number == 0 { Err(self.invalid("a number of at least 1")) } else { Ok(number) }
    }

    fn seconds(&self, least: f64) -> Result<Duration, InvalidValue> {
        let seconds: f64 = self.parsed("a number of seconds")?;
        // Up to a day: it keeps deadlines far from an overflow.
        if !(least..=86_400.0).contains(&seconds) {
            return Err(self.invalid("a number of seconds, up to 86400"));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn command(&self) -> Result<Vec<String>, InvalidValue> {
        match self.text().as_str() {
            "" => Ok(Vec::new()),
            text => serde_json::from_str(text)
                .ok()
                .filter(|words: &Vec<String>| is_command(words))
                .ok_or_else(|| self.invalid("a JSON array of strings without NUL, the first of which is the program")),
        }
    }

    /// A number of bytes; K, M and G stand for powers of 1024.
    fn bytes(&self) -> Result<u64, InvalidValue> {
        let invalid = || self.invalid("a number of bytes above 0, optionally with K, M or G");
        let text = self.text();
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let shift = match text.strip_prefix(digits).unwrap_or_default() {
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return Err(invalid()),
        };
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(invalid)
    }

    fn size(&self) -> Result<usize, InvalidValue> {
        usize::try_from(self.bytes()?).map_err(|_| self.invalid("a number of bytes that fits into memory"))
    }
}
