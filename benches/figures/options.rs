//! The command line of the benchmarks.

use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints.
const HELP: &str = "Benchmarks of tl-init, each figure beside a floor that is measured in the same rounds.

  cargo bench --package tl-init --bench figures -- [OPTION...] [WORD]
  make bench ARGS=\"[OPTION...] [WORD]\"

Measures the group WORD, or else all groups whose name contains WORD; without WORD all groups.

  --quick           tiny numbers, to see that the benchmarks work; the figures mean nothing
  --rounds N        rounds of each figure (default: 5); the daemon and its floor take turns in each round
  --idle-secs N     how long the idle daemon is watched for wake-ups (default: 10)
  --json FILE       writes all figures, and what they were measured on
  --markdown FILE   writes the figures as tables; into a document that has the marks for them, between these
  --svg FILE        plots the time of a run beside its floor (group `run`)
  --list            prints the names of the groups

FILE is relative to the repository. The environment variable TL_TEST_PROGRAM=FILE measures that program instead of the one that cargo has built, and TL_TEST_HOST=FILE that tl-host; without it, tl-host is not measured.";

/// The command line, parsed.
pub struct Options {
    pub quick: bool,
    pub rounds: usize,
    pub idle: Duration,
    pub json: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    pub list: bool,
    /// The groups to measure: those whose name contains this.
    pub word: String,
}

impl Options {
    /// Parses the command line; prints what is wrong, or the help, and ends the program.
    pub fn from_command_line() -> Options {
        if std::env::args().any(|arg| arg == "--help") {
            println!("{HELP}");
            std::process::exit(0);
        }
        Options::parse(std::env::args().skip(1)).unwrap_or_else(|message| {
            eprintln!("{message}");
            std::process::exit(2);
        })
    }

    /// The files that are written.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.json, &self.markdown, &self.svg].into_iter().flatten()
    }

    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let (mut quick, mut rounds, mut idle, mut list) = (false, None, None, false);
        let (mut json, mut markdown, mut svg, mut word) = (None, None, None, None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            let number = |text: String| text.parse::<usize>().map_err(|error| format!("{text:?}: {error}"));
            match &*arg {
                // `cargo bench` adds it.
                "--bench" => {}
                "--quick" => quick = true,
                "--list" => list = true,
                "--rounds" => rounds = Some(number(value()?)?.max(1)),
                "--idle-secs" => idle = Some(number(value()?)?),
                "--json" => json = Some(PathBuf::from(value()?)),
                "--markdown" => markdown = Some(PathBuf::from(value()?)),
                "--svg" => svg = Some(PathBuf::from(value()?)),
                option if option.starts_with('-') => return Err(format!("unknown option {option}\n\n{HELP}")),
                _ => word = Some(arg),
            }
        }
        let idle = idle.unwrap_or(if quick { 1 } else { 10 });
        Ok(Options {
            quick,
            rounds: rounds.unwrap_or(if quick { 2 } else { 5 }),
            idle: Duration::from_secs(idle as u64),
            json,
            markdown,
            svg,
            list,
            word: word.unwrap_or_default(),
        })
    }
}
