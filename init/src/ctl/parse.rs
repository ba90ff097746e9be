//! Parses the command line of `tlctl` by the table of commands, without any effect.

use std::ffi::OsString;
use std::fmt;

use lexopt::Arg;

use super::error::Error;
use super::limit;
use super::table::{COMMANDS, Command, GLOBAL, Kind, Operands, Opt, SIGNALS};

/// SIGRTMIN as the C library of the daemon defines it.
const RTMIN: i32 = 34;

/// A parsed command line. Its texts are never freed: there is one, which lasts as long as the program.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// None if the line has only options.
    pub(crate) command: Option<&'static Command>,
    /// The options in the order in which they were given. The value of a flag is empty.
    options: Vec<(&'static str, &'static str)>,
    /// The process, if the command has one.
    pub(crate) process: &'static str,
    /// The number of the signal, if the command has one.
    pub(crate) signal: i32,
    /// The command to start and its arguments.
    pub(crate) words: Vec<&'static str>,
}

impl Line {
    /// Whether the option was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// The value of the option. Of several, the last one.
    pub(crate) fn value(&self, name: &str) -> Option<&'static str> {
        self.options.iter().rfind(|(given, _)| *given == name).map(|(_, value)| *value)
    }

    /// All values of the option.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'static str> {
        self.options.iter().filter(move |(given, _)| *given == name).map(|(_, value)| *value)
    }

    /// The value of an option of seconds.
    pub(crate) fn seconds(&self, name: &str) -> Option<f64> {
        self.value(name).and_then(|text| text.parse().ok())
    }
}

/// Parses the arguments, without the program's name.
///
/// # Errors
/// A sentence that names the option or the operand.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Line, Error> {
    let mut line = Line::default();
    let mut operands = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        let is_start = line.command.is_some_and(|command| command.operands == Operands::ProcessOrCommand);
        // What follows `--` of `start` is a command. lexopt would skip the `--`.
        if is_start
            && let Some(mut rest) = parser.try_raw_args()
            && rest.peek().is_some_and(|arg| arg == "--")
        {
            rest.next();
            line.words = rest.map(text).collect::<Result<_, _>>()?;
            if line.words.is_empty() {
                return Err(Error::Usage("start: the command after -- is missing"));
            }
            break;
        }
        let Some(arg) = parser.next().map_err(|error| Error::usage(format_args!("{error}")))? else { break };
        let value = match arg {
            Arg::Value(value) => text(value)?,
            Arg::Long(_) | Arg::Short(_) => {
                let (option, shown) = find_option(line.command, &arg)?;
                let value = match option.kind {
                    Kind::Flag => "",
                    _ => text(parser.value().map_err(|_| missing(&shown, option))?)?,
                };
                check(&shown, option, value)?;
                line.options.push((option.name, value));
                continue;
            }
        };
        match line.command {
            None => line.command = Some(find_command(value)?),
            Some(command) if command.operands == Operands::Command => {
                line.words.push(value);
                let rest = parser.raw_args().map_err(|error| Error::usage(format_args!("{error}")))?;
                for word in rest {
                    line.words.push(text(word)?);
                }
                break;
            }
            Some(_) => operands.push(value),
        }
    }
    if !line.has("help") && !line.has("version") {
        place_operands(&mut line, operands)?;
    }
    Ok(line)
}

fn text(word: OsString) -> Result<&'static str, Error> {
    word.into_string().map(|text| &*text.leak()).map_err(|word| Error::usage(format_args!("{word:?} is not UTF-8")))
}

fn missing(shown: &str, option: &Opt) -> Error {
    Error::usage(format_args!("{shown}: its value {} is missing", option.value))
}

/// The command with this name.
pub(crate) fn find_command(name: &str) -> Result<&'static Command, Error> {
    let found = COMMANDS.iter().find(|command| command.name == name);
    found.ok_or_else(|| Error::usage(format_args!("there is no command {name:?}")))
}

/// The option that was given, and how it was written.
fn find_option(command: Option<&'static Command>, arg: &Arg<'_>) -> Result<(&'static Opt, String), Error> {
    let own = command.map_or(&[][..], |command| command.options);
    let mut all = own.iter().chain(GLOBAL);
    let (found, shown) = match arg {
        Arg::Long(name) => (all.find(|option| option.name == *name), format!("--{name}")),
        Arg::Short(letter) => (all.find(|option| option.letter == Some(*letter)), format!("-{letter}")),
        Arg::Value(_) => (None, String::new()),
    };
    match (found, command) {
        (Some(option), _) => Ok((option, shown)),
        (None, Some(command)) => Err(Error::usage(format_args!("{}: there is no option {shown}", command.name))),
        (None, None) => Err(Error::usage(format_args!("there is no option {shown} before the command"))),
    }
}

