//! The configuration: values of options, parsed and checked.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use tl_supervisor::program_log::LogFormat;

use crate::engine::EngineUrl;
use crate::program::args::{RawConfig, Value};
use crate::program::options::OPTIONS;

/// The configuration: a valid value for each option.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) api: SocketAddr,
    pub(crate) proxy: SocketAddr,
    /// None: the socket that exists.
    pub(crate) engine: Option<EngineUrl>,
    /// None: a key is made, and kept in the state directory.
    pub(crate) key_file: Option<PathBuf>,
    /// None: the default directory of the user.
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) default_image: String,
    /// None: it is looked for.
    pub(crate) init: Option<PathBuf>,
    pub(crate) runtime: Option<String>,
    /// Name, soft limit, hard limit.
    pub(crate) ulimits: Vec<(String, u64, u64)>,
    pub(crate) warm: usize,
    pub(crate) idle: Duration,
    pub(crate) log_level: LevelFilter,
    pub(crate) log_format: LogFormat,
    /// Of `import`: the name of the image.
    pub(crate) name: Option<String>,
    /// Of `stop`: whether all sandboxes are ended.
    pub(crate) all: bool,
    /// Of `stop`: whether nothing stays.
    pub(crate) purge: bool,
}

impl Config {
    /// The configuration from the values that were given, and from defaults for the others.
    ///
    /// # Errors
    /// One sentence about the first value that is not valid.
    pub(crate) fn resolve(raw: &RawConfig) -> Result<Config, String> {
        let get = |name: &'static str| OptionValue { values: &raw.values, name };
        Ok(Config {
            api: get("api").parsed("an address and a port")?,
            proxy: get("proxy").parsed("an address and a port")?,
            engine: get("engine").given().map(|_| get("engine").checked::<EngineUrl>()).transpose()?,
            key_file: get("key-file").given().map(PathBuf::from),
            state_dir: get("state-dir").given().map(PathBuf::from),
            default_image: get("default-image").word("the name of an image")?,
            init: get("init").given().map(PathBuf::from),
            runtime: get("runtime").given().map(|_| get("runtime").word("the name of a runtime")).transpose()?,
            ulimits: get("ulimit").ulimits()?,
            warm: get("warm").parsed("a number")?,
            idle: get("idle-secs").seconds()?,
            log_level: get("log-level").parsed("off, error, warn, info, debug or trace")?,
            log_format: match get("log-format").text() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(get("log-format").invalid("text or json")),
            },
            name: get("name").given().map(|_| get("name").word("the name of an image")).transpose()?,
            all: get("all").given().is_some(),
            purge: get("purge").given().is_some(),
        })
    }
}

/// The value of one option, with methods that parse it.
struct OptionValue<'a> {
    values: &'a HashMap<&'static str, Value>,
    name: &'static str,
}

