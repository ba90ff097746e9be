//! `tl-init`: the supervisor and its API as one program, PID 1 of a sandbox.

mod args;
mod files;
mod logger;
mod run;

use std::process::ExitCode;

use args::Asked;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

fn main() -> ExitCode {
    // Whatever started us may have had signals blocked, and that is inherited. It cannot fail for these arguments.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    match args::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Asked::Help(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Version) => {
            println!("tl-init {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(config)) => match run::run(*config) {
            Ok(code) => ExitCode::from(code),
            Err(error) => fail(&error),
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("tl-init: {error}");
    ExitCode::FAILURE
}
