//! The command line, and starting and stopping everything.
//!
//! | file | what |
//! |---|---|
//! | `options`, `args`, `config` | the table of options; reading them; their values, checked |
//! | `paths` | the state directory and the static tl-init, where no option names them |
//! | `key` | the API key |
//! | `address` | the file by which `stop` finds the tl-host that runs |
//! | `logger` | the log |
//! | `outcome` | how the program ends, and what it prints |
//! | `setup` | what options mean for the engine and the sandboxes |
//! | `serve` | the order of start and stop |
//! | `welcome` | what is printed at the start: the environment to paste, and lines to try |
//! | `doctor`, `import`, `stop` | the subcommands |

mod address;
mod args;
mod config;
mod doctor;
mod import;
mod key;
mod logger;
mod options;
mod outcome;
mod paths;
mod serve;
mod setup;
mod stop;
mod welcome;

use std::process::ExitCode;

use args::{Invocation, RawConfig};
use config::Config;
use outcome::{Failure, fail, print};

pub(crate) fn main() -> ExitCode {
    let args = std::env::args_os().skip(1);
    let (command, raw) = match args::parse(args, std::env::vars_os()) {
        Ok(Invocation::Run(command, raw)) => (command, raw),
        Ok(Invocation::Help(text)) => return print(&text),
        Ok(Invocation::Version) => return print(&format!("tl-host {}\n", env!("CARGO_PKG_VERSION"))),
        Err(error) => return fail(&Failure::Usage(error)),
    };
    match run(command, &raw) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn run(command: Option<&str>, raw: &RawConfig) -> Result<(), Failure> {
    let config = Config::resolve(raw).map_err(Failure::Usage)?;
    logger::start(config.log_level, config.log_format);
    for name in &raw.unknown {
        log::warn!("there is no option {name}");
    }
    match command {
        Some("import") => import::import(&config, &raw.operands),
        Some("stop") => stop::stop(&config),
        Some("doctor") => doctor::doctor(&config),
        _ => serve::serve(config),
    }
}