impl<'a> OptionValue<'a> {
    /// The text that was given, if it is not empty.
    fn given(&self) -> Option<&'a str> {
        self.values.get(self.name).map(|given| given.text.as_str()).filter(|text| !text.is_empty())
    }

    /// The text that was given, or else the default.
    fn text(&self) -> &'a str {
        let default = OPTIONS.iter().find(|option| option.name == self.name).map_or("", |option| option.default);
        self.values.get(self.name).map_or(default, |given| &given.text)
    }

    fn refused(&self, why: &dyn Display) -> String {
        format!("{}: {why}", self.values.get(self.name).map_or(self.name, |given| &given.source))
    }

    fn invalid(&self, expected: &str) -> String {
        self.refused(&format!("{:?} is not {expected}", self.text()))
    }

    fn parsed<T: FromStr>(&self, expected: &str) -> Result<T, String> {
        self.text().parse().map_err(|_| self.invalid(expected))
    }

    /// Parses a type whose errors say what is wrong.
    fn checked<T: FromStr<Err: Display>>(&self) -> Result<T, String> {
        self.text().parse().map_err(|error| self.refused(&error))
    }

    fn word(&self, expected: &str) -> Result<String, String> {
        let text = self.text();
        let is_word = !text.is_empty() && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control());
        if is_word { Ok(text.to_owned()) } else { Err(self.invalid(expected)) }
    }

    fn seconds(&self) -> Result<Duration, String> {
        let seconds: f64 = self.parsed("a number of seconds")?;
        // Up to a day: it keeps deadlines far from an overflow.
        if !(0.1..=86_400.0).contains(&seconds) {
            return Err(self.invalid("a number of seconds from 0.1 to 86400"));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn ulimits(&self) -> Result<Vec<(String, u64, u64)>, String> {
        let words = self.text().split([' ', '\t', ',']).filter(|word| !word.is_empty());
        words.map(|word| ulimit(word).ok_or_else(|| self.refused(&not_a_ulimit(word)))).collect()
    }
}

fn not_a_ulimit(word: &str) -> String {
    format!("{word:?} is not NAME=SOFT:HARD, such as nofile=1024:4096")
}

fn ulimit(word: &str) -> Option<(String, u64, u64)> {
    let (name, limits) = word.split_once('=')?;
    let (soft, hard) = limits.split_once(':')?;
    let (soft, hard) = (soft.parse().ok()?, hard.parse().ok()?);
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    (is_name && soft <= hard).then(|| (name.to_owned(), soft, hard))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::program::args::{Invocation, parse};
    use crate::program::options::words;

    fn config(args: &[&str]) -> Result<Config, String> {
        let Ok(Invocation::Run(_, raw)) = parse(args.iter().map(OsString::from), []) else { panic!("{args:?}") };
        Config::resolve(&raw)
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = config(&[]).unwrap();
        assert_eq!(config.api, "127.0.0.1:8900".parse().unwrap());
        assert_eq!(config.proxy, "127.0.0.1:9443".parse().unwrap());
        assert_eq!((config.engine, config.key_file, config.state_dir, config.init), (None, None, None, None));
        assert_eq!((config.warm, config.idle), (0, Duration::from_secs(600)));
        assert_eq!(config.default_image, "localhost/tl-default");
    }

    #[test]
    fn values_are_parsed() {
        let config = config(&[
            "--engine=tcp://localhost:2375",
            "--ulimit=nofile=20000:20000,nproc=1:2",
            "--ulimit=core=0:0",
            "--runtime=kata",
            "--idle-secs=0.5",
        ]);
        let config = config.unwrap();
        assert_eq!(config.engine, Some(EngineUrl::Tcp("localhost:2375".to_owned())));
        let limits = [("nofile", 20_000, 20_000), ("nproc", 1, 2), ("core", 0, 0)];
        assert_eq!(config.ulimits, limits.map(|(name, soft, hard)| (name.to_owned(), soft, hard)));
        assert_eq!((config.runtime.as_deref(), config.idle), (Some("kata"), Duration::from_millis(500)));
    }

    #[test]
    fn the_message_names_the_option_of_an_invalid_value() {
        for (args, part) in [
            (&["--api", "nowhere"][..], "--api: \"nowhere\""),
            (&["--proxy", "127.0.0.1"], "--proxy: "),
            (&["--engine", "http://x"], "--engine: "),
            (&["--default-image", "a b"], "--default-image: "),
            (&["--ulimit", "nofile=1"], "--ulimit: \"nofile=1\""),
            (&["--ulimit", "nofile=2:1"], "--ulimit: \"nofile=2:1\""),
            (&["--ulimit", "=1:1"], "--ulimit: "),
            (&["--warm", "-1"], "--warm: "),
            (&["--idle-secs", "0"], "--idle-secs: "),
            (&["--idle-secs", "nan"], "--idle-secs: "),
            (&["--log-level", "loud"], "--log-level: "),
            (&["--log-format", "xml"], "--log-format: "),
            (&["import", "x", "--name", "a\tb"], "--name: "),
        ] {
            let error = config(args).unwrap_err();
            assert!(error.starts_with(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_words_of_the_completions_are_valid_values() {
        for option in OPTIONS {
            for word in words(option) {
                assert!(config(&[&format!("--{}={word}", option.name)]).is_ok(), "--{} {word}", option.name);
            }
        }
    }
}