/// Checks the value of an option.
fn check(shown: &str, option: &Opt, value: &str) -> Result<(), Error> {
    let rule = match option.kind {
        Kind::Flag => return Ok(()),
        Kind::Text | Kind::File | Kind::Directory if !value.is_empty() => return Ok(()),
        Kind::Text | Kind::File | Kind::Directory => {
            return Err(Error::usage(format_args!("{shown} must not be empty")));
        }
        Kind::Number if !value.starts_with('+') && value.parse::<u32>().is_ok() => return Ok(()),
        Kind::Number => "a whole number",
        Kind::Seconds if value.parse::<f64>().is_ok_and(|secs| secs > 0.0 && secs <= 1e9) => return Ok(()),
        Kind::Seconds => "a number of seconds above 0",
        Kind::Grace if value.parse::<f64>().is_ok_and(|secs| (0.0..=1e9).contains(&secs)) => return Ok(()),
        Kind::Grace => "a number of seconds",
        Kind::Variable if value.find('=').is_some_and(|at| at > 0) => return Ok(()),
        Kind::Variable => "of the form KEY=VALUE",
        Kind::Limit => {
            return limit::field(value)
                .map(drop)
                .map_err(|rule| Error::usage(format_args!("{shown} {rule}, not {value:?}")));
        }
        Kind::OneOf(words) if words.contains(&value) => return Ok(()),
        Kind::OneOf(words) => &words.join(" or "),
    };
    Err(Error::usage(format_args!("{shown} must be {rule}, not {value:?}")))
}

/// Assigns the operands, and checks that none is missing or too many.
fn place_operands(line: &mut Line, operands: Vec<&'static str>) -> Result<(), Error> {
    let Some(command) = line.command else { return Err(Error::Usage("the command is missing")) };
    let fail = |what: fmt::Arguments<'_>| Err(Error::usage(format_args!("{}: {what}", command.name)));
    let mut rest = operands.into_iter();
    match command.operands {
        Operands::None => {}
        Operands::Command if line.words.is_empty() => return fail(format_args!("the command to run is missing")),
        Operands::Command => {}
        Operands::ProcessOrCommand if !line.words.is_empty() => {}
        Operands::Process | Operands::ProcessOrCommand | Operands::ProcessAndSignal => match rest.next() {
            Some(process) if !process.is_empty() => line.process = process,
            _ if command.operands == Operands::ProcessOrCommand => {
                return fail(format_args!("the process is missing: a PID or a name; or, after --, a command"));
            }
            _ => return fail(format_args!("the process is missing: a PID or a name")),
        },
    }
    if command.operands == Operands::ProcessOrCommand
        && line.words.is_empty()
        && let Some((name, _)) = line.options.iter().find(|(name, _)| command.options.iter().any(|o| o.name == *name))
    {
        return fail(format_args!("--{name} is only for a new process: give its command after --"));
    }
    if command.operands == Operands::ProcessAndSignal {
        let Some(signal) = rest.next() else { return fail(format_args!("the signal is missing: a name or a number")) };
        match signal_number(signal) {
            Some(number) => line.signal = number,
            None => {
                return fail(format_args!("{signal:?} is not a signal: a name such as TERM, or a number from 1 to 64"));
            }
        }
    }
    match rest.next() {
        Some(extra) => fail(format_args!("unexpected operand {extra:?}")),
        None => Ok(()),
    }
}

/// The number of a signal: `15`, `TERM`, `sigterm` or `RTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.strip_prefix("RTMIN") {
        Some("") => Some(RTMIN),
        Some(plus) => {
            plus.strip_prefix('+').and_then(|text| text.parse::<u8>().ok()).map(|more| RTMIN + i32::from(more))
        }
        None => match SIGNALS.iter().zip(1..).find(|(known, _)| **known == name) {
            Some((_, number)) => Some(number),
            None => text.parse().ok(),
        },
    };
    number.filter(|number| (1..=64).contains(number))
}

#[cfg(test)]
mod tests {
    use super::super::table::Action;
    use super::*;

    fn line(words: &[&str]) -> Line {
        parse(words.iter().map(OsString::from).collect()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    #[test]
    fn options_are_accepted_before_and_after_the_command_and_the_last_one_counts() {
        let line = line(&["--json", "logs", "-fn", "5", "web", "--url=http://[::1]:1", "-n7"]);
        assert_eq!(line.command.unwrap().action, Action::Logs);
        assert!(line.has("json") && line.has("follow") && !line.has("stream"));
        assert_eq!((line.value("lines"), line.value("url")), (Some("7"), Some("http://[::1]:1")));
        assert_eq!(line.process, "web");
    }

    #[test]
    fn everything_from_the_first_operand_of_run_on_is_the_command() {
        for words in [
            &["run", "-e", "A=1", "--env", "B=", "ls", "--json", "--", "-x"][..],
            &["run", "-eA=1", "--env=B=", "--", "ls", "--json", "--", "-x"],
        ] {
            let line = line(words);
            assert_eq!(line.words, ["ls", "--json", "--", "-x"]);
            assert_eq!(line.values("env").collect::<Vec<_>>(), ["A=1", "B="]);
            assert!(!line.has("json"));
        }
    }

    #[test]
    fn start_takes_a_process_or_a_command_after_two_dashes() {
        assert_eq!(line(&["start", "web"]).process, "web");
        let line = line(&["start", "--name", "web", "--", "sleep", "-5"]);
        assert_eq!((line.process, line.value("name")), ("", Some("web")));
        assert_eq!(line.words, ["sleep", "-5"]);
    }

    #[test]
    fn signals_are_names_or_numbers() {
        for (text, number) in [("15", 15), ("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("RTMIN+3", 37), ("SYS", 31)] {
            assert_eq!(line(&["signal", "1", text]).signal, number, "{text}");
        }
        for text in ["0", "65", "-1", "NOPE", "RTMIN+40", "RTMIN+2147483647", "RTMIN+-1", "RTMIN-1", "SIG", ""] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }

    #[test]
    fn an_error_names_the_option_or_the_operand() {
        for (words, part) in [
            (&[][..], "the command is missing"),
            (&["fly"], "there is no command \"fly\""),
            (&["ps", "--nope"], "ps: there is no option --nope"),
            (&["--follow", "logs", "x"], "there is no option --follow before the command"),
            (&["ps", "-x"], "-x"),
            (&["ps", "stray"], "ps: unexpected operand \"stray\""),
            (&["ps", "--json=1"], "--json"),
            (&["logs"], "logs: the process is missing"),
            (&["logs", ""], "logs: the process is missing"),
            (&["logs", "a", "b"], "logs: unexpected operand \"b\""),
            (&["logs", "-n", "x", "a"], "-n must be a whole number, not \"x\""),
            (&["logs", "--lines", "-1", "a"], "--lines must be a whole number, not \"-1\""),
            (&["logs", "--lines"], "--lines: its value N is missing"),
            (&["logs", "--stream", "x", "a"], "--stream must be stdout or stderr, not \"x\""),
            (&["run"], "run: the command to run is missing"),
            (&["run", "--"], "run: the command to run is missing"),
            (&["run", "--timeout", "0", "x"], "--timeout must be a number of seconds above 0, not \"0\""),
            (&["run", "--timeout", "nan", "x"], "--timeout"),
            (&["run", "--env", "=x", "x"], "--env must be of the form KEY=VALUE, not \"=x\""),
            (
                &["run", "--limit", "memory", "x"],
                "--limit must be of the form NAME=VALUE, where NAME is memory, memory-high",
            ),
            (&["run", "--limit", "disk=1", "x"], "--limit must be of the form NAME=VALUE"),
            (
                &["run", "--limit", "memory=1T", "x"],
                "--limit must have a number of bytes above 0, optionally with K, M or G",
            ),
            (&["run", "--limit", "cpus=0", "x"], "--limit must have a number above 0, not \"cpus=0\""),
            (&["run", "--limit", "processes=1.5", "x"], "--limit must have a whole number above 0"),
            (&["run", "--user", "", "x"], "--user must not be empty; see"),
            (&["start"], "start: the process is missing"),
            (&["start", "--"], "start: the command after -- is missing"),
            (&["start", "web", "--", "ls"], "start: unexpected operand \"web\""),
            (&["start", "--name", "x", "web"], "start: --name is only for a new process"),
            (&["signal", "x"], "signal: the signal is missing"),
            (&["signal", "x", "y"], "signal: \"y\" is not a signal"),
            (&["--url", "", "ps"], "--url"),
        ] {
            let error = parse(words.iter().map(OsString::from).collect()).unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_status() == 2, "{words:?}: {error}");
        }
    }

    #[test]
    fn help_and_version_need_no_command_and_no_operand() {
        assert!(line(&["--help"]).has("help") && line(&["-V"]).has("version") && line(&["logs", "-h"]).has("help"));
    }
}
